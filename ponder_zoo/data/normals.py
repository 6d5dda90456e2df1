"""Normals of points that come without images."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ponder_zoo.ops.knn import knn_tree


def estimate_normals(
    coord: NDArray[Any], *, k: int = 16, viewpoint: ArrayLike, chunk: int = 20_000
) -> NDArray[np.float32]:
    """Estimate the normal of each point from a plane through its k nearest neighbours (smallest principal axis).

    Args:
        coord: (N, 3) metres.
        k: neighbours, the point itself included.
        viewpoint: (3,) or (N, 3) position that the surfaces were seen from; normals point towards it.
        chunk: points handled at a time; bounds the memory.

    Returns:
        (N, 3) float32 unit normals; zero where fewer than 3 points exist.
    """
    coord = np.asarray(coord)
    if len(coord) < 3:
        return np.zeros((len(coord), 3), dtype=np.float32)
    _, index = knn_tree(coord, coord, min(k, len(coord)))
    normal = np.empty((len(coord), 3))
    for start in range(0, len(coord), chunk):
        near = coord[index[start : start + chunk]].astype(np.float64)  # (n, k, 3)
        near -= near.mean(1, keepdims=True)
        normal[start : start + chunk] = np.linalg.eigh(near.swapaxes(1, 2) @ near).eigenvectors[:, :, 0]
    away = (normal * (np.asarray(viewpoint) - coord)).sum(1) < 0
    normal[away] *= -1
    return normal.astype(np.float32)


def room_viewpoint(coord: NDArray[Any]) -> NDArray[np.float64]:
    """A point from where a room with z up is seen: over the middle of the floor, at two thirds of its height.

    Walls, floor and ceiling then face inwards and table tops upwards, as when people scan a room.
    """
    low, high = np.percentile(coord, [1, 99], axis=0)
    return np.array([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2] + 2 / 3 * (high[2] - low[2])])
