"""Neighbour search among sorted voxels: which voxel, if any, lies at each offset of a window around each voxel.

The neighbours of a voxel along z follow each other in the sorted keys. So for each (x, y) column of the window one
lookup tells the row of the first voxel at or above the column's lowest cell, and a bit pattern which of its cells are
occupied; the rows of the others are found by counting bits.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from .voxels import Voxels

# Lookup in two tables over the whole box, of 16 cells per word, instead of binary searches in the keys: 43 against
# 83 ms for the 5x5x5 window of 100 000 voxels, 17 against 22 ms for 40 000 spread widely, and about half of the time
# for the 3x3x3 windows of coarser voxels (2026-11, 2 CPU cores, interleaved).
WORD_BITS = 4  # the binary logarithm of cells per word
MAX_WORDS = 2**24  # larger boxes (268 million cells) are searched
CHUNK = 131_072  # lookups at a time, so that what they need stays in the caches

Find = Callable[[Tensor], tuple[Tensor, Tensor]]  # keys (M, N) -> row of the first voxel at or above, pattern of cells


def neighbour_table(voxels: Voxels, reach: int) -> Tensor:
    """Row of the voxel at each offset of the window (2 reach + 1)^3 from each voxel, -1 for none: (K, N) int32.

    Offsets are row-major, z fastest. Nothing is read on the host where the box has at most MAX_WORDS words.
    """
    size, count, layout, key = 2 * reach + 1, len(voxels), voxels.layout, voxels.key
    table = torch.empty(size**2, size, count, dtype=torch.int32, device=key.device)
    step = [layout.step(column // size - reach, column % size - reach, -reach) for column in range(size**2)]
    to_lowest = torch.tensor(step, dtype=key.dtype, device=key.device)[:, None]
    absent = torch.full((), -1, dtype=torch.int32, device=key.device)
    find = _find_by_word(voxels, reach) if _words(voxels, reach) <= MAX_WORDS else _find_by_search(voxels, reach)
    chunk = count if key.device.type != "cpu" else max(CHUNK // size**2, 1)
    for begin in range(0, count, chunk):
        row, pattern = find(key[begin : begin + chunk] + to_lowest)  # (columns, chunk)
        out = table[:, :, begin : begin + chunk]
        for dz in range(size):
            found = (pattern & (1 << dz)) > 0
            torch.where(found, row, absent, out=out[:, dz])
            row += found
    return table.view(size**3, count)


def _padding(voxels: Voxels, reach: int) -> int:
    """What to add to keys of neighbours, so that none is negative or in the first word."""
    return (1 << WORD_BITS) - voxels.layout.step(-reach, -reach, -reach)


def _words(voxels: Voxels, reach: int) -> int:
    """Words that cover all keys of voxels and of their neighbours, and one more."""
    highest = voxels.layout.scene_stride * (voxels.batch_size + 1) + 2 * _padding(voxels, reach)
    return (highest >> WORD_BITS) + 2


def _find_by_word(voxels: Voxels, reach: int) -> Find:
    """Two tables over the box: bits of the cells of each word and the next one, and the row of its first voxel."""
    padding, cells = _padding(voxels, reach), 1 << WORD_BITS
    key = voxels.key + padding
    word, bit = key >> WORD_BITS, torch.ones_like(key, dtype=torch.int32) << (key & (cells - 1)).int()
    bits, first = torch.zeros(2, _words(voxels, reach), dtype=torch.int32, device=key.device)
    bits.index_add_(0, word, bit)  # all different: a sum is a union
    bits.index_add_(0, word - 1, bit << cells)
    # Rows counted from the end, so that the largest is the first voxel's. An empty word below it has the same one.
    from_end = torch.arange(len(key), 0, -1, dtype=torch.int32, device=key.device)
    first.scatter_reduce_(0, word.long(), from_end, "amax")
    first.scatter_reduce_(0, word.long() - 1, from_end, "amax")
    rows = _bit_counts(key.device) + len(key)

    def find(lowest: Tensor) -> tuple[Tensor, Tensor]:
        place = lowest + padding
        index, shift = (place >> WORD_BITS).flatten(), (place & (cells - 1)).int()
        pattern = bits.index_select(0, index).view_as(shift)
        upper = pattern >> shift
        below = pattern ^ (upper << shift)  # cells of the word before the lowest of the column
        row = rows.index_select(0, below.flatten()) - first.index_select(0, index)
        return row.view_as(shift), upper.to(torch.uint8)

    return find


@lru_cache(maxsize=4)
def _bit_counts(device: torch.device) -> Tensor:
    """Number of ones in each number below 2^15, all that the lower cells of a word can be: int32."""
    number = torch.arange(2**15, device=device)
    return sum((number >> bit & 1 for bit in range(15)), torch.zeros_like(number)).int()


def _find_by_search(voxels: Voxels, reach: int) -> Find:
    """Binary search: for boxes too large for a table."""
    key = voxels.key
    padded = torch.cat([key, key.new_full((1,), torch.iinfo(key.dtype).max)])  # no neighbour's key is that large

    def find(lowest: Tensor) -> tuple[Tensor, Tensor]:
        row = torch.searchsorted(key, lowest, out_int32=True)
        place, pattern = row, torch.zeros_like(row, dtype=torch.uint8)
        for dz in range(2 * reach + 1):
            found = padded.index_select(0, place.flatten()).view_as(place) == lowest + dz
            pattern |= found.to(torch.uint8) << dz
            place = place + found
        return row, pattern

    return find
