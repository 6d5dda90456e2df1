"""The peer of the renderer's benchmark: against the official code's numbers, and against our own renderer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import ponder_zoo as pz
from benchmarks.peers.official_renderer import OfficialRenderer, collide, official_losses
from ponder_zoo.losses.render import RenderLossWeights, render_loss
from ponder_zoo.render import checkpoint_filter_fn
from ponder_zoo.structures import FeatureVolume, RayBundle, RaySamples, RayTargets, VolumeGrid

HALF = 1.101 / 2  # of the box that official positions are normalised by


def assert_close(actual: Tensor, expected: Tensor, limit: float, what: str) -> None:
    """Largest difference over largest value."""
    actual, expected = actual.detach(), expected.detach()
    error = (actual - expected).abs().max() / expected.abs().max().clamp(min=1e-30)
    assert actual.shape == expected.shape and error <= limit, f"{what}: {float(error):.1e}"


@pytest.mark.parametrize("sampler", ["naive", "good"])
@pytest.mark.parametrize("name", ["d_neus_official_like", "d_neus_points"])
def test_the_peer_gives_the_official_numbers(name: str, sampler: Any, shared_dir: Path) -> None:
    from safetensors.torch import load_file

    case = load_file(shared_dir / "parity" / f"{name}.safetensors")
    config = json.loads((shared_dir / "parity" / f"{name}.json").read_text())["config"]
    decoders = [config["field"][f"{part}_decoder"] for part in ("sdf", "rgb", "semantic")]
    peer = OfficialRenderer(
        16,
        hidden_dim=16,
        geo_dim=decoders[0]["out_dim"] - 1,
        num_blocks=tuple(decoder["n_blocks"] for decoder in decoders),  # type: ignore[arg-type]
        semantic_dim=12,
        points_factor=decoders[0]["points_factor"],
        num_samples=24,
        num_importance=12,
        sampler=sampler,
    ).eval()
    peer.load_state_dict({k.removeprefix("state."): v for k, v in case.items() if k.startswith("state.")})
    volume, origins, directions = case["in.volume.0"].requires_grad_(), case["in.ray_o"], case["in.ray_d"]
    near, far, hit = collide(origins, directions)
    assert_close(near * hit, case["collider.nears"][:, 0], 2e-4, "near")
    assert_close(far * hit, case["collider.fars"][:, 0], 2e-4, "far")
    field = peer.query(volume, origins, directions, case["field.starts"][..., 0])
    for ours, theirs in (("gradient", "gradients"), ("rgb", "rgb"), ("semantic", "semantic")):
        assert_close(field[ours], case[f"field.{theirs}"], 2e-4, ours)
    alpha = peer.alpha(field, directions, case["field.deltas"][..., 0])
    assert_close(alpha[..., None], case["field.alphas"], 2e-4, "alpha")
    output = peer(volume, origins, directions)
    assert_close(output["starts"][..., None], case["train.z_vals"], 1e-4, "starts")
    for key in ("rgb", "semantic", "normal"):
        assert_close(output[key], case[f"train.{key}"], 1e-2, key)
    assert_close(output["depth"][:, None], case["train.depth"], 1e-2, "depth")
    losses = official_losses(
        output,
        case["in.target.depth"][:, 0],
        case["in.target.rgb"],
        case["in.target.semantic"],
        config["loss"]["sensor_depth_truncation"],
    )
    for key, value in losses.items():
        assert_close(value[None], case[f"train.loss.{key}_loss"], 1e-3, key)
    torch.stack(list(losses.values())).sum().backward()
    assert_close(volume.grad, case["grad.in.volume.0"], 1e-2, "volume")  # type: ignore[arg-type]
    for key, parameter in peer.named_parameters():
        if parameter.requires_grad and parameter.grad is not None:
            assert_close(parameter.grad, case[f"grad.state.{key}"], 1e-2, key)


@pytest.mark.parametrize("sampler", ["naive", "good"])
def test_ours_equals_the_peer_in_float64(sampler: Any) -> None:
    peer = OfficialRenderer(16, hidden_dim=24, geo_dim=8, semantic_dim=32, sampler=sampler).double()
    args = dict(in_chans=16, hidden_dim=24, geo_dim=8, semantic_dim=32)
    ours: Any = pz.create_renderer("neus_ponderv2", **args).double()
    ours.load_state_dict(checkpoint_filter_fn(peer.state_dict(), ours))
    feat = torch.randn(16, 4, 6, 8, dtype=torch.float64)
    origins = 0.3 * torch.rand(20, 3, dtype=torch.float64) - 0.4
    directions = torch.nn.functional.normalize(torch.randn(20, 3, dtype=torch.float64), dim=-1)
    near, far, _ = collide(origins, directions)
    edges = near[:, None] + torch.linspace(0, 1, 13) * (far - near)[:, None]
    depth, rgb = torch.rand(20, dtype=torch.float64), torch.rand(20, 3, dtype=torch.float64)
    table, segment = torch.randn(5, 32, dtype=torch.float64), torch.randint(-1, 5, (20,))

    volume = feat.clone().requires_grad_()
    theirs = peer(volume, origins, directions, edges)
    labels = torch.where(segment[:, None] > 0, table[segment.clamp(min=0)], 0.0)  # label 0 is none in the official code
    their_losses = official_losses(theirs, depth, rgb, labels)
    torch.stack(list(their_losses.values())).sum().backward()

    own = feat[None].clone().requires_grad_()
    grid = VolumeGrid(torch.tensor([[[-HALF] * 3, [HALF] * 3]], dtype=torch.float64), (8, 6, 4), "corners")
    samples = RaySamples(origins[None], directions[None], edges[None, :, :-1], edges[None, :, 1:])
    valid = torch.ones(1, 20, dtype=torch.bool)
    output = ours.render_samples(samples, valid, FeatureVolume(own, grid))
    rays = RayBundle(origins[None], directions[None], near[None], far[None], valid)
    targets = RayTargets(rgb[None], depth[None], segment=segment[None])
    losses = render_loss(output, targets, rays, RenderLossWeights.official(), class_embeddings=table)
    torch.stack(list(losses.values())).sum().backward()

    assert_close(output.field.sdf[0], theirs["sdf"], 1e-10, "sdf")
    assert_close(output.field.gradient[0], theirs["gradient"], 1e-8, "gradient")
    # Our transmittance lacks the 1e-7 that the official one adds to every factor, hence the limits from here on.
    for key in ("weights", "rgb", "depth", "normal", "semantic"):
        assert_close(getattr(output, key)[0], theirs[key], 1e-5, key)
    for key, value in losses.items():
        assert_close(value, their_losses[key], 1e-5, key)
    assert_close(own.grad[0], volume.grad, 1e-4, "volume")  # type: ignore[index, arg-type]
    gradients = {key: p.grad for key, p in peer.named_parameters() if p.grad is not None}
    expected = checkpoint_filter_fn(gradients, ours)
    for key, parameter in ours.named_parameters():
        if parameter.grad is not None:
            assert_close(parameter.grad, expected[key], 1e-4, key)
