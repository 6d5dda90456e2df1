"""Whole images from any camera."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops.rays import pixel_rays, ray_box
from ..structures import RayBundle, RenderOutput
from .base import AbstractSurfaceRenderer
from .field import Volumes


@torch.no_grad()
def render_image(
    renderer: AbstractSurfaceRenderer,
    volume: Volumes,
    intrinsics: Tensor,
    cam_to_world: Tensor,
    image_size: tuple[int, int],
    *,
    chunk: int = 4096,
    stride: int = 1,
    near: float = 0.05,
) -> dict[str, Tensor]:
    """Render one view of one scene, in eval mode and without gradients.

    Args:
        renderer: any of the three; its training mode is restored afterwards.
        volume: one scene (B = 1), or a tuple of its resolutions.
        intrinsics: (3, 3) pixels, of the full image.
        cam_to_world: (4, 4) metres; OpenCV axes.
        image_size: (H, W) of the full image.
        chunk: rays per pass; bounds the memory besides that of the images and changes nothing else.
        stride: render every stride-th column and row, starting with the first.
        near: distance from the camera where rays start, metres.

    Returns:
        `rgb (H', W', 3)` in [0, 1], `depth (H', W')` z-depth in metres (0 where nothing is seen), `normal (H', W', 3)`
        in the world frame, `opacity (H', W')`, and `semantic (H', W', D)` where the renderer has it;
        H' = ceil(H / stride).

    Example:
        >>> image = render_image(ponder.renderer, volume, K, pose, (480, 640), stride=4)  # doctest: +SKIP
        >>> image["rgb"].shape  # doctest: +SKIP
        torch.Size([120, 160, 3])
    """
    feat = (volume if not isinstance(volume, tuple) else volume[0]).feat
    if len(feat) != 1:
        raise ValueError(
            f"render_image renders one scene; got a volume of {len(feat)} scenes. "
            "Select one: replace `feat` and `grid.bounds` by their row [b : b + 1]."
        )
    intrinsics, cam_to_world = (x.to(feat.device, torch.float32) for x in (intrinsics, cam_to_world))
    pixels = _pixels(image_size, stride, feat.device)
    height, width = pixels.shape[:2]
    origins, directions, z_to_ray = pixel_rays(pixels.reshape(1, -1, 2), intrinsics, cam_to_world)
    bounds = (volume if not isinstance(volume, tuple) else volume[0]).grid.bounds
    rays = RayBundle(origins, directions, *ray_box(origins, directions, bounds, near=near))
    training, images = renderer.training, dict[str, Tensor]()
    renderer.eval()
    try:
        for start in range(0, height * width, chunk):
            for name, value in _images(renderer(_slice(rays, start, start + chunk), volume)).items():
                if name not in images:
                    images[name] = value.new_empty(height * width, *value.shape[1:])
                images[name][start : start + len(value)] = value
    finally:
        renderer.train(training)
    images["depth"] = images["depth"] / z_to_ray[0]
    return {name: value.view(height, width, *value.shape[1:]) for name, value in images.items()}


def _pixels(image_size: tuple[int, int], stride: int, device: torch.device) -> Tensor:
    """Column u and row v of the pixels to render: (H', W', 2)."""
    rows = torch.arange(0, image_size[0], stride, device=device, dtype=torch.float32)
    columns = torch.arange(0, image_size[1], stride, device=device, dtype=torch.float32)
    v, u = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([u, v], -1)


def _slice(rays: RayBundle, start: int, end: int) -> RayBundle:
    return rays.map(lambda value: value[:, start:end])


def _images(output: RenderOutput) -> dict[str, Tensor]:
    images = {"rgb": output.rgb, "depth": output.depth, "normal": output.normal, "opacity": output.opacity}
    if output.semantic is not None:
        images["semantic"] = output.semantic
    return {name: value[0] for name, value in images.items()}
