"""Point clouds to `.ply` files that every viewer opens."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from ..files import write_atomic


def write_ply(
    path: str | os.PathLike[str], coord: ArrayLike, *, color: ArrayLike | None = None, normal: ArrayLike | None = None
) -> Path:
    """Write points as binary little-endian PLY: x y z as float32, then normals, then red green blue.

    Args:
        path: the file; its folder is made if needed.
        coord: (N, 3) metres.
        color: (N, 3): integers, or floats above one, in 0-255; floats in [0, 1] (such as PCA colours) are scaled.
        normal: (N, 3) unit.

    Raises:
        ValueError: if the shapes do not fit.
    """
    xyz = np.asarray(coord, dtype="<f4")
    given = {"color": color, "normal": normal}
    shapes = {name: np.shape(value) for name, value in given.items() if value is not None}
    if xyz.ndim != 2 or xyz.shape[1] != 3 or any(shape != xyz.shape for shape in shapes.values()):
        raise ValueError(
            f"A cloud is coord (N, 3) with color and normal of the same shape; got coord {xyz.shape} and {shapes}. "
            "Pass the colours of exactly these points."
        )
    fields = [(axis, "<f4") for axis in "xyz"]
    fields += [(f"n{axis}", "<f4") for axis in "xyz"] if normal is not None else []
    fields += [(name, "u1") for name in ("red", "green", "blue")] if color is not None else []
    rows = np.empty(len(xyz), dtype=fields)
    for column, axis in enumerate("xyz"):
        rows[axis] = xyz[:, column]
        if normal is not None:
            rows[f"n{axis}"] = np.asarray(normal)[:, column]
    if color is not None:
        for column, name in enumerate(("red", "green", "blue")):
            rows[name] = _bytes(np.asarray(color))[:, column]
    types = {"<f4": "float", "u1": "uchar"}
    header = ["ply", "format binary_little_endian 1.0", "comment written by ponder_zoo", f"element vertex {len(xyz)}"]
    header += [f"property {types[kind]} {name}" for name, kind in fields] + ["end_header", ""]
    return write_atomic(path, "\n".join(header).encode("ascii") + rows.tobytes())


def _bytes(color: np.ndarray) -> np.ndarray:
    scale = 255.0 if np.issubdtype(color.dtype, np.floating) and color.size and np.nanmax(color) <= 1.0 else 1.0
    return np.round(np.nan_to_num(color.astype(np.float64)) * scale).clip(0, 255).astype(np.uint8)
