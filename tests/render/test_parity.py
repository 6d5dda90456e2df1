"""The official code's numbers: field, samplers, renderers, losses and gradients (shared parity vectors, group d)."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ponder_zoo.losses.render import RenderLossWeights, render_loss
from ponder_zoo.ops.rays import ray_box
from ponder_zoo.render import AbstractSurfaceRenderer, NeuS, VolSDF, checkpoint_filter_fn
from ponder_zoo.render.compositing import render_weights
from ponder_zoo.render.neus import half_step_alpha, interval_weights
from ponder_zoo.render.sampling import samples_between, uniform_edges
from ponder_zoo.render.volsdf import laplace_density, volsdf_alpha
from ponder_zoo.structures import FeatureVolume, RayBundle, RaySamples, RayTargets, VolumeGrid

NAMES = ("d_neus_official_like", "d_neus_points", "d_volsdf")


@dataclass
class Case:
    name: str
    tensors: dict[str, Tensor]
    config: dict[str, Any]
    renderer: AbstractSurfaceRenderer
    volume: FeatureVolume
    rays: RayBundle

    def __getitem__(self, key: str) -> Tensor:
        return self.tensors[key]

    def samples(self, starts: Tensor, ends: Tensor) -> RaySamples:
        return RaySamples(self.rays.origins, self.rays.directions, starts[None, ..., 0], ends[None, ..., 0])


def make_renderer(name: str, config: dict[str, Any], sampler_frame: str = "official") -> AbstractSurfaceRenderer:
    decoders, sampler = config["field"], config["sampler"]
    args: dict[str, Any] = dict(
        hidden_dim=decoders["sdf_decoder"]["hidden_size"],
        geo_dim=decoders["sdf_decoder"]["out_dim"] - 1,
        num_blocks=decoders["sdf_decoder"]["n_blocks"],
        rgb_blocks=decoders["rgb_decoder"]["n_blocks"],
        semantic_blocks=decoders["semantic_decoder"]["n_blocks"],
        semantic_dim=decoders["semantic_decoder"]["out_dim"],
        points_factor=decoders["sdf_decoder"]["points_factor"],
        share_volume=decoders["share_volume"],
        rgb_normal="gradient",
        frame="official",
        sampler_frame=sampler_frame,
    )
    if name == "d_volsdf":
        return VolSDF(
            16,
            **args,
            num_samples=sampler["num_samples_eval"],
            num_importance=sampler["num_samples"],
            num_uniform=sampler["num_samples_extra"],
            num_rounds=2,  # of at most 3: here the official loop stops after two, when all rays satisfy the bound
            error_bound=sampler["eps"],
        )
    return NeuS(
        16,
        **args,
        num_samples=sampler["num_samples"],
        num_importance=sampler["num_samples_importance"],
        num_upsample_steps=sampler["num_upsample_steps"],
        importance_sharpness=64.0,
        alpha_rule="official",
    )


@pytest.fixture(params=NAMES)
def case(request: pytest.FixtureRequest, shared_dir: Path) -> Case:
    from safetensors.torch import load_file

    name = request.param
    tensors = load_file(shared_dir / "parity" / f"{name}.safetensors")
    config = json.loads((shared_dir / "parity" / f"{name}.json").read_text())["config"]
    renderer = make_renderer(name, config).eval()
    state = {key.removeprefix("state."): value for key, value in tensors.items() if key.startswith("state.")}
    renderer.load_state_dict(checkpoint_filter_fn(state, renderer))  # strict: every name is translated
    feat = tensors["in.volume.0"][None].clone().requires_grad_()
    half = (1.0 + config["field"]["norm_padding"] + 1e-3) / 2.0  # the box that official positions are normalised by
    grid = VolumeGrid(torch.tensor([[[-half] * 3, [half] * 3]]), tuple(feat.shape[:1:-1]), align="corners")  # type: ignore[arg-type]
    near, far = tensors["collider.nears"].T, tensors["collider.fars"].T
    rays = RayBundle(tensors["in.ray_o"][None], tensors["in.ray_d"][None], near, far, torch.ones_like(near) > 0)
    return Case(name, tensors, config, renderer, FeatureVolume(feat, grid), rays)


def assert_close(actual: Tensor, expected: Tensor, limit: float, what: str) -> None:
    """The README's measure: largest difference over largest value."""
    assert actual.shape == expected.shape, what
    error = (actual - expected).abs().max() / expected.abs().max().clamp(min=1e-30)
    assert error <= limit, f"{what}: {float(error):.1e} > {limit:.0e}"


def test_near_and_far_agree_with_the_official_collider(case: Case) -> None:
    bounds = torch.tensor(case.config["collider"]["bbox"]).view(1, 2, 3)
    near, far, hit = ray_box(case.rays.origins, case.rays.directions, bounds, near=0.01)
    assert hit[0].tolist() == [True] * (hit.shape[1] - 2) + [False] * 2
    assert_close(near[hit], case.rays.near[hit], 2e-4, "near")
    assert_close(far[hit], case.rays.far[hit], 2e-4, "far")


def test_the_field_at_fixed_samples_agrees(case: Case) -> None:
    samples = case.samples(case["field.starts"], case["field.ends"])
    uniform = samples_between(case.rays, uniform_edges(case.rays, samples.t_starts.shape[-1], stratified=False))
    assert_close(uniform.t_starts, samples.t_starts, 2e-6, "uniform starts")
    assert_close(uniform.t_ends, samples.t_ends, 2e-6, "uniform ends")
    field = case.renderer.field(samples.positions, samples.directions, case.volume)
    assert_close(field.sdf[0, ..., None], case["field.sdf"], 2e-4, "sdf")
    assert_close(case.renderer.field.sdf(samples.positions, case.volume)[:, :-2], field.sdf[:, :-2], 1e-5, "sdf alone")
    assert_close(field.gradient[0], case["field.gradients"], 2e-4, "gradient")
    assert_close(field.rgb[0], case["field.rgb"], 2e-4, "rgb")
    assert_close(field.semantic[0], case["field.semantic"], 2e-4, "semantic")
    inv_s = (10.0 * case["state.field.deviation_network.variance"]).exp()
    alpha = half_step_alpha(samples, field, inv_s)
    assert_close(alpha[0, ..., None], case["field.alphas"], 2e-4, "NeuS alpha")
    assert_close(render_weights(alpha)[0, ..., None], case["field.neus.weights"], 2e-4, "NeuS weights")
    beta = case["state.field.laplace_density.beta"] + 1e-4
    assert_close(laplace_density(field.sdf, beta)[0, ..., None], case["field.density"], 2e-4, "density")
    weights = render_weights(volsdf_alpha(samples.t_ends - samples.t_starts, field.sdf, beta))
    assert_close(weights[0, ..., None], case["field.volsdf.weights"], 2e-4, "VolSDF weights")


def test_the_weights_that_guide_the_neus_sampler_agree(case: Case) -> None:
    if not isinstance(case.renderer, NeuS):
        pytest.skip("VolSDF has another sampler; its result is compared below")
    edges = uniform_edges(case.rays, case.renderer.num_samples, stratified=False)
    sdf = case.renderer._sdf_along(case.rays, edges[..., :-1], case.volume)
    weights = interval_weights(edges[..., :-1], sdf, case.renderer.importance_sharpness, cancelling=True)
    assert_close(weights[0, ..., None], case["eval.init_weights"], 2e-4, "weights")


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_whole_renderer_with_its_sampler_agrees(case: Case, mode: str) -> None:
    output = case.renderer(case.rays, case.volume)
    limit = 5e-4 if case.name == "d_volsdf" else 1e-2
    assert_close(output.samples.t_starts[0, ..., None], case[f"{mode}.z_vals"], 1e-4, "sample distances")
    actual = {
        "rgb": output.rgb,
        "depth": output.depth[..., None],
        "normal": output.normal,
        "semantic": output.semantic,
        "weights": output.weights[..., None],
        "sdf": output.field.sdf[..., None],
        "gradients": output.field.gradient,
    }
    for key, value in actual.items():
        assert_close(value[0], case[f"{mode}.{key}"], limit, key)


@pytest.mark.parametrize("samples", ["own", "given"])
def test_losses_and_gradients_agree(case: Case, samples: str) -> None:
    if samples == "own":
        output, limit, loss_limit = case.renderer(case.rays, case.volume), 1e-2, 1e-3
        if case.name == "d_volsdf":
            limit = 5e-4
    else:
        starts = case["train.z_vals"]
        ends = torch.cat([starts[:, 1:], output_ends(case)[:, None]], 1)
        output = case.renderer.render_samples(case.samples(starts, ends), case.rays.valid, case.volume)
        limit, loss_limit = 1e-4, 1e-4
    # A row per ray serves as class table; before them one of label 0, which is none in the official code.
    rows = case["in.target.semantic"]
    table, segment = torch.nn.functional.pad(rows, (0, 0, 1, 0)), 1 + torch.arange(len(rows))
    segment = segment.where(rows.abs().sum(-1) > 0, torch.tensor(-1))
    targets = RayTargets(case["in.target.rgb"][None], case["in.target.depth"][None, :, 0], segment=segment[None])
    weights = replace(RenderLossWeights.official(), truncation=case.config["loss"]["sensor_depth_truncation"])
    losses = render_loss(output, targets, case.rays, weights, class_embeddings=table)
    for key, value in losses.items():
        assert_close(value[None], case[f"train.loss.{key}_loss"], loss_limit, key)
    total = torch.stack(list(losses.values())).sum()
    assert_close(total[None], case["train.loss.total"], loss_limit, "total")
    total.backward()
    assert_close(case.volume.feat.grad[0], case["grad.in.volume.0"], limit, "volume")
    gradients = {k.removeprefix("grad.state."): v for k, v in case.tensors.items() if k.startswith("grad.state.")}
    expected = checkpoint_filter_fn(gradients, case.renderer)
    parameters = dict(case.renderer.named_parameters())
    assert expected.keys() == parameters.keys()
    for key, value in expected.items():
        if parameters[key].grad is None:  # switched off by points_factor = 0
            assert value.abs().max() == 0.0, key
        else:
            assert_close(parameters[key].grad, value, limit, key)


def output_ends(case: Case) -> Tensor:
    """Ends of the last intervals, which the vectors do not hold: far, or the last importance edge if that is larger."""
    with torch.no_grad():
        return case.renderer.sample(case.rays, case.volume).t_ends[0, :, -1:]


def test_a_corrected_sampler_places_other_samples(case: Case) -> None:
    corrected = make_renderer(case.name, case.config, sampler_frame="metres").eval()
    corrected.load_state_dict(case.renderer.state_dict())
    difference = corrected(case.rays, case.volume).samples.t_starts[0, ..., None] - case["eval.z_vals"]
    assert difference.abs().max() > 1e-2
