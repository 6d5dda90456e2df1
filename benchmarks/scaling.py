"""Cost against voxels, rays, scenes per batch and processes; the curves of docs/performance.md."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F

import ponder_zoo as pz
from ponder_zoo.structures import FeatureVolume, RayBundle, VolumeGrid

from .harness import Call, Case
from .machine import device
from .processes import steps_of_processes
from .scenes import dense_scene, repeat_scene
from .sparse_unet import make_model, model_call

VOXELS = (10_000, 30_000, 100_000, 300_000, 1_000_000, 2_000_000)
RAYS = (160, 320, 640, 1280, 2560)
BATCHES = (1, 2, 4, 8)
PROCESSES = (1, 2)
SCENE = 20_000  # voxels of a scene of the batch and process curves


def cases() -> Iterator[Case]:
    """One case per point of a curve; the last part of the name is what the cost grows with."""
    for count in VOXELS:
        yield _point("voxels", count, lambda count=count: _features(count), repeats=3 if count <= 100_000 else 1)
    for count in VOXELS:
        yield _point("memory", count, lambda count=count: _features(count), unit="voxels", metric="memory", repeats=1)
    for count in RAYS:
        yield _point("rays", count, lambda count=count: _render(count))
    for count in BATCHES:
        yield _point("batch", count, lambda count=count: _train(count), unit="scenes")
    scenes = max(PROCESSES)
    for count in PROCESSES:
        steps = lambda count=count: steps_of_processes(count, scenes=scenes, voxels=SCENE)  # noqa: E731
        yield _point("processes", count, steps, unit="scenes", items=scenes)


def _point(curve: str, count: int, ours: Callable[[], Call], **options: Any) -> Case:
    options = {"repeats": 3, "items": count, "unit": curve} | options
    return Case(name=f"scaling/{curve}/{count}", peer="none", ours=ours, **options)


def _features(voxels: int) -> Call:
    points = dense_scene(voxels).to(device())
    model = make_model().eval()
    return model_call(model, lambda: model.forward_features(points).feat, train=False)


def _train(scenes: int) -> Call:
    points = repeat_scene(dense_scene(SCENE), scenes).to(device())
    model = make_model().train()
    return model_call(model, lambda: model.forward_features(points).feat, train=True)


def _render(count: int) -> Call:
    """NeuS forward and backward of the paper's indoor settings, from a camera in the middle of a smooth volume."""
    torch.manual_seed(0)
    renderer = pz.create_renderer(
        "neus", in_chans=128, num_samples=96, num_importance=36, hidden_dim=128, geo_dim=64
    ).to(device())
    coarse = torch.randn(1, 128, 4, 16, 16)
    feat = F.interpolate(coarse, size=(32, 128, 128), mode="trilinear").to(device())
    feat = feat.contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    bounds = torch.tensor([[[-3.2, -3.2, -0.8], [3.2, 3.2, 0.8]]], device=device())
    volume = FeatureVolume(feat, VolumeGrid(bounds, (128, 128, 32)))
    rays = _rays(count)

    def step() -> None:
        renderer.zero_grad(set_to_none=True)
        feat.grad = None
        output = renderer(rays, volume)
        (output.rgb.square().mean() + output.depth.mean()).backward()

    return step


def _rays(count: int) -> RayBundle:
    angle = torch.linspace(0, 2 * math.pi, count + 1)[:-1]
    directions = torch.stack([angle.cos(), angle.sin(), 0.2 * (7 * angle).sin()], -1)
    directions = F.normalize(directions, dim=-1)[None]
    near, far = torch.full((1, count), 0.05), torch.full((1, count), 3.2)
    rays = RayBundle(torch.zeros(1, count, 3), directions, near, far, torch.ones(1, count, dtype=torch.bool))
    return rays.to(device())
