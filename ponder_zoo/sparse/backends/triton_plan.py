"""What the Triton kernels read beside a neighbour table: rows in a good order, offsets per block, pairs per offset.

Everything is computed once per map, without a synchronisation with the host, and kept in `KernelMap.cache`.
"""

# pyright does not know how triton compiles: that launches take constants, and that a loaded value is a tensor.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import cast

import torch
import triton
from torch import Tensor

from ..kernel_map import KernelMap
from . import triton_kernels as kernels

INT32_LIMIT = 2**31
KEY_BITS = 31  # of the sort key, a non-negative int32
_ROWS = 256  # per program of the kernels here


def is_wide(*sizes: int) -> bool:
    """Whether positions in arrays of these sizes need 64 bits."""
    return max(sizes) >= INT32_LIMIT


@dataclass(frozen=True, eq=False)
class SortedTable:
    """A neighbour table with its columns sorted so that rows with the same offsets are together."""

    table: Tensor  # (K, N_out) int32
    order: Tensor  # (N_out,) int32, the output row of each column


@dataclass(frozen=True, eq=False)
class RowBlocks:
    """The kernel offsets that occur in each block of rows of a sorted table."""

    sorted: SortedTable
    offsets: Tensor  # (blocks, K) int32, ascending, of which the first `counts` are valid
    counts: Tensor  # (blocks,) int32


@dataclass(frozen=True, eq=False)
class Pairs:
    """The output rows that have each offset, ascending; their input rows are in the table."""

    rows: Tensor  # (K, N_out) int32, of which the first `counts` are valid
    counts: Tensor  # (K,) int32


def sorted_table(kmap: KernelMap) -> SortedTable:
    if "triton_sorted" not in kmap.cache:
        kmap.cache["triton_sorted"] = _sort(kmap.table)
    return cast(SortedTable, kmap.cache["triton_sorted"])


def row_blocks(kmap: KernelMap, rows: int) -> RowBlocks:
    """Blocks of `rows` rows of the sorted table."""
    name = f"triton_blocks{rows}"
    if name not in kmap.cache:
        kmap.cache[name] = _list_offsets(sorted_table(kmap), rows)
    return cast(RowBlocks, kmap.cache[name])


def pairs(kmap: KernelMap) -> Pairs:
    if "triton_pairs" not in kmap.cache:
        kmap.cache["triton_pairs"] = _list_pairs(kmap.table)
    return cast(Pairs, kmap.cache["triton_pairs"])


def _sort(table: Tensor) -> SortedTable:
    """Sort rows by the Gray code of the set of offsets that they have, the farthest offsets first.

    A block of rows works through every offset that any of its rows has. Counted 2026-11 for blocks of 64 rows, 3x3x3
    at the finest resolution, products per pair of a thin scene (1.8 neighbours) and of a dense one (12.6): unsorted
    12.6 and 2.1; sorted by the plain bits 2.2 and 1.53; in Gray code with the rarest, farthest offsets as the highest
    bits 2.06 and 1.43. For 5x5x5 the 31 farthest offsets alone take 22.6 and 3.0 down to 18.2 and 2.4.
    """
    table = table.contiguous()
    volume, num_out = table.shape
    keys = table.new_empty(num_out)
    grid = (triton.cdiv(num_out, _ROWS),)
    kernels.sort_keys_kernel[grid](table, _key_bits(volume, table.device), keys, num_out, VOLUME=volume, BLOCK=_ROWS)
    order = keys.sort(stable=True).indices  # stable: rows with the same offsets stay near each other in space
    return SortedTable(table.index_select(1, order), order.int())


@cache
def _key_bits(volume: int, device: torch.device) -> Tensor:
    """Bit of each offset in the sort key, -1 for those that do not fit: (K,) int32."""
    size = round(volume ** (1 / 3))
    middle = (size - 1) / 2
    places = [(k // size**2 - middle, k // size % size - middle, k % size - middle) for k in range(volume)]
    near_first = sorted(range(volume), key=lambda k: sum(x * x for x in places[k]))
    bits = [-1] * volume
    for bit, offset in enumerate(near_first[-KEY_BITS:]):
        bits[offset] = bit
    with torch.inference_mode(False):
        return torch.tensor(bits, dtype=torch.int32, device=device)


def _list_offsets(rows_of: SortedTable, rows: int) -> RowBlocks:
    volume, num_out = rows_of.table.shape
    blocks = triton.cdiv(num_out, rows)
    offsets = rows_of.table.new_empty(blocks, volume)
    counts = rows_of.table.new_empty(blocks)
    kernels.list_offsets_kernel[(blocks,)](
        rows_of.table, offsets, counts, num_out,
        VOLUME=volume, WIDE=is_wide(volume * num_out), ROWS=rows, GROUP=8 if volume <= 8 else 32,
    )  # fmt: skip
    return RowBlocks(rows_of, offsets, counts)


def _list_pairs(table: Tensor) -> Pairs:
    table = table.contiguous()
    volume, num_out = table.shape
    rank = (table >= 0).cumsum(1, dtype=torch.int32)
    rows = torch.empty_like(table)
    grid = (triton.cdiv(num_out, _ROWS), volume)
    kernels.list_pairs_kernel[grid](table, rank, rows, num_out, WIDE=is_wide(table.numel()), BLOCK=_ROWS)
    return Pairs(rows, rank[:, -1].contiguous())
