"""Cross entropy and Lovasz-softmax for packed points: pure functions of (logits, target), without loops or syncs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, target: Tensor, *, ignore_index: int = -1) -> Tensor:
    """Mean cross entropy over the labelled points; zero, not NaN, where no point is labelled.

    Args:
        logits: (N, K).
        target: (N,) int64 in 0..K-1, or `ignore_index`.
        ignore_index: label of the points that do not count.
    """
    _check(logits, target)
    total = F.cross_entropy(logits.float(), target, ignore_index=ignore_index, reduction="sum")
    return total / (target != ignore_index).sum().clamp(min=1)


def lovasz_softmax(logits: Tensor, target: Tensor, *, ignore_index: int = -1) -> Tensor:
    """Convex surrogate of one minus the IoU, averaged over the classes that occur (arXiv:1705.08790, Eq. 9-11).

    The batch counts as one image, as in the official code. Differentiable in `logits`; the order of the errors is not.

    Args:
        logits: (N, K).
        target: (N,) int64 in 0..K-1, or `ignore_index`.
        ignore_index: label of the points that do not count.
    """
    _check(logits, target)
    labelled = target != ignore_index  # (N,)
    classes = torch.arange(logits.shape[1], device=logits.device)
    foreground = (target[None] == classes[:, None]).float()  # (K, N)
    errors = (foreground - logits.float().softmax(-1).t()).abs()
    # Points that do not count sort behind all others, where they change no weight, and add nothing.
    errors, order = errors.masked_fill(~labelled, -1.0).sort(dim=1, descending=True)
    weights = _jaccard_steps(foreground.gather(1, order))
    per_class = (errors.clamp(min=0.0) * weights).sum(1)  # (K,)
    present = (foreground.sum(1) > 0).float()
    return (per_class * present).sum() / present.sum().clamp(min=1.0)


def cross_entropy_lovasz(logits: Tensor, target: Tensor, *, ignore_index: int = -1) -> dict[str, Tensor]:
    """The official segmentation loss: both terms with weight 1. The entries sum to the loss.

    Example:
        >>> losses = cross_entropy_lovasz(torch.zeros(4, 2), torch.tensor([0, 1, 1, -1]))
        >>> round(losses["cross_entropy"].item(), 4)
        0.6931
    """
    return {
        "cross_entropy": cross_entropy(logits, target, ignore_index=ignore_index),
        "lovasz": lovasz_softmax(logits, target, ignore_index=ignore_index),
    }


def _jaccard_steps(foreground: Tensor) -> Tensor:
    """Growth of the Jaccard loss when the points are declared wrong one after the other: (K, N) -> (K, N).

    Written as the step itself (1/U, or I/(U(U-1))) and not as a difference of neighbours: in float32 the difference of
    two numbers near one has lost most of its digits at 1e5 points.
    """
    size = foreground.sum(1, keepdim=True)
    intersection = size - foreground.cumsum(1)
    union = size + (1.0 - foreground).cumsum(1)
    missed = 1.0 / union.clamp(min=1.0)
    invented = intersection / (union * (union - 1.0)).clamp(min=1.0)
    return torch.where(foreground > 0, missed, invented)


def _check(logits: Tensor, target: Tensor) -> None:
    if logits.ndim != 2 or target.shape != logits.shape[:1]:
        raise ValueError(
            f"Expected logits (N, K) and target (N,); got {tuple(logits.shape)} and {tuple(target.shape)}. "
            "Pack the points of all scenes along one axis, labels in the same order."
        )
    if target.dtype != torch.int64:
        raise TypeError(f"Expected int64 labels; got {target.dtype}. Convert them with `target.long()`.")
