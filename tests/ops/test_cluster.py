"""Components of close points against brute force, closed forms, and memory that does not grow with density."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from ponder_zoo.ops import cluster
from ponder_zoo.ops.cluster import radius_components


def brute_force(coord, radius, group):
    """Label propagation over the dense graph, numbered by first points."""
    coord = coord.astype(np.float64)
    squared = ((coord[:, None] - coord[None]) ** 2).sum(-1)
    joined = (squared < radius**2) & (group[:, None] == group[None])
    label = np.arange(len(coord))
    while True:
        lower = np.where(joined, label[None], len(coord)).min(1)
        if np.array_equal(lower, label):
            return np.unique(label, return_inverse=True)[1]
        label = lower


@pytest.mark.parametrize("seed", range(60))
def test_components_are_those_of_brute_force(seed, monkeypatch):
    rng = np.random.default_rng(seed)
    monkeypatch.setattr(cluster, "_PIECE", int(rng.integers(1, 200)))  # many pieces
    count, groups = int(rng.integers(1, 400)), int(rng.integers(1, 4))
    extent = rng.choice([0.2, 0.5, 1.0, 3.0])
    coord = rng.uniform(-extent, extent, (count, 3)) * rng.choice([0.05, 1.0], 3)
    if seed % 3 == 0:  # dense blobs, some of them barely apart: many points in a cell
        centre = rng.uniform(-extent, extent, (rng.integers(1, 6), 3))
        coord = centre[rng.integers(0, len(centre), count)] + rng.normal(0, 0.02, (count, 3))
    group = rng.integers(0, groups, count)
    radius = float(rng.choice([0.03, 0.1, 0.3]))
    coord = coord.astype(np.float32)
    assert radius_components(coord, radius, group=group).tolist() == brute_force(coord, radius, group).tolist()


def test_points_exactly_one_radius_apart_stay_apart_whatever_axis_they_lie_on():
    for axis in range(3):
        coord = np.zeros((5, 3))
        coord[:, axis] = np.arange(5) * 0.5
        assert radius_components(coord, 0.5).tolist() == [0, 1, 2, 3, 4]
        assert radius_components(coord, np.nextafter(0.5, 1)).tolist() == [0] * 5


def test_a_chain_is_one_component_and_a_gap_makes_two():
    angle = np.linspace(0, 6, 2000)
    coord = np.stack([np.cos(angle), np.sin(angle), angle / 10], 1)  # a helix with steps of 3 mm
    assert radius_components(coord, 0.004).max() == 0
    coord[1000:, 2] += 0.004
    assert np.bincount(radius_components(coord, 0.004)).tolist() == [1000, 1000]


def test_two_dense_walls_are_joined_by_the_one_pair_that_is_close():
    """All other pairs are further apart than the radius, and each wall fills few cells."""
    rng = np.random.default_rng(0)
    first = rng.uniform(0, 0.05, (3000, 3)) * [0.01, 1, 1]
    second = first * [0, 1, 1] + [0.1005, 0, 0]
    apart = np.concatenate([first, second])
    assert radius_components(apart, 0.1).max() == 1
    apart[-1, 0] = first[-1, 0] + 0.0999
    assert radius_components(apart, 0.1).max() == 0


def test_memory_does_not_grow_with_the_number_of_close_pairs():
    rng = np.random.default_rng(0)
    peak = {}
    for count in (20_000, 80_000):
        coord = rng.normal(0, 0.02, (count, 3)) + rng.integers(0, 3, (count, 1))  # up to count^2 / 6 pairs in a ball
        tracemalloc.start()
        assert radius_components(coord, 0.03).max() >= 2
        peak[count] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak[80_000] < 6 * peak[20_000] and peak[80_000] < 1e3 * 80_000


def test_wrong_input_is_explained():
    with pytest.raises(ValueError, match="positive radius"):
        radius_components(np.zeros((3, 3)), 0.0)
    with pytest.raises(ValueError, match="not finite"):
        radius_components(np.array([[np.nan, 0, 0]]), 1.0)
    with pytest.raises(ValueError, match="too many to index"):
        radius_components(np.array([[0.0, 0, 0], [1e9, 1e9, 1e9]]), 1e-3)
    assert len(radius_components(np.zeros((0, 3)), 1.0)) == 0
