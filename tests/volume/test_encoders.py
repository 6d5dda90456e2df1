from __future__ import annotations

import pytest
import torch
from torch import nn

from ponder_zoo.structures import PointBatch, SceneInput, VolumeGrid
from ponder_zoo.volume import BlockMask, PointVolumeEncoder, UNet3D


class FirstPoints(nn.Module):
    """An encoder that returns fewer points than it was given."""

    num_features = 4

    def forward_features(self, points: PointBatch) -> PointBatch:
        return PointBatch(points.coord[:20], points.feat[:20], torch.tensor([10, 20]))


def make_scene() -> SceneInput:
    points = PointBatch(
        torch.rand(60, 3), torch.rand(60, 4), torch.tensor([30, 60]), torch.randint(0, 50, (60, 3)).int()
    )
    return SceneInput(points, VolumeGrid(torch.tensor([[[0.0] * 3, [1.0] * 3]]).expand(2, 2, 3), (8, 8, 4)))


def test_points_become_a_volume_on_the_grid_of_the_scene() -> None:
    scene = make_scene()
    encoder = PointVolumeEncoder(FirstPoints(), UNet3D(4, 6, channels=(4, 8)), mask=BlockMask(4))
    volume = encoder(scene)
    assert volume.feat.shape == (2, 6, 4, 8, 8)
    assert volume.grid is scene.grid
    volume.feat.sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())


def test_official_cells_need_the_size_of_the_cube() -> None:
    encoder = PointVolumeEncoder(FirstPoints(), UNet3D(4, 6, channels=(4, 8)), cells="official")
    with pytest.raises(ValueError, match="metres_per_unit"):
        encoder(make_scene())
    scene = make_scene()
    volume = encoder(SceneInput(scene.points, scene.grid, torch.tensor([3.0, 4.0])))
    assert volume.grid.align == "corners"


def test_widths_that_do_not_fit_are_found_at_construction() -> None:
    with pytest.raises(ValueError, match="in_chans=4"):
        PointVolumeEncoder(FirstPoints(), UNet3D(5, 6))
