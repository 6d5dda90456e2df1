"""Trilinear lookup in a feature volume, differentiable to any order in the features and in the positions.

Two facts make it short and fast. The eight corner weights are small ((P, 8) for P positions) and plain autograd handles
them. What touches C channels is one of three linear maps between the table of cell features (T, C), the corner weights
(P, 8) and position features (P, C):

    gather   out[p] = sum_k weight[p, k] table[index[p, k]]
    dot      out[p, k] = value[p] . table[index[p, k]]
    scatter  out[t] = sum of weight[p, k] value[p] over all (p, k) with index[p, k] = t

Each is the derivative of the others, so three autograd functions that call one another are exact at every order, and
nothing of size P x 8 x C is ever stored.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..structures import FeatureVolume, VolumeGrid


def sample_volume(volume: FeatureVolume, positions: Tensor) -> Tensor:
    """Interpolate the features of a volume: positions (B, R, S, 3) in metres -> (B, R, S, C).

    Cells outside the grid count as zero, as in `F.grid_sample` with zero padding: the result fades to zero around the
    box (within half a cell for `align="centers"`, within a whole one for "corners") and is zero beyond. It is computed
    in float32 or better, whatever the dtype of the volume. Differentiable in `volume.feat` and `positions` to any
    order, not in `volume.grid.bounds`. Fastest where `volume.feat` is `channels_last_3d`; otherwise it is copied.

    Example:
        >>> grid = VolumeGrid(torch.tensor([[[0.0, 0.0, 0.0], [4.0, 2.0, 2.0]]]), (4, 2, 2))
        >>> feat = torch.arange(4.0).expand(1, 1, 2, 2, 4)  # the value is the cell's number along x
        >>> sample_volume(FeatureVolume(feat, grid), torch.tensor([[[[2.25, 1.0, 1.0]]]]))
        tensor([[[[1.7500]]]])
    """
    table, index, weight, _ = _locate(volume, positions, slopes=False)
    return _Gather.apply(table, index, weight).view(*positions.shape[:-1], table.shape[1])


def sample_volume_with_gradient(volume: FeatureVolume, positions: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Interpolate, and return the map from d(scalar)/d(features) to d(scalar)/d(position).

    A renderer that knows u = d(sdf)/d(features) gets the gradient of the sdf in closed form, without a second-order
    graph: `gradient(u)` is the transposed Jacobian of the lookup times u, and is itself differentiable in u, the volume
    and the positions to any order.

    Args:
        volume: features to look up.
        positions: (B, R, S, 3) metres.

    Returns:
        `sample_volume(volume, positions)`, (B, R, S, C), and a function from u (B, R, S, C') to (B, R, S, 3) in units
        of the scalar per metre. C' <= C: fewer channels mean that the scalar depends on the first C' only.

    Example:
        >>> feat, gradient = sample_volume_with_gradient(volume, positions)  # doctest: +SKIP
        >>> sdf = feat.square().sum(-1)  # doctest: +SKIP
        >>> normals = F.normalize(gradient(2 * feat), dim=-1)  # doctest: +SKIP
    """
    table, index, weight, slope = _locate(volume, positions, slopes=True)
    shape = positions.shape

    def gradient(feat_gradient: Tensor) -> Tensor:
        value = feat_gradient.flatten(0, -2).to(table.dtype)
        along = _Dot.apply(table, index, value)  # (P, 8)
        return (along[..., None] * slope).sum(1).view(shape)

    return _Gather.apply(table, index, weight).view(*shape[:-1], table.shape[1]), gradient


def _locate(volume: FeatureVolume, positions: Tensor, *, slopes: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Table (B Z Y X, C), corner rows (P, 8), weights (P, 8) and d(weight)/d(position) (P, 8, 3) or empty."""
    grid, feat = volume.grid, volume.feat
    if positions.ndim != 4 or positions.shape[-1] != 3 or len(positions) != len(feat):
        raise ValueError(
            f"sample_volume expected positions (B, R, S, 3) for a volume (B, C, Z, Y, X) = {tuple(feat.shape)}; got "
            f"{tuple(positions.shape)}. Add the missing axes, or sample each scene's own volume."
        )
    if tuple(feat.shape[2:]) != grid.shape[::-1]:
        raise ValueError(
            f"Expected features (B, C, Z, Y, X) for a grid of (X, Y, Z) = {grid.shape} cells; got {tuple(feat.shape)}. "
            "Move the axes of the features, or build the grid with their shape."
        )
    dtype = torch.promote_types(torch.promote_types(feat.dtype, positions.dtype), torch.float32)
    table = feat.to(dtype).movedim(1, -1).reshape(-1, feat.shape[1])  # a view where feat is channels_last_3d
    cell, scale = _cell_units(grid, positions.to(dtype))
    base = cell.detach().floor()
    fraction = cell - base  # (B, R, S, 3) in [0, 1)
    corner = base[..., None] + base.new_tensor([0.0, 1.0])  # (B, R, S, 3, 2) lower and upper neighbour on each axis
    size = base.new_tensor(grid.shape)[:, None]
    inside = (corner >= 0) & (corner < size)
    weight = torch.stack([1.0 - fraction, fraction], -1) * inside  # neighbours outside the grid count as zero
    index = _corner_rows(corner, grid)
    weight_x, weight_y, weight_z = weight.flatten(0, 2).unbind(1)  # 3 x (P, 2)
    slope = weight.new_empty(0)
    if slopes:
        step = (scale * base.new_tensor([-1.0, 1.0]) * inside).flatten(0, 2)  # (P, 3, 2) d(weight)/d(position) per axis
        slope_x, slope_y, slope_z = step.unbind(1)
        slope = torch.stack(
            [
                _corner_product(slope_x, weight_y, weight_z),
                _corner_product(weight_x, slope_y, weight_z),
                _corner_product(weight_x, weight_y, slope_z),
            ],
            -1,
        )
    return table, index, _corner_product(weight_x, weight_y, weight_z), slope


def _cell_units(grid: VolumeGrid, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Positions in units where cell i holds its value at i, (B, R, S, 3), and that unit per metre (B, 1, 1, 3, 1)."""
    bounds = grid.bounds.detach().to(positions.dtype)[:, :, None, None]  # (B, 2, 1, 1, 3)
    size = positions.new_tensor(grid.shape)
    centers = grid.align == "centers"
    scale = (size if centers else size - 1.0) / (bounds[:, 1] - bounds[:, 0])
    return (positions - bounds[:, 0]) * scale - (0.5 if centers else 0.0), scale[..., None]


def _corner_rows(corner: Tensor, grid: VolumeGrid) -> Tensor:
    """Row in the (B Z Y X) table of each of the eight corners: (B, R, S, 3, 2) -> (P, 8); z slowest, as the weights."""
    X, Y, Z = grid.shape
    # Clamp as floats and as integers: a NaN survives the first and becomes some integer, which must not index memory.
    size = corner.new_tensor(grid.shape)[:, None]
    cell = torch.minimum(corner.clamp(min=0.0), size - 1.0).long()
    x, y, z = (axis.clamp(0, n - 1) for axis, n in zip(cell.unbind(-2), grid.shape, strict=True))  # 3 x (B, R, S, 2)
    scene = torch.arange(len(corner), device=corner.device).view(-1, 1, 1, 1, 1, 1)
    row = (scene * Z + z[..., :, None, None]) * Y + y[..., None, :, None]
    return (row * X + x[..., None, None, :]).view(-1, 8)


def _corner_product(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Product of one factor per axis for each of the eight corners: 3 x (P, 2) -> (P, 8)."""
    return (z[:, :, None, None] * y[:, None, :, None] * x[:, None, None, :]).view(-1, 8)


# The three linear maps. `index` (P, 8) is int64 within the table everywhere.


def gather(table: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """sum_k weight[p, k] table[index[p, k]]: (T, C), (P, 8), (P, 8) -> (P, C)."""
    return F.embedding_bag(index, table, per_sample_weights=weight, mode="sum")


def dot(table: Tensor, index: Tensor, value: Tensor) -> Tensor:
    """value[p] . table[index[p, k]][:C']: (T, C), (P, 8), (P, C') -> (P, 8)."""
    table = table[:, : value.shape[1]]
    if not _has_fused_kernels(table):
        return torch.stack([(table.index_select(0, rows) * value).sum(-1) for rows in index.unbind(1)], 1)
    flat, offsets, bag = _bags(index)
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(value, table, flat, offsets, bag, 0).view(-1, 8)


def scatter(index: Tensor, weight: Tensor, value: Tensor, rows: int) -> Tensor:
    """Sum of weight[p, k] value[p] over the (p, k) of each row: (P, 8), (P, 8), (P, C) -> (rows, C)."""
    if not _has_fused_kernels(value):
        out = value.new_zeros(rows, value.shape[1])
        for row, factor in zip(index.unbind(1), weight.unbind(1), strict=True):
            out.index_add_(0, row, value * factor[:, None])
        return out
    flat, _, bag = _bags(index)
    none = flat.new_empty(0)
    return torch.ops.aten._embedding_bag_dense_backward(
        value, flat, bag, flat.new_full((len(index),), 8), none, rows, False, 0, weight.reshape(-1)
    )


def _has_fused_kernels(values: Tensor) -> bool:
    # The backward kernels of embedding_bag are these two maps. On a CPU they are 25 x (dot) and 9 x (scatter) faster
    # than a loop over corners with index_select / index_add_: 2 cores, 42,240 positions, 128 x 128 x 32 cells of 128
    # channels. Elsewhere the loop is one kernel per corner, without the sort and workspace that CUDA's version needs.
    return values.device.type == "cpu" and values.dtype in (torch.float32, torch.float64) and len(values) > 0


def _bags(index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Flat indices (8 P,), start of each bag (P,), and bag of each index (8 P,)."""
    bags = torch.arange(len(index), device=index.device)
    return index.reshape(-1), bags * 8, bags.repeat_interleave(8, output_size=index.numel())


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(table, index, weight)
        return gather(table, index, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, Tensor | None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        table, index, weight = ctx.saved_tensors
        need_table, _, need_weight = ctx.needs_input_grad
        grad_table = _Scatter.apply(index, weight, grad, len(table)) if need_table else None
        return grad_table, None, _Dot.apply(table, index, grad) if need_weight else None


class _Dot(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(table, index, value)
        return dot(table, index, value.contiguous())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, Tensor | None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        table, index, value = ctx.saved_tensors
        need_table, _, need_value = ctx.needs_input_grad
        unused = table.shape[1] - value.shape[1]
        grad_table = _Scatter.apply(index, grad, F.pad(value, (0, unused)), len(table)) if need_table else None
        return grad_table, None, _Gather.apply(table, index, grad)[:, : value.shape[1]] if need_value else None


class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, index: Tensor, weight: Tensor, value: Tensor, rows: int) -> Tensor:
        ctx.save_for_backward(index, weight, value)
        return scatter(index, weight.contiguous(), value.contiguous(), rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor | None, Tensor | None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        index, weight, value = ctx.saved_tensors
        _, need_weight, need_value, _ = ctx.needs_input_grad
        grad_weight = _Dot.apply(grad, index, value) if need_weight else None
        return None, grad_weight, _Gather.apply(grad, index, weight) if need_value else None, None
