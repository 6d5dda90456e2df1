"""Normals of points from the nearest triangle of a mesh, and the mesh files (Wavefront OBJ) of large scans."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ponder_zoo.ops.knn import knn_tree

_FINEST = 256  # pieces along a triangle's side, at most


def read_obj(file: Path) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Vertices (V, 3) and triangles (F, 3) of an OBJ file; texture and normal indices are skipped.

    Only what a mesh of hundreds of megabytes needs: absolute indices, triangles. A general reader takes ten times the
    memory.
    """
    lines = file.read_bytes().split(b"\n")
    vertices = [line[2:] for line in lines if line.startswith(b"v ")]
    faces = [line[2:] for line in lines if line.startswith(b"f ")]
    try:
        coord = np.array(b" ".join(vertices).split(), dtype=np.float64).reshape(len(vertices), -1)[:, :3]
        words = re.sub(rb"/[^ ]*", b"", b" ".join(faces)).split()
        index = np.array(words, dtype=np.int64).reshape(len(faces), 3) - 1
        if not len(index) or not 0 <= index.min() <= index.max() < len(coord):
            raise ValueError(f"{len(index)} triangles that refer to {len(coord)} vertices")
    except ValueError as error:
        raise ValueError(f"{file}: expected vertices and triangles; {error}. Copy the mesh again.") from error
    return coord, index


def nearest_normals(
    coord: NDArray[Any], vertices: NDArray[np.float64], faces: NDArray[np.int64], *, spacing: float = 0.03
) -> NDArray[np.float32]:
    """Unit normal of the triangle nearest to each point, by the winding of its corners.

    Triangles are sampled at `spacing`, so "nearest" is exact to that distance.

    Args:
        coord: (N, 3) metres.
        vertices: (V, 3) metres.
        faces: (F, 3) rows of `vertices`.
        spacing: metres between samples of a triangle.
    """
    corners = vertices[faces]  # (F, 3 corners, 3)
    low, high = coord.min(0) - 0.5, coord.max(0) + 0.5
    corners = corners[((corners.max(1) > low) & (corners.min(1) < high)).all(1)]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    length = np.linalg.norm(normal, axis=1)
    corners, normal = corners[length > 0], normal[length > 0] / length[length > 0, None]
    if not len(corners):
        raise ValueError("Expected a mesh of the same place as the points; no triangle is within 0.5 m of them.")
    samples, owner = _sample(corners, spacing)
    _, index = knn_tree(coord, samples, 1)
    return normal[owner[index[:, 0]]].astype(np.float32)


def _sample(corners: NDArray[np.float64], spacing: float) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Points on triangles (F, 3, 3) at most `spacing` apart, middles of equal pieces, and the triangle of each."""
    sides = np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2).max(1)
    pieces = np.clip(np.ceil(sides / spacing), 1, _FINEST).astype(np.int64)
    points, owner = [], []
    for n in np.unique(pieces):
        rows = np.flatnonzero(pieces == n)
        a, b = (axis.ravel() for axis in np.mgrid[:n, :n])
        a, b = a[a + b < n], b[a + b < n]
        weight = np.stack([a + 1 / 3, b + 1 / 3, n - a - b - 2 / 3], axis=1) / n  # (P, 3) barycentric
        points.append((weight @ corners[rows]).reshape(-1, 3))
        owner.append(np.repeat(rows, len(weight)))
    return np.concatenate(points), np.concatenate(owner)
