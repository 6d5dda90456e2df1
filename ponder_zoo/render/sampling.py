"""Where to sample along rays. Edges (..., S + 1) bound S intervals; nothing here is differentiable."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..structures import FeatureVolume, RayBundle, RaySamples


def uniform_edges(
    rays: RayBundle, num_samples: int, *, stratified: bool, generator: torch.Generator | None = None
) -> Tensor:
    """Edges of equal intervals between near and far: (B, R, S + 1) metres.

    Stratified: every edge is drawn uniformly between the middles of its two intervals (the outermost ones between
    near or far and the middle of theirs), so that edges stay ordered.
    """
    steps = torch.linspace(0.0, 1.0, num_samples + 1, device=rays.near.device, dtype=rays.near.dtype)
    steps = steps.expand(*rays.near.shape, -1)
    if stratified:
        middle = 0.5 * (steps[..., 1:] + steps[..., :-1])
        lower = torch.cat([steps[..., :1], middle], -1)
        upper = torch.cat([middle, steps[..., -1:]], -1)
        noise = ray_noise(rays, num_samples + 1, generator=generator)
        steps = lower + (upper - lower) * noise
    return rays.near[..., None] + steps * (rays.far - rays.near)[..., None]


def sample_pdf(
    edges: Tensor,
    weights: Tensor,
    num_samples: int,
    *,
    rays: RayBundle | None = None,
    generator: torch.Generator | None = None,
    padding: float = 1e-5,
) -> Tensor:
    """Edges of intervals that carry equal shares of a piecewise constant density, by inverting its integral.

    Args:
        edges: (..., S + 1) sorted.
        weights: (..., S) mass of each interval, not normalised, >= 0.
        num_samples: intervals to return; their edges are the quantiles at (i + 1/2) / (num_samples + 1).
        rays: draw each quantile uniformly within its share (see `ray_noise`); None takes the middle.
        generator: source of that randomness.
        padding: smallest total mass; what lacks is shared equally, so that all intervals count where none has a weight.

    Returns:
        (..., num_samples + 1) sorted.
    """
    total = weights.sum(-1, keepdim=True)
    weights = weights + (padding - total).clamp(min=0.0) / weights.shape[-1]
    cdf = F.pad((weights / total.clamp(min=padding)).cumsum(-1), (1, 0)).clamp(max=1.0)  # (..., S + 1)
    shares = num_samples + 1
    u = torch.arange(shares, device=edges.device, dtype=edges.dtype) / shares
    u = u.expand(*edges.shape[:-1], -1)
    noise = 0.5 if rays is None else ray_noise(rays, shares, generator=generator)
    u = (u + noise / shares).contiguous()
    upper = torch.searchsorted(cdf.contiguous(), u, right=True).clamp(1, edges.shape[-1] - 1)
    cdf_low, cdf_high = cdf.gather(-1, upper - 1), cdf.gather(-1, upper)
    mass = cdf_high - cdf_low
    mass = torch.where(mass < 1e-5, torch.ones_like(mass), mass)  # an empty interval is represented by its start
    low, high = edges.gather(-1, upper - 1), edges.gather(-1, upper)
    return low + ((u - cdf_low) / mass).clamp(0.0, 1.0) * (high - low)


def ray_noise(rays: RayBundle, count: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Uniform random numbers in [0, 1), `count` for each ray: (B, R, count).

    A hash of the ray and of one number that is drawn anew each time. A ray gets the same noise whichever scenes and
    padding it is batched with, so that processes with a share of a batch each sample as one with all of it does.
    """
    device = rays.origins.device if generator is None else generator.device
    key = torch.randint(2**62, (), generator=generator, device=device).to(rays.origins.device)
    for column in torch.cat([rays.origins, rays.directions], -1).unbind(-1):  # (B, R), six times
        key = _scramble(key ^ column.float().view(torch.int32).long())
    index = torch.arange(1, count + 1, device=key.device)
    bits = _scramble(key[..., None] + index * -0x61C8864680B583EB)  # steps of 2^64 / golden ratio
    return ((bits >> 40) & 0xFFFFFF).to(rays.origins.dtype) / 2**24  # as many bits as float32 has digits


def _scramble(x: Tensor) -> Tensor:
    """Every bit of the result depends on every bit of the int64 argument (the finalizer of SplitMix64)."""
    x = (x ^ ((x >> 30) & (2**34 - 1))) * -0x40A7B892E31B1A47
    x = (x ^ ((x >> 27) & (2**37 - 1))) * -0x6B2FB644ECCEEE15
    return x ^ ((x >> 31) & (2**33 - 1))


def merge_edges(edges: Tensor, values: Tensor, new_edges: Tensor, new_values: Tensor) -> tuple[Tensor, Tensor]:
    """Sort two sets of intervals by their starts, and a value at each start along with them.

    Args:
        edges: (..., S + 1).
        values: (..., S).
        new_edges: (..., N + 1).
        new_values: (..., N).

    Returns:
        Edges (..., S + N + 1), where every interval ends at the next start and the last one at the larger of the two
        ends, and the values at the starts (..., S + N).
    """
    starts, order = torch.cat([edges[..., :-1], new_edges[..., :-1]], -1).sort(-1)
    end = torch.maximum(edges[..., -1:], new_edges[..., -1:])
    return torch.cat([starts, end], -1), torch.cat([values, new_values], -1).gather(-1, order)


def samples_between(rays: RayBundle, edges: Tensor) -> RaySamples:
    """Intervals along rays from their edges (B, R, S + 1) in metres."""
    return RaySamples(rays.origins, rays.directions, edges[..., :-1], edges[..., 1:])


def as_if_normalised(positions: Tensor, volume: FeatureVolume) -> Tensor:
    """Where the official samplers look instead of at `positions`: (B, R, S, 3) metres.

    They hand positions in metres (cube units) to a lookup that expects positions normalised to [0, 1] in the box.
    """
    lower, upper = volume.grid.bounds.to(positions.dtype)[:, :, None, None].unbind(1)
    return lower + positions * (upper - lower)
