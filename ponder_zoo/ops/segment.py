"""Reductions over groups of rows, without synchronization and with as many groups as the caller says."""

from __future__ import annotations

from torch import Tensor

from .rows import scatter_rows


def segment_sum(values: Tensor, index: Tensor, num_segments: int) -> Tensor:
    """Sum the rows of each group: values (N, ...), index (N,) int64 in [0, S) -> (S, ...). Empty groups are zero.

    Accumulates half precision in float32 and returns the type of `values`. Differentiable in `values`.
    """
    wide = _widen(values)
    total = wide.new_zeros(num_segments, *values.shape[1:]).index_add(0, index, wide)
    return total.to(values.dtype)


def segment_count(index: Tensor, num_segments: int) -> Tensor:
    """Number of rows of each group: (N,) int64 -> (S,) int64."""
    return index.new_zeros(num_segments).index_add(0, index, index.new_ones(()).expand(len(index)))


def segment_mean(values: Tensor, index: Tensor, num_segments: int) -> Tensor:
    """Average the rows of each group: values (N, ...), index (N,) -> (S, ...). Empty groups are zero.

    Rows whose index is S or more belong to no group. Accumulates half precision in float32 and returns the type of
    `values`. Differentiable in `values`.
    """
    wide = _widen(values)
    inside = (index < num_segments).to(wide.dtype)
    index = index.clamp(max=num_segments - 1)
    count = wide.new_zeros(num_segments).index_add_(0, index, inside)
    # The mean is one weighted sum: no division over all groups, and its backward is a gather.
    weight = inside / count[index].clamp(min=1.0)
    rows = wide[:, None] if wide.ndim == 1 else wide.flatten(1)
    mean = scatter_rows(index[:, None], weight[:, None], rows, num_segments)
    return mean.view(num_segments, *values.shape[1:]).to(values.dtype)


def segment_max(values: Tensor, index: Tensor, num_segments: int) -> Tensor:
    """Largest entry of each group and channel: values (N, ...), index (N,) -> (S, ...). Empty groups are zero.

    Differentiable in `values`; equal maxima share the gradient.
    """
    rows = index.view(-1, *[1] * (values.ndim - 1)).expand_as(values)
    return values.new_zeros(num_segments, *values.shape[1:]).scatter_reduce(
        0, rows, values, reduce="amax", include_self=False
    )


def _widen(values: Tensor) -> Tensor:
    return values.float() if values.is_floating_point() and values.element_size() < 4 else values
