"""VolSDF: density as a Laplace distribution's integral over the sdf (arXiv:2106.12052)."""

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


class VolSDF(AbstractSurfaceRenderer):
    """VolSDF on an SDFField, with the error-bounded sampler of its paper.

    The sampler refines, for a fixed number of rounds (no wait for the device), where the opacity's error bound at the
    current beta exceeds `error_bound`, then places `num_importance` samples by the rendering weights, and adds
    `num_uniform` uniform ones.

    Args:
        in_chans: channels of the volume.
        num_samples: uniform samples that the sampler starts from, and adds in each further round.
        num_importance: samples placed by the rendering weights.
        num_uniform: uniform samples added to those that are rendered.
        num_rounds: evaluations of the sdf along the ray, at least 1.
        error_bound: largest error of the opacity that needs no further samples (epsilon of the VolSDF paper).
        initial_beta: scale of the Laplace distribution at initialisation, metres.
        sampler_frame: "metres", or "official" (see `NeuS`).
        background: grey level in [0, 1] where rays meet nothing; 0 is the official black.
        field: the arguments of `SDFField`.
    """

    def __init__(
        self,
        in_chans: int,
        *,
        num_samples: int = 64,
        num_importance: int = 64,
        num_uniform: int = 32,
        num_rounds: int = 2,
        error_bound: float = 0.1,
        initial_beta: float = 0.03,
        sampler_frame: Literal["metres", "official"] = "metres",
        background: float = 0.0,
        **field: Unpack[FieldArgs],
    ) -> None:
        super().__init__()
        self.field = SDFField(in_chans, **field)
        self.beta_parameter = nn.Parameter(torch.tensor(float(initial_beta)))
        self.num_samples = num_samples
        self.num_importance = num_importance
        self.num_uniform = num_uniform
        self.num_rounds = num_rounds
        self.error_bound = error_bound
        self.sampler_frame = sampler_frame
        self.background = background
        self.depth_at = "start"
        self.generator = None

    @property
    def beta(self) -> Tensor:
        """Scale of the Laplace distribution, metres: a scalar of at least 1e-4."""
        return self.beta_parameter.abs() + 1e-4

    def sample(self, rays: RayBundle, volume: Volumes) -> RaySamples:
        edges = uniform_edges(rays, self.num_samples, stratified=self.training, generator=self.generator)
        sdf = self._sdf_along(rays, edges[..., :-1], volume)
        beta = start_beta(edges, self.error_bound)
        for step in range(self.num_rounds):
            nearest = distance_to_surface(edges, sdf)
            beta = tighten_beta(edges, sdf, nearest, self.beta, beta, self.error_bound)
            if step == self.num_rounds - 1:
                break
            wrong = opacity_error(edges, sdf, nearest, beta)
            new = sample_pdf(
                edges, wrong, self.num_samples, rays=rays if self.training else None, generator=self.generator
            )
            edges, sdf = merge_edges(edges, sdf, new, self._sdf_along(rays, new[..., :-1], volume))
        weights = render_weights(volsdf_alpha(edges[..., 1:] - edges[..., :-1], sdf, beta))
        chosen = sample_pdf(
            edges, weights, self.num_importance, rays=rays if self.training else None, generator=self.generator
        )
        if self.num_uniform > 0:
            extra = uniform_edges(rays, self.num_uniform, stratified=self.training, generator=self.generator)
            chosen, _ = merge_edges(chosen, chosen[..., :-1], extra, extra[..., :-1])
        return samples_between(rays, chosen)

    def alpha(self, samples: RaySamples, field: FieldOutput) -> Tensor:
        return volsdf_alpha(samples.t_ends - samples.t_starts, field.sdf, self.beta)


def laplace_density(sdf: Tensor, beta: Tensor) -> Tensor:
    """Density (1/m) of a surface blurred by a Laplace distribution of scale beta (m). VolSDF Eq. 2, 3."""
    return (0.5 + 0.5 * sdf.sign() * torch.expm1(-sdf.abs() / beta)) / beta


def volsdf_alpha(distance: Tensor, sdf: Tensor, beta: Tensor) -> Tensor:
    """Opacity of intervals of length `distance` with the density at their starts: (..., S). VolSDF Eq. 5, 6."""
    return -torch.expm1(-distance * laplace_density(sdf, beta))


# The error-bounded sampler. `edges` (..., S + 1), `sdf` (..., S) at the starts, `beta` (..., 1) per ray.


def start_beta(edges: Tensor, error_bound: float) -> Tensor:
    """A beta for which the given intervals satisfy the bound whatever the sdf: (..., 1). VolSDF Lemma 2."""
    squares = (edges[..., 1:] - edges[..., :-1]).square().sum(-1, keepdim=True)
    return (squares / (4.0 * math.log1p(error_bound))).sqrt()


def distance_to_surface(edges: Tensor, sdf: Tensor) -> Tensor:
    """Lower bound on the distance between each interval and the surface, from the sdf at its ends: (..., S).

    The ends are centres of balls without surface. VolSDF supplement, d* in Sec. B.1. The last interval, whose end has
    no sdf, takes the value of the one before it.
    """
    a = edges[..., 1:-1] - edges[..., :-2]
    b, c = sdf[..., :-1].abs(), sdf[..., 1:].abs()
    half = 0.5 * (a + b + c)
    height = 2.0 * (half * (half - a) * (half - b) * (half - c)).clamp(min=0.0).sqrt() / a.clamp(min=1e-12)
    height = height.where(b + c > a, torch.zeros_like(height))  # the balls do not overlap
    height = torch.where(a.square() + c.square() <= b.square(), c, height)
    height = torch.where(a.square() + b.square() <= c.square(), b, height)
    height = height * (sdf[..., 1:].sign() * sdf[..., :-1].sign() == 1)
    return torch.cat([height, height[..., -1:]], -1)


def opacity_error(edges: Tensor, sdf: Tensor, nearest: Tensor, beta: Tensor) -> Tensor:
    """Bound on the error of the opacity in each interval: (..., S); VolSDF Eq. 15 and Theorem 1."""
    distance = edges[..., 1:] - edges[..., :-1]
    section = torch.exp(-nearest / beta) * distance.square() / (4.0 * beta.square())
    energy = (distance * laplace_density(sdf, beta)).cumsum(-1)
    return (section.cumsum(-1).exp().clamp(max=1e6) - 1.0) * torch.exp(-F.pad(energy[..., :-1], (1, 0)))


def tighten_beta(
    edges: Tensor, sdf: Tensor, nearest: Tensor, target: Tensor, beta: Tensor, error_bound: float, steps: int = 10
) -> Tensor:
    """The smallest beta between `target` and `beta` that satisfies the bound, by bisection: (..., 1)."""
    target = target.expand_as(beta)
    fits = opacity_error(edges, sdf, nearest, target).amax(-1, keepdim=True) <= error_bound
    low, high = target, torch.where(fits, target, beta)
    for _ in range(steps):
        middle = 0.5 * (low + high)
        fits = opacity_error(edges, sdf, nearest, middle).amax(-1, keepdim=True) <= error_bound
        low, high = torch.where(fits, low, middle), torch.where(fits, middle, high)
    return high
