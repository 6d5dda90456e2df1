"""One buffer for the gradient of a table that is looked up many times.

Autograd gives every lookup a gradient of the size of the whole table (268 MB for an official volume) and adds them up.
Rendering looks up each volume twice per chunk of rays: here all lookups of a backward pass add the rows that they touch
to one buffer, which becomes the gradient when the last of them is done. First derivatives only.

Chunks of rays need this: without it each of ten chunks would fill two volumes of gradients, 50 ms each (2026-11, 2 CPU
cores, `benchmarks/render.py`). Test: `tests/ops/test_gradient_pool.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..structures import FeatureVolume
from .rows import dot_rows, gather_rows, scatter_rows


class GradientPool:
    """Collects the gradient of a table (T, C) during a backward pass."""

    def __init__(self, table: Tensor) -> None:
        self._like = table.detach()
        self._total: Tensor | None = None

    def add(self, sums: RowSums, weight: Tensor, value: Tensor) -> None:
        """Add weight[p, k] value[p] to the first columns of row index[p, k], for weight (P, K) and value (P, C')."""
        if torch.is_grad_enabled():
            raise RuntimeError(
                "Rays were rendered in chunks, which gives first derivatives only, but create_graph=True asks for "
                "more. Set the renderer's `samples_per_chunk` to 0."
            )
        if self._total is None:
            self._total = torch.zeros_like(self._like)
        rows, total = sums(weight, value, len(self._like))
        self._total[:, : value.shape[1]].index_add_(0, rows, total)

    def take(self) -> Tensor | None:
        """What was added since the last call; None if nothing."""
        total, self._total = self._total, None
        return total


class RowSums:
    """Weighted sums of items by row, for several sets of weights and items at the same rows."""

    def __init__(self, index: Tensor) -> None:
        self.index = index  # (P, K)
        self._groups: tuple[Tensor, Tensor, Tensor] | None = None

    def __call__(self, weight: Tensor, value: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
        """Row numbers (U,) and sums (U, C') of weight[p, k] value[p] over index[p, k]: (P, K), (P, C')."""
        if value.device.type != "cpu":  # a sort and its unknown length would make the host wait
            rows = torch.arange(num_rows, device=value.device)
            return rows, scatter_rows(self.index, weight, value, num_rows)
        # Sorting once and summing groups is 1.4 x faster than embedding_bag's own backward, which also sorts.
        if self._groups is None:
            ordered, order = self.index.reshape(-1).sort()
            first = F.pad(ordered[1:] != ordered[:-1], (1, 0), value=True).nonzero()[:, 0]
            self._groups = ordered[first], order, first
        rows, order, first = self._groups
        item = torch.div(order, self.index.shape[1], rounding_mode="floor")
        return rows, F.embedding_bag(
            item, value.contiguous(), first, per_sample_weights=weight.reshape(-1)[order], mode="sum"
        )


@dataclass(frozen=True, eq=False)
class PooledVolume(FeatureVolume):
    """A FeatureVolume whose lookups share one buffer for the gradient of `feat`."""

    pool: GradientPool | None = None


def pool_gradients(volume: FeatureVolume) -> FeatureVolume:
    """The same volume ready for lookups, with pooled gradients if it has any."""
    volume = ready_for_lookups(volume)
    if not (volume.feat.requires_grad and torch.is_grad_enabled()):
        return volume
    pool = GradientPool(table_of(volume.feat))
    return PooledVolume(_Pool.apply(volume.feat, pool), volume.grid, pool)  # pyright: ignore[reportArgumentType]


def ready_for_lookups(volume: FeatureVolume) -> FeatureVolume:
    """The same volume in float32 or better and channel-last, so that not every lookup has to copy it."""
    dtype = torch.promote_types(volume.feat.dtype, torch.float32)
    return replace(volume, feat=volume.feat.to(dtype).contiguous(memory_format=torch.channels_last_3d))


def table_of(feat: Tensor) -> Tensor:
    """Rows of cells, (B Z Y X, C), from features (B, C, Z, Y, X): a view where they are `channels_last_3d`."""
    return feat.movedim(1, -1).reshape(-1, feat.shape[1])


def pooled_gather(table: Tensor, sums: RowSums, weight: Tensor, pool: GradientPool) -> Tensor:
    """`gather_rows` with the gradient of the table in the pool. Not differentiable in `weight`."""
    return _Gather.apply(table, sums.index, weight.detach(), sums, pool)  # pyright: ignore[reportReturnType]


def pooled_dot(table: Tensor, sums: RowSums, value: Tensor, pool: GradientPool) -> Tensor:
    """`dot_rows` with the gradient of the table in the pool."""
    return _Dot.apply(table, sums.index, value, sums, pool)  # pyright: ignore[reportReturnType]


class _Pool(torch.autograd.Function):
    """Hands the table on; its backward runs when every lookup's has, and takes what they left."""

    @staticmethod
    def forward(ctx: Any, feat: Tensor, pool: GradientPool) -> Tensor:
        ctx.pool = pool
        ctx.shape = feat.shape
        ctx.set_materialize_grads(False)
        return feat.view_as(feat)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        rows = ctx.pool.take()
        if rows is None:
            return grad, None
        B, C, *cells = ctx.shape
        total = rows.view(B, *cells, C).movedim(-1, 1)
        return (total if grad is None else total + grad), None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor, weight: Tensor, sums: RowSums, pool: GradientPool) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.sums, ctx.pool = sums, pool
        return gather_rows(table, index, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (weight,) = ctx.saved_tensors
        ctx.pool.add(ctx.sums, weight, grad)
        return (None,) * 5


class _Dot(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor, value: Tensor, sums: RowSums, pool: GradientPool) -> Tensor:
        ctx.save_for_backward(table, value)
        ctx.sums, ctx.pool = sums, pool
        return dot_rows(table, index, value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        table, value = ctx.saved_tensors
        ctx.pool.add(ctx.sums, grad, value)
        return None, None, gather_rows(table, ctx.sums.index, grad, columns=value.shape[1]), None, None
