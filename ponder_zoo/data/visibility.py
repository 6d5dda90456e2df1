"""Which points of a surface the images of a scene show."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .scene import Views


def seen_by_views(
    views: Views, coord: NDArray[Any], normal: NDArray[Any], *, tolerance: float = 0.05
) -> NDArray[np.bool_]:
    """Whether surface points face a camera, lie in its image, and its depth there is theirs: (N,) bool.

    Args:
        views: V posed images with depth; a pixel without depth shows nothing.
        coord: (N, 3) metres, in the frame of the poses.
        normal: (N, 3) out of the surface.
        tolerance: metres between a point's depth and that of its pixel; allows for the sensor, the poses and the
            rounding to pixels.
    """
    height, width = views.depth.shape[1:]
    seen = np.zeros(len(coord), dtype=bool)
    for depth, K, pose in zip(views.depth, views.intrinsics, views.cam_to_world, strict=True):
        offset = coord - pose[:3, 3]
        local = offset @ pose[:3, :3]  # world to camera: the transpose of its rotation, from the right
        z = np.where(local[:, 2] > 1e-6, local[:, 2], np.inf)
        column, row = np.round((local / z[:, None]) @ K[:2].T).astype(np.int64).T
        inside = np.isfinite(z) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
        inside &= (normal * offset).sum(1) < 0
        shown = depth[row[inside], column[inside]]
        seen[inside] |= (shown > 0) & (np.abs(shown - z[inside]) <= tolerance)
    return seen
