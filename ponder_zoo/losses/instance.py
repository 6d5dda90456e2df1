"""Losses of PointGroup's offsets (arXiv:2004.01658, Eq. 2 and 3)."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import normalize

EPSILON = 1e-8  # the official one


def offset_losses(offset: Tensor, coord: Tensor, center: Tensor, instance: Tensor) -> dict[str, Tensor]:
    """How far, and in which wrong direction, predicted offsets miss the centres of the points' instances.

    Means over the points that have an instance; zero where none has. Differentiable in `offset`.

    Args:
        offset: (N, 3) metres, predicted.
        coord: (N, 3) metres.
        center: (N, 3) metres, of each point's instance.
        instance: (N,) int64, negative where a point has none; `center` is then not read.

    Returns:
        `offset_l1`: sum of the absolute errors along x, y, z. `offset_direction`: minus the cosine between both.
    """
    if not offset.shape == coord.shape == center.shape or instance.shape != offset.shape[:1]:
        raise ValueError(
            f"Expected offset, coord and center (N, 3) and instance (N,); got {tuple(offset.shape)}, "
            f"{tuple(coord.shape)}, {tuple(center.shape)}, {tuple(instance.shape)}. Pack them in the same order."
        )
    counts = (instance >= 0).float()
    target = (center - coord).float()
    error = (offset.float() - target).abs().sum(-1)
    cosine = (_unit(offset.float()) * _unit(target)).sum(-1)
    number = counts.sum() + EPSILON
    return {"offset_l1": (error * counts).sum() / number, "offset_direction": -(cosine * counts).sum() / number}


def _unit(vector: Tensor) -> Tensor:
    """`normalize` bounds the length from below instead of adding to it: its gradient at zero is zero, not NaN."""
    return normalize(vector, dim=-1, eps=EPSILON)
