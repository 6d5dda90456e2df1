"""The clustering's cases run, and its peer finds the same components."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import cluster
from benchmarks.harness import select


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    points = cluster.surface_points
    monkeypatch.setattr(cluster, "surface_points", lambda count, seed=0: points(count // 50, seed) * np.float32(0.2))
    monkeypatch.setattr(cluster, "POINTS", 3000)


def test_the_peer_finds_the_same_components() -> None:
    coord = cluster.surfaces(3000)
    ours, theirs = cluster._ours(coord)(), cluster._theirs(coord)()  # the set-up raises where they differ
    assert np.array_equal(ours, theirs) and 1 < ours.max() + 1 < 3000  # type: ignore[attr-defined, operator]


def test_proposals_are_found_and_lists_are_as_long_as_their_points() -> None:
    found = cluster._propose(cluster.shifted(3000))()
    assert len(found) > 0 and found.size.min() > 100  # type: ignore[arg-type, attr-defined]


def test_names_are_distinct_and_the_target_is_in_seconds() -> None:
    cases = select(cluster.cases(), [])
    assert [case.name for case in cases if case.target_seconds and case.done == 2.0] == [
        "cluster/proposals/surfaces",
        "cluster/proposals/shifted",
    ]
