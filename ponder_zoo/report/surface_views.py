"""Pictures of surfaces from above, into the room: as clay, in their colours, and by their distance from the truth."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .colors import colorize
from .grid import Bar, Grid, Tile, save_grid
from .splat import Camera, orbit_cameras, splat_points

_CLAY = np.array([226, 219, 206])
_SIZE = (240, 300)  # H, W of a tile


@dataclass(frozen=True, eq=False)
class SurfaceSamples:
    """Points spread over a surface: densely, or the picture has holes."""

    coord: NDArray[Any]  # (N, 3) metres
    normal: NDArray[Any]  # (N, 3) unit, to the side that is seen
    error: NDArray[Any] | None = None  # (N,) metres from the truth
    color: NDArray[Any] | None = None  # (N, 3) 0-255
    caption: str = ""


@dataclass(frozen=True, eq=False)
class SurfaceRow:
    """One scene."""

    name: str
    input_coord: NDArray[Any]  # (N, 3) metres
    input_color: NDArray[Any] | None  # (N, 3) 0-255
    surfaces: Mapping[str, SurfaceSamples]  # of the methods, by name
    truth: SurfaceSamples


def write_surface_views(
    path: str | os.PathLike[str], rows: Sequence[SurfaceRow], *, max_error: float, title: str = ""
) -> Path:
    """Draw for each scene the input points, the methods' surfaces, the true one, and what colours and errors there are.

    Surfaces are drawn from their front only, so that walls and ceiling do not hide the room.

    Args:
        path: PNG file.
        rows: scenes, all with the same methods in the same order.
        max_error: metres that get the brightest colour.
        title: above the pictures.

    Raises:
        ValueError: without scenes, or if their methods differ.
    """
    tiles = [_tiles(row, max_error) for row in rows]
    headers = [list(each) for each in tiles]
    if not rows or any(each != headers[0] for each in headers):
        raise ValueError(f"Expected one or more scenes with the same pictures; got {headers}. Leave out what differs.")
    bars = [Bar("Distance from the true surface", "error", "0", f"{100 * max_error:.3g} cm")]
    return save_grid(Grid(headers[0], [list(each.values()) for each in tiles], title, bars), path)


def _tiles(row: SurfaceRow, max_error: float) -> dict[str, Tile]:
    """The pictures of a scene by their headers."""
    (camera,) = orbit_cameras(row.truth.coord, count=1, image_size=_SIZE, elevation=55.0)
    color = np.full((len(row.input_coord), 3), 200) if row.input_color is None else row.input_color
    points, _ = splat_points(row.input_coord, color, camera, point_size=0.06)
    tiles = {"Input points": _tile(points, f"{row.name}: {len(row.input_coord):,} points")}
    for name, surface in row.surfaces.items():
        tiles[_title(name)] = _tile(_draw(surface, _clay(surface, camera), camera), surface.caption)
    tiles["True surface"] = _tile(_draw(row.truth, _clay(row.truth, camera), camera))
    for name, surface in row.surfaces.items():
        if surface.color is not None:
            tiles[f"{_title(name)}, colour"] = _tile(_draw(surface, surface.color, camera))
    for name, surface in row.surfaces.items():
        if surface.error is not None:
            error = colorize(surface.error, "error", low=0.0, high=max_error)
            tiles[f"{_title(name)}, error"] = _tile(_draw(surface, error, camera))
    return tiles


def _title(name: str) -> str:
    return name[:1].upper() + name[1:]


def _tile(image: NDArray[np.uint8], caption: str = "") -> Tile:
    return Tile(image, (image.shape[1], image.shape[0]), caption)


def _draw(surface: SurfaceSamples, color: NDArray[Any], camera: Camera) -> NDArray[np.uint8]:
    front = _facing(surface, camera) > 0
    image, _ = splat_points(surface.coord[front], color[front], camera, point_size=0.12)
    return image


def _clay(surface: SurfaceSamples, camera: Camera) -> NDArray[Any]:
    """Colours (N, 3) of clay that is lit from the camera and a little from above."""
    light = 0.25 + 0.55 * _facing(surface, camera).clip(0, 1) + 0.2 * surface.normal[:, 2].clip(0, 1)
    return light[:, None] * _CLAY


def _facing(surface: SurfaceSamples, camera: Camera) -> NDArray[Any]:
    """Cosine between the normals and the direction to the camera: (N,)."""
    direction = camera.cam_to_world[:3, 3] - surface.coord
    return (surface.normal * direction).sum(-1) / np.maximum(np.linalg.norm(direction, axis=-1), 1e-9)
