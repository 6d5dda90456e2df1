"""Floors count what the layers multiply."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import floors
from benchmarks.machine import Machine
from benchmarks.scenes import dense_scene
from ponder_zoo.volume.unet3d import UNet3D

MACHINE = Machine(gemm=1.0, copy=1.0, gather=1.0)  # so that seconds are flop, or bytes


def test_the_floor_of_the_dense_unet_counts_every_convolution() -> None:
    unet, shape = UNet3D(4, 6, channels=(8, 12, 16)), (2, 4, 8, 4, 4)
    total = 0.0

    def count(layer: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal total
        # A transposed convolution multiplies its kernel for each input cell, the others for each output cell.
        cells = inputs[0] if isinstance(layer, nn.ConvTranspose3d) else output
        total += 2.0 * layer.weight.numel() * cells[:, 0].numel()

    for layer in unet.modules():
        if isinstance(layer, nn.Conv3d | nn.ConvTranspose3d) and layer is not unet.head:
            layer.register_forward_hook(count)
    unet(torch.randn(shape))
    total += 2.0 * unet.head.weight.numel() * 2 * 8 * 4 * 4  # a matrix product, which calls no module
    assert floors.unet3d(unet, shape, MACHINE, train=False) == pytest.approx(total)
    assert floors.unet3d(unet, shape, MACHINE, train=True) == pytest.approx(3 * total)


def test_the_floor_of_the_sparse_unet_grows_with_pairs() -> None:
    points = dense_scene(2000)
    flop = floors.sparse_unet_flop(points)
    # 39.1 million weights; each multiplies between one pair per coarse voxel and 27 per voxel of the finest level.
    assert 39e6 < flop / 2 < 39e6 * 2000
    assert floors.sparse_unet(points, MACHINE, train=True) == pytest.approx(3 * flop)


def test_the_floor_of_the_maps_is_above_that_of_one_of_them() -> None:
    points = dense_scene(2000)
    one = floors.kernel_list(points, 5, MACHINE)
    assert 8 * 2000 < one < floors.kernel_maps(points, MACHINE)
