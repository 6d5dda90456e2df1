from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ponder_zoo.ops.trilinear import sample_volume
from ponder_zoo.structures import PointBatch, VolumeGrid
from ponder_zoo.volume import densify, densify_official, official_lookup_grid

SHAPE = (4, 3, 2)
GRID = VolumeGrid(torch.tensor([[[0.0, 0, 0], [2, 3, 1]], [[-4.0, 1, -2], [4, 4, 0]]]).double(), SHAPE)


def random_points(grid: VolumeGrid = GRID, counts: tuple[int, ...] = (40, 25), spread: float = 1.2) -> PointBatch:
    batch = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    lower, upper = grid.bounds[batch].unbind(1)
    unit = 0.5 + (torch.rand(len(batch), 3).double() - 0.5) * spread
    return PointBatch(
        lower + unit * (upper - lower), torch.randn(len(batch), 5).double(), torch.tensor(counts).cumsum(0)
    )


def cell_centres(grid: VolumeGrid) -> Tensor:
    """(B, X, Y, Z, 3)."""
    cells = torch.stack(torch.meshgrid(*map(torch.arange, grid.shape), indexing="ij"), -1)
    return grid.bounds[:, None, None, None, 0] + (cells + 0.5) * grid.cell_size[:, None, None, None]


def test_every_cell_holds_the_mean_of_its_points() -> None:
    points = random_points()
    feat = densify(points, GRID).feat
    expected = torch.zeros_like(feat)
    for b in range(2):
        for x in range(SHAPE[0]):
            for y in range(SHAPE[1]):
                for z in range(SHAPE[2]):
                    lower = GRID.bounds[b, 0] + GRID.cell_size[b] * torch.tensor([x, y, z])
                    inside = (points.coord >= lower) & (points.coord < lower + GRID.cell_size[b])
                    members = points.feat[inside.all(-1) & (points.batch == b)]
                    expected[b, :, z, y, x] = members.mean(0) if len(members) else 0.0
    torch.testing.assert_close(feat, expected)


def test_sampling_at_cell_centres_gives_back_what_was_put_there() -> None:
    centres = cell_centres(GRID).flatten(1, 3)  # (B, P, 3)
    feat = torch.randn(2, centres.shape[1], 5).double()
    points = PointBatch(centres.flatten(0, 1), feat.flatten(0, 1), torch.tensor([1, 2]) * centres.shape[1])
    torch.testing.assert_close(sample_volume(densify(points, GRID), centres[:, None])[:, 0], feat)


def test_densify_is_differentiable_in_the_features() -> None:
    points = random_points(counts=(6, 4))

    def run(feat: Tensor) -> Tensor:
        return densify(replace(points, feat=feat), GRID).feat

    assert torch.autograd.gradcheck(run, points.feat.clone().requires_grad_())
    assert torch.autograd.gradgradcheck(run, points.feat.clone().requires_grad_())


def test_the_order_of_points_does_not_matter() -> None:
    points = random_points()
    order = torch.cat([torch.randperm(40), 40 + torch.randperm(25)])
    shuffled = replace(points, coord=points.coord[order], feat=points.feat[order])
    torch.testing.assert_close(densify(shuffled, GRID).feat, densify(points, GRID).feat)


def test_a_shift_by_whole_cells_moves_the_volume() -> None:
    points = random_points(spread=0.4)
    moved = replace(points, coord=points.coord + GRID.cell_size[points.batch] * torch.tensor([1, 0, 0]))
    torch.testing.assert_close(densify(moved, GRID).feat[..., 1:], densify(points, GRID).feat[..., :-1])


def test_scenes_do_not_see_each_other() -> None:
    points = random_points()
    together = densify(points, GRID).feat
    for b, alone in enumerate(points.split()):
        torch.testing.assert_close(densify(alone, replace(GRID, bounds=GRID.bounds[b : b + 1])).feat[0], together[b])


def test_scenes_without_a_point_inside_or_without_any_point_are_zero() -> None:
    points = random_points()
    outside = replace(points, coord=torch.where(points.batch[:, None] == 0, 100.0, points.coord))
    feat = densify(outside, GRID).feat
    assert (feat[0] == 0).all() and (feat[1] != 0).any()
    empty = PointBatch(points.coord[:0], points.feat[:0], torch.tensor([0, 0]))
    assert densify(empty, GRID).feat.shape == (2, 5, 2, 3, 4)
    assert (densify(empty, GRID).feat == 0).all()


def test_the_volume_is_channels_last_and_half_precision_is_summed_in_float32() -> None:
    points = random_points()
    volume = densify(replace(points, feat=points.feat.bfloat16()), GRID)
    assert volume.feat.dtype == torch.float32
    assert volume.feat.is_contiguous(memory_format=torch.channels_last_3d)
    rounded = replace(points, feat=points.feat.bfloat16().double())
    torch.testing.assert_close(volume.feat.double(), densify(rounded, GRID).feat, rtol=1e-6, atol=1e-6)


def test_a_grid_for_other_scenes_is_an_error() -> None:
    with pytest.raises(ValueError, match="one box per scene"):
        densify(random_points(), replace(GRID, bounds=GRID.bounds[:1]))


@pytest.mark.parametrize(("case", "shape"), [("pool", (16, 16, 8)), ("upsample", (16, 16, 12))])
def test_the_official_cell_rule_matches_the_official_numbers(shared_dir: Path, case: str, shape: tuple) -> None:
    data = load_file(shared_dir / "parity" / f"e_unitcube_dense_{case}.safetensors")
    size = data["unit.pc_scale"]  # (B,) metres
    offset = data["in.offset"]
    feat = data["in.sparse_feat"].requires_grad_()
    points = PointBatch(data["unit.coord"], feat, offset)
    points = replace(points, coord=points.coord / size[points.batch, None] - 0.5)
    grid = VolumeGrid(torch.tensor([[[-0.5] * 3, [0.5] * 3]]).expand(2, 2, 3), shape)
    dense = densify_official(points, grid, size).feat
    assert dense.shape == data["dense"].shape
    wrong = (dense - data["dense"]).abs().amax(1) > 1e-5 * data["dense"].abs().max()
    assert wrong.double().mean() <= 1e-3
    (grad,) = torch.autograd.grad(dense.square().sum() / 2, feat)
    wrong = (grad - data["grad.in.sparse_feat"]).abs().amax(1) > 1e-5 * grad.abs().max()
    assert wrong.double().mean() <= 1e-3


def test_the_official_rule_uses_10_of_32_layers_in_a_room_8_m_wide_and_2_5_m_high() -> None:
    """The figure in docs/differences.md."""
    side, height = torch.linspace(0.01, 7.99, 50).double(), torch.linspace(0.01, 2.49, 249).double()
    coord = torch.cartesian_prod(side, side[:1], height)
    points = PointBatch(coord, torch.ones(len(coord), 1).double(), torch.tensor([len(coord)]))
    room = VolumeGrid(torch.tensor([[[0.0, 0, 0], [8, 8, 2.5]]]).double(), (128, 128, 32))
    cube = VolumeGrid(torch.tensor([[[-0.5] * 3, [0.5] * 3]]).double(), (128, 128, 32))
    official = densify_official(replace(points, coord=coord / 8 - 0.5), cube, torch.tensor([8.0]))
    layers = [int((volume.feat.sum((0, 1, 3, 4)) > 0).sum()) for volume in (official, densify(points, room))]
    assert layers == [10, 32]


@pytest.mark.parametrize(("cells", "expected"), [(128, 6.28), (32, 1.87)])
def test_the_official_lookup_reads_beside_where_features_were_written(cells: int, expected: float) -> None:
    """The figures in docs/differences.md: by how many cells, at the outermost ones."""
    grid = VolumeGrid(torch.tensor([[[-0.5] * 3, [0.5] * 3]]).double(), (cells, 1, 1))
    at = cell_centres(grid)[:, :, 0, 0]  # (1, cells, 3), where densify writes
    points = PointBatch(at[0], at[0, :, :1], torch.tensor([cells]))  # the feature is the x coordinate
    volume = densify(points, grid)
    probe = at[:, None] * torch.tensor([1.0, 0, 0])
    exact = sample_volume(volume, probe)[0, 0, :, 0]
    torch.testing.assert_close(exact, probe[0, 0, :, 0])
    official = sample_volume(replace(volume, grid=official_lookup_grid(volume.grid)), probe)[0, 0, :, 0]
    misplaced = (official - probe[0, 0, :, 0]) * cells
    assert misplaced.abs().max() == pytest.approx(expected, abs=0.01)
    assert misplaced[cells // 2 - 1 : cells // 2 + 1].abs().max() < 0.1
