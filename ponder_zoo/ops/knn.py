"""Exact k nearest neighbours."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def knn(
    query: Tensor,
    support: Tensor,
    k: int,
    *,
    query_batch: Tensor | None = None,
    support_batch: Tensor | None = None,
    chunk: int = 2**24,
) -> tuple[Tensor, Tensor]:
    """Find the k nearest support points of each query point by comparing all pairs, on any device.

    Not differentiable. Distances are differences of coordinates, not expanded squares: exact far from the origin too.

    Args:
        query: (M, 3).
        support: (N, 3), N > 0.
        k: how many; beyond the number of candidates, distance is infinite and index -1.
        query_batch: (M,) scene of each query; neighbours come from the same scene. Give both or none.
        support_batch: (N,) scene of each support point.
        chunk: pairs held in memory at a time.

    Returns:
        Distances (M, k) ascending, and rows of `support` (M, k) int64.
    """
    if len(support) == 0 or k < 1:
        raise ValueError(f"Expected support points and k >= 1; got support {tuple(support.shape)} and k={k}.")
    if (query_batch is None) != (support_batch is None):
        raise ValueError("Pass both query_batch and support_batch, or neither.")
    found = min(k, len(support))
    rows = max(1, chunk // len(support))
    pieces = []
    for start in range(0, max(len(query), 1), rows):  # chunks bound the memory, not scenes
        part = slice(start, start + rows)
        distance = torch.cdist(query[part], support, compute_mode="donot_use_mm_for_euclid_dist")  # (rows, N)
        if query_batch is not None and support_batch is not None:
            distance = distance.masked_fill(query_batch[part, None] != support_batch, float("inf"))
        pieces.append(distance.topk(found, dim=1, largest=False, sorted=True))
    distance = torch.cat([piece.values for piece in pieces])
    index = torch.cat([piece.indices for piece in pieces]).where(distance.isfinite(), torch.tensor(-1).to(query.device))
    if found < k:
        distance = torch.nn.functional.pad(distance, (0, k - found), value=float("inf"))
        index = torch.nn.functional.pad(index, (0, k - found), value=-1)
    return distance, index


def knn_tree(
    query: NDArray[np.floating], support: NDArray[np.floating], k: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Find the k nearest support points of each query point with a k-d tree, on the host.

    Like `knn` for one scene of numpy arrays: query (M, 3), support (N, 3) -> distances and rows (M, k); fast for 1e4
    points and more.
    """
    from scipy.spatial import KDTree  # imported here: `import ponder_zoo` must not cost scipy

    if len(support) == 0 or k < 1:
        raise ValueError(f"Expected support points and k >= 1; got support {support.shape} and k={k}.")
    distance, index = (np.asarray(found).reshape(len(query), k) for found in KDTree(support).query(query, k=k))
    return distance.astype(np.float64), np.where(np.isfinite(distance), index, -1).astype(np.int64)
