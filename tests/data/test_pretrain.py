"""Items and batches of the pre-training task."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from ponder_zoo.data.collate import PointCollate, PretrainCollate, collate_points
from ponder_zoo.data.pretrain import PretrainDataset, draw_pixels
from ponder_zoo.data.sampler import EpochSampler
from ponder_zoo.data.scene import Scene, Views
from ponder_zoo.data.segmentation import SegmentationDataset
from ponder_zoo.data.transforms import (
    CenterShift,
    Compose,
    GridSample,
    pretrain_transforms,
    segmentation_test_transforms,
    segmentation_train_transforms,
)
from ponder_zoo.data.unproject import unproject
from ponder_zoo.ops.knn import knn
from ponder_zoo.structures import TensorStruct

KEEP = Compose((CenterShift(), GridSample(0.05)))


class Rooms:
    """A source of scenes, as workers get it."""

    def __init__(self, scenes: list[Scene]) -> None:
        self.scenes = scenes

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> Scene:
        return self.scenes[index]


@pytest.fixture
def rooms(make_views: Callable[..., Views]) -> Rooms:
    return Rooms([unproject(make_views(num_views=n), name=f"room{n}") for n in (4, 3, 5)])


@pytest.fixture
def dataset(rooms: Rooms) -> Callable[..., PretrainDataset]:
    return partial(PretrainDataset, rooms, transform=KEEP, rays_per_view=16, volume_shape=(16, 16, 8))


def tensors(value: Any) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    value.map(lambda tensor: found.append(tensor) or tensor)
    return found


def same(a: TensorStruct, b: TensorStruct) -> bool:
    return all(torch.equal(x, y) for x, y in zip(tensors(a), tensors(b), strict=True))


def test_targets_are_what_the_rays_meet(dataset: Callable[..., PretrainDataset]) -> None:
    data = dataset(transform=pretrain_transforms(0.05))
    item = data[0]
    scene, bounds = data.prepare(0)
    points = item.rays.origins + item.targets.depth[..., None] * item.rays.directions
    surface = torch.from_numpy(unproject(scene.views).coord)
    distance, row = knn(points[0], surface, 1)
    assert distance.max() < 1e-4 and points.shape == (1, 4 * 16, 3)
    views = unproject(scene.views)
    torch.testing.assert_close(item.targets.rgb[0] * 255, torch.from_numpy(views.color)[row[:, 0]], atol=1e-3, rtol=0)
    torch.testing.assert_close(item.targets.normal[0], torch.from_numpy(views.normal)[row[:, 0]], atol=1e-5, rtol=0)
    assert torch.equal(item.targets.segment[0], torch.from_numpy(views.segment)[row[:, 0]])
    assert torch.equal(item.scene.grid.bounds[0], torch.from_numpy(bounds))


def test_near_and_far_enclose_the_surface_in_the_box(dataset: Callable[..., PretrainDataset]) -> None:
    item = dataset()[1]
    assert (item.targets.depth > item.rays.near).all() and (item.targets.depth < item.rays.far).all()
    ends = item.rays.origins + item.rays.far[..., None] * item.rays.directions
    low, high = item.scene.grid.bounds[0]
    on_face = torch.minimum((ends - low).abs(), (ends - high).abs()).amin(-1)
    assert on_face.max() < 1e-4
    torch.testing.assert_close(item.rays.directions.norm(dim=-1), torch.ones(1, 48))


def test_points_are_sampled_centred_and_have_the_official_columns(dataset: Callable[..., PretrainDataset]) -> None:
    points = dataset()[0].scene.points
    assert points.feat.shape == (len(points), 6) and points.feat.abs().max() <= 1.0 + 1e-5
    assert points.grid_coord.dtype == torch.int32 and len(torch.unique(points.grid_coord, dim=0)) == len(points)
    torch.testing.assert_close(points.coord[:, 2].min(), torch.tensor(0.0), atol=0.05, rtol=0)


def test_unseen_targets_leave_the_input_views_out(dataset: Callable[..., PretrainDataset], rooms: Rooms) -> None:
    data = dataset(input_views=2, targets="unseen", transform=lambda scene, rng: scene)
    scene, _ = data.prepare((3, 2))
    used = {view.tobytes() for view in scene.views.depth}
    all_views = rooms[2].views
    inputs = [view for view in range(5) if all_views.depth[view].tobytes() not in used]
    assert len(scene.views) == 3 and len(inputs) == 2
    expected = np.concatenate([unproject(replace_views(all_views, [view])).coord for view in inputs])
    np.testing.assert_allclose(scene.coord, expected)
    assert len({tuple(data.prepare((epoch, 2))[0].coord[0]) for epoch in range(8)}) > 1  # other views each epoch


def replace_views(views: Views, index: list[int]) -> Views:
    return Views(**{key: None if value is None else value[index] for key, value in vars(views).items()})


def test_the_number_of_targets_can_be_limited(dataset: Callable[..., PretrainDataset]) -> None:
    assert dataset(target_views=2)[0].rays.near.shape == (1, 32)
    with pytest.raises(ValueError, match="none is left"):
        dataset(input_views=9, targets="unseen")[0]
    with pytest.raises(ValueError, match="together with input_views"):
        dataset(targets="unseen")


def test_pixels_without_depth_are_drawn_only_when_asked(dataset: Callable[..., PretrainDataset], rooms: Rooms) -> None:
    holes = rooms[0].views.depth.copy()
    holes[:, :, 16:] = 0
    rooms.scenes[0] = replace(rooms[0], views=replace(rooms[0].views, depth=holes))
    assert (dataset(rays_per_view=200)[0].targets.depth > 0).all()
    depth = dataset(rays_per_view=200, include_invalid=True)[0].targets.depth
    assert 0.3 < (depth == 0).float().mean() < 0.7


def test_pixels_are_uniform_without_repeats(make_views: Callable[..., Views]) -> None:
    views = make_views(num_views=2, height=4, width=6)
    rng = np.random.default_rng(0)
    counts = np.zeros((2, 4, 6))
    for _ in range(600):
        picks = draw_pixels(views, 6, rng)
        assert len(set(zip(picks.view, picks.row, picks.column, strict=True))) == 12
        np.add.at(counts, (picks.view, picks.row, picks.column), 1)
    chi2 = ((counts - 150) ** 2 / 150).sum()
    assert chi2 < 90  # 46 degrees of freedom, and drawing without repeats lowers it


# ---- determinism


def test_an_item_depends_on_seed_epoch_and_index_alone(dataset: Callable[..., PretrainDataset]) -> None:
    first, again = dataset(transform=pretrain_transforms(0.05)), dataset(transform=pretrain_transforms(0.05))
    again[2], again[(7, 1)]  # what was drawn before does not matter
    assert same(first[(1, 0)], again[(1, 0)]) and same(first[0], again[(0, 0)])
    assert not same(first[(1, 0)].rays, first[(2, 0)].rays)
    assert not same(first[0].rays, dataset(transform=pretrain_transforms(0.05), seed=1)[0].rays)


def test_workers_give_the_same_batches_and_a_resumed_epoch_goes_on(dataset: Callable[..., PretrainDataset]) -> None:
    data = dataset(transform=pretrain_transforms(0.05))

    def batches(workers: int, epoch: int) -> list[Any]:
        sampler = EpochSampler(len(data), seed=5, epoch=epoch)
        loader = DataLoader(
            data, 1, sampler=sampler, num_workers=workers, collate_fn=PretrainCollate(), timeout=60 if workers else 0
        )
        return [*loader, *loader]  # two epochs

    alone, parallel = batches(0, 0), batches(2, 0)
    assert all(same(a, b) for a, b in zip(alone, parallel, strict=True))
    assert all(same(a, b) for a, b in zip(alone[3:], batches(0, 1), strict=False))


def test_epochs_are_permutations_in_other_orders() -> None:
    sampler = EpochSampler(50, seed=1)
    first, second = list(sampler), list(sampler)
    assert sorted(first) == [(0, i) for i in range(50)] and sorted(second) == [(1, i) for i in range(50)]
    assert [i for _, i in first] != [i for _, i in second]
    assert list(EpochSampler(50, seed=1)) == first and list(EpochSampler(3, shuffle=False)) == [(0, 0), (0, 1), (0, 2)]
    sampler.set_epoch(0)
    assert list(sampler) == first and len(sampler) == 50


# ---- batches


def test_rays_are_padded_and_points_packed(dataset: Callable[..., PretrainDataset]) -> None:
    data = dataset()
    items = [data[i] for i in range(3)]
    batch = PretrainCollate()(items)
    counts = torch.tensor([64, 48, 80])
    assert torch.equal(batch.rays.valid.sum(1), counts) and batch.rays.near.shape == (3, 80)
    for index, item in enumerate(items):
        count = int(counts[index])
        assert torch.equal(batch.rays.origins[index, :count], item.rays.origins[0])
        assert torch.equal(batch.targets.depth[index, :count], item.targets.depth[0])
        assert torch.equal(batch.scene.points.split()[index].feat, item.scene.points.feat)
        assert torch.equal(batch.scene.grid.bounds[index], item.scene.grid.bounds[0])
    padding = ~batch.rays.valid
    torch.testing.assert_close(batch.rays.directions.norm(dim=-1), torch.ones(3, 80))
    assert not batch.targets.depth[padding].any() and (batch.targets.segment[padding] == -1).all()
    moved = batch.to("cpu")
    assert torch.equal(moved.rays.far, batch.rays.far) and moved.scene.grid.shape == (16, 16, 8)


def test_targets_that_some_scenes_lack_are_filled(dataset: Callable[..., PretrainDataset], rooms: Rooms) -> None:
    bare = replace(rooms[0].views, segment=None, normal=None)
    rooms.scenes[0] = replace(rooms[0], views=bare)
    data = dataset()
    batch = PretrainCollate()([data[0], data[1]])
    assert (batch.targets.segment[0] == -1).all() and not batch.targets.normal[0].any()
    assert torch.equal(batch.targets.segment[1, :48], data[1].targets.segment[0])
    assert PretrainCollate()([data[0]]).targets.normal is None


def test_collate_explains_what_does_not_fit(dataset: Callable[..., PretrainDataset]) -> None:
    with pytest.raises(ValueError, match="at least one item"):
        PretrainCollate()([])
    with pytest.raises(ValueError, match="one shape"):
        PretrainCollate()([dataset()[0], dataset(volume_shape=(8, 8, 8))[0]])


def test_segmentation_batches_hold_points_labels_and_the_way_back(rooms: Rooms) -> None:
    data = SegmentationDataset(rooms, transform=segmentation_test_transforms(0.1))
    scenes = [data[0], data[1]]
    points, segment = collate_points(scenes)
    assert len(segment) == len(points) and segment.dtype == torch.int64
    raw = [rooms[i] for i in (0, 1)]
    assert len(points.inverse) == sum(len(scene) for scene in raw)
    # labels of the rows, spread back over the original points, agree except where a cell holds two walls
    original = torch.from_numpy(np.concatenate([scene.segment for scene in raw]))
    assert (segment[points.inverse] == original).float().mean() > 0.9
    train = SegmentationDataset(rooms, transform=segmentation_train_transforms(0.1, max_points=150), seed=3)
    points, segment = PointCollate()([train[(4, 0)], train[(4, 2)]])
    assert points.inverse is None and points.offset.tolist() == [150, 300]
    unlabelled = replace(scenes[0], segment=None)
    assert (collate_points([unlabelled])[1] == -1).all()


# ---- what can be wrong


def test_an_empty_scene_in_a_batch_is_named(rooms: Rooms) -> None:
    empty = Scene(
        "gone",
        coord=np.zeros((0, 3), np.float32),
        color=np.zeros((0, 3), np.float32),
        normal=np.zeros((0, 3), np.float32),
    )
    with pytest.raises(ValueError, match=r"\['gone'\].*Drop them"):
        collate_points([rooms[0], empty])


def test_batches_that_do_not_match_name_their_scenes(rooms: Rooms) -> None:
    with pytest.raises(ValueError, match=r"\['room4', 'room3'\].*inverse"):
        collate_points([segmentation_test_transforms()(rooms[0], np.random.default_rng(0)), rooms[1]])


def test_views_without_depth_are_skipped_and_logged(
    dataset: Callable[..., PretrainDataset], rooms: Rooms, caplog: pytest.LogCaptureFixture
) -> None:
    depth = rooms[0].views.depth.copy()
    depth[1] = 0
    rooms.scenes[0] = replace(rooms[0], views=replace(rooms[0].views, depth=depth))
    with caplog.at_level(logging.WARNING):
        assert dataset()[0].rays.near.shape == (1, 3 * 16)
    assert "'room4'" in caplog.text and "[1]" in caplog.text
    rooms.scenes[0] = replace(rooms[0], views=replace(rooms[0].views, depth=depth * 0))
    with pytest.raises(ValueError, match=r"'room4'.*depth scale"):
        dataset()[0]
    rooms.scenes[0] = replace(rooms[0], views=None)
    with pytest.raises(ValueError, match=r"'room4' has no views"):
        dataset()[0]


def test_views_of_another_place_than_the_points_are_an_error(
    dataset: Callable[..., PretrainDataset], rooms: Rooms
) -> None:
    far = rooms[0].views.cam_to_world.copy()
    far[:, :3, 3] += 50
    rooms.scenes[0] = replace(rooms[0], views=replace(rooms[0].views, cam_to_world=far))
    with pytest.raises(ValueError, match=r"'room4': no surface seen.*cell_size"):
        dataset()[0]


def test_points_outside_the_volume_are_an_error(dataset: Callable[..., PretrainDataset]) -> None:
    # the walls of a room are all outside a small box in its middle
    with pytest.raises(ValueError, match=r"'room4': all \d+ points lie outside.*cell_size=None"):
        dataset(cell_size=0.01)[0]


@pytest.mark.parametrize("scale", [1000.0, float("nan")])
def test_bad_scenes_are_refused_before_anything_is_drawn(
    dataset: Callable[..., PretrainDataset], rooms: Rooms, scale: float
) -> None:
    rooms.scenes[0] = replace(rooms[0], coord=rooms[0].coord * np.float32(scale))
    with pytest.raises(ValueError, match=r"'room4'.*(millimetres|NaN)"):
        dataset()[0]


def test_an_error_in_a_worker_is_raised_in_the_main_process(
    dataset: Callable[..., PretrainDataset], rooms: Rooms
) -> None:
    rooms.scenes[1] = replace(rooms[1], coord=rooms[1].coord * 1000)
    loader = DataLoader(dataset(), batch_size=1, num_workers=1, collate_fn=PretrainCollate(), timeout=60)
    with pytest.raises(ValueError, match=r"'room3'.*divide them by 1000"):
        list(loader)


def test_importing_the_data_layer_costs_no_optional_package() -> None:
    modules = "rgbd rgbd_check labelled pretrain transforms collate segmentation normals".split()
    code = "import sys\n" + "\n".join(f"import ponder_zoo.data.{name}" for name in modules)
    code += "\nprint([m for m in ('scipy', 'PIL', 'timm', 'omegaconf') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
