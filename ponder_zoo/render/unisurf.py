"""UniSurf: occupancy as opacity, sampled around the surface that root finding locates (arXiv:2104.10078)."""

from __future__ import annotations

import math
from typing import Literal, Unpack

import torch
from torch import Tensor, nn

from ..structures import FieldOutput, RayBundle, RaySamples
from .base import AbstractSurfaceRenderer
from .field import FieldArgs, SDFField, Volumes
from .sampling import merge_edges, samples_between, uniform_edges


class UniSurf(AbstractSurfaceRenderer):
    """UniSurf on an SDFField: the occupancy is sigmoid(-s sdf) with a learned sharpness s.

    As in its paper, samples are spread over an interval around the first surface, and over the whole ray. The paper
    shrinks the interval by the iteration number; here its half-width is `interval / s`, at least `min_interval`: it
    shrinks as the surface sharpens. A ray that meets no surface spreads these samples from near to far.

    Args:
        in_chans: channels of the volume.
        num_samples: samples of the space from near to far that are rendered.
        num_importance: samples of the interval around the surface.
        num_search: uniform steps that look for the first change of sign.
        num_secant: secant steps that refine it.
        initial_sharpness: s at initialisation, 1/m.
        interval: half-width of the interval in units of 1 / s.
        min_interval: its smallest half-width, metres.
        sampler_frame: "metres", or "official" (see `NeuS`).
        background: grey level in [0, 1] where rays meet nothing; 0 is the official black.
        field: the arguments of `SDFField`.
    """

    def __init__(
        self,
        in_chans: int,
        *,
        num_samples: int = 32,
        num_importance: int = 32,
        num_search: int = 64,
        num_secant: int = 4,
        initial_sharpness: float = 60.0,
        interval: float = 8.0,
        min_interval: float = 0.02,
        sampler_frame: Literal["metres", "official"] = "metres",
        background: float = 0.0,
        **field: Unpack[FieldArgs],
    ) -> None:
        super().__init__()
        self.field = SDFField(in_chans, **field)
        self.log_sharpness = nn.Parameter(torch.tensor(math.log(initial_sharpness) / 10.0))  # as in NeuS
        self.num_samples = num_samples
        self.num_importance = num_importance
        self.num_search = num_search
        self.num_secant = num_secant
        self.interval = interval
        self.min_interval = min_interval
        self.sampler_frame = sampler_frame
        self.background = background
        self.depth_at = "start"
        self.generator = None

    @property
    def sharpness(self) -> Tensor:
        """Slope of the occupancy, 1/m: a scalar."""
        return (10.0 * self.log_sharpness).exp().clamp(1e-6, 1e6)

    def sample(self, rays: RayBundle, volume: Volumes) -> RaySamples:
        surface, found = self.first_surface(rays, volume)
        width = (self.interval / self.sharpness).clamp(min=self.min_interval)
        near = torch.where(found, (surface - width).maximum(rays.near), rays.near)
        far = torch.where(found, (surface + width).minimum(rays.far), rays.far)
        around = RayBundle(rays.origins, rays.directions, near, far, rays.valid)
        space = uniform_edges(rays, self.num_samples, stratified=self.training, generator=self.generator)
        edges = uniform_edges(around, self.num_importance, stratified=self.training, generator=self.generator)
        edges, _ = merge_edges(space, space[..., :-1], edges, edges[..., :-1])
        return samples_between(rays, edges)

    def alpha(self, samples: RaySamples, field: FieldOutput) -> Tensor:
        return torch.sigmoid(-self.sharpness * field.sdf)  # UNISURF Eq. 5: the opacity of a sample is its occupancy

    def first_surface(self, rays: RayBundle, volume: Volumes) -> tuple[Tensor, Tensor]:
        """Distance (B, R) in metres of the first change of the sdf from + to -, and whether there is one."""
        t = uniform_edges(rays, self.num_search, stratified=False)
        sdf = self._sdf_along(rays, t, volume)
        enters = (sdf[..., :-1] > 0) & (sdf[..., 1:] <= 0)  # (B, R, num_search)
        first = enters.to(torch.uint8).argmax(-1, keepdim=True)
        t_low, t_high = t.gather(-1, first), t.gather(-1, first + 1)  # (B, R, 1)
        sdf_low, sdf_high = sdf.gather(-1, first), sdf.gather(-1, first + 1)
        root = _secant(t_low, t_high, sdf_low, sdf_high)
        for _ in range(self.num_secant):
            value = self._sdf_along(rays, root, volume)
            outside = value > 0
            t_low, sdf_low = torch.where(outside, root, t_low), torch.where(outside, value, sdf_low)
            t_high, sdf_high = torch.where(outside, t_high, root), torch.where(outside, sdf_high, value)
            root = _secant(t_low, t_high, sdf_low, sdf_high)
        return root[..., 0], enters.any(-1)


def _secant(t_low: Tensor, t_high: Tensor, sdf_low: Tensor, sdf_high: Tensor) -> Tensor:
    """Where the line through two points of opposite sign crosses zero; within [t_low, t_high]."""
    share = sdf_low / (sdf_low - sdf_high).where(sdf_low != sdf_high, torch.ones_like(sdf_low))
    return t_low + share.clamp(0.0, 1.0) * (t_high - t_low)
