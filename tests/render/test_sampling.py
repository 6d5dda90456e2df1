from __future__ import annotations

import math

import pytest
import torch
from known_fields import (
    PlaneField,
    SphereField,
    empty_volume,
    make_rays,
    make_renderer,
    ray_sphere_distance,
    rays_towards,
)

from ponder_zoo.render import UniSurf
from ponder_zoo.render.compositing import render_weights
from ponder_zoo.render.sampling import merge_edges, sample_pdf, uniform_edges
from ponder_zoo.render.volsdf import (
    distance_to_surface,
    laplace_density,
    opacity_error,
    start_beta,
    tighten_beta,
    volsdf_alpha,
)


def rays_between(near: float, far: float, num_rays: int = 3):
    origins = torch.zeros(1, num_rays, 3)
    return make_rays(origins, torch.tensor([0.0, 0.0, 1.0]).expand_as(origins), near=near, far=far)


def many_rays(num_rays: int):
    """Different rays, because equal ones get equal noise."""
    origins = torch.zeros(1, num_rays, 3)
    origins[..., 0] = torch.arange(num_rays)
    return make_rays(origins, torch.tensor([0.0, 0.0, 1.0]).expand_as(origins), near=0.0, far=4.0)


def test_uniform_edges_divide_the_ray_equally() -> None:
    edges = uniform_edges(rays_between(1.0, 3.0), 4, stratified=False)
    torch.testing.assert_close(edges, torch.tensor([1.0, 1.5, 2.0, 2.5, 3.0]).expand(1, 3, 5))


def test_stratified_edges_stay_in_their_strata_and_fill_them() -> None:
    generator = torch.Generator().manual_seed(0)
    edges = uniform_edges(many_rays(2000), 4, stratified=True, generator=generator)
    lower, upper = torch.tensor([0.0, 0.5, 1.5, 2.5, 3.5]), torch.tensor([0.5, 1.5, 2.5, 3.5, 4.0])
    assert (edges >= lower).all() and (edges <= upper).all()
    torch.testing.assert_close(edges[0].mean(0), (lower + upper) / 2, atol=0.03, rtol=0.0)
    torch.testing.assert_close(edges[0].std(0), (upper - lower) / math.sqrt(12), atol=0.02, rtol=0.0)


def test_pdf_samples_are_the_quantiles_of_a_piecewise_constant_density() -> None:
    edges = torch.tensor([0.0, 1.0, 2.0, 4.0])
    weights = torch.tensor([1.0, 0.0, 3.0])
    u = (torch.arange(8) + 0.5) / 8
    expected = torch.where(u < 0.25, u / 0.25, 2.0 + (u - 0.25) / 0.75 * 2.0)  # inverse of the integral, by hand
    torch.testing.assert_close(sample_pdf(edges, weights, 7), expected)


def test_pdf_samples_follow_the_density_when_stratified() -> None:
    generator = torch.Generator().manual_seed(0)
    edges = torch.linspace(0.0, 1.0, 65)
    middle = (edges[1:] + edges[:-1]) / 2
    rays = many_rays(500)
    drawn = sample_pdf(edges.expand(1, 500, -1), middle.expand(1, 500, -1), 31, rays=rays, generator=generator)
    assert (drawn.diff(dim=-1) >= 0).all()
    torch.testing.assert_close(drawn.mean(), torch.tensor(2 / 3), atol=3e-3, rtol=0.0)  # density 2 t on [0, 1]
    torch.testing.assert_close(drawn.square().mean(), torch.tensor(1 / 2), atol=3e-3, rtol=0.0)


def test_pdf_samples_are_uniform_where_no_interval_has_weight() -> None:
    drawn = sample_pdf(torch.linspace(0.0, 8.0, 9), torch.zeros(8), 7)
    torch.testing.assert_close(drawn, torch.arange(8) + 0.5)


def test_merging_sorts_starts_and_carries_values_along() -> None:
    edges, values = torch.tensor([0.0, 2.0, 4.0]), torch.tensor([10.0, 12.0])
    new, new_values = torch.tensor([1.0, 3.0, 5.0]), torch.tensor([11.0, 13.0])
    merged, carried = merge_edges(edges, values, new, new_values)
    assert merged.tolist() == [0.0, 1.0, 2.0, 3.0, 5.0]
    assert carried.tolist() == [10.0, 11.0, 12.0, 13.0]


def test_weights_are_the_products_of_their_definition() -> None:
    alpha = torch.rand(5, 7, dtype=torch.float64)
    expected = torch.zeros_like(alpha)
    for i in range(7):
        expected[:, i] = alpha[:, i] * (1 - alpha[:, :i]).prod(-1)
    torch.testing.assert_close(render_weights(alpha), expected)
    assert torch.autograd.gradcheck(render_weights, alpha.requires_grad_())


def test_weights_survive_opaque_samples_and_low_precision() -> None:
    alpha = torch.tensor([0.0, 1.0, 0.5, 1.0], requires_grad=True)
    weights = render_weights(alpha)
    torch.testing.assert_close(weights, torch.tensor([0.0, 1.0, 0.0, 0.0]), atol=1e-6, rtol=0.0)
    (grad,) = torch.autograd.grad(weights.sum(), alpha)
    assert torch.isfinite(grad).all()
    assert render_weights(alpha.bfloat16()).dtype == torch.float32


def test_laplace_density_is_the_integral_of_its_distribution() -> None:
    sdf = torch.tensor([-0.3, -0.1, 0.0, 0.1, 0.3], dtype=torch.float64)
    laplace = torch.distributions.Laplace(0.0, 0.1)
    torch.testing.assert_close(laplace_density(sdf, torch.tensor(0.1)), laplace.cdf(-sdf) / 0.1)


def true_opacity(t: torch.Tensor, height: float, beta: float) -> torch.Tensor:
    """1 - exp(-integral of the density) along a ray that falls onto a plane at distance `height`, in closed form."""
    s = height - t  # the sdf
    integral = torch.where(s >= 0, 0.5 * torch.exp(-s / beta), 0.5 * torch.exp(s / beta) - s / beta)  # from -infinity
    return 1 - torch.exp(0.5 * math.exp(-height / beta) - integral)


def test_the_opacity_error_bound_holds_and_start_beta_satisfies_it() -> None:
    edges = uniform_edges(rays_between(0.0, 2.0), 32, stratified=False)[0, 0].double()
    for height in (0.71, 1.03, 5.0):
        sdf = height - edges[:-1]
        nearest = distance_to_surface(edges, sdf)
        for value in (0.05, 0.1, 0.3):
            beta = torch.tensor([value], dtype=torch.float64)
            approximate = render_weights(volsdf_alpha(edges.diff(), sdf, beta)).cumsum(-1)
            error = (approximate - true_opacity(edges[1:], height, value)).abs()
            assert error.max() <= opacity_error(edges, sdf, nearest, beta).max() + 1e-9
        beta = start_beta(edges, 0.1)
        assert opacity_error(edges, sdf, nearest, beta).max() <= 0.1
        target = torch.tensor([1e-3], dtype=torch.float64)
        tight = tighten_beta(edges, sdf, nearest, target, beta, 0.1)
        assert target <= tight < beta
        assert opacity_error(edges, sdf, nearest, tight).max() <= 0.1
        # nothing is left on the table: a smaller one breaks the bound, unless the target itself is reached
        assert opacity_error(edges, sdf, nearest, 0.9 * tight).max() > 0.1 or tight == target
        assert (tight == target) == (height == 5.0)


def test_the_distance_to_the_surface_is_a_lower_bound() -> None:
    t = torch.linspace(0.0, 4.0, 41, dtype=torch.float64)
    for offset in (0.0, 0.5, 1.3):  # a unit sphere at (offset, 0, 2), seen along z
        sdf = ((t[:-1] - 2.0).square() + offset**2).sqrt() - 1.0
        fine = torch.linspace(0.0, 3.9, 3901, dtype=torch.float64)
        true = (((fine - 2.0).square() + offset**2).sqrt() - 1.0).abs()
        nearest = distance_to_surface(t, sdf)
        for i in range(39):
            inside = (fine >= t[i]) & (fine <= t[i + 1])
            assert nearest[i] <= true[inside].min() + 2e-3


@pytest.mark.parametrize("name", ["neus", "volsdf"])
def test_importance_samples_gather_at_the_surface(name: str) -> None:
    renderer = make_renderer(name, SphereField(1.0), sharpness=200.0)
    rays = rays_towards(torch.zeros(3), num_rays=16, distance=3.0, far=6.0)
    t = renderer.sample(rays, empty_volume()).t_starts
    near = (t - ray_sphere_distance(rays, 1.0)[..., None]).abs() < 0.15  # 5 % of the ray
    assert near.sum(-1).min() >= 16  # uniform samples alone: 3 or 5


def test_root_finding_locates_the_first_surface() -> None:
    renderer = make_renderer("unisurf", SphereField(1.0))
    assert isinstance(renderer, UniSurf)
    rays = rays_towards(torch.zeros(3), num_rays=16, distance=3.0, far=6.0)
    distance, found = renderer.first_surface(rays, empty_volume())
    assert found.all()
    torch.testing.assert_close(distance, ray_sphere_distance(rays, 1.0), atol=1e-4, rtol=0.0)
    renderer.field = PlaneField(-9.0)
    assert not renderer.first_surface(rays, empty_volume())[1].any()
