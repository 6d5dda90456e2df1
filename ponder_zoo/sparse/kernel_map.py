"""Which input row each kernel offset reads for each output row, for the three kinds of sparse convolution."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from .neighbours import neighbour_table
from .voxels import REACH, Voxels, coarsen

KERNEL_SIZES = tuple(2 * reach + 1 for reach in range(1, REACH + 1))  # of submanifold convolutions

Search = Callable[[Voxels, int], Tensor]  # voxels and reach -> (K, N) int32 table


@dataclass(eq=False)
class KernelMap:
    """Neighbour table of one convolution: offset k of output row j reads input row `table[k, j]`; -1 means no voxel.

    Offsets are row-major over (kx, ky, kz), z fastest, the order of a weight (out, kx, ky, kz, in). No input row
    occurs twice in a row of the table, so the transposed convolution (the gradient's) has a table of the same pairs.
    """

    table: Tensor  # (K, N_out) int32
    num_in: int
    transpose: KernelMap | None = None  # None: it is this map with its offsets in reverse order (submanifold)
    cache: dict[str, object] = field(default_factory=dict, repr=False)  # what a backend derives from the table

    @property
    def kernel_volume(self) -> int:
        return self.table.shape[0]

    @property
    def num_out(self) -> int:
        return self.table.shape[1]

    @property
    def num_pairs(self) -> int:
        """Pairs of rows in the table; counted once, on the host."""
        if "num_pairs" not in self.cache:
            self.cache["num_pairs"] = int((self.table >= 0).sum())
        return cast(int, self.cache["num_pairs"])

    @property
    def reads_itself(self) -> bool:
        """Whether the middle offset of output row j reads input row j, for all rows."""
        return self.transpose is None

    def transposed(self) -> tuple[KernelMap, range]:
        """The map of the transposed convolution, and the offset of this map that each of its offsets is."""
        offsets = range(self.kernel_volume)
        return (self, offsets[::-1]) if self.transpose is None else (self.transpose, offsets)


def submanifold_map(voxels: Voxels, kernel_size: int, *, search: Search | None = None) -> KernelMap:
    """Map of a submanifold convolution (output voxels = input voxels) of size 3 or 5; built once per resolution.

    A network with both sizes at one resolution should ask for 5 first: the 27 rows of size 3 are taken from its 125.
    A backend may have a `search` of its own for what is not built yet.
    """
    if kernel_size not in KERNEL_SIZES:
        raise ValueError(
            f"Submanifold convolutions have kernel_size in {KERNEL_SIZES}, got {kernel_size}. "
            "Use torch.nn.Linear on the features for size 1, and DownConv3d for size 2."
        )
    return voxels.cached(
        ("submanifold", kernel_size), lambda: KernelMap(_neighbours(voxels, kernel_size, search), len(voxels))
    )


def _neighbours(voxels: Voxels, kernel_size: int, search: Search | None) -> Tensor:
    larger = voxels.cache.get(("submanifold", 5))
    if kernel_size == 3 and isinstance(larger, KernelMap):
        inner = torch.arange(125, device=voxels.device).view(5, 5, 5)[1:4, 1:4, 1:4].flatten()
        return larger.table.index_select(0, inner)
    return (search or neighbour_table)(voxels, kernel_size // 2)


@dataclass(frozen=True, eq=False)
class Coarsening:
    """The step from voxels to voxels of twice the size: the maps of the strided convolution and of its inverse."""

    fine: Voxels
    coarse: Voxels
    parent: Tensor  # (N_fine,) int64, row of the coarse voxel that contains each voxel
    down: KernelMap  # (8, N_coarse)
    up: KernelMap  # (8, N_fine), the transpose of `down`


def coarsening(voxels: Voxels) -> Coarsening:
    """Voxels of twice the size and the maps of kernel size 2, stride 2; built once per resolution."""
    return voxels.cached("coarsening", lambda: _coarsening(voxels))


def _coarsening(fine: Voxels) -> Coarsening:
    coarse, parent = coarsen(fine)
    x, y, z = (fine.grid_coord & 1).long().unbind(-1)  # the low bit is the remainder for negative numbers too
    offset = (x * 2 + y) * 2 + z  # (N_fine,)
    rows = torch.arange(len(fine), device=fine.device)
    children = torch.full((8 * len(coarse),), -1, dtype=torch.int32, device=fine.device)
    children.index_copy_(0, offset * len(coarse) + parent, rows.int())
    parents = torch.full((8 * len(fine),), -1, dtype=torch.int32, device=fine.device)
    parents.index_copy_(0, offset * len(fine) + rows, parent.int())
    down = KernelMap(children.view(8, -1), num_in=len(fine))
    up = KernelMap(parents.view(8, -1), num_in=len(coarse), transpose=down)
    down.transpose = up
    return Coarsening(fine, coarse, parent, down, up)
