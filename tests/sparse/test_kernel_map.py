"""Kernel maps against brute force over coordinates."""

from __future__ import annotations

import itertools
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ponder_zoo.sparse import Voxels, coarsening, neighbours, submanifold_map, voxelize
from ponder_zoo.sparse.neighbours import MAX_WORDS, neighbour_table
from ponder_zoo.sparse.voxels import MAX_EXTENT

CELL = st.tuples(st.integers(0, 2), *[st.integers(-4, 4)] * 3)  # scene, x, y, z


def voxels_of(cells: list[tuple[int, ...]], batch_size: int = 3) -> Voxels:
    table = torch.tensor(cells)
    return voxelize(table[:, 1:], table[:, 0], batch_size)[0]


def places(voxels: Voxels) -> list[tuple[int, ...]]:
    return [tuple(row) for row in torch.cat([voxels.batch[:, None], voxels.grid_coord], 1).tolist()]


def brute_force(voxels: Voxels, kernel_size: int) -> list[list[int]]:
    row = {place: i for i, place in enumerate(places(voxels))}
    reach = range(-(kernel_size // 2), kernel_size // 2 + 1)
    return [
        [row.get((b, x + dx, y + dy, z + dz), -1) for b, x, y, z in row]
        for dx, dy, dz in itertools.product(reach, repeat=3)
    ]


@pytest.mark.parametrize("max_words", [MAX_WORDS, 0])  # lookup in tables over the box, and binary search
@pytest.mark.parametrize("kernel_size", [3, 5])
@settings(max_examples=25, deadline=None)
@given(cells=st.lists(CELL, min_size=1, max_size=40))
def test_submanifold_map_is_the_brute_force_one(max_words: int, kernel_size: int, cells: list[tuple[int, ...]]) -> None:
    voxels = voxels_of(cells)
    with mock.patch.object(neighbours, "MAX_WORDS", max_words), mock.patch.object(neighbours, "CHUNK", 100):
        assert submanifold_map(voxels, kernel_size).table.tolist() == brute_force(voxels, kernel_size)


def test_both_ways_to_find_neighbours_agree_with_keys_of_either_type() -> None:
    cells = [*random_cells(400), (2, 1500, 1500, 1500)]  # an extent whose keys need 64 bits
    for chosen in (cells, cells[:-1]):
        voxels = voxels_of(chosen)
        assert voxels.key.dtype == (torch.int64 if chosen is cells else torch.int32)
        tables = []
        for max_words in (2**30, 0):
            with mock.patch.object(neighbours, "MAX_WORDS", max_words):
                tables.append(neighbour_table(voxels, 2))
        assert tables[0].equal(tables[1])


def test_map_of_size_3_taken_from_size_5_is_the_searched_one() -> None:
    voxels = voxels_of(random_cells(200))
    fresh = voxels_of(random_cells(200))
    submanifold_map(voxels, 5)
    assert submanifold_map(voxels, 3).table.equal(submanifold_map(fresh, 3).table)


@settings(max_examples=25, deadline=None)
@given(cells=st.lists(CELL, min_size=1, max_size=40))
def test_coarsening_is_floor_division_and_knows_each_child(cells: list[tuple[int, ...]]) -> None:
    fine = voxels_of(cells)
    step = coarsening(fine)
    parents = [(b, x // 2, y // 2, z // 2) for b, x, y, z in places(fine)]
    assert places(step.coarse) == sorted(set(parents))
    assert [places(step.coarse)[i] for i in step.parent.tolist()] == parents
    for row, (_, x, y, z) in enumerate(places(fine)):
        offset = (x % 2 * 2 + y % 2) * 2 + z % 2
        assert step.down.table[offset, step.parent[row]] == row
        assert step.up.table[:, row].tolist() == [int(step.parent[row]) if k == offset else -1 for k in range(8)]
    assert (step.down.table >= 0).sum() == len(fine)


def test_maps_and_coarser_voxels_are_built_once() -> None:
    voxels = voxels_of(random_cells(50))
    assert submanifold_map(voxels, 3) is submanifold_map(voxels, 3)
    assert coarsening(voxels) is coarsening(voxels)


def test_rows_of_every_resolution_are_sorted_by_scene_and_cell() -> None:
    voxels = voxels_of(random_cells(300))
    for _ in range(4):
        assert places(voxels) == sorted(places(voxels))
        assert (voxels.key[1:] > voxels.key[:-1]).all()
        voxels = coarsening(voxels).coarse


def test_scenes_with_far_apart_origins_share_small_keys() -> None:
    voxels = voxels_of(
        [(0, 0, 0, 0), (0, 0, 0, 1), (1, 20_000_000, -20_000_000, 5), (1, 20_000_000, -20_000_000, 6)], 2
    )
    assert voxels.key.dtype == torch.int32
    assert (submanifold_map(voxels, 3).table >= 0).sum(1).tolist() == [0] * 12 + [2, 4, 2] + [0] * 12


def test_large_boxes_use_64_bit_keys_and_give_the_same_map() -> None:
    near = [(0, 0, 0, 0), (0, 1, 1, 1), (0, 2, 1, 1)]
    wide = voxels_of([*near, (0, 3000, 3000, 3000)], 1)
    assert wide.key.dtype == torch.int64
    assert submanifold_map(wide, 3).table[:, :3].equal(submanifold_map(voxels_of(near, 1), 3).table)


def test_empty_scenes_have_no_rows() -> None:
    voxels = voxels_of([(1, 0, 0, 0), (1, 0, 0, 1), (3, 5, 5, 5)], 5)
    assert voxels.offset.tolist() == [0, 2, 2, 3, 3]
    assert coarsening(voxels).coarse.offset.tolist() == [0, 1, 1, 2, 2]


def test_no_points_at_all_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one point"):
        voxelize(torch.zeros(0, 3, dtype=torch.int32), torch.zeros(0, dtype=torch.int64), 1)


def test_millimetres_given_as_metres_are_named() -> None:
    with pytest.raises(ValueError, match=f"{MAX_EXTENT} cells.*millimetres given as metres"):
        voxels_of([(0, 0, 0, 0), (0, 0, MAX_EXTENT, 0)], 1)


def test_points_beyond_the_last_scene_are_an_error() -> None:
    with pytest.raises(ValueError, match="2 of 3 points belong to no scene"):
        voxelize(torch.zeros(3, 3, dtype=torch.int32), torch.tensor([0, 1, 1]), 1)


def test_float_cells_are_an_error() -> None:
    with pytest.raises(ValueError, match="integers"):
        voxelize(torch.zeros(3, 3), torch.zeros(3, dtype=torch.int64), 1)


def random_cells(count: int, seed: int = 0, extent: int = 9, scenes: int = 3) -> list[tuple[int, ...]]:
    generator = torch.Generator().manual_seed(seed)
    cells = torch.randint(-extent // 2, extent // 2 + 1, (count, 3), generator=generator)
    scene = torch.randint(0, scenes, (count, 1), generator=generator)
    table: Tensor = torch.cat([scene, cells], 1)
    return [tuple(row) for row in table.tolist()]
