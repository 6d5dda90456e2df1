"""Voxelization against brute force and the official numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from benchmarks.peers import numpy_grid
from ponder_zoo.ops import grid_sample
from ponder_zoo.ops.grid_sample import grid_cells, grid_index, sample_fragments, sample_random


def cloud(seed: int, n: int = 400, scale: float = 1.0) -> torch.Tensor:
    return (torch.rand(n, 3, generator=torch.Generator().manual_seed(seed)) - 0.5) * scale


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), n=st.integers(1, 200), grid_size=st.sampled_from([0.02, 0.1, 0.37, 5.0]))
def test_cells_are_those_of_a_dictionary(seed: int, n: int, grid_size: float) -> None:
    coord = cloud(seed, n)
    cells = grid_cells(coord, grid_size)
    index = torch.floor(coord.double() / grid_size).long()
    index = (index - index.min(0).values).tolist()
    expected: dict[tuple[int, ...], list[int]] = {}
    for row, cell in enumerate(index):
        expected.setdefault(tuple(cell), []).append(row)
    got = {
        tuple(cell): cells.order[start : start + count].tolist()
        for cell, start, count in zip(
            cells.grid_coord.tolist(), cells.start.tolist(), cells.count.tolist(), strict=True
        )
    }
    assert got == expected
    assert cells.grid_coord[cells.inverse].tolist() == index


@pytest.mark.parametrize("offset", [0.0, 3000.0])  # int32 and int64 keys
def test_cells_do_not_depend_on_how_many_points_are_computed_at_a_time(
    monkeypatch: pytest.MonkeyPatch, offset: float
) -> None:
    coord = torch.cat([cloud(0), cloud(1) + offset])
    batch = torch.arange(800) % 3
    for scenes in (None, batch):
        whole = grid_cells(coord, 0.02, batch=scenes)
        monkeypatch.setattr(grid_sample, "_CHUNK", 7)
        pieces = grid_cells(coord, 0.02, batch=scenes)
        monkeypatch.undo()
        for name in ("grid_coord", "batch", "inverse", "order", "start", "count"):
            assert torch.equal(getattr(whole, name), getattr(pieces, name))


def test_coordinates_are_left_as_they_are() -> None:
    coord = cloud(0).double()
    before = coord.clone()
    grid_cells(coord, 0.1), grid_index(coord, 0.1)
    assert torch.equal(coord, before)


def test_voxels_are_those_of_the_hash() -> None:
    coord = cloud(7, 3000, scale=2.0)
    cells = grid_cells(coord, 0.1)
    rows, cell = numpy_grid.grid_sample(coord.numpy(), 0.1, np.random.default_rng(0))
    assert {tuple(c) for c in cell.tolist()} == {tuple(c) for c in cells.grid_coord.tolist()}
    assert len(cell) == len(cells) and len(rows) == len(np.unique(cells.inverse[rows].numpy()))


def test_scenes_of_a_batch_get_the_cells_they_have_alone() -> None:
    clouds = [cloud(0), cloud(1, 300) + 3.0, cloud(2, 1)]
    batch = torch.repeat_interleave(torch.arange(3), torch.tensor([400, 300, 1]))
    together = grid_cells(torch.cat(clouds), 0.2, batch=batch)
    for scene, coord in enumerate(clouds):
        alone = grid_cells(coord, 0.2)
        assert torch.equal(together.grid_coord[together.batch == scene], alone.grid_coord)


def test_every_point_of_a_cell_is_drawn_equally_often() -> None:
    coord = torch.tensor([[0.1, 0.1, 0.1]] * 3 + [[0.9, 0.1, 0.1]] * 5)
    cells = grid_cells(coord, 0.5)
    generator = torch.Generator().manual_seed(0)
    picks = torch.stack([sample_random(cells, generator) for _ in range(3000)])
    for cell, members in enumerate([[0, 1, 2], [3, 4, 5, 6, 7]]):
        counts = torch.bincount(picks[:, cell], minlength=8)[members]
        expected = 3000 / len(members)
        chi2 = float(((counts - expected) ** 2 / expected).sum())
        assert counts.sum() == 3000 and chi2 < 20  # 4 degrees of freedom: p < 5e-4


def test_sampling_follows_its_generator() -> None:
    cells = grid_cells(cloud(0), 0.3)
    draw = [sample_random(cells, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(draw[0], draw[1]) and not torch.equal(draw[0], draw[2])


def test_fragments_cover_every_point_with_one_point_per_cell() -> None:
    cells = grid_cells(cloud(3, 500), 0.3)
    fragments = sample_fragments(cells)
    assert set(fragments.flatten().tolist()) == set(range(500))
    assert torch.equal(cells.inverse[fragments], torch.arange(len(cells)).expand(len(fragments), -1))
    assert len(fragments) == cells.count.max()


def test_cells_do_not_depend_on_the_order_of_the_points() -> None:
    coord = cloud(4)
    order = torch.randperm(len(coord), generator=torch.Generator().manual_seed(0))
    assert torch.equal(grid_cells(coord, 0.1).grid_coord, grid_cells(coord[order], 0.1).grid_coord)


def test_wide_grids_use_wide_keys() -> None:
    coord = torch.cat([cloud(5, 50), cloud(5, 50) + 3000.0])  # (3 km / 0.02 m)^3 = 3e15 cells
    cells = grid_cells(coord, 0.02)
    assert len(cells) == len(torch.unique(grid_index(coord, 0.02), dim=0))


def test_errors_say_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="NaN or infinite"):
        grid_cells(torch.tensor([[0.0, float("nan"), 0.0]]), 0.02)
    with pytest.raises(ValueError, match="stray points"):
        grid_cells(torch.tensor([[0.0, 0.0, 0.0], [1e9, 1e9, 1e9]]), 0.02)
    with pytest.raises(ValueError, match=r"\(0, 3\)"):
        grid_cells(torch.zeros(0, 3), 0.02)
    with pytest.raises(ValueError, match="positive grid_size"):
        grid_cells(torch.zeros(1, 3), 0.0)


def test_voxels_and_fragments_are_the_official_ones(shared_dir: Path) -> None:
    case = load_file(shared_dir / "parity/e_grid_sample.safetensors")
    cells = grid_cells(case["in.coord"], 0.1)
    assert torch.equal(cells.grid_coord[cells.inverse].long(), case["grid_coord_all"])
    as_set = {tuple(cell) for cell in case["train.grid_coord"].tolist()}
    assert len(cells) == 392 and {tuple(cell) for cell in cells.grid_coord.tolist()} == as_set
    # same partition of the points, whatever number a cell has
    pairs = torch.stack([cells.inverse, case["train.inverse"]], dim=1)
    assert len(torch.unique(pairs, dim=0)) == 392
    fragments = sample_fragments(cells)
    assert fragments.shape == case["test.fragment_index"].shape
    for ours, official in zip(fragments, case["test.fragment_grid_coord"], strict=True):
        rows = {tuple(cell) for cell in cells.grid_coord[cells.inverse[ours]].tolist()}
        assert rows == {tuple(cell) for cell in official.tolist()}


@pytest.mark.cuda
def test_the_gpu_gives_the_same_cells() -> None:
    coord = cloud(6, 5000)
    host, device = grid_cells(coord, 0.05), grid_cells(coord.cuda(), 0.05)
    for name in ("grid_coord", "inverse", "order", "start", "count"):
        assert torch.equal(getattr(host, name), getattr(device, name).cpu())
