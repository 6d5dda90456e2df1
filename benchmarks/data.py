"""The data side: grid sampling, rays and points of images, each transform, and loading beside a step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ponder_zoo.data import (
    PretrainCollate,
    PretrainDataset,
    Scene,
    SyntheticRooms,
    Views,
    pretrain_transforms,
    segmentation_train_transforms,
    unproject,
)
from ponder_zoo.data.model_input import create_transform
from ponder_zoo.data.normals import estimate_normals, room_viewpoint
from ponder_zoo.data.pretrain import OVERSAMPLE, draw_pixels, make_rays
from ponder_zoo.data.transforms import GridSample, grid_fragments
from ponder_zoo.train.run import make_loader
from ponder_zoo.train.sampler import StepSampler

from .harness import Call, Case
from .machine import device
from .peers import numpy_grid
from .peers.official_rays import official_rays

GRID_SIZE = 0.02  # metres
POINTS = 1_000_000  # of the grid-sampling case, in about 540 k cells
VIEWS = (5, 480, 640)
RAYS = 256  # per view
STEP = 0.05  # seconds of the loader's case, two to three times an item's
ROOM_SIZE = (9.0, 8.0, 2.9)  # metres
SCALES = {"100k": 100_000, "300k": 300_000, "1M": 1_000_000, "2M": 2_000_000}


def cases() -> Iterator[Case]:
    """Peers where the official code does the same; the rest says where an item's time goes."""
    if device().type != "cpu":
        return
    yield Case(
        "data/grid_sample",
        "hash, argsort, unique in NumPy",
        _ours_grid,
        _their_grid,
        done=2.0,
        aim=3.0,
        items=POINTS,
        unit="points",
    )
    yield Case("data/grid_fragments", "the same", _ours_fragments, _their_fragments, items=POINTS // 5, unit="points")
    yield Case(
        "data/rays",
        "official formulation: all pixels, view by view",
        _our_rays,
        _their_rays,
        done=20.0,
        aim=25.0,
        items=VIEWS[0] * RAYS,
        unit="rays",
    )
    pixels = VIEWS[0] * VIEWS[1] * VIEWS[2]
    yield Case("data/unproject", "none", lambda: lambda: unproject(_views()), items=pixels, unit="pixels")
    yield Case("data/normals", "none", _normals, items=50_000, unit="points")
    for preset, build in (("pretrain", pretrain_transforms), ("segmentation", segmentation_train_transforms)):
        for number, transform in enumerate(build(GRID_SIZE).transforms):
            name = f"data/{preset}/{number:02d}_{type(transform).__name__}"
            yield Case(name, "none", lambda build=build, number=number: _transform(build(GRID_SIZE), number))
    for name, count in SCALES.items():
        yield Case(f"data/model_input/{name}", "none", lambda n=count: _model_input(n), items=count, unit="points")
    yield Case("data/loader", "no worker: load, then compute", lambda: _loop(1), lambda: _loop(0), repeats=3)


def surface_points(count: int, seed: int = 0) -> NDArray[np.float32]:
    """Points on a room's shell and on a dozen boxes in it, uniform by area, with 2 mm of noise: (count, 3) metres."""
    rng = np.random.default_rng(seed)
    size = rng.uniform(0.4, 1.6, (12, 3)).clip(max=[1.6, 1.6, 1.2])
    low = rng.random((12, 3)) * (np.array(ROOM_SIZE) - size) * [1, 1, 0]
    low, size = np.vstack([np.zeros(3), low]), np.vstack([ROOM_SIZE, size])  # (boxes, 3)
    area = np.stack([np.delete(size, axis, 1).prod(1) for axis in (0, 0, 1, 1, 2, 2)], axis=1)  # (boxes, 6 faces)
    face = rng.choice(area.size, count, p=area.ravel() / area.sum())
    place = rng.random((count, 3))
    place[np.arange(count), face % 6 // 2] = face % 2  # on the face
    return (low[face // 6] + place * size[face // 6] + rng.normal(0, 0.002, (count, 3))).astype(np.float32)


# Grid sampling --------------------------------------------------------------------------------------------------------


def _ours_grid() -> Call:
    scene, rng = Scene("surfaces", surface_points(POINTS)), np.random.default_rng(0)
    sample = GridSample(GRID_SIZE, inverse=False)
    _check_same_voxels(sample(scene, rng).grid_coord, numpy_grid.grid_sample(scene.coord, GRID_SIZE, rng)[1])
    return lambda: sample(scene, rng)


def _their_grid() -> Call:
    coord, rng = surface_points(POINTS), np.random.default_rng(0)

    def sample() -> tuple[NDArray[Any], NDArray[Any]]:
        rows, cell = numpy_grid.grid_sample(coord, GRID_SIZE, rng)
        return coord[rows], cell

    return sample


def _check_same_voxels(ours: NDArray[np.integer] | None, theirs: NDArray[np.integer]) -> None:
    """Raise unless both (K, 3) hold the same cells, each once."""
    assert ours is not None
    first, second = (cell[np.lexsort(cell.T)].astype(np.int64) for cell in (ours, theirs))
    if not np.array_equal(first, second):
        raise RuntimeError(f"Expected the voxels of the peer, {len(second)}; got {len(first)}, or other ones.")


def _ours_fragments() -> Call:
    scene = Scene("surfaces", surface_points(POINTS // 5))
    return lambda: grid_fragments(scene, GRID_SIZE)


def _their_fragments() -> Call:
    coord = surface_points(POINTS // 5)
    return lambda: [(coord[rows], cell) for rows, cell in numpy_grid.grid_fragments(coord, GRID_SIZE)]


# Images ---------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _views() -> Views:
    """Posed images with random depth of 1 to 3 m, a tenth of it missing, in a box of 8 m."""
    rng = np.random.default_rng(0)
    count, height, width = VIEWS
    depth = rng.uniform(1.0, 3.0, VIEWS).astype(np.float32)
    depth[rng.random(VIEWS) < 0.1] = 0
    poses = np.tile(np.eye(4, dtype=np.float32), (count, 1, 1))
    poses[:, :3, 3] = rng.normal(0, 0.3, (count, 3))
    camera = np.array([[577.0, 0, width / 2], [0, 577, height / 2], [0, 0, 1]], dtype=np.float32)
    return Views(
        color=rng.integers(0, 256, (*VIEWS, 3), dtype=np.uint8),
        depth=depth,
        intrinsics=np.tile(camera, (count, 1, 1)),
        cam_to_world=poses,
        segment=rng.integers(-1, 20, VIEWS).astype(np.int16),
        normal=np.tile(np.array([0, 0, -1], np.float32), (*VIEWS, 1)),
    )


def _our_rays() -> Call:
    views, rng, bounds = _views(), np.random.default_rng(0), np.array([[-4.0] * 3, [4.0] * 3], np.float32)

    def make() -> object:
        pixels = draw_pixels(views, OVERSAMPLE * RAYS, rng)
        return make_rays(views, pixels, bounds, rays_per_view=RAYS, near=0.05, name="views")

    return make


def _their_rays() -> Call:
    """In the unit cube, with tensors ready: colours in [0, 1], depth in units of the cube, world to camera."""
    views, generator = _views(), torch.Generator().manual_seed(0)
    assert views.segment is not None
    poses = views.cam_to_world.astype(np.float64)
    poses[:, :3, 3] /= 8.0
    inputs = (
        torch.from_numpy(views.color).float() / 255,
        torch.from_numpy(views.depth / np.float32(8.0)),
        torch.from_numpy(views.segment.astype(np.int64)),
        torch.from_numpy(views.intrinsics),
        torch.from_numpy(np.linalg.inv(poses).astype(np.float32)),
    )
    return lambda: official_rays(*inputs, generator=generator, count=RAYS)


def _normals() -> Call:
    coord = surface_points(50_000)
    return lambda: estimate_normals(coord, viewpoint=room_viewpoint(coord))


# Items ----------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _room() -> Scene:
    """A built-in room: 12 views of 120 x 160 and their points, about 200 000."""
    return SyntheticRooms("train", num_scenes=1)[0]


def _transform(pipeline: Any, number: int) -> Call:
    """One transform on what those before it leave; always drawn, so that what is measured is the transform."""
    scene, rng = _room(), np.random.default_rng(0)
    for transform in pipeline.transforms[:number]:
        scene = transform(scene, rng)
    transform = pipeline.transforms[number]
    transform = replace(transform, p=1.0) if hasattr(transform, "p") else transform
    return lambda: transform(scene, rng)


def _model_input(count: int) -> Call:
    """From arrays to a model's input: `create_transform`, as for feature extraction."""
    columns = ("red", "green", "blue", "normal_x", "normal_y", "normal_z")
    scale = (127.5, 127.5, 127.5)
    transform = create_transform(
        grid_size=GRID_SIZE, feature_columns=columns, mean=(*scale, 0, 0, 0), std=(*scale, 1, 1, 1), fill=(0.0,) * 6
    )
    rooms = -(-count // 500_000)  # larger clouds have more rooms, not denser ones
    coord = np.concatenate(
        [surface_points(count // rooms, seed) + np.array([12 * seed, 0, 0]) for seed in range(rooms)]
    )
    color = np.random.default_rng(0).uniform(0, 255, coord.shape).astype(np.float32)
    normal = np.tile(np.array([0, 0, 1], np.float32), (len(coord), 1))
    data = {"coord": coord.astype(np.float32), "color": color, "normal": normal}
    return lambda: transform(data)


def _loop(workers: int) -> Callable[[], object]:
    """Fifty steps of one item each, during which the host is idle, as while a GPU computes."""
    dataset = PretrainDataset(
        [_room()], transform=pretrain_transforms(GRID_SIZE), input_views=7, target_views=5, volume_shape=(128, 128, 32)
    )

    def run() -> int:
        sampler = StepSampler([1], 1, stop=50)
        loader = make_loader([dataset], sampler, PretrainCollate(), workers=workers, pin_memory=False)
        for _ in loader:
            time.sleep(STEP)
        return len(loader)

    return run
