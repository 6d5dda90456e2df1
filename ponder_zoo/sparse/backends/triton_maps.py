"""Neighbour tables on a GPU in one launch, where `neighbours.neighbour_table` takes some thirty small ones."""

# pyright does not know how triton compiles: that launches take constants, and that a loaded value is a tensor.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false

from __future__ import annotations

import torch
import triton
from torch import Tensor

from .. import kernel_map
from ..kernel_map import KernelMap
from ..voxels import Voxels
from .triton_kernels import search_kernel
from .triton_plan import is_wide

SEARCHED_ON = ("cuda",)  # kinds of device; in the interpreter, on a CPU, the host's search is faster
_ROWS = 128  # voxels per program


def submanifold_map(voxels: Voxels, kernel_size: int) -> KernelMap:
    """`kernel_map.submanifold_map`, whose table a kernel fills where that spares the host the waiting."""
    search = search_neighbours if voxels.device.type in SEARCHED_ON else None
    return kernel_map.submanifold_map(voxels, kernel_size, search=search)


def search_neighbours(voxels: Voxels, reach: int) -> Tensor:
    """(K, N) int32 table of a submanifold convolution, equal to that of `kernel_map.submanifold_map`.

    The steps to coarser voxels still synchronise once each: the number of coarse voxels is a size of tensors.
    """
    key, size = voxels.key.contiguous(), 2 * reach + 1
    table = torch.empty(size**3, len(key), dtype=torch.int32, device=key.device)
    if len(key) == 0:
        return table
    grid = (triton.cdiv(len(key), _ROWS), size**2)
    _, size_y, size_z = voxels.layout.size
    with torch.cuda.device_of(key):
        search_kernel[grid](
            key, table, len(key), len(key).bit_length(), size_y, size_z,
            REACH=reach, WIDE=is_wide(table.numel()), BLOCK=_ROWS,
        )  # fmt: skip
    return table
