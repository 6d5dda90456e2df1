"""The registered renderers: what holds for each of them, and the official full-size layout."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

import ponder_zoo as pz
from ponder_zoo.render import AbstractSurfaceRenderer, checkpoint_filter_fn
from ponder_zoo.structures import FeatureVolume, RayBundle, RenderOutput, VolumeGrid

NAMES = ["neus", "volsdf", "unisurf", "neus_ponderv2"]
SMALL = {"in_chans": 4, "hidden_dim": 8, "geo_dim": 4, "semantic_dim": 3, "num_samples": 8, "num_importance": 4}


def scene() -> tuple[RayBundle, FeatureVolume]:
    grid = VolumeGrid(torch.tensor([[[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]]), (4, 4, 4))
    origins = torch.full((1, 5, 3), 0.5)
    directions = torch.nn.functional.normalize(torch.randn(1, 5, 3), dim=-1)
    rays = RayBundle(origins, directions, torch.full((1, 5), 0.05), torch.full((1, 5), 0.5), torch.ones(1, 5) > 0)
    return rays, FeatureVolume(torch.randn(1, 4, 4, 4, 4), grid)


def test_the_names_of_the_api_are_registered() -> None:
    assert set(NAMES) <= set(pz.list_renderers())


@pytest.mark.parametrize("name", NAMES)
def test_a_renderer_renders_trains_and_is_rebuilt_from_its_arguments(name: str) -> None:
    renderer = pz.create_renderer(name, **SMALL)
    assert isinstance(renderer, AbstractSurfaceRenderer)
    rays, volume = scene()
    output = renderer(rays, volume)
    assert isinstance(output, RenderOutput)
    assert output.semantic is not None and output.semantic.shape == (1, 5, 3)
    (output.rgb.sum() + output.depth.sum() + output.normal.sum() + output.semantic.sum()).backward()
    unused = [n for n, p in renderer.named_parameters() if p.requires_grad and p.grad is None]
    assert not unused  # distributed training without find_unused_parameters depends on it
    json.dumps(renderer.model_args)
    again = pz.create_renderer(renderer.architecture, **renderer.model_args)  # type: ignore[arg-type]
    again.load_state_dict(renderer.state_dict())
    torch.testing.assert_close(again.eval()(rays, volume).rgb, renderer.eval()(rays, volume).rgb)


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_argument_names_the_nearest_one(name: str) -> None:
    with pytest.raises(TypeError, match="Did you mean 'num_samples'"):
        pz.create_renderer(name, num_sample=3)


def test_the_official_full_size_renderer_has_the_same_parameters(shared_dir: Path) -> None:
    shapes = json.loads((shared_dir / "parity" / "f_keys_pretrain_ponder_ppt.json").read_text())
    shapes = shapes.get("keys", shapes)
    official = {f"module.{k}": torch.zeros(v) for k, v in shapes.items() if k.startswith("renderer.")}
    renderer = pz.create_renderer("neus_ponderv2")
    translated = checkpoint_filter_fn(official, renderer)
    own = renderer.state_dict()
    assert {k: v.shape for k, v in translated.items()} == {k: v.shape for k, v in own.items()}
    assert sum(math.prod(v.shape) for v in official.values()) == 143_687
    assert sum(v.numel() for v in own.values()) == 143_687 - 2  # VolSDF's beta and its constant


def test_foreign_entries_are_passed_on_for_strict_loading_to_report() -> None:
    renderer = pz.create_renderer("neus", **SMALL)
    own = renderer.state_dict()
    assert checkpoint_filter_fn(own, renderer).keys() == own.keys()
    assert "backbone.weight" in checkpoint_filter_fn({**own, "backbone.weight": torch.zeros(1)}, renderer)
