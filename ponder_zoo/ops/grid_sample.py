"""Voxelization: which grid cell each point lies in, and one point per occupied cell (paper Eq. 1).

Cells are found by sorting one packed integer key per point. A packed key cannot merge two cells, as a hash can; the
sort is stable, so the rows of a cell keep the order of the input on every device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ponder_zoo.structures import TensorStruct

# Points whose cells are computed at a time, so that float64 intermediates stay in the cache: 1 M points take 4.4 ms,
# 9 by whole columns, 28 as one (N, 3) array (2 CPU cores, 2026-11). tests/ops/test_grid_sample.py compares the sizes.
_CHUNK = 2**16


@dataclass(frozen=True, eq=False)
class GridCells(TensorStruct):
    """The K occupied cells of N points, cells in the order of (scene, x, y, z)."""

    grid_coord: Tensor  # (K, 3) int32, cell index counted from the lowest occupied cell of its scene
    batch: Tensor  # (K,) int64, scene of each cell
    order: Tensor  # (N,) int64, points sorted by cell
    start: Tensor  # (K,) int64, first entry of each cell in `order`
    count: Tensor  # (K,) int64, points in each cell

    def __len__(self) -> int:
        return len(self.start)

    @cached_property
    def inverse(self) -> Tensor:
        """(N,) int64, cell of each point. Computed when first read: a quarter of the whole, and training drops it."""
        cell = torch.repeat_interleave(self.count, output_size=len(self.order))
        return torch.empty_like(self.order).scatter_(0, self.order, cell)

    def pick(self, number: Tensor) -> Tensor:
        """Row of the point that is `number` (..., K) in its cell, from 0 to below the cell's count: (..., K) int64."""
        return self.order[self.start + number]


def grid_cells(coord: Tensor, grid_size: float, *, batch: Tensor | None = None) -> GridCells:
    """Sort points into cubic cells.

    Synchronizes with the device (the number of cells is not known in advance), so it belongs in a data loader or where
    kernel maps are built, not in the body of a forward pass. Not differentiable.

    Args:
        coord: (N, 3) metres, N > 0.
        grid_size: edge of a cell in metres.
        batch: (N,) int64 scene of each point; cells of different scenes are different cells. None: one scene.

    Raises:
        ValueError: if there are no points, coordinates are not finite, or the grid has more than 2**62 cells (which
            happens when one stray point lies very far away).
    """
    low, size = _extent(coord, grid_size, batch)
    key = _packed_keys(coord, grid_size, batch, low, size)  # (N,)
    sorted_key, order = torch.sort(key, stable=True)
    is_first = torch.ones(len(key), dtype=torch.bool, device=key.device)
    torch.ne(sorted_key[1:], sorted_key[:-1], out=is_first[1:])
    start = _true_rows(is_first)
    count = torch.diff(start, append=start.new_tensor([len(key)]))
    return GridCells(*_unpack(sorted_key[start], size), order, start, count)


def grid_index(coord: Tensor, grid_size: float, *, batch: Tensor | None = None) -> Tensor:
    """Cell of each point, counted from the lowest occupied cell of its scene: (N, 3) metres -> (N, 3) int64.

    Cells are aligned to the origin of the coordinates: floor(coord / grid_size), then shifted.
    """
    low, _ = _extent(coord, grid_size, batch)
    return _floor_cells(coord, grid_size).sub_(low if batch is None else low[batch]).long()


def _floor_cells(coord: Tensor, grid_size: float) -> Tensor:
    """Whole numbers of grid_size below each coordinate, float64."""
    # float64: the quotient of two float32 numbers is off by whole cells a few kilometres from the origin.
    return coord.double().div(grid_size).floor_()


def _extent(coord: Tensor, grid_size: float, batch: Tensor | None) -> tuple[Tensor, list[int]]:
    """Lowest cell, (3,) or (B, 3) float64, and the number of cells along each axis that all scenes fit into."""
    if coord.ndim != 2 or coord.shape[1] != 3 or len(coord) == 0:
        raise ValueError(f"Expected coord of shape (N, 3) with N > 0; got {tuple(coord.shape)}.")
    if not grid_size > 0:
        raise ValueError(f"Expected a positive grid_size in metres; got {grid_size}.")
    # The cell of the lowest point is the lowest cell, so that only extremes are divided. They keep NaN.
    if batch is None:
        low, high = (torch.stack(ends) for ends in zip(*(axis.aminmax() for axis in coord.unbind(1)), strict=True))
    else:
        rows = batch[:, None].expand(-1, 3)
        empty = coord.new_zeros(int(batch.max()) + 1, 3)
        low = empty.scatter_reduce(0, rows, coord, reduce="amin", include_self=False)
        high = empty.scatter_reduce(0, rows, coord, reduce="amax", include_self=False)
    low = _floor_cells(low, grid_size)
    span = (_floor_cells(high, grid_size) - low).reshape(-1, 3).amax(0).tolist()  # infinity minus infinity is NaN
    if not all(map(math.isfinite, span)):
        raise ValueError("Some coordinates are NaN or infinite. Remove those points before sampling.")
    return low, [int(value) + 1 for value in span]


def _packed_keys(coord: Tensor, grid_size: float, batch: Tensor | None, low: Tensor, size: list[int]) -> Tensor:
    """One whole number per point, in the order of (scene, x, y, z): (N,) int32 where the box fits, else int64."""
    total = size[0] * size[1] * size[2] * (1 if batch is None else len(low))
    if total > 2**62:
        raise ValueError(
            f"The points span {size[0]} x {size[1]} x {size[2]} cells of {grid_size} m: too many to index. "
            "Expected coordinates in metres without stray points; crop the scene or raise grid_size."
        )
    # Radix sort time follows the width of the key: 13 ms for int32 against 29 ms for int64 (1 M points, 1 CPU thread).
    key = torch.zeros(len(coord), dtype=torch.int32 if total < 2**31 else torch.int64, device=coord.device)
    if batch is not None:
        key += batch
    chunk = _CHUNK if coord.device.type == "cpu" else len(coord)
    for first in range(0, len(coord), chunk):
        rows = slice(first, first + chunk)
        for axis in range(3):
            lowest = low[axis] if batch is None else low[batch[rows], axis]
            cell = _floor_cells(coord[rows, axis], grid_size).sub_(lowest)
            key[rows] = key[rows].mul_(size[axis]).add_(cell.to(key.dtype))
    return key


def _true_rows(flags: Tensor) -> Tensor:
    """Where (N,) flags hold, ascending: NumPy takes a fifth of torch's time on the host (0.5 of 2.3 ms for 1 M)."""
    if flags.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(flags.numpy()))
    return flags.nonzero()[:, 0]


def _unpack(key: Tensor, size: list[int]) -> tuple[Tensor, Tensor]:
    """Cell (K, 3) int32 and scene (K,) int64 of each packed key."""
    columns = []
    for edge in reversed(size):  # z, y, x
        rest = torch.div(key, edge, rounding_mode="floor")
        columns.insert(0, key - rest * edge)  # half the time of a second division
        key = rest
    return torch.stack(columns, dim=1).to(torch.int32), key.long()


def sample_random(cells: GridCells, generator: torch.Generator | None = None) -> Tensor:
    """One uniformly drawn point of every cell: (K,) int64 rows of the input."""
    # float64, so that rounding up to 1.0 * count cannot happen and large cells stay uniform
    uniform = torch.rand(len(cells), dtype=torch.float64, device=cells.start.device, generator=generator)
    return cells.pick((uniform * cells.count).long())


def sample_fragments(cells: GridCells) -> Tensor:
    """Subsets with one point per cell that together cover all points: (F, K) int64 rows, F = most points in a cell.

    Row f takes the (f modulo count)-th point of each cell, as the official test mode does; predictions on all fragments
    can then be averaged onto the original points.
    """
    fragment = torch.arange(int(cells.count.max()), device=cells.start.device)
    return cells.pick(fragment[:, None] % cells.count)
