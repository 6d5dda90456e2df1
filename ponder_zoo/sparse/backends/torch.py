"""Sparse convolution in plain PyTorch: a readable reference, and the same sums in a fast order.

`conv` computes, for tiles of output rows: one matrix product per kernel offset into a buffer of products, then one
segmented sum over each output row's products. That touches memory less often than adding each offset's products to the
output, has no colliding writes (so it is deterministic), and its gradient is the same pass over the transposed map.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..kernel_map import Coarsening, KernelMap, submanifold_map
from ..voxels import Voxels

TILE_PAIRS = 131_072  # on CPU; a tile's products stay near the last-level cache
# With so few input channels (the 5x5x5 stem) and so many neighbours, multiplying zeros for the absent ones is cheaper
# than sorting the pairs: 49 against 185 ms for 100 000 voxels with 44 of 125 neighbours, 25 against 20 ms for 40 000
# with 4 (2026-11, 2 CPU cores).
DENSE_MAX_CHANNELS = 8
DENSE_MIN_FILL = 0.1  # of the table
DENSE_TILE = 2048


def submanifold_conv(feat: Tensor, weight: Tensor, voxels: Voxels) -> Tensor:
    """(N, C_in), (C_out, k, k, k, C_in) -> (N, C_out)."""
    return conv(feat, weight, submanifold_map(voxels, weight.shape[1]))


def down_conv(feat: Tensor, weight: Tensor, step: Coarsening) -> Tensor:
    """(N_fine, C_in), (C_out, 2, 2, 2, C_in) -> (N_coarse, C_out)."""
    return conv(feat, weight, step.down)


def up_conv(feat: Tensor, weight: Tensor, step: Coarsening) -> Tensor:
    """(N_coarse, C_in), (C_out, 2, 2, 2, C_in) -> (N_fine, C_out)."""
    return conv(feat, weight, step.up)


def conv_reference(feat: Tensor, weight: Tensor, kmap: KernelMap) -> Tensor:
    """Gather, multiply, scatter; one kernel offset at a time. What every other implementation is compared with."""
    out = feat.new_zeros(kmap.num_out, weight.shape[0])
    for w, row in zip(weight.flatten(1, 3).unbind(1), kmap.table, strict=True):  # (C_out, C_in), (N_out,)
        target = (row >= 0).nonzero()[:, 0]
        out = out.index_add(0, target, feat[row[target].long()] @ w.t())
    return out


def conv(feat: Tensor, weight: Tensor, kmap: KernelMap) -> Tensor:
    """The fast form of `conv_reference`; differentiable once, in `feat` and `weight`.

    Sums are accumulated in float32 for lower precisions. (N_in, C_in), (C_out, kx, ky, kz, C_in) -> (N_out, C_out).
    """
    return cast(Tensor, _SparseConv.apply(feat, weight, kmap))


class _SparseConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, feat: Tensor, weight: Tensor, kmap: KernelMap) -> Tensor:
        ctx.save_for_backward(feat, weight)
        ctx.kmap = kmap
        flat = weight.flatten(1, 3)  # (C_out, K, C_in), a view
        with torch.autocast(feat.device.type, enabled=False):
            if _prefers_dense(feat, kmap):
                return _dense_forward(feat, flat, kmap)
            return _gather_multiply_sum(feat, [w.t() for w in flat.unbind(1)], kmap)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        feat, weight = ctx.saved_tensors
        wants_feat, wants_weight, _ = ctx.needs_input_grad
        grad = grads[0].contiguous()
        flat = weight.flatten(1, 3)
        grad_feat, grad_weight = None, None
        with torch.autocast(feat.device.type, enabled=False):
            if wants_weight and _prefers_dense(feat, ctx.kmap):
                grad_weight = _dense_weight_gradient(feat, grad, flat, ctx.kmap)
                wants_weight = False
            if wants_feat or wants_weight:
                grad_feat, pair_weight = _gradients(feat if wants_weight else None, grad, flat, ctx.kmap, wants_feat)
                grad_weight = pair_weight if wants_weight else grad_weight
        if grad_weight is not None:
            grad_weight = grad_weight.view_as(weight).to(weight.dtype)
        return grad_feat, grad_weight, None


# Pairs of rows, tile by tile ------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Tile:
    """The pairs of a range of output rows, ordered by kernel offset and within one by output row. P pairs."""

    rows: slice  # output rows
    runs: list[tuple[int, slice]]  # kernel offsets that have pairs, with the range of those
    source: Tensor  # (P,) int32 input row
    target: Tensor  # (P,) int32 output row
    order: Tensor  # (P,) int32 the pairs, sorted by output row
    start: Tensor  # (len(rows),) int32 where each output row's pairs start in `order`

    def sum_by_row(self, products: Tensor) -> Tensor:
        """Sum the products (P, C) of each output row: (len(rows), C)."""
        return F.embedding_bag(self.order, products, self.start, mode="sum")


def _tiles(kmap: KernelMap) -> list[_Tile]:
    if "tiles" not in kmap.cache:
        count = 1
        if kmap.table.device.type == "cpu":
            count = kmap.num_pairs // TILE_PAIRS + 1
        size = -(-kmap.num_out // count)
        kmap.cache["tiles"] = [_tile(kmap, begin, size) for begin in range(0, kmap.num_out, size)]
    return cast(list[_Tile], kmap.cache["tiles"])


def _tile(kmap: KernelMap, begin: int, size: int) -> _Tile:
    table = kmap.table[:, begin : begin + size].contiguous()  # (K, T)
    present = table >= 0
    pair = present.flatten().nonzero()[:, 0]
    local = pair % table.shape[1]  # output row within the tile
    length = present.sum(0, dtype=torch.int32)
    ends = present.sum(1).cumsum(0).tolist()
    return _Tile(
        rows=slice(begin, begin + table.shape[1]),
        runs=[(k, slice(b, e)) for k, (b, e) in enumerate(zip([0, *ends], ends, strict=False)) if e > b],
        source=table.flatten().index_select(0, pair),
        target=(local + begin).int(),
        order=local.int().argsort(stable=True).int(),
        start=length.cumsum(0, dtype=torch.int32) - length,
    )


def _gather_multiply_sum(feat: Tensor, weights: Sequence[Tensor], kmap: KernelMap) -> Tensor:
    """One convolution with a (C_in, C_out) matrix per kernel offset: (N_in, C_in) -> (N_out, C_out)."""
    sums = []
    for tile in _tiles(kmap):
        products = _scratch("products", (len(tile.source), weights[0].shape[1]), feat)
        for offset, run in tile.runs:
            torch.mm(_gather(feat, tile, offset, run, kmap), weights[offset], out=products[run])
        sums.append(tile.sum_by_row(products))
    return sums[0] if len(sums) == 1 else torch.cat(sums)


def _gather(feat: Tensor, tile: _Tile, offset: int, run: slice, kmap: KernelMap) -> Tensor:
    """Input rows that a kernel offset reads in a tile: (P_k, C)."""
    if kmap.reads_itself and offset == kmap.kernel_volume // 2:
        return feat[tile.rows]
    rows = tile.source[run]
    return torch.index_select(feat, 0, rows, out=_scratch("gathered", (len(rows), feat.shape[1]), feat))


def _gradients(
    feat: Tensor | None, grad: Tensor, flat: Tensor, kmap: KernelMap, wants_feat: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients with respect to the input and, where `feat` is given, the weight (C_out, K, C_in).

    Walks the transposed map, whose output rows are this convolution's input rows: the gathered rows of the output's
    gradient serve both results, and nothing is scattered.
    """
    transposed, offsets = kmap.transposed()
    sums = []
    grad_weight = flat.new_zeros(flat.shape, dtype=_accumulator(flat.dtype)) if feat is not None else None
    for tile in _tiles(transposed):
        products = _scratch("products", (len(tile.source), flat.shape[2]), grad) if wants_feat else None
        for offset, run in tile.runs:
            weight = flat[:, offsets[offset]]  # (C_out, C_in)
            gathered = _gather(grad, tile, offset, run, transposed)  # (P_k, C_out)
            if products is not None:
                torch.mm(gathered, weight, out=products[run])
            if grad_weight is not None and feat is not None:
                rows = _rows_read(feat, tile, offset, run, transposed)  # (P_k, C_in)
                _add_product(grad_weight[:, offsets[offset]], gathered.t(), rows)
        if products is not None:
            sums.append(tile.sum_by_row(products))
    return torch.cat(sums) if wants_feat else None, grad_weight


def _rows_read(feat: Tensor, tile: _Tile, offset: int, run: slice, transposed: KernelMap) -> Tensor:
    if transposed.reads_itself and offset == transposed.kernel_volume // 2:
        return feat[tile.rows]
    rows = tile.target[run]
    return torch.index_select(feat, 0, rows, out=_scratch("read", (len(rows), feat.shape[1]), feat))


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add a matrix product to `total`, which may have a higher precision."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += torch.mm(left, right)


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


# All offsets of a row at once, for few input channels -----------------------------------------------------------------


def _prefers_dense(feat: Tensor, kmap: KernelMap) -> bool:
    return feat.shape[1] <= DENSE_MAX_CHANNELS and kmap.num_pairs >= DENSE_MIN_FILL * kmap.table.numel()


def _dense_patches(feat: Tensor, kmap: KernelMap) -> Iterator[tuple[slice, Tensor]]:
    """Tiles of output rows with the features that all kernel offsets read, zero where there is no voxel: (T, K * C)."""
    padded = F.pad(feat, (0, 0, 0, 1))  # row N_in stands for absent neighbours
    for begin in range(0, kmap.num_out, DENSE_TILE):
        table = kmap.table[:, begin : begin + DENSE_TILE].t()  # (T, K)
        index = table.where(table >= 0, table.new_tensor(kmap.num_in)).flatten()
        patches = _scratch("patches", (len(index), feat.shape[1]), feat)
        torch.index_select(padded, 0, index, out=patches)
        yield slice(begin, begin + len(table)), patches.view(len(table), -1)


def _dense_forward(feat: Tensor, flat: Tensor, kmap: KernelMap) -> Tensor:
    out = feat.new_empty(kmap.num_out, flat.shape[0])
    for rows, patches in _dense_patches(feat, kmap):
        torch.mm(patches, flat.flatten(1).t(), out=out[rows])
    return out


def _dense_weight_gradient(feat: Tensor, grad: Tensor, flat: Tensor, kmap: KernelMap) -> Tensor:
    total = flat.new_zeros(flat.shape[0], flat[0].numel(), dtype=_accumulator(flat.dtype))
    for rows, patches in _dense_patches(feat, kmap):
        _add_product(total, grad[rows].t(), patches)
    return total


# Scratch memory -------------------------------------------------------------------------------------------------------


class _Scratch(threading.local):
    def __init__(self) -> None:
        self.buffers: dict[tuple[str, torch.dtype], Tensor] = {}


_SCRATCH = _Scratch()


def _scratch(name: str, shape: tuple[int, int], like: Tensor) -> Tensor:
    """Uninitialized memory that the next call with the same name overwrites.

    On CPU one buffer per thread is kept: fresh ones of this size cost a system call and page faults in every
    convolution. Other devices have a caching allocator.
    """
    if like.device.type != "cpu":
        return like.new_empty(shape)
    size = shape[0] * shape[1]
    buffer = _SCRATCH.buffers.get((name, like.dtype))
    if buffer is None or buffer.numel() < size:
        with torch.inference_mode(False):  # a buffer made in inference mode could not be written outside it
            buffer = torch.empty(size, dtype=like.dtype)
        _SCRATCH.buffers[name, like.dtype] = buffer
    return buffer[:size].view(shape)


def release_scratch() -> None:
    """Free this thread's scratch memory (up to some 200 MB after a large scene)."""
    _SCRATCH.buffers.clear()
