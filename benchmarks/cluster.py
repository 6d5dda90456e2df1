"""PointGroup's clustering: 200,000 points in under two seconds, with memory linear in the points."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ponder_zoo.heads.instances import propose_instances
from ponder_zoo.ops.cluster import radius_components
from ponder_zoo.ops.grid_sample import grid_cells

from .data import surface_points
from .harness import Call, Case
from .machine import device

POINTS = 200_000
CURVE = (25_000, 50_000, 100_000, 200_000, 400_000)
CELL, RADIUS = 0.02, 0.03  # metres: official PointGroup
CLASSES = 20
SECONDS = (2.0, 1.0)  # what 200,000 points may take: done, aim


def cases() -> Iterator[Case]:
    """Points as they are measured, one per cell; and moved to their instances' centres, hundreds within the radius."""
    if device().type != "cpu":
        return
    options: dict[str, Any] = {"items": POINTS, "unit": "points"}
    peer = "k-d tree, all pairs, components (SciPy)"
    yield Case("cluster/surfaces", peer, lambda: _ours(surfaces(POINTS)), lambda: _theirs(surfaces(POINTS)), **options)
    for name, make in (("surfaces", surfaces), ("shifted", shifted)):
        case = f"cluster/proposals/{name}"
        yield Case(
            case,
            "none",
            lambda make=make: _propose(make(POINTS)),
            done=SECONDS[0],
            aim=SECONDS[1],
            target_seconds=True,
            **options,
        )
    for count in CURVE:
        curve: dict[str, Any] = {"items": count, "unit": "points", "repeats": 1}
        yield Case(f"cluster/time/{count}", "none", lambda n=count: _propose(shifted(n)), **curve)
        yield Case(f"cluster/memory/{count}", "none", lambda n=count: _propose(shifted(n)), metric="memory", **curve)


def surfaces(count: int) -> NDArray[np.float32]:
    """One point per cell on the surfaces of rooms: (count, 3) metres."""
    parts, found = [], 0
    while found < count:
        coord = torch.from_numpy(surface_points(1_000_000, seed=len(parts)))
        cells = grid_cells(coord, CELL)
        rows = cells.pick(torch.zeros_like(cells.count))
        parts.append(coord[rows].numpy() + np.array([12 * len(parts), 0, 0]))
        found += len(rows)
    return np.concatenate(parts)[:count].astype(np.float32)


def shifted(count: int) -> NDArray[np.float32]:
    """The same points moved to the centres of cubes of 1 m, which stand for instances, but for an error of 2 cm."""
    coord = surfaces(count)
    error = np.random.default_rng(0).normal(0, 0.02, coord.shape)
    return (np.floor(coord) + 0.5 + error).astype(np.float32)


def _propose(coord: NDArray[np.float32]) -> Call:
    """All that follows the network; the class of a point is that of its cube of 2 m."""
    points = torch.from_numpy(coord)
    label = (torch.floor(points / 2).long() * torch.tensor([1, 5, 7])).sum(1) % CLASSES
    logits = 5.0 * torch.nn.functional.one_hot(label, CLASSES).float()
    batch = torch.zeros(len(points), dtype=torch.int64)
    return lambda: propose_instances(points, logits, batch=batch, radius=RADIUS, ignored_classes=(0, 1))


def _ours(coord: NDArray[np.float32]) -> Call:
    if not np.array_equal(radius_components(coord, RADIUS), _pairs_and_components(coord)):
        raise RuntimeError("Expected the components of the peer; ours are others.")
    return lambda: radius_components(coord, RADIUS)


def _theirs(coord: NDArray[np.float32]) -> Call:
    return lambda: _pairs_and_components(coord)


def _pairs_and_components(coord: NDArray[np.float32]) -> NDArray[np.int64]:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import KDTree

    tree: Any = KDTree(coord.astype(np.float64))
    pairs = tree.query_pairs(np.nextafter(RADIUS, 0), output_type="ndarray")
    graph = coo_array((np.ones(len(pairs), bool), pairs.T), shape=(len(coord), len(coord)))
    label = connected_components(graph, directed=False)[1]
    _, first, inverse = np.unique(label, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]
