"""Weighted gathers and scatters of table rows, differentiable to any order and fused.

Everything is one of three linear maps between a table (T, C), K row numbers and weights for each of P items (P, K),
and item values (P, C):

    gather_rows   out[p] = sum_k weight[p, k] table[index[p, k]]
    dot_rows      out[p, k] = value[p] . table[index[p, k]]
    scatter_rows  out[t] = sum of weight[p, k] value[p] over all (p, k) with index[p, k] = t

Each is a derivative of the others, so three autograd functions that call one another are exact at every order, and
nothing of size P x K x C is ever stored. `index` is int64 and must lie within the table; it is not checked (that would
synchronize with the device).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def gather_rows(table: Tensor, index: Tensor, weight: Tensor, columns: int | None = None) -> Tensor:
    """Weighted sum of K rows per item: (T, C), (P, K), (P, K) -> (P, C). Differentiable in `table` and `weight`.

    `columns` C' <= C reads the first C' columns only: (P, C').
    """
    if columns is None or columns == table.shape[1]:
        return _Gather.apply(table, index, weight)  # pyright: ignore[reportReturnType]
    parts, rest = divmod(table.shape[1], columns)
    if rest > 0 or not table.is_contiguous():
        return gather_rows(table, index, weight)[:, :columns]
    # Shorter rows of the same memory, half of the columns: 1.9 x faster than reading whole rows (2026-11, 2 CPU cores).
    return gather_rows(table.view(-1, columns), index * parts, weight)


def dot_rows(table: Tensor, index: Tensor, value: Tensor) -> Tensor:
    """Inner product of an item with each of its rows: (T, C), (P, K), (P, C') -> (P, K).

    C' <= C: only the first C' columns count. Differentiable in `table` and `value`.
    """
    return _Dot.apply(table, index, value)  # pyright: ignore[reportReturnType]


def scatter_rows(index: Tensor, weight: Tensor, value: Tensor, num_rows: int) -> Tensor:
    """Weighted sum of items into rows: (P, K), (P, K), (P, C) -> (num_rows, C). Differentiable in `weight`, `value`."""
    return _Scatter.apply(index, weight, value, num_rows)  # pyright: ignore[reportReturnType]


def _gather(table: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    return F.embedding_bag(index, table, per_sample_weights=weight, mode="sum")


def _dot(table: Tensor, index: Tensor, value: Tensor) -> Tensor:
    table = table[:, : value.shape[1]]
    if not _has_fused_kernels(table, index):
        return torch.stack([(table.index_select(0, rows) * value).sum(-1) for rows in index.unbind(1)], 1)
    flat, offsets, bag = _bags(index)
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(value, table, flat, offsets, bag, 0).view_as(index)


def _scatter(index: Tensor, weight: Tensor, value: Tensor, num_rows: int) -> Tensor:
    if not _has_fused_kernels(value, index):
        out = value.new_zeros(num_rows, value.shape[1])
        for row, factor in zip(index.unbind(1), weight.unbind(1), strict=True):
            out.index_add_(0, row, value * factor[:, None])
        return out
    flat, _, bag = _bags(index)
    size = flat.new_full((len(index),), index.shape[1])
    return torch.ops.aten._embedding_bag_dense_backward(
        value, flat, bag, size, flat.new_empty(0), num_rows, False, 0, weight.reshape(-1)
    )


def _has_fused_kernels(values: Tensor, index: Tensor) -> bool:
    # The backward kernels of embedding_bag are `dot` and `scatter`. On a CPU `dot` is 3.3 x faster than a loop over k
    # with index_select (2026-11, 2 cores; 42,240 items, 8 of 128 x 128 x 32 rows, 128 channels); without both, the
    # renderer's training step takes 7 % longer.
    # Elsewhere the loop is one kernel per k, without the sort and the workspace that CUDA's version needs.
    return values.device.type == "cpu" and values.dtype in (torch.float32, torch.float64) and index.numel() > 0


def _bags(index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Flat indices (P K,), start of each bag (P,), and bag of each index (P K,)."""
    bags = torch.arange(len(index), device=index.device)
    return index.reshape(-1), bags * index.shape[1], bags.repeat_interleave(index.shape[1], output_size=index.numel())


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(table, index, weight)
        return _gather(table, index, weight.contiguous())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, Tensor | None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        table, index, weight = ctx.saved_tensors
        need_table, _, need_weight = ctx.needs_input_grad
        grad_table = scatter_rows(index, weight, grad, len(table)) if need_table else None
        return grad_table, None, dot_rows(table, index, grad) if need_weight else None


class _Dot(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(table, index, value)
        return _dot(table, index, value.contiguous())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, Tensor | None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        table, index, value = ctx.saved_tensors
        need_table, _, need_value = ctx.needs_input_grad
        unused = table.shape[1] - value.shape[1]
        grad_table = scatter_rows(index, grad, F.pad(value, (0, unused)), len(table)) if need_table else None
        return grad_table, None, gather_rows(table, index, grad, value.shape[1]) if need_value else None


class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, index: Tensor, weight: Tensor, value: Tensor, num_rows: int) -> Tensor:
        ctx.save_for_backward(index, weight, value)
        return _scatter(index, weight.contiguous(), value.contiguous(), num_rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor | None, Tensor | None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        index, weight, value = ctx.saved_tensors
        _, need_weight, need_value, _ = ctx.needs_input_grad
        grad_weight = dot_rows(grad, index, value) if need_weight else None
        return None, grad_weight, gather_rows(grad, index, weight) if need_value else None, None
