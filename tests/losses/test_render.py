from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from ponder_zoo.losses.render import RenderLossWeights, point_loss, render_loss, semantic_loss
from ponder_zoo.structures import FieldOutput, RayBundle, RaySamples, RayTargets, RenderOutput

PLAIN = RenderLossWeights(rgb=1.0, depth=1.0, free_space=1.0, sdf=1.0, eikonal=1.0, truncation=0.25, band="hard")


def make(valid: tuple[bool, ...] = (True, True)) -> tuple[RenderOutput, RayTargets, RayBundle]:
    """Two rays along z with four samples each: the first sees a surface at 2 m, the second has no depth."""
    origins = torch.zeros(1, 2, 3)
    directions = torch.tensor([0.0, 0.0, 1.0]).expand(1, 2, 3)
    t = torch.tensor([1.0, 1.6, 1.8, 2.2]).expand(1, 2, 4)
    sdf = torch.tensor([[[0.1, 0.5, 0.3, -0.3], [9.0, 9.0, 9.0, 9.0]]])
    gradient = torch.tensor([0.0, 0.0, -2.0]).expand(1, 2, 4, 3)
    field = FieldOutput(sdf, gradient, torch.zeros(1, 2, 4, 3))
    output = RenderOutput(
        rgb=torch.tensor([[[0.5, 0.5, 0.5], [0.1, 0.1, 0.1]]]),
        depth=torch.tensor([[2.5, 7.0]]),
        normal=torch.tensor([[[0.0, 0.0, -0.5], [0.0, 0.0, 0.0]]]),
        opacity=torch.ones(1, 2),
        weights=torch.zeros(1, 2, 4),
        samples=RaySamples(origins, directions, t, t + 0.1),
        field=field,
        semantic=torch.tensor([[[2.0, 0.0], [0.0, 2.0]]]),
    )
    targets = RayTargets(
        rgb=torch.tensor([[[0.5, 0.2, 0.5], [0.1, 0.1, 0.1]]]),
        depth=torch.tensor([[2.0, 0.0]]),
        normal=torch.tensor([[[0.0, 0.0, -1.0], [0.0, 0.0, 0.0]]]),
        segment=torch.tensor([[1, -1]]),
    )
    rays = RayBundle(origins, directions, torch.zeros(1, 2), torch.full((1, 2), 3.0), torch.tensor([list(valid)]))
    return output, targets, rays


def test_every_term_has_its_hand_computed_value() -> None:
    losses = render_loss(*make(), PLAIN)
    expected = {
        "rgb": 0.3 / 6,
        "depth": 0.5,
        "free_space": (0.15 + 0.0) / 2,  # at 1.0 and 1.6 m: 0.25 - 0.1, and 0.5 is enough
        "sdf": (0.1 + 0.1) / 2,  # at 1.8 and 2.2 m: 0.3 against 0.2, -0.3 against -0.2
        "eikonal": 1.0,  # (2 - 1)^2
    }
    assert set(losses) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], torch.tensor(value), msg=name)


def test_samples_count_less_towards_the_edge_of_a_tapered_band() -> None:
    losses = render_loss(*make(), dataclasses.replace(PLAIN, band="tapered"))
    # 0.75 and 0.15 m in front of the band of 0.25 m: the first counts in full, the second by 0.15 / 0.25
    torch.testing.assert_close(losses["free_space"], torch.tensor((1.0 * 0.15 + 0.6 * 0.0) / 1.6))
    torch.testing.assert_close(losses["sdf"], torch.tensor(0.1))  # both at 0.2 m, both wrong by 0.1


@pytest.mark.parametrize("band", ["tapered", "hard"])
@pytest.mark.parametrize("term", ["free_space", "sdf"])
def test_only_a_tapered_band_is_continuous_where_samples_enter_it(band: str, term: str) -> None:
    output, targets, rays = make()
    values = []
    for shift in (-1e-5, 1e-5):  # around 0.25 m in front of the surface at 2 m
        t_starts = output.samples.t_starts.clone()
        t_starts[0, 0, 1] = 1.75 + shift
        samples = dataclasses.replace(output.samples, t_starts=t_starts)
        moved = dataclasses.replace(output, samples=samples)
        values.append(render_loss(moved, targets, rays, dataclasses.replace(PLAIN, band=band))[term])
    assert (abs(values[0] - values[1]) < 1e-4) == (band == "tapered")


def test_terms_are_weighted_and_zero_switches_off() -> None:
    plain = render_loss(*make(), PLAIN)
    weights = RenderLossWeights(rgb=2.0, depth=3.0, free_space=0.0, sdf=5.0, eikonal=0.5, truncation=0.25, band="hard")
    weighted = render_loss(*make(), weights)
    for name, value in plain.items():
        torch.testing.assert_close(weighted[name], value * getattr(weights, name))
    broken, targets, rays = make()
    broken = dataclasses.replace(broken, depth=torch.full_like(broken.depth, float("nan")))
    assert render_loss(broken, targets, rays, dataclasses.replace(PLAIN, depth=0.0))["depth"] == 0.0


def test_normals_count_where_known() -> None:
    losses = render_loss(*make(), dataclasses.replace(PLAIN, normal=2.0))
    torch.testing.assert_close(losses["normal"], torch.tensor(2.0 * 0.5))


def test_semantics_are_cross_entropy_over_classes() -> None:
    weights = dataclasses.replace(PLAIN, semantic=1.0)
    expected = F.cross_entropy(torch.tensor([[2.0, 0.0]]), torch.tensor([1]))
    torch.testing.assert_close(render_loss(*make(), weights)["semantic"], expected)
    table = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    embedded = render_loss(*make(), dataclasses.replace(weights, temperature=0.5), class_embeddings=table)
    expected = F.cross_entropy(torch.tensor([[1.0, 0.6]]) / 0.5, torch.tensor([1]))
    torch.testing.assert_close(embedded["semantic"], expected)


def test_a_perfect_prediction_has_no_loss_against_classes_but_log_n_against_rays() -> None:
    table = F.normalize(torch.randn(4, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
    segment = torch.arange(40)[None] % 4  # ten rays of each class
    counted = torch.ones(1, 40, dtype=torch.bool)
    for rule, expected in (("classes", 0.0), ("rays", math.log(10.0))):
        weights = dataclasses.replace(PLAIN, semantic_rule=rule)
        loss = semantic_loss(table[segment], segment, counted, weights, table)
        torch.testing.assert_close(loss, torch.tensor(expected), atol=1e-3, rtol=0.0)


@pytest.mark.parametrize("rule", ["classes", "rays"])
def test_label_0_counts_unless_it_is_dropped_as_in_the_official_code(rule: str) -> None:
    generator = torch.Generator().manual_seed(0)
    table = F.normalize(torch.randn(4, 8, generator=generator), dim=-1)
    predicted, segment = torch.randn(1, 30, 8, generator=generator), torch.arange(30)[None] % 5 - 1  # -1 to 3
    counted = torch.ones(1, 30, dtype=torch.bool)
    keeps = dataclasses.replace(PLAIN, semantic_rule=rule, temperature=0.5)
    drops = dataclasses.replace(keeps, first_class="dropped")
    loss = semantic_loss(predicted, segment, counted, drops, table)
    unlabelled = torch.where(segment == 0, -1, segment)
    torch.testing.assert_close(loss, semantic_loss(predicted, unlabelled, counted, keeps, table))
    assert loss != semantic_loss(predicted, segment, counted, keeps, table)
    only_walls = torch.zeros_like(segment)
    assert semantic_loss(predicted, only_walls, counted, drops, table) == 0.0
    assert semantic_loss(predicted, only_walls, counted, keeps, table) > 0.0


def test_features_count_by_their_cosine_where_they_are_known() -> None:
    output, targets, rays = make()
    weights = dataclasses.replace(PLAIN, feature=2.0)
    assert "feature" not in render_loss(output, targets, rays, weights)
    target = torch.tensor([[[3.0, 4.0], [0.0, 0.0]]])  # rendered: (2, 0) and (0, 2); the second is unknown
    losses = render_loss(output, dataclasses.replace(targets, feature=target), rays, weights)
    torch.testing.assert_close(losses["feature"], torch.tensor(2.0 * (1.0 - 0.6)))
    squared = dataclasses.replace(weights, feature_rule="squared")
    squared_losses = render_loss(output, dataclasses.replace(targets, feature=target), rays, squared)
    torch.testing.assert_close(squared_losses["feature"], torch.tensor(2.0 * (1.0 + 16.0) / 2))
    assert "semantic" not in losses


def test_points_without_a_label_do_not_count_in_the_language_guided_loss() -> None:
    logits = torch.tensor([[2.0, 0.0], [1.0, 5.0], [9.0, 9.0]], requires_grad=True)
    loss = point_loss(logits, torch.tensor([0, 0, -1]))
    torch.testing.assert_close(loss, F.cross_entropy(logits[:2], torch.tensor([0, 0])))
    loss.backward()
    assert logits.grad is not None and (logits.grad[2] == 0).all() and (logits.grad[0] != 0).all()
    assert point_loss(logits, torch.full((3,), -1)) == 0.0
    halved = point_loss(logits, torch.tensor([0, 0, -1]), average_count=lambda count: 2.0 * count)
    torch.testing.assert_close(halved, 0.5 * loss)


def test_the_official_semantic_rule_needs_a_table() -> None:
    weights = dataclasses.replace(PLAIN, semantic=1.0, semantic_rule="rays")
    with pytest.raises(ValueError, match=r"class_embeddings=None.*Pass the table"):
        render_loss(*make(), weights)


def test_padding_counts_nowhere_even_if_it_holds_nan() -> None:
    output, targets, rays = make(valid=(True, False))
    clean = render_loss(output, targets, rays, PLAIN)
    torch.testing.assert_close(clean["rgb"], torch.tensor(0.1))
    nan = output.rgb.clone()
    nan[0, 1] = float("nan")
    nan.requires_grad_()
    depth = targets.depth.clone()
    depth[0, 1] = 1.0
    losses = render_loss(dataclasses.replace(output, rgb=nan), dataclasses.replace(targets, depth=depth), rays, PLAIN)
    for name, value in clean.items():
        torch.testing.assert_close(losses[name], value)
    (grad,) = torch.autograd.grad(losses["rgb"], nan)
    assert torch.isfinite(grad).all() and (grad[0, 1] == 0.0).all()


def test_a_batch_without_any_valid_ray_or_depth_gives_zeros() -> None:
    output, targets, rays = make(valid=(False, False))
    assert all(value == 0.0 for value in render_loss(output, targets, rays, PLAIN).values())
    output, targets, rays = make()
    blind = dataclasses.replace(targets, depth=torch.zeros(1, 2))
    losses = render_loss(output, blind, rays, PLAIN)
    assert losses["depth"] == losses["sdf"] == losses["free_space"] == 0.0


def test_losses_are_float32_under_autocast() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = render_loss(*make(), dataclasses.replace(PLAIN, semantic=1.0), class_embeddings=torch.eye(2))
    assert all(value.dtype == torch.float32 for value in losses.values())


def test_a_zero_gradient_has_a_finite_eikonal_derivative() -> None:
    output, targets, rays = make()
    gradient = torch.zeros(1, 2, 4, 3, requires_grad=True)
    output = dataclasses.replace(output, field=dataclasses.replace(output.field, gradient=gradient))
    loss = render_loss(output, targets, rays, PLAIN)["eikonal"]
    torch.testing.assert_close(loss, torch.tensor(1.0), atol=1e-5, rtol=0.0)
    assert torch.isfinite(torch.autograd.grad(loss, gradient)[0]).all()


def test_presets_are_what_their_sources_say() -> None:
    paper, official = RenderLossWeights.paper(), RenderLossWeights.official()
    assert (paper.rgb, paper.depth, paper.sdf, paper.free_space, paper.eikonal) == (1.0, 0.1, 0.0, 0.0, 0.0)
    terms = ("rgb", "depth", "free_space", "sdf", "eikonal", "semantic")
    assert [getattr(official, name) for name in terms] == [10.0, 1.0, 1.0, 10.0, 0.01, 0.1]
    assert (official.truncation, official.band, official.rays) == (0.05, "hard", "all")
    assert (official.semantic_rule, official.first_class) == ("rays", "dropped")
    assert RenderLossWeights.metres() == RenderLossWeights()
