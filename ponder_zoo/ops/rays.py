"""Rays through pixels, and where they cross a box. Camera axes are OpenCV's; pixel centres have integer coordinates."""

from __future__ import annotations

import torch
from torch import Tensor


def pixel_rays(pixels: Tensor, intrinsics: Tensor, cam_to_world: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Make one ray per pixel. Leading dimensions broadcast; differentiable in everything.

    Args:
        pixels: (..., 2) column u and row v, float.
        intrinsics: (..., 3, 3) upper triangular, pixels; focal lengths may be negative.
        cam_to_world: (..., 4, 4) metres; the 3x3 part may hold a reflection.

    Returns:
        Origins (..., 3), directions (..., 3) of unit length, and z_to_ray (...): a point of z-depth z lies at
        `origins + z * z_to_ray * directions`.
    """
    u, v = pixels.unbind(-1)
    y = (v - intrinsics[..., 1, 2]) / intrinsics[..., 1, 1]
    x = (u - intrinsics[..., 0, 2] - intrinsics[..., 0, 1] * y) / intrinsics[..., 0, 0]
    in_camera = torch.stack([x, y, torch.ones_like(x)], dim=-1)  # (..., 3), z = 1
    direction = (cam_to_world[..., :3, :3] @ in_camera[..., None])[..., 0]
    z_to_ray = direction.norm(dim=-1)
    direction = direction / z_to_ray[..., None]
    return cam_to_world[..., :3, 3].expand_as(direction), direction, z_to_ray


def project_points(points: Tensor, intrinsics: Tensor, cam_to_world: Tensor) -> tuple[Tensor, Tensor]:
    """Project points into an image, the inverse of `pixel_rays`. Leading dimensions broadcast.

    Args:
        points: (..., 3) metres, world frame.
        intrinsics: (..., 3, 3) pixels.
        cam_to_world: (..., 4, 4) metres.

    Returns:
        Pixels (..., 2) and z-depth (...). Where z <= 0 the point is behind the camera and its pixel has no meaning.
    """
    world_to_cam = torch.linalg.inv_ex(cam_to_world[..., :3, :3]).inverse  # inv_ex does not synchronize, inv does
    in_camera = (world_to_cam @ (points - cam_to_world[..., :3, 3])[..., None])[..., 0]
    z = in_camera[..., 2]
    pixels = (intrinsics[..., :2, :] @ in_camera[..., None])[..., 0] / z.where(z != 0, torch.ones_like(z))[..., None]
    return pixels, z


def ray_box(origins: Tensor, directions: Tensor, bounds: Tensor, *, near: float) -> tuple[Tensor, Tensor, Tensor]:
    """Intersect rays with each scene's box (slab test), exactly: rays parallel to a face need no epsilon.

    Args:
        origins: (B, R, 3) metres.
        directions: (B, R, 3); lengths along the ray are in units of its norm, so unit vectors give metres.
        bounds: (B, 2, 3) lower and upper corner.
        near: smallest distance from the origin, >= 0.

    Returns:
        near (B, R), far (B, R) and hit (B, R) bool. A ray that misses has near = far = the argument `near`.
    """
    lower, upper = bounds[:, None, 0], bounds[:, None, 1]  # (B, 1, 3)
    parallel = directions == 0
    inside_slab = (origins >= lower) & (origins <= upper)
    safe = torch.where(parallel, torch.ones_like(directions), directions)
    first, second = (lower - origins) / safe, (upper - origins) / safe  # (B, R, 3)
    infinity = torch.full_like(first, float("inf"))
    # a ray parallel to a slab is always inside it or never
    enter = torch.where(parallel, torch.where(inside_slab, -infinity, infinity), torch.minimum(first, second))
    leave = torch.where(parallel, torch.where(inside_slab, infinity, -infinity), torch.maximum(first, second))
    t_near = enter.amax(-1).clamp(min=near)
    t_far = leave.amin(-1)
    hit = t_far > t_near
    floor = torch.full_like(t_near, near)
    return t_near.where(hit, floor), t_far.where(hit, floor), hit
