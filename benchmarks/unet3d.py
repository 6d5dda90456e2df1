"""The dense U-Net of the paper's indoor settings in channels-last order against the same network channels first."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from ponder_zoo.volume.unet3d import UNet3D

from . import floors
from .harness import Call, Case
from .machine import device
from .peers.channel_first import ChannelFirstUNet

SHAPE = (1, 96, 32, 128, 128)  # (B, C, Z, Y, X)
PEER = "the same network, channels first"


def cases() -> Iterator[Case]:
    """Forward, and forward + backward, of 96 -> 128 channels on 128 x 128 x 32 cells."""
    for train in (False, True):
        yield Case(
            name=f"unet3d/{'train' if train else 'forward'}",
            peer=PEER,
            ours=lambda train=train: _call(_model(), train),
            theirs=lambda train=train: _call(ChannelFirstUNet(_model()), train, check=True),
            done=1.5,
            aim=2.0,
            floor=lambda machine, train=train: floors.unet3d(_model(), SHAPE, machine, train=train),
            repeats=5,
        )
    yield Case(
        name="unet3d/memory",
        peer=PEER,
        ours=lambda: _call(_model(), train=True),
        theirs=lambda: _call(ChannelFirstUNet(_model()), train=True),
        metric="memory",
    )


def _model() -> UNet3D:
    torch.manual_seed(0)
    return UNet3D(96, 128).to(device())


def _call(model: nn.Module, train: bool, check: bool = False) -> Call:
    volume = torch.randn(SHAPE, device=device()) * (torch.rand(SHAPE[0], 1, *SHAPE[2:], device=device()) < 0.05)
    model.train(train)
    if check:
        with torch.inference_mode():
            difference = (_model().eval()(volume) - model.eval()(volume)).abs().max()
        assert difference < 1e-4, f"The peer should compute the same as ours; the outputs differ by {difference}."
        model.train(train)
    volume.requires_grad_(train)

    def infer() -> torch.Tensor:
        with torch.inference_mode():
            return model(volume)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        volume.grad = None
        model(volume).square().mean().backward()

    return step if train else infer
