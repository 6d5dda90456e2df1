from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from known_fields import (
    LookupField,
    PlaneField,
    SphereField,
    empty_volume,
    make_rays,
    make_renderer,
    random_volume,
    ray_sphere_distance,
    rays_towards,
    set_sharpness,
)

from ponder_zoo.ops.rays import ray_box
from ponder_zoo.render import NeuS
from ponder_zoo.render.neus import interval_weights, neus_alpha
from ponder_zoo.render.sampling import sample_pdf, uniform_edges
from ponder_zoo.structures import FeatureVolume, RayBundle, VolumeGrid

RENDERERS = ["neus", "neus_official", "volsdf", "unisurf"]
MODES = [False, True]


@pytest.mark.parametrize("training", MODES)
@pytest.mark.parametrize("name", RENDERERS)
def test_depth_colour_and_normal_of_a_sphere_are_analytic(name: str, training: bool) -> None:
    renderer = make_renderer(name, SphereField(1.0), sharpness=500.0).train(training)
    rays = rays_towards(torch.zeros(3), num_rays=64, distance=3.0, far=6.0)
    output = renderer(rays, empty_volume())
    expected = ray_sphere_distance(rays, 1.0)
    surface = rays.origins + expected[..., None] * rays.directions
    torch.testing.assert_close(output.depth, expected, atol=1e-2, rtol=0.0)
    torch.testing.assert_close(output.opacity, torch.ones_like(expected), atol=1e-3, rtol=0.0)
    torch.testing.assert_close(output.rgb, 0.5 + 0.25 * surface, atol=1e-2, rtol=0.0)
    torch.testing.assert_close(output.normal, surface, atol=2e-2, rtol=0.0)


@pytest.mark.parametrize("name", RENDERERS)
def test_depth_of_a_plane_is_analytic_for_oblique_rays(name: str) -> None:
    renderer = make_renderer(name, PlaneField(-1.0), sharpness=1000.0)
    angles = torch.linspace(0.0, math.radians(65.0), 32)
    directions = torch.stack([angles.sin(), torch.zeros(32), -angles.cos()], -1)[None]
    rays = make_rays(torch.tensor([0.0, 0.0, 0.5]).expand_as(directions), directions, far=5.0)
    output = renderer(rays, empty_volume())
    torch.testing.assert_close(output.depth[0], 1.5 / angles.cos(), atol=1e-2, rtol=0.0)


def test_eq_7_is_unbiased_also_for_a_soft_surface() -> None:
    rays = rays_towards(torch.zeros(3), num_rays=256, distance=3.0, far=6.0)
    down = dataclasses.replace(rays, directions=torch.tensor([0.0, 0.6, -0.8]).expand_as(rays.directions))
    origins = torch.zeros_like(rays.origins)
    origins[..., 2] = torch.linspace(0.0, 2.0, 256)  # crossings fall everywhere within the sampling intervals
    rays = dataclasses.replace(down, origins=origins)
    expected = (origins[..., 2] + 1.0) / 0.8
    errors = {}
    for name in ("neus", "neus_official"):
        errors[name] = (
            make_renderer(name, PlaneField(-1.0), sharpness=30.0)(rays, empty_volume()).depth - expected
        ).mean()
    assert abs(errors["neus"]) < 1e-3  # metres
    assert abs(errors["neus"]) < abs(errors["neus_official"])


@pytest.mark.parametrize("training", MODES)
@pytest.mark.parametrize("name", RENDERERS)
def test_weights_are_a_sub_probability(name: str, training: bool) -> None:
    renderer = make_renderer(name, sharpness=20.0).train(training)
    volume = random_volume(4, scenes=2)
    rays = scene_rays(volume, 40)
    output = renderer(rays, volume)
    assert output.weights.shape == output.samples.t_starts.shape == output.field.sdf.shape
    assert output.weights.min() >= 0.0
    assert output.weights.sum(-1).max() <= 1.0 + 1e-5
    torch.testing.assert_close(output.opacity, output.weights.sum(-1).clamp(max=1.0))
    t, ends = output.samples.t_starts, output.samples.t_ends
    assert (t[..., 1:] >= t[..., :-1]).all() and (ends >= t).all()
    assert (t >= rays.near[..., None] - 1e-5).all() and (ends <= rays.far[..., None] + 1e-4).all()


@pytest.mark.parametrize("training", MODES)
@pytest.mark.parametrize("name", RENDERERS)
def test_padding_is_transparent_and_passes_no_gradient_on(name: str, training: bool) -> None:
    renderer = make_renderer(name, sharpness=20.0).train(training)
    volume = random_volume(4)
    volume = dataclasses.replace(volume, feat=volume.feat.requires_grad_())
    rays = scene_rays(volume, 8)
    valid = torch.arange(8) < 5
    broken = {f: getattr(rays, f).clone() for f in ("origins", "directions", "near", "far")}
    for value in broken.values():
        value[:, 5:] = float("nan")
    output = renderer(dataclasses.replace(rays, **broken, valid=valid[None]), volume)
    for image in (output.rgb, output.depth, output.normal, output.opacity):
        assert (image[:, 5:] == 0.0).all() and torch.isfinite(image).all()
    images = torch.cat([output.rgb, output.normal, output.depth[..., None]], -1)
    (grad,) = torch.autograd.grad(images[:, 5:].sum(), volume.feat, retain_graph=True)
    assert (grad == 0.0).all()
    grads = torch.autograd.grad(images.sum(), [volume.feat, *trainable(renderer)], allow_unused=True)
    assert all(torch.isfinite(g).all() for g in grads if g is not None)


@pytest.mark.parametrize("name", RENDERERS)
def test_rays_that_miss_the_volume_see_nothing(name: str) -> None:
    renderer = make_renderer(name, SphereField(1.0))
    volume = empty_volume(half=2.0)
    origins = torch.tensor([[[0.0, 0.0, -5.0], [0.0, 9.0, -5.0], [0.0, 9.0, 0.0]]])
    directions = torch.tensor([[[0.0, 0.0, 1.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]]])
    rays = RayBundle(origins, directions, *ray_box(origins, directions, volume.grid.bounds, near=0.05))
    output = renderer(rays, volume)
    torch.testing.assert_close(output.depth, torch.tensor([[4.0, 0.0, 0.0]]), atol=1e-2, rtol=0.0)
    torch.testing.assert_close(output.opacity, torch.tensor([[1.0, 0.0, 0.0]]), atol=1e-3, rtol=0.0)


@pytest.mark.parametrize("name", RENDERERS)
def test_an_empty_field_is_almost_transparent_and_trainable(name: str) -> None:
    renderer = make_renderer(name, sharpness=20.0).train()
    volume = empty_volume()
    volume = dataclasses.replace(volume, feat=volume.feat.requires_grad_())
    rays = rays_towards(torch.zeros(3), num_rays=8, distance=1.0, far=3.0)
    output = renderer(rays, volume)
    (output.depth.sum() + output.rgb.sum()).backward()
    torch.testing.assert_close(output.field.sdf, torch.full_like(output.field.sdf, 0.3))
    assert output.opacity.max() < 0.3
    assert torch.isfinite(volume.feat.grad).all() and 0.0 < volume.feat.grad.abs().max() < 1e4


@pytest.mark.parametrize("name", RENDERERS)
def test_eval_is_deterministic_and_training_follows_the_generator(name: str) -> None:
    renderer = make_renderer(name, sharpness=20.0)
    volume = random_volume(4)
    rays = scene_rays(volume, 6)
    assert torch.equal(renderer(rays, volume).depth, renderer(rays, volume).depth)
    renderer.train()
    assert not torch.equal(renderer(rays, volume).depth, renderer(rays, volume).depth)
    runs = []
    for _ in range(2):
        renderer.generator = torch.Generator().manual_seed(5)
        torch.rand(1)  # the default generator plays no part
        runs.append(renderer(rays, volume).depth)
    assert torch.equal(*runs)


@pytest.mark.parametrize("name", RENDERERS)
def test_scenes_and_rays_do_not_see_each_other(name: str) -> None:
    renderer = make_renderer(name, sharpness=20.0)
    volume = random_volume(4, scenes=2)
    rays = scene_rays(volume, 6)
    together = renderer(rays, volume)
    alone = renderer(rays.map(lambda x: x[1:, 2:5]), volume.map(lambda x: x[1:]))
    torch.testing.assert_close(together.depth[1:, 2:5], alone.depth, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together.rgb[1:, 2:5], alone.rgb, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", RENDERERS)
def test_bf16_autocast_leaves_the_renderer_in_float32(name: str) -> None:
    renderer = make_renderer(name, sharpness=20.0)
    volume = random_volume(4)
    rays = scene_rays(volume, 6)
    plain = renderer(rays, volume)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = renderer(rays, volume)
        half = renderer(rays, dataclasses.replace(volume, feat=volume.feat.bfloat16()))
    for a, b in zip(images(plain), images(mixed), strict=True):
        assert b.dtype == torch.float32
        assert torch.equal(a, b)
    assert half.field.sdf.dtype == half.weights.dtype == half.rgb.dtype == torch.float32


def test_eq_7_matches_its_formula_and_stays_finite_deep_inside() -> None:
    sdf = torch.linspace(0.4, -0.4, 33, dtype=torch.float64, requires_grad=True)
    cdf = torch.sigmoid(20.0 * sdf)
    expected = ((cdf[:-1] - cdf[1:]) / cdf[:-1]).clamp(min=0.0)
    torch.testing.assert_close(
        neus_alpha(sdf, torch.tensor(20.0, dtype=torch.float64)), expected, atol=1.1e-5, rtol=0.0
    )
    far_inside = torch.tensor([-50.0, -51.0, -50.0], requires_grad=True)
    alpha = neus_alpha(far_inside, torch.tensor(1000.0))
    torch.testing.assert_close(alpha, torch.tensor([1.0, 0.0]), atol=1.1e-5, rtol=0.0)
    (grad,) = torch.autograd.grad(alpha.sum(), far_inside)
    assert torch.isfinite(grad).all()


def test_without_normalised_lookup_importance_samples_miss_the_surface() -> None:
    """The effect of the official sampler's defect (docs/differences.md), on a ball and a floor in the unit cube."""
    volume, rays, distance = ball_and_floor()
    shares, errors = {}, {}
    for frame in ("metres", "official"):
        renderer = NeuS(2, num_samples=96, num_importance=36, importance_sharpness=64.0, sampler_frame=frame).eval()  # type: ignore[arg-type]
        renderer.field = LookupField()
        set_sharpness(renderer, 500.0)
        with torch.no_grad():
            edges = uniform_edges(rays, 96, stratified=False)
            sdf = renderer._sdf_along(rays, edges[..., :-1], volume)
            added = sample_pdf(edges, interval_weights(edges[..., :-1], sdf, 64.0), 36)
            shares[frame] = ((added - distance[..., None]).abs() < 0.05)[rays.valid].float().mean()
            errors[frame] = (renderer(rays, volume).depth - distance).abs()[rays.valid].median()
    assert shares["metres"] > 0.7  # measured: 0.80
    assert shares["official"] < 0.15  # measured: 0.09, what uniform samples would have
    assert errors["official"] > 1.3 * errors["metres"]


def test_importance_weights_are_right_in_free_space_where_sigmoids_round_to_one() -> None:
    t = torch.linspace(0.0, 3.0, 33)
    sdf = 0.3 + 1e-3 * torch.sin(40.0 * t)  # nothing near; what is left is 1e-5 per interval
    exact = interval_weights(t.double(), sdf.double(), 32.0)
    error = (interval_weights(t, sdf, 32.0) / exact - 1.0)[:-1].abs().max()
    assert error < 1e-4  # measured: 1e-5
    cancelling = interval_weights(t, sdf, 32.0, cancelling=True)
    torch.testing.assert_close(interval_weights(t.double(), sdf.double(), 32.0, cancelling=True), exact)
    assert (cancelling / exact - 1.0)[:-1].abs().max() > 20 * error, "otherwise the product buys nothing"


def ball_and_floor() -> tuple[FeatureVolume, RayBundle, torch.Tensor]:
    """An sdf on the official grid (its values at the cells), rays that meet its surfaces, and the distances to them."""
    axis = torch.linspace(-0.5505, 0.5505, 64)
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    position = torch.stack([x, y, z], -1)
    feat = scene_sdf(position)[None, None]
    volume = FeatureVolume(feat, VolumeGrid(torch.tensor([[[-0.5505] * 3, [0.5505] * 3]]), (64, 64, 64), "corners"))
    generator = torch.Generator().manual_seed(0)
    origins = torch.tensor([-0.45, -0.4, 0.2]).expand(1, 256, 3)
    target = (torch.rand(1, 256, 3, generator=generator) - 0.5) * torch.tensor([0.7, 0.7, 0.3]) - torch.tensor(
        [0, 0, 0.2]
    )
    directions = F.normalize(target - origins, dim=-1)
    distance = torch.zeros(1, 256)
    for _ in range(200):
        distance = distance + scene_sdf(origins + distance[..., None] * directions)
    bounds = torch.tensor([[[-0.55] * 3, [0.55] * 3]])
    near, far, hit = ray_box(origins, directions, bounds, near=0.01)
    return volume, RayBundle(origins, directions, near, far, hit & (distance < far)), distance


def scene_sdf(position: torch.Tensor) -> torch.Tensor:
    ball = (position - torch.tensor([0.1, 0.05, -0.2])).norm(dim=-1) - 0.2
    return torch.minimum(ball, position[..., 2] + 0.4)


def scene_rays(volume: FeatureVolume, num_rays: int) -> RayBundle:
    generator = torch.Generator().manual_seed(3)
    bounds = volume.grid.bounds
    middle = bounds.mean(1, keepdim=True)
    origins = middle + (torch.rand(len(bounds), num_rays, 3, generator=generator) - 0.5) * 0.5
    directions = F.normalize(torch.randn(len(bounds), num_rays, 3, generator=generator), dim=-1)
    return RayBundle(origins, directions, *ray_box(origins, directions, bounds, near=0.05))


def trainable(module: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [p for p in module.parameters() if p.requires_grad]


def images(output) -> tuple[torch.Tensor, ...]:
    return output.rgb, output.depth, output.normal, output.opacity, output.weights, output.field.sdf


@pytest.mark.parametrize("name", RENDERERS)
def test_rays_that_meet_nothing_show_the_background(name: str) -> None:
    renderer = make_renderer(name, SphereField(1.0), sharpness=500.0).eval()
    renderer.background = 0.5
    rays = rays_towards(torch.zeros(3), num_rays=8, distance=3.0, far=6.0)
    missing = dataclasses.replace(rays, valid=torch.zeros_like(rays.valid))
    torch.testing.assert_close(renderer(missing, empty_volume()).rgb, torch.full((1, 8, 3), 0.5))
    surface = rays.origins + ray_sphere_distance(rays, 1.0)[..., None] * rays.directions
    torch.testing.assert_close(renderer(rays, empty_volume()).rgb, 0.5 + 0.25 * surface, atol=1e-2, rtol=0.0)
