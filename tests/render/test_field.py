from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from known_fields import random_volume
from torch import Tensor

from ponder_zoo.render import SDFField
from ponder_zoo.render.field import InjectedMLP
from ponder_zoo.structures import FeatureVolume

CONFIGS: dict[str, dict[str, Any]] = {
    "default": {},
    "positions": {"points_factor": 1.0, "num_blocks": 2, "rgb_blocks": 1},
    "no hidden layer": {"num_blocks": 0, "points_factor": 0.5},
    "halves": {"share_volume": False, "rgb_normal": "gradient", "semantic_dim": 3},
    "official": {"share_volume": False, "rgb_normal": "gradient", "frame": "official", "points_factor": 1.0},
}


def make_field(dtype: torch.dtype = torch.float64, **config: Any) -> SDFField:
    return SDFField(4, hidden_dim=6, geo_dim=2, **config).to(dtype)


def positions_inside(volume: FeatureVolume, rays: int = 3, samples: int = 4, seed: int = 1) -> Tensor:
    bounds = volume.grid.bounds[:, :, None, None]
    generator = torch.Generator().manual_seed(seed)
    unit = torch.rand(len(bounds), rays, samples, 3, generator=generator, dtype=bounds.dtype) * 0.9 + 0.05
    return bounds[:, 0] + unit * (bounds[:, 1] - bounds[:, 0])


def directions_like(positions: Tensor) -> Tensor:
    return F.normalize(torch.ones_like(positions[:, :, 0]), dim=-1)


@pytest.mark.parametrize("config", CONFIGS)
def test_the_gradient_is_what_autograd_and_finite_differences_say(config: str) -> None:
    field = make_field(**CONFIGS[config])
    volume = random_volume(4, scenes=2, dtype=torch.float64)
    positions = positions_inside(volume).requires_grad_()
    output = field(positions, directions_like(positions), volume)
    (expected,) = torch.autograd.grad(output.sdf.sum(), positions)
    scale = (volume.grid.bounds[:, 1] - volume.grid.bounds[:, 0])[:, None, None]
    scale = scale if CONFIGS[config].get("frame") == "official" else torch.ones_like(scale)
    torch.testing.assert_close(output.gradient, expected * scale, atol=1e-10, rtol=1e-8)
    step = 1e-6 * torch.eye(3, dtype=torch.float64)
    numeric = torch.stack(
        [(field.sdf(positions + h, volume) - field.sdf(positions - h, volume)) / 2e-6 for h in step], -1
    )
    torch.testing.assert_close(output.gradient, numeric * scale, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(output.sdf, field.sdf(positions, volume))


@pytest.mark.parametrize("config", CONFIGS)
def test_the_field_is_twice_differentiable_in_volume_positions_and_parameters(config: str) -> None:
    field = make_field(**CONFIGS[config])
    with torch.no_grad():  # a softplus of beta 100 bends too sharply for finite differences of its second derivative
        for parameter in field.sdf_mlp.parameters():
            parameter.mul_(0.05)
    volume = random_volume(4, dtype=torch.float64)
    positions = positions_inside(volume, rays=2, samples=2)
    weight = field.sdf_mlp.layers[0].weight.detach().clone()

    def query(feat: Tensor, positions: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        inputs = (positions, directions_like(positions), dataclasses.replace(volume, feat=feat))
        out = torch.func.functional_call(field, {"sdf_mlp.layers.0.weight": weight}, inputs)
        return out.sdf, out.gradient, out.rgb

    inputs = tuple(value.requires_grad_() for value in (volume.feat, positions, weight))
    assert torch.autograd.gradcheck(query, inputs, atol=1e-6, fast_mode=True)
    assert torch.autograd.gradgradcheck(query, inputs, atol=1e-6, rtol=1e-3, fast_mode=True)


def test_the_mlp_is_its_definition() -> None:
    mlp = InjectedMLP(3, 5, hidden_dim=7, num_blocks=2, points_factor=0.7, activation="softplus")
    feat, unit = torch.randn(2, 4, 3), torch.rand(2, 4, 3)
    x = 0.7 * mlp.position(unit)
    for index, (layer, inject) in enumerate(zip(mlp.layers, mlp.inject, strict=True)):
        x = layer((x if index == 0 else F.softplus(x, beta=100.0)) + inject(feat))
    torch.testing.assert_close(mlp(feat, unit), x)
    torch.testing.assert_close(mlp(feat, unit, outputs=1), x[..., :1])
    torch.testing.assert_close(mlp.value_and_slope(feat, unit)[0], x)


def test_a_zero_points_factor_ignores_the_position_but_keeps_its_parameters() -> None:
    field = make_field()
    assert field.sdf_mlp.position.weight.shape == (6, 3)
    assert not any(p.requires_grad for name, p in field.named_parameters() if ".position." in name)
    volume = random_volume(4, dtype=torch.float64)
    before = field.sdf(positions_inside(volume), volume)
    with torch.no_grad():
        field.sdf_mlp.position.weight.fill_(float("nan"))
    assert torch.equal(field.sdf(positions_inside(volume), volume), before)


def test_empty_cells_start_at_the_requested_sdf_for_any_number_of_layers() -> None:
    for blocks in (0, 1, 3):
        field = SDFField(4, hidden_dim=16, geo_dim=2, num_blocks=blocks, initial_sdf=0.4)
        volume = random_volume(4)
        volume = dataclasses.replace(volume, feat=torch.zeros_like(volume.feat))
        sdf = field.sdf(positions_inside(volume), volume)
        torch.testing.assert_close(sdf, torch.full_like(sdf, 0.4))


def test_halves_of_the_channels_feed_sdf_and_colour_separately() -> None:
    field = make_field(share_volume=False)
    volume = random_volume(4, dtype=torch.float64)
    positions = positions_inside(volume)
    base = field(positions, directions_like(positions), volume)
    feat = volume.feat.clone()
    feat[:, 2:] += 1.0
    changed = field(positions, directions_like(positions), dataclasses.replace(volume, feat=feat))
    assert torch.equal(base.sdf, changed.sdf) and torch.equal(base.gradient, changed.gradient)
    assert not torch.allclose(base.rgb, changed.rgb)


@pytest.mark.parametrize("share_volume", [True, False])
def test_several_resolutions_are_read_side_by_side(share_volume: bool) -> None:
    field = make_field(share_volume=share_volume)
    whole = random_volume(4, dtype=torch.float64)
    order = [0, 1, 2, 3] if share_volume else [0, 2, 1, 3]  # halves of each volume are joined half by half
    parts = tuple(dataclasses.replace(whole, feat=whole.feat[:, order][:, rows]) for rows in (slice(0, 2), slice(2, 4)))
    positions = positions_inside(whole)
    one, two = (field(positions, directions_like(positions), v) for v in (whole, parts))
    for name in ("sdf", "gradient", "rgb"):
        torch.testing.assert_close(getattr(one, name), getattr(two, name))


def test_a_flat_sdf_has_no_normal_and_finite_derivatives() -> None:
    field = make_field()
    volume = random_volume(4, dtype=torch.float64)
    feat = torch.zeros_like(volume.feat).requires_grad_()
    positions = positions_inside(volume)
    output = field(positions, directions_like(positions), dataclasses.replace(volume, feat=feat))
    assert (output.gradient == 0.0).all()
    (grad,) = torch.autograd.grad(output.rgb.sum(), feat)
    assert torch.isfinite(grad).all() and grad.abs().max() < 1e4


def test_the_unit_normal_hides_the_length_of_the_gradient_from_the_colour() -> None:
    volume = random_volume(4, dtype=torch.float64)
    stretched = dataclasses.replace(volume, grid=dataclasses.replace(volume.grid, bounds=2.0 * volume.grid.bounds))
    positions = positions_inside(volume)
    for kind, same in (("unit", True), ("gradient", False)):
        field = make_field(rgb_normal=kind)
        small, large = (
            field(p, directions_like(p), v).rgb for p, v in ((positions, volume), (2.0 * positions, stretched))
        )
        assert torch.allclose(small, large, atol=1e-5) == same


def test_wrong_channel_counts_are_explained() -> None:
    field = make_field()
    volume = random_volume(6, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"4 channels in total; got \[6\].*in_chans=6"):
        field.sdf(positions_inside(volume), volume)
    with pytest.raises(ValueError, match=r"in_chans=5.*even"):
        SDFField(5, share_volume=False)
