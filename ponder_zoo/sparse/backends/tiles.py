"""The pairs of rows of a kernel map, tile by tile: what the `torch` backend gathers, multiplies and sums at a time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernel_map import KernelMap

TILE_PAIRS = 131_072  # on CPU; half as many were 5 % slower for a dense scene and no faster for a thin one (2026-11)


@dataclass(frozen=True, eq=False)
class Tile:
    """The P pairs of a range of output rows, ordered by kernel offset and within one by output row."""

    rows: slice  # output rows
    offsets: list[int]  # kernel offsets that have pairs
    sizes: list[int]  # how many each has
    sources: tuple[Tensor, ...]  # (size,) int32 input rows of each
    order: Tensor  # (P,) int32 the pairs, sorted by output row
    start: Tensor  # (rows,) int32 where each output row's pairs start in `order`
    local: Tensor  # (P,) int32 output row of each pair, counted from the tile's first
    cache: dict[str, tuple[Tensor, ...]] = field(default_factory=dict, repr=False)

    @property
    def num_pairs(self) -> int:
        return len(self.order)

    @property
    def targets(self) -> tuple[Tensor, ...]:
        """(size,) int32 output rows of each offset. The weight's gradient alone asks for them."""
        if "targets" not in self.cache:
            self.cache["targets"] = (self.local + self.rows.start).split(self.sizes)
        return self.cache["targets"]

    def sum_by_row(self, products: Tensor) -> Tensor:
        """Sum the products (P, C) of each output row: (rows, C)."""
        return F.embedding_bag(self.order, products, self.start, mode="sum")


def tiles(kmap: KernelMap) -> list[Tile]:
    """All tiles of a map, from the first output row to the last; built once."""
    if "tiles" not in kmap.cache:
        count = 1 if kmap.table.device.type != "cpu" else kmap.num_pairs // TILE_PAIRS + 1
        size = max(-(-kmap.num_out // count), 1)
        kmap.cache["tiles"] = [_tile(kmap, begin, size) for begin in range(0, kmap.num_out, size)]
    return cast("list[Tile]", kmap.cache["tiles"])


def _tile(kmap: KernelMap, begin: int, size: int) -> Tile:
    table = kmap.table[:, begin : begin + size].contiguous()  # (K, T)
    present = table >= 0
    pair = present.flatten().nonzero()[:, 0]
    local = (pair % table.shape[1]).int()
    length = present.sum(0, dtype=torch.int32)
    counts = present.sum(1).tolist()
    sizes = [count for count in counts if count]
    return Tile(
        rows=slice(begin, begin + table.shape[1]),
        offsets=[k for k, count in enumerate(counts) if count],
        sizes=sizes,
        sources=table.flatten().index_select(0, pair).split(sizes),
        order=local.argsort(stable=True).int(),
        start=length.cumsum(0, dtype=torch.int32) - length,
        local=local,
    )
