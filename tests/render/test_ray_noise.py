from __future__ import annotations

import torch

from ponder_zoo.render.sampling import ray_noise
from ponder_zoo.structures import RayBundle


def make_rays(scenes, rays, seed=0):
    origins = torch.randn(scenes, rays, 3, generator=torch.Generator().manual_seed(seed))
    near = torch.zeros(scenes, rays)
    return RayBundle(origins, torch.nn.functional.normalize(origins + 1, dim=-1), near, near + 1, near == 0)


def noise(rays, count=8, seed=3):
    return ray_noise(rays, count, generator=torch.Generator().manual_seed(seed))


def test_a_ray_has_the_same_noise_in_any_batch():
    rays = make_rays(4, 10)
    whole = noise(rays)
    assert torch.equal(noise(rays.map(lambda x: x[2:])), whole[2:])
    assert torch.equal(noise(rays.map(lambda x: x[:, :7])), whole[:, :7])


def test_noise_changes_from_call_to_call_and_ray_to_ray():
    rays, generator = make_rays(1, 50), torch.Generator().manual_seed(0)
    first, second = (ray_noise(rays, 4, generator=generator) for _ in range(2))
    assert (first != second).all()
    assert len(torch.cat([first, second]).unique()) == first.numel() * 2
    assert torch.equal(noise(rays), noise(rays)) and not torch.equal(noise(rays), noise(rays, seed=4))


def test_noise_is_uniform_and_uncorrelated():
    values = noise(make_rays(2, 20_000), 5).flatten(0, 1)  # (40000, 5)
    assert values.min() >= 0 and values.max() < 1
    shares = torch.histc(values, bins=20, min=0, max=1) / values.numel()
    assert (shares - 0.05).abs().max() < 0.002
    centred = values - 0.5
    columns, neighbours = torch.corrcoef(centred.t()), (centred[1:] * centred[:-1]).mean() * 12
    assert (columns - torch.eye(5)).abs().max() < 0.03 and neighbours.abs() < 0.02
