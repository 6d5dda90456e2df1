"""How the official code picks and prepares rays (`ponder_indoor_base.py`): only to reproduce its numbers.

Views are in the frame of their scene's unit cube (`data.unit_cube`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..ops.rays import pixel_rays
from ..structures import RayBundle, RayTargets
from .scene import Views

HALF_SIDE = 0.55  # the box that rays are clipped to: the unit cube, padded by 10 %


def official_rays(
    views: Views, *, rays_per_view: int = 256, rng: np.random.Generator | None = None
) -> tuple[RayBundle, RayTargets]:
    """The rays of one scene and what is observed along them: B = 1, R = V * rays_per_view.

    Pixels are drawn among those with depth. A ray that misses the box keeps its place and is to be rendered black
    with colour 0, depth -0.001 and no label; all rays count as `valid`, as they do in the official losses. Class 0
    is unlabelled, as there.

    Args:
        views: of one scene, in its unit-cube frame.
        rays_per_view: how many pixels of each view.
        rng: draws them; None takes the first ones, row by row.
    """
    pixels = np.stack([_choose_pixels(depth, rays_per_view, rng, i) for i, depth in enumerate(views.depth)])
    u, v = pixels % views.depth.shape[2], pixels // views.depth.shape[2]  # (V, n)

    def pick(image: NDArray[Any]) -> Tensor:
        return torch.as_tensor(image[np.arange(len(image))[:, None], v, u])

    origins, directions, z_to_ray = pixel_rays(
        torch.as_tensor(np.stack([u, v], -1), dtype=torch.float32),
        torch.as_tensor(views.intrinsics, dtype=torch.float32)[:, None],
        torch.as_tensor(views.cam_to_world, dtype=torch.float32)[:, None],
    )
    seen = _hits_official_box(origins[:, :1], directions)  # the first ray's origin stands for all, per view
    depth = torch.where(seen, pick(views.depth).float() * z_to_ray, -0.001)
    color = torch.where(seen[..., None], pick(views.color).float() / 255.0, 0.0)
    segment = None
    if views.segment is not None:
        label = pick(views.segment).long()
        segment = torch.where(seen & (label > 0), label, -1).view(1, -1)
    origins, directions = origins.reshape(1, -1, 3), directions.reshape(1, -1, 3)
    near, far = official_near_far(origins, directions)
    rays = RayBundle(origins, directions, near, far, torch.ones_like(near, dtype=torch.bool))
    return rays, RayTargets(color.view(1, -1, 3), depth.view(1, -1), segment=segment)


def official_near_far(origins: Tensor, directions: Tensor, *, near: float = 0.01) -> tuple[Tensor, Tensor]:
    """Where rays are in the box, cube units: (B, R, 3), (B, R, 3) -> 2 x (B, R); both 0 for rays that miss it."""
    slope = 1.0 / (directions + 1e-6)
    first, second = (-HALF_SIDE - origins) * slope, (HALF_SIDE - origins) * slope
    start = torch.minimum(first, second).amax(-1).clamp(min=near)
    end = torch.maximum(first, second).amin(-1)
    hit = end > start
    return start * hit, end * hit


def _choose_pixels(depth: NDArray[Any], count: int, rng: np.random.Generator | None, view: int) -> NDArray[np.int64]:
    pixels = np.flatnonzero(depth.reshape(-1) > 0)
    if len(pixels) < count:
        raise ValueError(
            f"View {view} has {len(pixels)} pixels with depth, fewer than the rays_per_view={count} that every view "
            "must give in the official code. Lower rays_per_view, or leave such views out."
        )
    return pixels[:count] if rng is None else rng.permutation(pixels)[:count]


def _hits_official_box(origin: Tensor, directions: Tensor) -> Tensor:
    """Box test of the targets, which is not that of `official_near_far`: (V, 1, 3), (V, n, 3) -> (V, n) bool."""
    d = torch.where((directions > -1e-10) & (directions < 1e-5), 1e-5, directions)
    d = torch.where((d > -1e-5) & (d < 1e-10), -1e-5, d)
    first, second = (-HALF_SIDE - origin) / d, (HALF_SIDE - origin) / d
    start = torch.minimum(first, second).amax(-1).clamp(min=0.1)
    return torch.maximum(first, second).amin(-1) > start
