from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from ponder_zoo.layers.sync_norm import synchronize_batch_norm
from ponder_zoo.structures import PointBatch, VolumeGrid
from ponder_zoo.volume import UNet3D, densify, densify_official
from ponder_zoo.volume.densify import occupied_cells, occupied_cells_official
from ponder_zoo.volume.occupied import OccupiedCells

SHAPE = (8, 4, 2)  # X, Y, Z


def make_points(feat: Tensor) -> PointBatch:
    coord = torch.rand(len(feat), 3, dtype=feat.dtype, generator=torch.Generator().manual_seed(1)) * 1.2 - 0.1
    return PointBatch(coord, feat, torch.tensor([len(feat) // 2, len(feat)]))


def make_grid(dtype: torch.dtype = torch.float64) -> VolumeGrid:
    return VolumeGrid(torch.tensor([[[0.0] * 3, [1.0] * 3]] * 2, dtype=dtype), SHAPE)


@pytest.mark.parametrize("synchronized", [False, True])
@pytest.mark.parametrize(("training", "outputs", "shortcut"), [(True, 3, False), (False, 3, True), (True, 5, True)])
def test_the_network_gives_the_numbers_gradients_and_statistics_of_the_dense_volume(
    training: bool, outputs: int, shortcut: bool, synchronized: bool
) -> None:
    unet = UNet3D(5, outputs, channels=(4, 6), shortcut=shortcut).double().train(training)
    norm = unet.encoder[0].norm  # type: ignore[union-attr]
    with torch.no_grad():
        for value in (norm.weight, norm.bias, norm.running_mean):  # type: ignore[union-attr]
            value.normal_()  # type: ignore[operator]
    other = copy.deepcopy(unet)  # with plain norms
    if synchronized:
        synchronize_batch_norm(unet)
    feat = torch.randn(30, 5, dtype=torch.float64).requires_grad_()
    cells = occupied_cells(make_points(feat), make_grid())
    assert unet.takes_occupied(cells) and len(cells.index) < 30
    results = []
    for network, volume in ((unet, cells), (other, densify(make_points(feat), make_grid()).feat)):
        out = network(volume)
        cotangent = torch.cos(torch.arange(out.numel(), dtype=torch.float64)).view(out.shape)
        parameters = list(network.parameters())
        results.append([out, *torch.autograd.grad((out * cotangent).sum(), [feat, *parameters])])
    for one, expected in zip(*results, strict=True):
        torch.testing.assert_close(one, expected)
    for (name, one), expected in zip(unet.named_buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(one, expected, msg=name)


def test_occupied_cells_are_those_of_the_dense_volume() -> None:
    points = make_points(torch.randn(30, 5, dtype=torch.float64))
    torch.testing.assert_close(occupied_cells(points, make_grid()).dense(), densify(points, make_grid()).feat)
    metres = torch.tensor([0.3, 2.0])
    official = occupied_cells_official(points, make_grid(), metres)
    assert official is not None
    torch.testing.assert_close(official.dense(), densify_official(points, make_grid(), metres).feat)
    small = torch.tensor([2.0, 0.001])  # resolution 2 is not below the smallest side; a larger grid's is
    large = VolumeGrid(make_grid().bounds, (8, 8, 8))
    assert occupied_cells_official(points, large, small) is None


def test_an_empty_scene_is_a_constant_volume() -> None:
    unet = UNet3D(5, 3, channels=(4, 6)).double()
    cells = OccupiedCells(torch.zeros(0, 5).double(), torch.zeros(0, dtype=torch.int64), (1, 2, 4, 8))
    torch.testing.assert_close(unet(cells), copy.deepcopy(unet)(cells.dense()))


def test_what_the_sparse_layer_cannot_do_goes_through_the_dense_one() -> None:
    unet = UNet3D(5, 5, channels=(4, 6)).double()
    unet.encoder[0].norm = torch.nn.GroupNorm(1, 5).double()  # type: ignore[union-attr]
    points = make_points(torch.randn(30, 5, dtype=torch.float64))
    cells = occupied_cells(points, make_grid())
    assert not unet.takes_occupied(cells)
    torch.testing.assert_close(unet(cells), copy.deepcopy(unet)(cells.dense()))
