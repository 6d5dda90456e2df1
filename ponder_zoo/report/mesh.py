"""Meshes to files, through trimesh."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from ..files import write_atomic
from ..ops.marching_cubes import Mesh

FORMATS = (".ply", ".obj", ".glb")


def write_mesh(mesh: Mesh, path: str | os.PathLike[str]) -> Path:
    """Write a mesh with its normals and, if it has them, vertex colours; the ending picks the format.

    Args:
        mesh: what to write; metres. `.glb` viewers take y for up: the file is turned so that our z is up there.
        path: ends in `.ply`, `.obj` or `.glb`; its folder is made if needed.

    Raises:
        ValueError: for another ending, or a mesh without faces.
        ImportError: if trimesh is not installed.
    """
    target = Path(path)
    if target.suffix.lower() not in FORMATS:
        raise ValueError(
            f"A mesh is written as {', '.join(FORMATS)}; got the file name {target.name!r}. Use one of these endings."
        )
    if len(mesh.faces) == 0:
        raise ValueError(
            f"The mesh for {target.name} has no faces: the distances never change sign. "
            "Train longer, or check the bounds the grid was evaluated in."
        )
    try:
        import trimesh
    except ImportError as error:
        raise ImportError("Writing a mesh uses trimesh, which is not installed. Run: pip install trimesh") from error
    written = trimesh.Trimesh(
        mesh.vertices, mesh.faces, vertex_normals=mesh.normals, vertex_colors=mesh.color, process=False
    )
    if target.suffix.lower() == ".glb":  # glTF's up axis is y
        written.apply_transform(np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]]))
    file_type = target.suffix.lower().lstrip(".")
    option = "vertex_normal" if file_type == "ply" else "include_normals"  # trimesh's writers name it differently
    options: dict[str, Any] = {"file_type": file_type, option: True}
    data: Any = written.export(**options)
    return write_atomic(target, data)
