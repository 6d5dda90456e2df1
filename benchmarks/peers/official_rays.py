"""Rays of posed images as the official code makes them, view by view, for all pixels of which 256 are then picked.

Written from a description of that code, not from its text: integer pixel centres; directions normalised in camera and
again in the world; the box test runs in NumPy on all pixels, from the first ray's origin, with components near zero
replaced; pixels that miss the box lose their colour, depth and label; of those with depth a random subset is kept.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BOX = 0.55  # half the side of the box, in units of the scene's longest side
NEAR = 0.1


def view_rays(
    color: Tensor,
    depth: Tensor,
    segment: Tensor,
    intrinsic: Tensor,
    world_to_cam: Tensor,
    *,
    generator: torch.Generator,
    count: int,
) -> tuple[Tensor, ...]:
    """Picked rays of one view.

    Args:
        color: (H, W, 3) float in [0, 1].
        depth: (H, W) z-depth in the frame's units, 0 = none.
        segment: (H, W) class index, -1 = none.
        intrinsic: (3, 3).
        world_to_cam: (4, 4).
        generator: of the picks.
        count: rays to keep.

    Returns:
        Origins, directions (count, 3), depth along the ray (count,), colour (count, 3), label (count,).
    """
    H, W = depth.shape
    u, v = torch.meshgrid(torch.arange(W, dtype=torch.float32), torch.arange(H, dtype=torch.float32), indexing="xy")
    pixels = torch.stack([u, v, torch.ones_like(u)], dim=-1).reshape(-1, 3)  # all of them
    in_camera = pixels @ torch.linalg.inv(intrinsic).T
    in_camera = in_camera / in_camera.norm(dim=-1, keepdim=True)
    cam_to_world = torch.linalg.inv(world_to_cam)
    directions = in_camera @ cam_to_world[:3, :3].T
    directions = directions / directions.norm(dim=-1, keepdim=True)
    origins = cam_to_world[:3, 3].expand_as(directions)
    axis = cam_to_world[:3, 2] / cam_to_world[:3, 2].norm()
    along = depth.reshape(-1) / (directions @ axis)

    hit = torch.from_numpy(box_test(origins.cpu().numpy(), directions.cpu().numpy()))  # the round trip
    along = torch.where(hit, along, torch.full_like(along, -0.001))
    color = torch.where(hit[:, None], color.reshape(-1, 3), torch.zeros(3))
    segment = torch.where(hit, segment.reshape(-1), torch.full((1,), -1, dtype=segment.dtype))

    usable = torch.nonzero(depth.reshape(-1) > 0)[:, 0]
    picked = usable[torch.randperm(len(usable), generator=generator)[:count]]
    return origins[picked], directions[picked], along[picked], color[picked], segment[picked]


def box_test(origins: NDArray[np.float32], directions: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which rays (N, 3) cross the box of half side BOX, judged from the first ray's origin."""
    origin = origins[0]
    safe = directions.copy()
    safe[(safe > -1e-10) & (safe < 1e-5)] = 1e-5
    safe[(safe > -1e-5) & (safe < 1e-10)] = -1e-5
    low = (np.full(3, -BOX, dtype=np.float32) - origin) / safe
    high = (np.full(3, BOX, dtype=np.float32) - origin) / safe
    near = np.maximum(np.minimum(low, high).max(-1), NEAR)
    far = np.maximum(low, high).min(-1)
    return far > near


def official_rays(
    color: Tensor,
    depth: Tensor,
    segment: Tensor,
    intrinsics: Tensor,
    world_to_cam: Tensor,
    *,
    generator: torch.Generator,
    count: int = 256,
) -> tuple[Tensor, ...]:
    """Rays of V views, one after the other: origins, directions (V count, 3), depth, colour, label of each."""
    views = [
        view_rays(*view, generator=generator, count=count)
        for view in zip(color, depth, segment, intrinsics, world_to_cam, strict=True)
    ]
    return tuple(torch.cat(column) for column in zip(*views, strict=True))
