"""Targets of instance segmentation, and Mix3D."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ponder_zoo.data.collate import LabelCollate, PointCollate, instance_centers, mix_scenes
from ponder_zoo.data.scene import Scene


def room(seed, points=60, **columns):
    rng = np.random.default_rng(seed)
    coord = rng.uniform(0, 1, (points, 3)).astype(np.float32)
    made = Scene(
        f"room{seed}",
        coord,
        color=coord * 255,
        normal=coord,
        segment=rng.integers(-1, 4, points),
        instance=rng.integers(-1, 6, points) * 7,
        grid_coord=(coord * 10).astype(np.int32),
    )
    return replace(made, **columns)


def test_centers_are_the_means_of_instances_that_stay_apart_between_scenes():
    scenes = [room(0), room(1), room(2, instance=None)]
    points, labels = LabelCollate(ignored_classes=(0, 1))(scenes)
    assert points.batch_size == 3 and labels.segment.tolist() == np.concatenate([s.segment for s in scenes]).tolist()
    seen = set()
    for b, scene in enumerate(scenes):
        rows = points.batch == b
        found, center = labels.instance[rows].numpy(), labels.center[rows].numpy()
        if scene.instance is None:
            assert (found == -1).all() and (center == 0).all()
            continue
        counts = (scene.instance >= 0) & (scene.segment > 1)
        assert np.array_equal(found >= 0, counts), "no instances of ignored classes or of points without a class"
        for number in np.unique(scene.instance[counts]):
            mine = counts & (scene.instance == number)
            assert len(np.unique(found[mine])) == 1 and found[mine][0] not in seen
            seen.add(found[mine][0])
            np.testing.assert_allclose(center[mine], np.tile(scene.coord[mine].mean(0), (mine.sum(), 1)), atol=1e-6)
    assert seen == set(range(len(seen)))


def test_centers_of_nothing_are_zero():
    assert np.array_equal(instance_centers(np.ones((3, 3)), np.full(3, -1)), np.zeros((3, 3)))


def test_neighbours_become_one_scene_and_the_last_of_an_odd_number_stays_alone():
    scenes = [room(i) for i in range(5)]
    mixed = mix_scenes(scenes, 1.0)
    assert [scene.name for scene in mixed] == ["room0+room1", "room2+room3", "room4"]
    assert [scene.name for scene in mix_scenes(scenes, 0.0)] == [f"room{i}" for i in range(5)]
    assert np.array_equal(mixed[0].grid_coord, np.concatenate([scenes[0].grid_coord, scenes[1].grid_coord]))
    own = mixed[0].instance[:60]
    assert np.array_equal(own, scenes[0].instance)
    added, original = mixed[0].instance[60:], scenes[1].instance
    assert np.array_equal(added >= 0, original >= 0) and not set(added[added >= 0]) & set(own)


def test_mixing_moves_no_point_label_or_center():
    scenes = [room(i) for i in range(4)]
    plain_points, plain = LabelCollate()(scenes)
    points, labels = LabelCollate(mix=1.0)(scenes)
    assert points.offset.tolist() == [120, 240] and plain_points.offset.tolist() == [60, 120, 180, 240]
    for name in ("coord", "feat", "grid_coord"):
        assert torch.equal(getattr(points, name), getattr(plain_points, name))
    for name in ("segment", "instance", "center"):
        assert torch.equal(getattr(labels, name), getattr(plain, name))


def test_the_share_of_mixed_pairs_is_the_probability_and_repeats():
    scenes = [room(i, points=3) for i in range(800)]
    names = [scene.name for scene in mix_scenes(scenes, 0.8)]
    assert sum("+" in name for name in names) / 400 == pytest.approx(0.8, abs=0.06)
    assert [scene.name for scene in mix_scenes(scenes, 0.8)] == names


@pytest.mark.parametrize("change", [{"normal": None}, {"condition": "S3DIS"}])
def test_scenes_that_do_not_fit_are_not_mixed(change):
    with pytest.raises(ValueError, match="same columns and condition"):
        mix_scenes([room(0), room(1, **change)], 1.0)


def test_labels_move_between_devices_as_one():
    _, labels = LabelCollate(PointCollate())([room(0)])
    assert labels.to("meta").center.device.type == "meta"
