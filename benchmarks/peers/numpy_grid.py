"""Grid sampling as the official code does it: a hash of each cell, an argsort, unique with counts, a random pick.

Written from a description, not from that code: Fowler, Noll and Vo's hash over whole coordinates instead of bytes. Two
cells can share a hash (never seen at these sizes); a packed key cannot merge cells.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FNV_OFFSET = np.uint64(14695981039346656037)
FNV_PRIME = np.uint64(1099511628211)


def fnv_hash(cell: NDArray[np.integer]) -> NDArray[np.uint64]:
    """Hash of each cell: (N, 3) from zero -> (N,). Multiply by the prime, then xor, axis by axis."""
    key = np.full(len(cell), FNV_OFFSET, dtype=np.uint64)
    for axis in cell.astype(np.uint64).T:
        key *= FNV_PRIME
        key ^= axis
    return key


def cells_of(coord: NDArray[np.floating], grid_size: float) -> NDArray[np.int64]:
    """Cell of each point, counted from the lowest one: (N, 3) metres -> (N, 3)."""
    cell = np.floor(coord / np.array(grid_size)).astype(np.int64)
    return cell - cell.min(0)


def sorted_cells(
    coord: NDArray[np.floating], grid_size: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Cell of each point (N, 3), points by their hash (N,), and inverse (N,) and count (K,) of the hashes."""
    cell = cells_of(coord, grid_size)
    key = fnv_hash(cell)
    order = np.argsort(key)
    _, inverse, count = np.unique(key[order], return_inverse=True, return_counts=True)
    return cell, order, inverse, count


def grid_sample(
    coord: NDArray[np.floating], grid_size: float, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """One random point per cell: rows (K,) and their cells (K, 3).

    A number below the largest count, modulo a cell's own count, is the official draw; it is not quite uniform.
    """
    cell, order, _, count = sorted_cells(coord, grid_size)
    start = np.cumsum(np.insert(count, 0, 0)[:-1])
    rows = order[start + rng.integers(0, count.max(), count.size) % count]
    return rows, cell[rows]


def grid_fragments(coord: NDArray[np.floating], grid_size: float) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Subsets with one point per cell that together hold all points: rows (K,) and cells (K, 3) of each."""
    cell, order, _, count = sorted_cells(coord, grid_size)
    start = np.cumsum(np.insert(count, 0, 0)[:-1])
    fragments = []
    for number in range(count.max()):
        rows = order[start + number % count]
        fragments.append((rows, cell[rows]))
    return fragments
