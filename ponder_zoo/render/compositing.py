"""From opacities along rays to images (paper Eq. 6). Always float32 or better, also under autocast."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..structures import FieldOutput, RaySamples, RenderOutput
from .field import unit_vector


def render_weights(alpha: Tensor) -> Tensor:
    """w_i = T_i a_i with T_i = prod_{j<i} (1 - a_j): (..., S) -> (..., S). Paper Eq. 6.

    The product is taken in the logarithm: the backward pass of `torch.cumprod` waits for the device to look for zeros.
    An opacity above 1 - 1e-7 counts as that, so that rays behind an opaque sample keep finite gradients.
    """
    alpha = alpha.float() if alpha.dtype in (torch.bfloat16, torch.float16) else alpha
    alpha = alpha.clamp(0.0, 1.0 - 1e-7)
    log_transmittance = torch.log1p(-alpha).cumsum(-1)
    return alpha * F.pad(log_transmittance[..., :-1], (1, 0)).exp()


def composite(
    samples: RaySamples, field: FieldOutput, weights: Tensor, *, t: Tensor, background: float = 0.0
) -> RenderOutput:
    """Weighted sums along each ray.

    Args:
        samples: intervals the field was queried at.
        field: (B, R, S, ...) what it answered.
        weights: (B, R, S).
        t: (B, R, S) metres, where along its interval each weight sits.
        background: grey level behind everything.
    """
    with torch.autocast(weights.device.type, enabled=False):
        opacity = weights.sum(-1)
        normal = unit_vector(field.gradient)
        return RenderOutput(
            rgb=_sum(weights, field.rgb) + background * (1.0 - opacity)[..., None],
            depth=(weights * t).sum(-1) / (opacity + 1e-10),
            normal=_sum(weights, normal),
            opacity=opacity.clamp(max=1.0),  # the sum of the weights is at most 1 up to rounding
            weights=weights,
            samples=samples,
            field=replace(field, semantic_inputs=None, semantic_layer=None),
            semantic=_semantic(weights, field),
        )


def _semantic(weights: Tensor, field: FieldOutput) -> Tensor | None:
    """sum_i w_i (M x_i + b) = M (sum_i w_i x_i) + b sum_i w_i, exactly: the last layer runs per ray, not per sample."""
    if field.semantic_inputs is None or field.semantic_layer is None:
        return None
    matrix, bias = field.semantic_layer
    return F.linear(_sum(weights, field.semantic_inputs), matrix) + weights.sum(-1, keepdim=True) * bias


def _sum(weights: Tensor, values: Tensor) -> Tensor:
    return (weights[..., None] * values).sum(-2)  # (B, R, S), (B, R, S, D) -> (B, R, D)
