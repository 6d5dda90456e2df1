"""The official code's frame: each scene in a cube of side one. Points, cameras and depth move together, once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .motion import move_scene
from .scene import Scene


@dataclass(frozen=True)
class UnitCube:
    """The map of one scene between metres and its unit-cube frame: cube = (metres - origin) / metres_per_unit."""

    origin: tuple[float, float, float]  # what becomes (0, 0, 0), metres
    metres_per_unit: float  # the longest side of the scene

    @property
    def bounds(self) -> NDArray[np.float32]:
        """(2, 3) the cube, in its own frame."""
        return np.array([[-0.5] * 3, [0.5] * 3], dtype=np.float32)

    def to_metres(self, coord: NDArray[Any]) -> NDArray[Any]:
        """(..., 3) in the cube's frame -> metres."""
        return coord * self.metres_per_unit + np.array(self.origin)


def fit_unit_cube(coord: NDArray[Any], *, margin: float = 1e-5) -> UnitCube:
    """The cube whose side is the longest extent of the points, centred on them in x and y, its floor at the lowest one.

    Args:
        coord: (N, 3) metres.
        margin: metres added on each side.
    """
    if len(coord) == 0 or not np.isfinite(coord).all():
        raise ValueError(
            f"fit_unit_cube expected at least one point and finite coordinates; got {len(coord)} points, "
            f"{int((~np.isfinite(coord)).sum())} values that are NaN or infinite. Clean the scene before."
        )
    lower, upper = coord.min(0).astype(np.float64), coord.max(0).astype(np.float64)
    size = float((upper - lower).max() + 2 * margin)
    x, y, _ = (lower + upper) / 2
    return UnitCube((float(x), float(y), float(lower[2]) + 0.5 * size), size)


def to_unit_cube(scene: Scene, *, margin: float = 1e-5) -> tuple[Scene, UnitCube]:
    """Move a scene into its unit cube: what the official code does in its forward pass, here once and before batching.

    Lengths (point coordinates, camera positions, depth images) are divided by the longest side of the scene. Cameras
    stay rigid: the official code multiplies its extrinsics by the scaling instead, which gives the same rays and, with
    its scaled depth, the same distances. Points are kept 1e-5 inside the cube. Do this after all other transforms:
    `grid_coord` stays as it is, in cells of metres.

    Example:
        >>> scene = Scene("room", coord=np.array([[0, 0, 0], [4, 2, 1]], dtype=np.float32))
        >>> moved, cube = to_unit_cube(scene)
        >>> moved.coord.round(2).tolist(), round(cube.metres_per_unit, 2)
        ([[-0.5, -0.25, -0.5], [0.5, 0.25, -0.25]], 4.0)
    """
    cube = fit_unit_cube(scene.coord, margin=margin)
    scale = 1.0 / cube.metres_per_unit
    moved = move_scene(scene, scale=scale, translation=-np.array(cube.origin) * scale)
    return replace(moved, coord=moved.coord.clip(-0.5 + 1e-5, 0.5 - 1e-5)), cube
