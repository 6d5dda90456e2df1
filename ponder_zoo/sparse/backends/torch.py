"""Sparse convolution in plain PyTorch: a readable reference, and the same sums in a fast order.

`conv` computes, for tiles of output rows: one matrix product per kernel offset into a buffer of products, then one
segmented sum over each output row's products. That touches memory less often than adding each offset's products to the
output, has no colliding writes (so it is deterministic), and its gradient is the same pass over the transposed map.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..epilogue import Epilogue
from ..kernel_map import KernelMap
from .by_map import by_map
from .dense import dense_forward, dense_weight_gradient, prefers_dense
from .precision import accumulator, add_product
from .tiles import Tile, tiles
from .workspace import release_scratch as release_scratch
from .workspace import roomy_empty, scratch

# Buffers that the backward pass gathers rows into, in turn. Writing to one that a product has just read from waits for
# the caches of both cores: with 8 instead of 1 the gradients of a convolution take 11 to 26 % less (2026-11, 2 CPU
# cores; the forward pass gains nothing).
GATHER_BUFFERS = 8


def conv_reference(feat: Tensor, weight: Tensor, kmap: KernelMap) -> Tensor:
    """Gather, multiply, scatter; one kernel offset at a time. What every other implementation is compared with."""
    out = feat.new_zeros(kmap.num_out, weight.shape[0])
    for w, row in zip(weight.flatten(1, 3).unbind(1), kmap.table, strict=True):  # (C_out, C_in), (N_out,)
        target = (row >= 0).nonzero()[:, 0]
        out = out.index_add(0, target, feat[row[target].long()] @ w.t())
    return out


def conv(feat: Tensor, weight: Tensor, kmap: KernelMap, epilogue: Epilogue | None = None) -> Tensor:
    """The fast form of `conv_reference`; differentiable once, in `feat` and `weight`.

    Sums are accumulated in float32 for lower precisions. (N_in, C_in), (C_out, kx, ky, kz, C_in) -> (N_out, C_out).
    With an epilogue it is `epilogue.apply(conv(...))` without gradients, each tile while it is in the caches: the
    forward pass of SparseUNet-34 takes 12 % less for a dense scene and 2 % for a thin one (2026-11, 2 CPU cores).
    """
    if epilogue is None:
        return cast(Tensor, _SparseConv.apply(feat, weight, kmap))
    epilogue.check((kmap.num_out, weight.shape[0]))
    with torch.no_grad():
        return _forward(feat, weight, kmap, epilogue)


submanifold_conv, down_conv, up_conv = by_map(conv)
FUSES_EPILOGUES = True  # these three take an `Epilogue`


class _SparseConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, feat: Tensor, weight: Tensor, kmap: KernelMap) -> Tensor:
        ctx.save_for_backward(feat, weight)
        ctx.kmap = kmap
        return _forward(feat, weight, kmap)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        feat, weight = ctx.saved_tensors
        wants_feat, wants_weight, _ = ctx.needs_input_grad
        grad = grads[0].contiguous()
        flat = weight.flatten(1, 3)
        grad_feat, grad_weight = None, None
        with torch.autocast(feat.device.type, enabled=False):
            if wants_weight and prefers_dense(feat):
                grad_weight = dense_weight_gradient(feat, grad, flat, ctx.kmap)
                wants_weight = False
            if wants_feat or wants_weight:
                grad_feat, pair_weight = _gradients(feat if wants_weight else None, grad, flat, ctx.kmap, wants_feat)
                grad_weight = pair_weight if wants_weight else grad_weight
        if grad_weight is not None:
            grad_weight = grad_weight.view_as(weight).to(weight.dtype)
        return grad_feat, grad_weight, None


def _forward(feat: Tensor, weight: Tensor, kmap: KernelMap, epilogue: Epilogue | None = None) -> Tensor:
    flat = weight.flatten(1, 3)  # (C_out, K, C_in), a view
    out = roomy_empty((kmap.num_out, len(flat)), feat)
    with torch.autocast(feat.device.type, enabled=False):
        results = dense_forward(feat, flat, kmap) if prefers_dense(feat) else _multiply_sum(feat, flat, kmap)
        for rows, result in results:
            if epilogue is None:
                out[rows] = result
            else:
                epilogue.write(out, rows, result)
    return out


# Tile by tile ---------------------------------------------------------------------------------------------------------


def _multiply_sum(feat: Tensor, flat: Tensor, kmap: KernelMap) -> Iterator[tuple[slice, Tensor]]:
    """Rows of the output and their values, tile by tile: (N_in, C_in), (C_out, K, C_in) -> (T, C_out) each."""
    weights = [w.t() for w in flat.unbind(1)]  # (C_in, C_out)
    width = len(flat)
    for tile in tiles(kmap):
        products = scratch("products", (tile.num_pairs, width), feat)
        # views of all offsets at once, not one by one
        places = products.split(tile.sizes)
        for offset, source, place in zip(tile.offsets, tile.sources, places, strict=True):
            torch.mm(_gather("gathered0", feat, tile, offset, source, kmap), weights[offset], out=place)
        yield tile.rows, tile.sum_by_row(products)


def _gradients(
    feat: Tensor | None, grad: Tensor, flat: Tensor, kmap: KernelMap, wants_feat: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients with respect to the input and, where `feat` is given, the weight (C_out, K, C_in).

    Walks the transposed map, whose output rows are this convolution's input rows: the gathered rows of the output's
    gradient serve both results, and nothing is scattered.
    """
    transposed, offsets = kmap.transposed()
    weights = flat.unbind(1)  # (C_out, C_in)
    width = flat.shape[2]
    grad_feat = grad.new_empty(transposed.num_out, width) if wants_feat else None
    grad_weight = flat.new_zeros(flat.shape, dtype=accumulator(flat.dtype)) if feat is not None else None
    sums = () if grad_weight is None else grad_weight.unbind(1)
    for tile in tiles(transposed):
        products = scratch("products", (tile.num_pairs, width), grad) if wants_feat else None
        places = () if products is None else products.split(tile.sizes)
        for i, (offset, source) in enumerate(zip(tile.offsets, tile.sources, strict=True)):
            turn = i % GATHER_BUFFERS
            gathered = _gather(f"gathered{turn}", grad, tile, offset, source, transposed)  # (P_k, C_out)
            if products is not None:
                torch.mm(gathered, weights[offsets[offset]], out=places[i])
            if feat is not None:
                read = _gather(f"read{turn}", feat, tile, offset, tile.targets[i], transposed)  # (P_k, C_in)
                add_product(sums[offsets[offset]], gathered.t(), read)
        if products is not None and grad_feat is not None:
            grad_feat[tile.rows] = tile.sum_by_row(products)
    return grad_feat, grad_weight


def _gather(name: str, feat: Tensor, tile: Tile, offset: int, rows: Tensor, kmap: KernelMap) -> Tensor:
    """The rows of `feat` that a kernel offset's pairs in a tile name: (P_k, C)."""
    if kmap.reads_itself and offset == kmap.kernel_volume // 2:
        return feat[tile.rows]
    return torch.index_select(feat, 0, rows, out=scratch(name, (len(rows), feat.shape[1]), feat))
