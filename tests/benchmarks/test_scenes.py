"""The scenes have the properties that the benchmarks' names promise."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from benchmarks import scenes
from ponder_zoo.structures import PointBatch


def neighbours(points: PointBatch, reach: int = 1) -> float:
    assert points.grid_coord is not None
    return scenes.neighbours_per_voxel(points.grid_coord.numpy(), reach)


def check(points: PointBatch) -> None:
    assert points.grid_coord is not None
    assert len(torch.unique(points.grid_coord, dim=0)) == len(points) == int(points.offset[-1])
    assert points.feat.shape == (len(points), 6)
    assert int(points.grid_coord.min()) == 0
    key = points.grid_coord.double() @ torch.tensor([1e6, 1e3, 1.0]).double()
    assert not torch.equal(key, key.sort()[0])  # sorting is part of what is measured


def test_neighbours_are_counted_as_by_brute_force() -> None:
    cells = np.unique(np.random.default_rng(0).integers(-3, 4, size=(80, 3)), axis=0)
    occupied = {tuple(cell) for cell in cells.tolist()}
    for reach in (1, 2):
        steps = list(itertools.product(range(-reach, reach + 1), repeat=3))
        count = sum((x + a, y + b, z + c) in occupied for x, y, z in occupied for a, b, c in steps)
        assert scenes.neighbours_per_voxel(cells, reach) == pytest.approx(count / len(cells))


def test_the_dense_scene_is_dense() -> None:
    points = scenes.dense_scene(20_000)
    check(points)
    assert len(points) == 20_000
    assert 11.5 < neighbours(points) < 13.5


def test_the_thin_scene_is_thin(shared_dir: object) -> None:
    points = scenes.thin_scene()
    check(points)
    assert len(points) == pytest.approx(40_349, abs=5)
    assert neighbours(points) == pytest.approx(1.8, abs=0.02)
    assert neighbours(points, 2) == pytest.approx(4.17, abs=0.02)


def test_the_stand_in_for_the_thin_scene_is_as_thin() -> None:
    points = scenes.thin_room()
    check(points)
    assert 35_000 < len(points) <= 40_349
    assert neighbours(points) == pytest.approx(1.8, abs=0.1)


def test_a_repeated_scene_is_a_batch_of_it() -> None:
    points = scenes.dense_scene(1000)
    batch = scenes.repeat_scene(points, 3)
    assert batch.batch_size == 3 and batch.offset.tolist() == [1000, 2000, 3000]
    assert all(torch.equal(scene.feat, points.feat) for scene in batch.split())
