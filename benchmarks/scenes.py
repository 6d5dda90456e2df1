"""Point clouds to measure on: one thin, as pre-training sees them, and one dense, as fine-tuning does."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ponder_zoo.data.synthetic import SyntheticRooms
from ponder_zoo.data.synthetic.geometry import sample_surface
from ponder_zoo.structures import PointBatch

Points = NDArray[np.floating]

GRID_SIZE = 0.02  # metres
THIN_VOXELS = 40_349  # of the ScanNet sample
THIN_NEIGHBOURS = 1.8  # per voxel at 3^3, itself included
SAMPLE = Path(__file__).resolve().parents[2] / "shared/data/indoor/scannet_scene0000_00/points.npz"

_ROOMS = 3  # different ones; larger scenes repeat them, turned
_SEEDS_PER_ROOM = 60_000  # exact surface samples; the rest is spread around them
_SPREAD = 0.025  # metres, in the tangent plane: samples of a room are about 4 cm apart
_NOISE = 0.004  # metres, of a depth camera


def thin_scene() -> PointBatch:
    """About 40 349 voxels of 2 cm with 1.8 neighbours each (3^3, itself included), 6 feature columns.

    The ScanNet sample scene0000_00 where the shared data is beside the repository, else a built-in room thinned to the
    same number of neighbours.
    """
    if SAMPLE.is_file():
        return _as_batch(np.load(SAMPLE)["xyz"].astype(np.float64))
    return thin_room()


def thin_room() -> PointBatch:
    """The stand-in for the ScanNet sample: built-in rooms with as many voxels and neighbours."""
    # A random share p of voxels keeps a share p of each one's neighbours: one count gives p.
    cells = _distinct(np.concatenate(list(_rooms(count=2, copies=3))))
    share = (THIN_NEIGHBOURS - 1) / (neighbours_per_voxel(cells) - 1)
    rng = np.random.default_rng(0)
    kept = cells[np.sort(rng.choice(len(cells), min(len(cells), round(share * len(cells))), replace=False))]
    order = np.argsort(kept[:, 0], kind="stable")[:THIN_VOXELS]  # a slab, so that the density stays
    return _as_batch((kept[np.sort(order)] + 0.5) * GRID_SIZE)


def dense_scene(voxels: int = 100_000) -> PointBatch:
    """Exactly `voxels` cells of 2 cm with about 12 neighbours each (3^3, itself included), 6 feature columns.

    The built-in rooms side by side, with 4 mm of noise and turned against the grid, cropped.
    """
    found: list[Points] = []
    total = 0
    for points in _rooms(count=10_000, copies=16):
        found.append(_distinct(points))
        total += len(found[-1])
        if total >= voxels:
            break
    cells = np.concatenate(found)
    distance = np.linalg.norm(cells[:, :2] - cells[:, :2].min(0), axis=1)
    nearest = np.argpartition(distance, voxels - 1)[:voxels]
    return _as_batch((cells[np.sort(nearest)] + 0.5) * GRID_SIZE)


def repeat_scene(points: PointBatch, batch_size: int) -> PointBatch:
    """A batch of the same scene several times."""
    assert points.grid_coord is not None
    return PointBatch(
        coord=points.coord.repeat(batch_size, 1),
        feat=points.feat.repeat(batch_size, 1),
        offset=torch.arange(1, batch_size + 1) * len(points),
        grid_coord=points.grid_coord.repeat(batch_size, 1),
    )


def neighbours_per_voxel(cells: NDArray[np.integer] | Points, reach: int = 1) -> float:
    """Mean number of occupied cells in each cell's (2 reach + 1)^3 window, itself included."""
    cell = np.asarray(cells, np.int64)
    cell = cell - cell.min(0) + reach
    size = cell.max(0) + 1 + reach
    key = np.sort((cell[:, 0] * size[1] + cell[:, 1]) * size[2] + cell[:, 2])
    steps = np.stack(np.meshgrid(*[np.arange(-reach, reach + 1)] * 3, indexing="ij"), -1).reshape(-1, 3)
    half = steps[len(steps) // 2 + 1 :] @ np.array([size[1] * size[2], size[2], 1])  # the other half mirrors it
    pairs = 0
    for step in half:
        found = np.searchsorted(key, key + step).clip(max=len(key) - 1)
        pairs += int((key[found] == key + step).sum())
    return 1 + 2 * pairs / len(key)


def _rooms(count: int, copies: int) -> Iterator[Points]:
    """Noisy surface points (N, 3) of rooms in a row along x, each turned by an angle of its own about z."""
    for number in range(count):
        rng = np.random.default_rng(number)
        coord, normal = _surface(number % _ROOMS)
        coord, normal = np.tile(coord, (copies, 1)), np.tile(normal, (copies, 1))
        move = rng.normal(scale=_SPREAD / 2, size=coord.shape)
        move -= (move * normal).sum(1, keepdims=True) * normal
        coord = coord + move + rng.normal(scale=_NOISE, size=coord.shape)
        angle = 0.4 + 2.4 * number
        turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
        # Tilted a little as well, so that floor and ceiling are no layer of the grid either.
        tilt = np.array([[1, 0, 0], [0, np.cos(0.1), -np.sin(0.1)], [0, np.sin(0.1), np.cos(0.1)]])
        coord = coord @ (tilt @ turn).T
        yield coord - coord.mean(0) + np.array([12.0 * number, 0, 0])


@lru_cache(maxsize=_ROOMS)
def _surface(room: int) -> tuple[Points, Points]:
    made = SyntheticRooms("train", num_scenes=_ROOMS).room(room)
    samples = sample_surface(made.primitives, made.plan, _SEEDS_PER_ROOM, np.random.default_rng(room))
    return samples.coord, samples.normal


def _distinct(points: Points) -> Points:
    """Occupied cells of points: (N, 3) to (V, 3), without an order."""
    cell = np.floor(points / GRID_SIZE).astype(np.int64)
    low = cell.min(0)
    size = cell.max(0) - low + 1
    key = np.unique(np.ravel_multi_index(tuple((cell - low).T), tuple(size)))
    return np.stack(np.unravel_index(key, tuple(size)), 1) + low


def _as_batch(coord: Points) -> PointBatch:
    """One scene with its points in a random order, as readers give them, and random features."""
    cells = _distinct(coord)
    rng = np.random.default_rng(0)
    rng.shuffle(cells)
    cells = cells - cells.min(0)
    return PointBatch(
        coord=torch.from_numpy(((cells + 0.5) * GRID_SIZE).astype(np.float32)),
        feat=torch.from_numpy(rng.normal(size=(len(cells), 6)).astype(np.float32)),
        offset=torch.tensor([len(cells)]),
        grid_coord=torch.from_numpy(cells.astype(np.int32)),
    )
