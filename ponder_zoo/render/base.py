"""What the three renderers share: sample, query the field, turn its answers into opacities, composite."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..ops.gradient_pool import pool_gradients, ready_for_lookups
from ..structures import FeatureVolume, FieldOutput, RayBundle, RaySamples, RenderOutput
from .compositing import composite, render_weights
from .field import AbstractField, Volumes
from .sampling import as_if_normalised


class AbstractSurfaceRenderer(nn.Module, abc.ABC):
    """(RayBundle, FeatureVolume) -> RenderOutput. Knows nothing of encoders: that is what makes it detachable.

    Final classes set `field` next to their own parameters. In training mode samples are stratified; `generator` is the
    source of that randomness (None: torch's default generator, which a recipe seeds). In eval mode the output is
    a function of the inputs. Rays with `valid` False are transparent and pass no gradient on, whatever they hold.
    """

    field: AbstractField
    generator: torch.Generator | None
    sampler_frame: Literal["metres", "official"]  # official: the importance sampler's lookup is not normalised
    background: float  # grey level where rays meet nothing
    depth_at: Literal["start", "middle"]  # where in its interval `alpha` puts the opacity
    samples_per_chunk: int | None = None  # 0: all rays in one pass; None: 16,384 on a CPU, one pass elsewhere

    @abc.abstractmethod
    def sample(self, rays: RayBundle, volume: Volumes) -> RaySamples:
        """Choose S intervals along each ray. Not differentiable."""

    @abc.abstractmethod
    def alpha(self, samples: RaySamples, field: FieldOutput) -> Tensor:
        """Opacity of each interval: (B, R, S) in [0, 1]."""

    def forward(self, rays: RayBundle, volume: Volumes) -> RenderOutput:
        """Render rays; a tuple of volumes holds several resolutions of the same scenes."""
        with torch.autocast(rays.origins.device.type, enabled=False):
            rays = _without_padding(rays)
            volume = _map_volumes(ready_for_lookups, volume)
            with torch.no_grad():
                samples = self.sample(rays, volume)
            return self.render_samples(samples, rays.valid, volume)

    def render_samples(self, samples: RaySamples, valid: Tensor, volume: Volumes) -> RenderOutput:
        """Render from given samples; `valid` (B, R) as in a RayBundle."""
        with torch.autocast(samples.origins.device.type, enabled=False):
            moving = samples.origins.requires_grad or samples.directions.requires_grad or samples.t_starts.requires_grad
            chunks = self._chunks(samples.t_starts)
            if moving or len(chunks) == 1:
                return self._render(samples, valid, volume)
            pooled = _map_volumes(pool_gradients, volume)
            parts = []
            for rays in chunks:
                chunk = samples.map(lambda value, rays=rays: value[:, rays])
                parts.append(self._render(chunk, valid[:, rays], pooled))
            return dataclasses.replace(_join_rays(parts), samples=samples)

    def _chunks(self, t: Tensor) -> list[slice]:
        """Which rays to render together, by their samples (B, R, S)."""
        B, R, S = t.shape
        per_chunk = self.samples_per_chunk
        if per_chunk is None:
            per_chunk = 2**14 if t.device.type == "cpu" else 0
        rays = max(per_chunk // max(B * S, 1), 1) if per_chunk > 0 else max(R, 1)
        return [slice(start, start + rays) for start in range(0, max(R, 1), rays)]

    def _render(self, samples: RaySamples, valid: Tensor, volume: Volumes) -> RenderOutput:
        with torch.autocast(samples.origins.device.type, enabled=False):
            field = self.field(samples.positions, samples.directions, volume)
            alpha = self.alpha(samples, field)
            alpha = alpha.where(valid[..., None], torch.zeros_like(alpha))
            t = samples.t_starts
            if self.depth_at == "middle":
                t = 0.5 * (t + samples.t_ends)
            return composite(samples, field, render_weights(alpha), t=t, background=self.background)

    def _sdf_along(self, rays: RayBundle, t: Tensor, volume: Volumes) -> Tensor:
        """What the sampler takes for the sdf at distances t (B, R, S) along the rays: (B, R, S)."""
        positions = rays.origins[:, :, None] + t[..., None] * rays.directions[:, :, None]
        if self.sampler_frame == "official":
            positions = as_if_normalised(positions, volume if isinstance(volume, FeatureVolume) else volume[0])
        parts = [self.field.sdf(positions[:, rays], volume) for rays in self._chunks(t)]
        return torch.cat(parts, 1) if len(parts) > 1 else parts[0]


def _map_volumes(function: Callable[[FeatureVolume], FeatureVolume], volume: Volumes) -> Volumes:
    return tuple(map(function, volume)) if isinstance(volume, tuple) else function(volume)


def _join_rays(parts: list[Any]) -> Any:
    """Concatenate structures along the axis of rays, field by field."""
    first = parts[0]
    if first is None:
        return None
    if isinstance(first, Tensor):
        return torch.cat(parts, 1)
    names = [field.name for field in dataclasses.fields(first)]
    return type(first)(**{name: _join_rays([getattr(part, name) for part in parts]) for name in names})


def _without_padding(rays: RayBundle) -> RayBundle:
    """Rays whose invalid entries are zero, so that nothing in them (NaN included) reaches a sum or a gradient."""
    values = {
        name: value.masked_fill(~(rays.valid if value.ndim == 2 else rays.valid[..., None]), 0.0)
        for name in ("origins", "directions", "near", "far")
        for value in (getattr(rays, name),)
    }
    return dataclasses.replace(rays, **values)
