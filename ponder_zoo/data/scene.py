"""One scene on the host, as readers give it and transforms change it: numpy, frozen, before batching."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Views:
    """V posed RGB-D images of a scene. Camera axes are OpenCV's (x right, y down, z forward), pixel centres integer."""

    color: Array  # (V, H, W, 3) uint8
    depth: Array  # (V, H, W) float32 z-depth in metres, 0 = none measured
    intrinsics: Array  # (V, 3, 3) float32 pixels
    cam_to_world: Array  # (V, 4, 4) float32 metres; rotation part orthonormal, a reflection after a flip
    segment: Array | None = None  # (V, H, W) int16 class index, -1 = unlabelled
    normal: Array | None = None  # (V, H, W, 3) float32 unit, world frame; zero = unknown
    instance: Array | None = None  # (V, H, W) int32, -1 = none
    feature: Array | None = None  # (V, h, w, D) float32 of an image model, each cell for its part of the image

    def __len__(self) -> int:
        return len(self.color)


class StoredViews(Protocol):
    """Views that are still in their files. Read them before the scene is moved: they stay in its own frame."""

    def __len__(self) -> int: ...

    def read(self, index: Array, /) -> Views:
        """The views of these numbers, in this order; the others are neither read nor decoded."""
        ...


@dataclass(frozen=True, eq=False)
class Scene:
    """A point cloud with what is known of each point, and the images to render of it (if any)."""

    name: str
    coord: Array  # (N, 3) float32 metres
    color: Array | None = None  # (N, 3) float32, 0-255
    normal: Array | None = None  # (N, 3) float32 unit
    intensity: Array | None = None  # (N, 1) float32 return strength of a laser scanner, in the sensor's own unit
    segment: Array | None = None  # (N,) int64 class index, -1 = ignored
    instance: Array | None = None  # (N,) int64, -1 = none
    grid_coord: Array | None = None  # (N, 3) int32, set by GridSample
    inverse: Array | None = None  # (M,) int64 row standing for each point before GridSample
    views: Views | None = None  # what to render: inputs and targets move together under every transform
    stored_views: StoredViews | None = None  # instead of `views`, until it is known which are wanted
    condition: str | None = None  # name of the data set, for models with per-data-set norms

    def __len__(self) -> int:
        return len(self.coord)
