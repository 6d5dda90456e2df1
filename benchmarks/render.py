"""The renderer in the official indoor settings against the official formulation of the same model.

5 views x 256 rays of 96 + 36 samples, a volume of 128 x 128 x 32 cells and 128 channels, 512-dimensional semantics, the
official losses. Both sides have the same weights, volume, rays and targets; each draws its own stratified samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

import ponder_zoo as pz
from ponder_zoo.losses.render import RenderLossWeights, render_loss
from ponder_zoo.ops.rays import ray_box
from ponder_zoo.render import checkpoint_filter_fn, render_image
from ponder_zoo.structures import FeatureVolume, RayBundle, RayTargets, VolumeGrid

from .harness import Call, Case
from .machine import Machine, device
from .peers.official_renderer import OfficialRenderer, official_losses

CELLS = (128, 128, 32)  # X, Y, Z
VIEWS = 5
RAYS = 1280
HALF = 0.5505  # of the cube that the volume spans
CLASSES, DIM = 36, 512
PEERS = {
    "naive": "official formulation, naive sampler",
    "good": "official formulation, good sampler",
    "good_channel_last": "official formulation, good sampler, on a channel-last volume",
}


def cases() -> Iterator[Case]:
    """Training step of the renderer, its memory, and whole images."""
    for peer, words in PEERS.items():
        sides: dict[str, Any] = {"peer": words, "ours": _ours, "theirs": lambda peer=peer: _theirs(peer)}
        has_target = peer == "good"
        yield Case(
            name=f"render/train/{peer}",
            **sides,
            done=5.0 if has_target else None,
            aim=8.0 if has_target else None,
            floor=lambda machine: floor(RAYS, machine),
            repeats=5,
            items=RAYS,
            unit="rays",
        )
        yield Case(
            name=f"render/memory/{peer}",
            **sides,
            done=0.45 if has_target else None,
            aim=0.25 if has_target else None,
            metric="memory",
        )
    for size in ((120, 160), (240, 320)):  # memory grows with the image only by what is returned
        yield Case(
            name=f"render/image_memory/{size[1]}x{size[0]}",
            peer="none",
            ours=lambda size=size: _image(size),
            metric="memory",
        )


@dataclass(frozen=True)
class Inputs:
    """One scene in the unit cube."""

    feat: Tensor  # (1, C, Z, Y, X)
    origins: Tensor  # (R, 3)
    directions: Tensor  # (R, 3)
    rgb: Tensor  # (R, 3)
    depth: Tensor  # (R,)
    segment: Tensor  # (R,)
    table: Tensor  # (K, D) class embeddings

    @property
    def grid(self) -> VolumeGrid:
        bounds = torch.tensor([[[-HALF] * 3, [HALF] * 3]], device=self.feat.device)
        X, Y, Z = CELLS
        return VolumeGrid(bounds, (X, Y, Z), align="corners")

    @property
    def rays(self) -> RayBundle:
        origins, directions = self.origins[None], self.directions[None]
        bounds = origins.new_tensor([[[-0.55] * 3, [0.55] * 3]])
        return RayBundle(origins, directions, *ray_box(origins, directions, bounds, near=0.01))

    @property
    def targets(self) -> RayTargets:
        return RayTargets(self.rgb[None], self.depth[None], segment=self.segment[None])

    @property
    def semantic(self) -> Tensor:
        """(R, D) embedding of each ray's class; zero rows where it has none."""
        return self.table[self.segment.clamp(min=0)] * (self.segment >= 0)[:, None]


def make_inputs(num_rays: int = RAYS, channels: int = 128) -> Inputs:
    """A smooth random volume, and rays of five views through it in random order."""
    g = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, channels, 8, 32, 32, generator=g)
    feat = F.interpolate(coarse, size=CELLS[::-1], mode="trilinear")
    origins = (torch.rand(VIEWS, 1, 3, generator=g) - 0.5) * torch.tensor([0.7, 0.7, 0.3]) - torch.tensor([0, 0, 0.2])
    forward = F.normalize(torch.randn(VIEWS, 1, 3, generator=g), dim=-1)
    directions = F.normalize(forward + 0.4 * torch.randn(VIEWS, num_rays // VIEWS, 3, generator=g), dim=-1)
    origins = origins.expand_as(directions).flatten(0, 1)
    depth = 0.2 + 0.3 * torch.rand(len(origins), generator=g)
    rgb = torch.rand(len(origins), 3, generator=g)
    segment = torch.randint(-1, CLASSES, (len(origins),), generator=g)
    table = F.normalize(torch.randn(CLASSES, DIM, generator=g), dim=-1)
    tensors = feat, origins, directions.flatten(0, 1), rgb, depth, segment, table
    return Inputs(*(value.to(device()) for value in tensors))


def make_renderer() -> Any:
    torch.manual_seed(0)
    return pz.create_renderer("neus_ponderv2").to(device())


def make_peer(sampler: Literal["naive", "good"], like: Any) -> OfficialRenderer:
    """The peer with the weights of ours."""
    peer = OfficialRenderer(sampler=sampler).to(device())
    own, official = like.state_dict(), peer.state_dict()
    for key, value in official.items():
        for name in checkpoint_filter_fn({key: value}, like):  # our name of it, or none
            official[key] = own[name].view_as(value)
    peer.load_state_dict(official)
    return peer


def _ours() -> Call:
    inputs, renderer = make_inputs(), make_renderer()
    feat = inputs.feat.contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    volume, rays, targets, weights = FeatureVolume(feat, inputs.grid), inputs.rays, inputs.targets, official_weights()

    def step() -> None:
        renderer.zero_grad(set_to_none=True)
        feat.grad = None
        losses = render_loss(renderer(rays, volume), targets, rays, weights, class_embeddings=inputs.table)
        torch.stack(list(losses.values())).sum().backward()

    return step


def _theirs(peer: str) -> Call:
    inputs = make_inputs()
    renderer = make_peer("naive" if peer == "naive" else "good", make_renderer())
    feat = inputs.feat
    if peer == "good_channel_last":
        feat = feat.contiguous(memory_format=torch.channels_last_3d)
    volume, semantic = feat[0].requires_grad_(), inputs.semantic

    def step() -> None:
        renderer.zero_grad(set_to_none=True)
        volume.grad = None
        output = renderer(volume, inputs.origins, inputs.directions)
        losses = official_losses(output, inputs.depth, inputs.rgb, semantic)
        torch.stack(list(losses.values())).sum().backward()

    return step


def _image(size: tuple[int, int]) -> Call:
    inputs, renderer = make_inputs(), make_renderer()
    volume = FeatureVolume(inputs.feat.contiguous(memory_format=torch.channels_last_3d), inputs.grid)
    height, width = size
    K = torch.tensor([[width / 2, 0.0, width / 2], [0.0, width / 2, height / 2], [0.0, 0.0, 1.0]])
    return lambda: render_image(renderer, volume, K, torch.eye(4), size)


def official_weights() -> RenderLossWeights:
    return RenderLossWeights.official()


def floor(num_rays: int, machine: Machine) -> float:
    """Seconds of the matrix products of phi_SDF alone, and of filling the gradient of the volume."""
    hidden, half, outputs = 128, 64, 65
    main = 2.0 * (2 * half * hidden + outputs * (hidden + half)) * num_rays * (96 + 36)  # sdf and its slope
    importance = 2.0 * half * hidden * num_rays * 96
    cells = CELLS[0] * CELLS[1] * CELLS[2]
    return (3 * main + importance) / machine.gemm + 4.0 * 2 * half * cells / machine.copy
