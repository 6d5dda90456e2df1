"""Rendering in chunks of rays: the numbers and gradients of one pass."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from known_fields import random_volume
from torch import Tensor

from ponder_zoo.ops.rays import ray_box
from ponder_zoo.render import AbstractSurfaceRenderer, NeuS, UniSurf, VolSDF
from ponder_zoo.structures import RayBundle

RENDERERS = {"neus": NeuS, "volsdf": VolSDF, "unisurf": UniSurf}


def make_scene() -> tuple[Tensor, RayBundle]:
    volume = random_volume(4, scenes=2, dtype=torch.float64)
    bounds = volume.grid.bounds
    origins = bounds.mean(1, keepdim=True) + 0.1 * torch.randn(2, 7, 3, dtype=torch.float64)
    directions = torch.nn.functional.normalize(torch.randn(2, 7, 3, dtype=torch.float64), dim=-1)
    return volume.feat, RayBundle(origins, directions, *ray_box(origins, directions, bounds, near=0.05))


def outputs(renderer: AbstractSurfaceRenderer, feat: Tensor, rays: RayBundle, **settings: int | bool) -> list[Tensor]:
    for name, value in settings.items():
        setattr(renderer, name, value)
    volume = random_volume(4, scenes=2, dtype=torch.float64)
    renderer.generator = torch.Generator().manual_seed(0)
    out = renderer(rays, dataclasses.replace(volume, feat=feat))
    assert out.semantic is not None
    images = [out.rgb, out.depth, out.normal, out.opacity, out.semantic, out.weights, out.field.sdf, out.field.gradient]
    total = sum((value * torch.cos(torch.arange(value.numel()).view(value.shape))).sum() for value in images)
    wanted = [feat, *(p for p in renderer.parameters() if p.requires_grad)]
    return [*images, *torch.autograd.grad(total, wanted)]  # type: ignore[arg-type]


@pytest.mark.parametrize("share_volume", [False, True])
@pytest.mark.parametrize("name", RENDERERS)
def test_chunks_change_neither_images_nor_gradients(name: str, share_volume: bool) -> None:
    renderer = RENDERERS[name](4, hidden_dim=6, geo_dim=2, semantic_dim=3, share_volume=share_volume).double()
    feat, rays = make_scene()
    feat.requires_grad_()
    whole = outputs(renderer, feat, rays, samples_per_chunk=0)
    chunked = outputs(renderer, feat, rays, samples_per_chunk=400)  # 2 scenes x 1 to 3 rays
    for one, other in zip(whole, chunked, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-7)


def test_rays_that_move_get_gradients_too() -> None:
    renderer = NeuS(4, hidden_dim=6, geo_dim=2, semantic_dim=3).double().eval()
    feat, rays = make_scene()
    grads = []
    for chunk in (0, 400):
        renderer.samples_per_chunk = chunk
        origins = rays.origins.clone().requires_grad_()
        volume = dataclasses.replace(random_volume(4, scenes=2, dtype=torch.float64), feat=feat)
        out = renderer(dataclasses.replace(rays, origins=origins), volume)
        grads.append(torch.autograd.grad(out.rgb.sum() + out.depth.sum(), origins)[0])
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("blocks", [0, 1])
@pytest.mark.parametrize("points_factor", [0.0, 1.0])
def test_compositing_before_the_last_semantic_layer_is_exact(blocks: int, points_factor: float) -> None:
    renderer = NeuS(4, hidden_dim=6, geo_dim=2, semantic_dim=3, semantic_blocks=blocks, points_factor=points_factor)
    feat, rays = make_scene()
    volume = dataclasses.replace(random_volume(4, scenes=2, dtype=torch.float64), feat=feat)
    out = renderer.double().eval()(rays, volume)
    field = renderer.field(out.samples.positions, rays.directions, volume)
    assert field.semantic is not None and out.semantic is not None and out.field.semantic is None
    torch.testing.assert_close((out.weights[..., None] * field.semantic).sum(2), out.semantic)
