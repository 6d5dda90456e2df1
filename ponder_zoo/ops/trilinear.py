"""Trilinear lookup in a feature volume, differentiable to any order in the features and in the positions.

The eight corner weights and their slopes are small, (P, 8) and (P, 8, 3) for P positions: plain autograd handles them.
What touches the C channels is a weighted gather of rows, with the exact derivatives of `ops.rows`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..structures import FeatureVolume, VolumeGrid
from .gradient_pool import PooledVolume, RowSums, pooled_dot, pooled_gather, table_of
from .rows import dot_rows, gather_rows


def sample_volume(volume: FeatureVolume, positions: Tensor, channels: int | None = None) -> Tensor:
    """Interpolate the features of a volume: positions (B, R, S, 3) in metres -> (B, R, S, C).

    Cells outside the grid count as zero, as in `F.grid_sample` with zero padding: the result fades to zero around the
    box (within half a cell for `align="centers"`, within a whole one for "corners") and is zero beyond. It is computed
    in float32 or better, whatever the dtype of the volume. Differentiable in `volume.feat` and `positions` to any
    order, not in `volume.grid.bounds`. Fastest where `volume.feat` is `channels_last_3d`; otherwise it is copied.
    `channels` reads the first so many only.

    Example:
        >>> grid = VolumeGrid(torch.tensor([[[0.0, 0.0, 0.0], [4.0, 2.0, 2.0]]]), (4, 2, 2))
        >>> feat = torch.arange(4.0).expand(1, 1, 2, 2, 4)  # the value is the cell's number along x
        >>> sample_volume(FeatureVolume(feat, grid), torch.tensor([[[[2.25, 1.0, 1.0]]]]))
        tensor([[[[1.7500]]]])
    """
    table, index, weight, _ = _locate(volume, positions, slopes=False)
    return gather_rows(table, index, weight, channels).view(*positions.shape[:-1], channels or table.shape[1])


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
    pool = volume.pool if isinstance(volume, PooledVolume) else None
    if pool is None:
        feat = gather_rows(table, index, weight)
    else:
        sums = RowSums(index)
        feat = pooled_gather(table, sums, weight, pool)

    def gradient(feat_gradient: Tensor) -> Tensor:
        value = feat_gradient.flatten(0, -2).to(table.dtype)
        along = dot_rows(table, index, value) if pool is None else pooled_dot(table, sums, value, pool)  # (P, 8)
        return (along[..., None] * slope).sum(1).view(shape)

    return feat.view(*shape[:-1], table.shape[1]), gradient


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
    table = table_of(feat.to(dtype))
    lower, upper = grid.bounds.detach().to(dtype).unbind(1)  # (B, 3)
    axes = [_neighbours(positions[..., a].to(dtype), lower[:, a], upper[:, a], grid, a) for a in range(3)]
    (x, weight_x, slope_x), (y, weight_y, slope_y), (z, weight_z, slope_z) = axes  # each (P, 2)
    X, Y, Z = grid.shape
    scene = torch.arange(len(feat), device=feat.device).repeat_interleave(len(x) // len(feat), output_size=len(x))
    row = (scene[:, None, None] * Z + z[:, :, None]) * Y + y[:, None, :]  # (P, 2, 2)
    index = (row[..., None] * X + x[:, None, None, :]).view(-1, 8)
    slope = lower.new_empty(0)
    if slopes:
        slope = torch.stack(
            [
                _corner_product(slope_x, weight_y, weight_z),
                _corner_product(weight_x, slope_y, weight_z),
                _corner_product(weight_x, weight_y, slope_z),
            ],
            -1,
        )
    return table, index, _corner_product(weight_x, weight_y, weight_z), slope


def _neighbours(
    position: Tensor, lower: Tensor, upper: Tensor, grid: VolumeGrid, axis: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Lower and upper neighbour along one axis: cells, weights and d(weight)/d(position), each (P, 2).

    Args:
        position: (B, R, S) metres.
        lower: (B,) face of the box.
        upper: (B,) face of the box.
        grid: gives the number of cells and where in them the values sit.
        axis: 0, 1, 2 for x, y, z.
    """
    size = grid.shape[axis]
    centers = grid.align == "centers"
    # full_like: a number divided by a tensor is the number times a reciprocal, rounded twice.
    scale = (torch.full_like(lower, size if centers else size - 1) / (upper - lower))[:, None, None]
    cell = (position - lower[:, None, None]) * scale - (0.5 if centers else 0.0)  # value i sits at i
    base = cell.detach().floor()
    corner = torch.stack([base, base + 1.0], -1)  # (B, R, S, 2)
    inside = (corner >= 0) & (corner < size)  # neighbours outside the grid count as zero
    fraction = cell - base  # in [0, 1)
    weight = torch.stack([1.0 - fraction, fraction], -1) * inside
    slope = torch.stack([-scale, scale], -1) * inside
    # Clamped twice, as floats and as integers: a NaN survives the first and becomes some integer, not to be an address.
    index = corner.clamp(0, size - 1).long().clamp(0, size - 1)
    return index.flatten(0, 2), weight.flatten(0, 2), slope.flatten(0, 2)


def _corner_product(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Product of one factor per axis for each of the eight corners, x fastest: 3 x (P, 2) -> (P, 8)."""
    return (z[:, :, None, None] * y[:, None, :, None] * x[:, None, None, :]).view(-1, 8)
