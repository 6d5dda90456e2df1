"""NeuS: unbiased, occlusion-aware weights from an sdf (paper Eq. 6, 7; NeuS, arXiv:2106.10689)."""

from __future__ import annotations

import math
from typing import Literal, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..structures import FieldOutput, RayBundle, RaySamples
from .base import AbstractSurfaceRenderer
from .compositing import render_weights
from .field import FieldArgs, SDFField, Volumes
from .sampling import merge_edges, sample_pdf, samples_between, uniform_edges


class NeuS(AbstractSurfaceRenderer):
    """NeuS on an SDFField; the renderer of the paper.

    Args:
        in_chans: channels of the volume.
        num_samples: uniform (in training: stratified) samples per ray.
        num_importance: samples per ray placed where the uniform ones see a surface.
        num_upsample_steps: rounds that place them, each with twice the sharpness of the one before.
        importance_sharpness: sharpness of the first round, 1/m; official: 64 per cube unit.
        initial_sharpness: s of Eq. 7 at initialisation, 1/m: an opaque surface is about 4 / s thick. Official: 20 per
            cube unit; in metres 60 fits faster than 20 or 120 (`docs/differences.md`).
        alpha_rule: "paper": Eq. 7, from the sdf at the two ends of an interval. "official": from the sdf at its start,
            extended by half an interval along the gradient.
        sampler_frame: "metres", or "official": the importance sampler looks up positions that were not normalised.
            Reproduces a defect of the official code (`docs/differences.md`).
        background: grey level in [0, 1] where rays meet nothing; 0 is the official black.
        field: the arguments of `SDFField`.
    """

    def __init__(
        self,
        in_chans: int,
        *,
        num_samples: int = 64,
        num_importance: int = 32,
        num_upsample_steps: int = 1,
        importance_sharpness: float = 32.0,
        initial_sharpness: float = 60.0,
        alpha_rule: Literal["paper", "official"] = "paper",
        sampler_frame: Literal["metres", "official"] = "metres",
        background: float = 0.0,
        **field: Unpack[FieldArgs],
    ) -> None:
        super().__init__()
        self.field = SDFField(in_chans, **field)
        # a tenth of the logarithm, as in the official code: it then moves at the pace of the other weights
        self.log_sharpness = nn.Parameter(torch.tensor(math.log(initial_sharpness) / 10.0))
        self.num_samples = num_samples
        self.num_importance = num_importance
        self.num_upsample_steps = num_upsample_steps
        self.importance_sharpness = importance_sharpness
        self.alpha_rule = alpha_rule
        self.sampler_frame = sampler_frame
        self.background = background
        self.depth_at = "middle" if alpha_rule == "paper" else "start"
        self.generator = None

    @property
    def sharpness(self) -> Tensor:
        """S of Eq. 7, 1/m: a scalar."""
        return (10.0 * self.log_sharpness).exp().clamp(1e-6, 1e6)

    def sample(self, rays: RayBundle, volume: Volumes) -> RaySamples:
        edges = uniform_edges(rays, self.num_samples, stratified=self.training, generator=self.generator)
        if self.num_importance == 0:
            return samples_between(rays, edges)
        sdf = self._sdf_along(rays, edges[..., :-1], volume)
        share = self.num_importance // self.num_upsample_steps
        for step in range(self.num_upsample_steps):
            weights = interval_weights(
                edges[..., :-1], sdf, self.importance_sharpness * 2**step, cancelling=self.alpha_rule == "official"
            )
            new = sample_pdf(edges, weights, share, rays=rays if self.training else None, generator=self.generator)
            last = step == self.num_upsample_steps - 1
            new_sdf = torch.zeros_like(new[..., :-1]) if last else self._sdf_along(rays, new[..., :-1], volume)
            edges, sdf = merge_edges(edges, sdf, new, new_sdf)
        return samples_between(rays, edges)

    def alpha(self, samples: RaySamples, field: FieldOutput) -> Tensor:
        if self.alpha_rule == "paper":
            return F.pad(neus_alpha(field.sdf, self.sharpness), (0, 1))  # the last interval has no far end
        return half_step_alpha(samples, field, self.sharpness)


def neus_alpha(sdf: Tensor, sharpness: Tensor) -> Tensor:
    """Opacity of the S - 1 intervals between S samples: (..., S) -> (..., S - 1). Paper Eq. 7.

    The quotient of two sigmoids is formed in the logarithm: exact, with exact derivatives, also deep inside a surface
    where both round to zero. Every interval absorbs a further 1e-5, as in the official code: where the sdf is flat the
    opacity of Eq. 7 vanishes but its derivative does not, and the expected depth (a quotient by the total
    opacity) of such a ray would have derivatives without bound.
    """
    log_cdf = F.logsigmoid(sharpness * sdf)
    change = log_cdf[..., 1:] - log_cdf[..., :-1]
    return -torch.expm1(torch.minimum(change, torch.zeros_like(change)) - 1e-5)  # clamp has no derivative at a tie


def half_step_alpha(samples: RaySamples, field: FieldOutput, sharpness: Tensor) -> Tensor:
    """Opacity of each interval by extending the sdf half an interval along its gradient: (B, R, S). Official code.

    Its 1e-5 makes every interval deep inside a surface opaque and gives free space an opacity of 1e-5 per sample.
    """
    slope = (samples.directions[:, :, None] * field.gradient).sum(-1).clamp(max=0.0)  # (B, R, S)
    half = 0.5 * slope * (samples.t_ends - samples.t_starts)
    enter, leave = torch.sigmoid((field.sdf - half) * sharpness), torch.sigmoid((field.sdf + half) * sharpness)
    return ((enter - leave + 1e-5) / (enter + 1e-5)).clamp(0.0, 1.0)


def interval_weights(t: Tensor, sdf: Tensor, sharpness: float, *, cancelling: bool = False) -> Tensor:
    """Rendering weights that guide importance sampling: distances and sdf (..., S) -> (..., S), the last one zero.

    Per interval the smaller of the slopes over it and over the one before is used, which keeps thin surfaces that a
    coarse sampling meets with one sample (NeuS, supplement; official code).

    Args:
        t: metres along the ray.
        sdf: at those.
        sharpness: s of Eq. 7, 1/m.
        cancelling: subtract the two sigmoids as they are, like the official code. In free space both round to 1 in
            float32: the difference is 1e-7 of noise beside opacities of 1e-5, and samples move by centimetres.
    """
    distance = t[..., 1:] - t[..., :-1]
    slope = (sdf[..., 1:] - sdf[..., :-1]) / (distance + 1e-5)
    slope = torch.minimum(slope, F.pad(slope[..., :-1], (1, 0))).clamp(-1e3, 0.0)
    middle, half = 0.5 * (sdf[..., 1:] + sdf[..., :-1]), 0.5 * slope * distance
    enter, leave = (middle - half) * sharpness, (middle + half) * sharpness
    if cancelling:
        drop = torch.sigmoid(enter) - torch.sigmoid(leave)
    else:  # the same, as a product
        drop = torch.sigmoid(enter) * torch.sigmoid(-leave) * -torch.expm1(leave - enter)
    return F.pad(render_weights((drop + 1e-5) / (torch.sigmoid(enter) + 1e-5)), (0, 1))
