"""Transforms: what the images show stays where the points are; nothing is mutated; the generator decides."""

from __future__ import annotations

import itertools
import math
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import RegularGridInterpolator

from ponder_zoo.data import transforms
from ponder_zoo.data.motion import move_scene, take_points
from ponder_zoo.data.scene import Scene
from ponder_zoo.data.transforms import (
    CenterShift,
    ChannelShuffle,
    ChromaticAutoContrast,
    ChromaticJitter,
    ChromaticTranslation,
    ColumnDrop,
    Compose,
    ElasticDistortion,
    GridSample,
    NormalizeColor,
    RandomDropout,
    RandomFlip,
    RandomJitter,
    RandomRotate,
    RandomSaturation,
    RandomScale,
    ShufflePoint,
    SphereCrop,
    axis_rotation,
    grid_fragments,
    instance_train_transforms,
    pretrain_transforms,
    segmentation_test_transforms,
    segmentation_train_transforms,
)
from ponder_zoo.data.unproject import unproject
from ponder_zoo.ops.knn import knn_tree
from ponder_zoo.ops.rays import project_points

MOTIONS = [
    CenterShift(),
    CenterShift(z=False),
    RandomRotate("x", p=1.0),
    RandomRotate("y", (-0.2, 0.2), p=1.0),
    RandomRotate("z", center=(0, 0, 0), p=1.0),
    RandomScale((0.5, 2.0)),
    RandomFlip(p=1.0),
    RandomFlip(p=0.5),
]
OTHERS = [
    RandomJitter(),
    ElasticDistortion(p=1.0),
    ChromaticAutoContrast(p=1.0),
    ChromaticTranslation(p=1.0),
    ChromaticJitter(p=1.0),
    ChannelShuffle(),
    RandomSaturation(),
    NormalizeColor(),
    ColumnDrop("color", p=1.0),
    RandomDropout(p=1.0),
    ShufflePoint(),
    SphereCrop(max_points=100),
    SphereCrop(ratio=0.5, center="middle"),
    GridSample(0.1),
    pretrain_transforms(0.1),
    pretrain_transforms(0.1, recolor=True),
    pretrain_transforms(0.1, augment=False),
    segmentation_train_transforms(0.1, max_points=150),
    segmentation_test_transforms(0.1),
]


def name_of(value: Any) -> str:
    return type(value).__name__


def arrays(value: Any) -> dict[str, np.ndarray]:
    found = {}
    for field in fields(value):
        item = getattr(value, field.name)
        if isinstance(item, np.ndarray):
            found[field.name] = item
        elif is_dataclass(item):
            found |= {f"{field.name}.{key}": array for key, array in arrays(item).items()}
    return found


def test_axes_turn_right_handed() -> None:
    quarter = math.pi / 2
    np.testing.assert_allclose(axis_rotation("z", quarter) @ [1, 0, 0], [0, 1, 0], atol=1e-12)
    np.testing.assert_allclose(axis_rotation("x", quarter) @ [0, 1, 0], [0, 0, 1], atol=1e-12)
    np.testing.assert_allclose(axis_rotation("y", quarter) @ [0, 0, 1], [1, 0, 0], atol=1e-12)


@pytest.mark.parametrize("transform", MOTIONS, ids=name_of)
def test_transformed_views_unproject_onto_the_transformed_points(room: Scene, transform: Any) -> None:
    moved = transform(room, np.random.default_rng(3))
    again = unproject(moved.views)
    np.testing.assert_allclose(again.coord, moved.coord, atol=2e-5)
    np.testing.assert_allclose(again.normal, moved.normal, atol=1e-5)
    estimated = unproject(replace(moved.views, normal=None)).normal  # measured in the moved images
    agree = (estimated * moved.normal).sum(-1) > 0.99
    assert agree.mean() > 0.6  # away from the edges of the walls
    assert not np.array_equal(moved.coord, room.coord) or transform == RandomFlip(p=0.5)


@settings(max_examples=30, deadline=None)
@given(
    order=st.lists(st.sampled_from(range(len(MOTIONS))), min_size=1, max_size=6),
    seed=st.integers(0, 100),
)
def test_any_composition_keeps_points_and_images_together(make_views: Any, order: list[int], seed: int) -> None:
    room = unproject(make_views(num_views=2, height=6, width=8))
    moved = Compose([MOTIONS[i] for i in order])(room, np.random.default_rng(seed))
    np.testing.assert_allclose(unproject(moved.views).coord, moved.coord, atol=1e-4)
    k, pose = torch.from_numpy(moved.views.intrinsics), torch.from_numpy(moved.views.cam_to_world)
    points = torch.from_numpy(moved.coord).view(2, 6, 8, 3)
    pixels, z = project_points(points, k[:, None, None], pose[:, None, None])
    v, u = np.mgrid[:6, :8]
    np.testing.assert_allclose(pixels.numpy(), np.broadcast_to(np.stack([u, v], -1), pixels.shape), atol=2e-3)
    np.testing.assert_allclose(z.numpy(), moved.views.depth, rtol=1e-3, atol=1e-4)
    rotation = moved.views.cam_to_world[:, :3, :3]
    np.testing.assert_allclose(rotation @ rotation.swapaxes(1, 2), np.eye(3)[None].repeat(2, 0), atol=1e-5)


@pytest.mark.parametrize("preset", [pretrain_transforms(0.05), pretrain_transforms(0.05, augment=False)])
def test_the_pretraining_presets_keep_points_on_the_surfaces_of_the_images(room: Scene, preset: Compose) -> None:
    moved = preset(room, np.random.default_rng(1))
    distance, _ = knn_tree(moved.coord, unproject(moved.views).coord, 1)
    assert 0 < len(moved) < len(room) and distance.max() < 1e-4


@pytest.mark.parametrize("transform", MOTIONS + OTHERS, ids=name_of)
def test_inputs_are_not_changed(room: Scene, transform: Any) -> None:
    before = {key: array.copy() for key, array in arrays(room).items()}
    for array in arrays(room).values():
        array.setflags(write=False)  # writing would raise
    transform(room, np.random.default_rng(0))
    for key, array in arrays(room).items():
        assert np.array_equal(array, before[key])


@pytest.mark.parametrize("transform", MOTIONS + OTHERS, ids=name_of)
def test_the_generator_decides_and_types_stay(room: Scene, transform: Any) -> None:
    first, second = (arrays(transform(room, np.random.default_rng(5))) for _ in range(2))
    assert first.keys() == second.keys()
    for key, array in first.items():
        assert np.array_equal(array, second[key])
        if key in arrays(room):
            assert array.dtype == arrays(room)[key].dtype, key
    np.random.seed(0)
    state = np.random.get_state()[1].copy()
    transform(room, np.random.default_rng(5))
    assert np.array_equal(state, np.random.get_state()[1])  # the global generator is left alone


def test_center_shift_centres(room: Scene) -> None:
    coord = CenterShift()(room, np.random.default_rng(0)).coord
    np.testing.assert_allclose(coord.min(0)[:2], -coord.max(0)[:2], atol=1e-5)
    assert coord[:, 2].min() == pytest.approx(0, abs=1e-6)


def test_rotation_about_the_middle_keeps_the_middle(room: Scene) -> None:
    moved = RandomRotate("z", (math.pi, math.pi), p=1.0)(room, np.random.default_rng(0))
    np.testing.assert_allclose(
        moved.coord.min(0) + moved.coord.max(0), room.coord.min(0) + room.coord.max(0), atol=1e-4
    )


def test_probabilities_are_kept(room: Scene) -> None:
    small = take_points(replace(room, views=None), np.arange(5))
    rng = np.random.default_rng(0)
    for transform in (RandomRotate(p=0.3), ElasticDistortion(p=0.3), RandomFlip(p=0.3, axes=("x",))):
        changed = sum(not np.array_equal(transform(small, rng).coord, small.coord) for _ in range(300))
        assert 60 < changed < 120


def test_jitter_is_clipped_and_leaves_the_views(room: Scene) -> None:
    moved = RandomJitter(sigma=0.1, clip=0.02)(room, np.random.default_rng(0))
    difference = np.abs(moved.coord - room.coord)
    assert difference.max() == pytest.approx(0.02, abs=1e-6) and moved.views is room.views


def test_elastic_distortion_is_smooth_and_of_the_stated_size(room: Scene) -> None:
    moved = ElasticDistortion(((0.2, 0.4),), p=1.0)(room, np.random.default_rng(0))
    shift = moved.coord - room.coord
    # two box blurs per axis of unit noise leave a standard deviation of (19 / 81)**1.5 = 0.114; interpolation lowers it
    assert 0.02 < shift.std() < 0.4 * 0.12
    _, index = knn_tree(room.coord, room.coord, 2)
    assert np.linalg.norm(shift - shift[index[:, 1]], axis=1).mean() < 0.5 * np.linalg.norm(shift, axis=1).mean()


def test_auto_contrast_reaches_the_full_range_and_moves_images_alike(room: Scene) -> None:
    dull = replace(
        room,
        color=room.color * 0.4 + 30,
        views=replace(room.views, color=(room.views.color * 0.4 + 30).astype(np.uint8)),
    )
    bright = ChromaticAutoContrast(p=1.0, blend=1.0)(dull, np.random.default_rng(0))
    assert bright.color.min() == 0 and bright.color.max() == pytest.approx(255, abs=1e-3)
    image = bright.views.color.reshape(-1, 3)
    assert np.abs(bright.color - image).max() <= 3.5  # rounding of the input, times the gain of 2.5


def test_translation_shifts_points_and_images_by_one_colour(room: Scene) -> None:
    dull = replace(
        room, color=room.color.clip(50, 200), views=replace(room.views, color=room.views.color.clip(50, 200))
    )
    moved = ChromaticTranslation(p=1.0, ratio=0.1)(dull, np.random.default_rng(0))
    shift = moved.color - dull.color
    assert np.ptp(shift, axis=0).max() < 1e-3 and 0 < np.abs(shift).max() <= 25.5
    assert np.abs(moved.views.color.reshape(-1, 3) - moved.color).max() <= 0.51


def test_channel_shuffles_give_all_orders_to_points_and_images_alike(room: Scene) -> None:
    orders = {tuple(ChannelShuffle()(room, np.random.default_rng(seed)).color[0].tolist()) for seed in range(60)}
    assert orders == set(itertools.permutations(room.color[0].tolist()))
    shuffled = ChannelShuffle()(room, np.random.default_rng(0))
    np.testing.assert_array_equal(shuffled.views.color.reshape(-1, 3), shuffled.color)


def test_saturation_stretches_the_distance_from_grey(room: Scene) -> None:
    vivid = RandomSaturation((2.0, 2.0))(room, np.random.default_rng(0))
    grey = room.color.mean(-1, keepdims=True)
    np.testing.assert_allclose(vivid.color, (grey + 2 * (room.color - grey)).clip(0, 255), atol=1e-3)
    assert np.abs(vivid.views.color.reshape(-1, 3) - vivid.color).max() <= 0.51


def test_normalized_colours_are_the_official_ones(room: Scene) -> None:
    color = NormalizeColor()(room, np.random.default_rng(0)).color
    np.testing.assert_allclose(color, room.color / 127.5 - 1, atol=1e-6)


def test_dropout_keeps_its_share_and_rows_together(room: Scene) -> None:
    kept = RandomDropout(0.8, p=1.0)(room, np.random.default_rng(0))
    assert len(kept) == len(room) - math.ceil(len(room) * 0.8)
    rows = {tuple(row) for row in np.hstack([room.coord, room.color]).tolist()}
    assert all(tuple(row) in rows for row in np.hstack([kept.coord, kept.color]).tolist())
    assert len(RandomDropout(1.0, p=1.0)(room, np.random.default_rng(0))) == 1


def test_the_crop_is_a_ball(room: Scene) -> None:
    kept = SphereCrop(100, center="middle")(room, np.random.default_rng(0))
    middle = (room.coord.min(0) + room.coord.max(0)) / 2
    distance = np.sort(np.linalg.norm(room.coord - middle, axis=1))
    assert len(kept) == 100
    np.testing.assert_allclose(np.sort(np.linalg.norm(kept.coord - middle, axis=1)), distance[:100], rtol=1e-5)


def test_grid_sample_has_one_point_per_cell_and_an_inverse(room: Scene) -> None:
    sampled = GridSample(0.1)(room, np.random.default_rng(0))
    cell = np.floor(room.coord.astype(np.float64) / 0.1).astype(int)
    cell -= cell.min(0)
    assert len(sampled) == len(np.unique(cell, axis=0)) == len(np.unique(sampled.grid_coord, axis=0))
    assert np.array_equal(sampled.grid_coord[sampled.inverse], cell)
    np.testing.assert_array_equal(
        np.floor(sampled.coord.astype(np.float64) / 0.1).astype(int)
        - np.floor(room.coord.astype(np.float64) / 0.1).astype(int).min(0),
        sampled.grid_coord,
    )


def test_grid_sample_draws_every_point_of_a_cell_equally_often() -> None:
    coord = np.repeat(np.array([[0.1, 0.1, 0.1], [0.9, 0.1, 0.1], [0.1, 0.9, 0.1]], np.float32), [2, 3, 7], axis=0)
    scene = Scene("cells", coord, intensity=np.arange(12, dtype=np.float32)[:, None])
    rng = np.random.default_rng(0)
    drawn = np.concatenate([GridSample(0.5)(scene, rng).intensity[:, 0] for _ in range(4200)]).astype(int)
    counts = np.bincount(drawn, minlength=12)
    expected = 4200 / np.repeat([2, 3, 7], [2, 3, 7])
    assert ((counts - expected) ** 2 / expected).sum() < 29.6  # chi-square, 9 degrees of freedom: p = 5e-4


def test_grid_sample_without_the_inverse_is_the_same_but_for_it(room: Scene) -> None:
    whole, bare = (GridSample(0.1, inverse=keep)(room, np.random.default_rng(0)) for keep in (True, False))
    assert whole.inverse is not None and bare.inverse is None
    assert np.array_equal(whole.coord, bare.coord) and np.array_equal(whole.grid_coord, bare.grid_coord)


def test_elastic_distortion_does_not_depend_on_how_many_points_move_at_a_time(
    room: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ElasticDistortion(p=1.0)(room, np.random.default_rng(0)).coord
    monkeypatch.setattr(transforms, "_CHUNK", 100)
    assert np.array_equal(whole, ElasticDistortion(p=1.0)(room, np.random.default_rng(0)).coord)


def test_the_noise_of_a_distortion_is_looked_up_linearly() -> None:
    grid = np.random.default_rng(0).random((3, 4, 5, 3), dtype=np.float32)
    position = np.random.default_rng(1).random((50, 3)) * np.array([2, 3, 4]) * 0.999
    x, y, z = (np.arange(n) for n in (3, 4, 5))
    expected = RegularGridInterpolator((x, y, z), grid)(position)
    np.testing.assert_allclose(transforms._look_up(grid, position), expected, atol=1e-6)


def test_the_inverse_follows_a_shuffle_and_is_dropped_by_a_crop(room: Scene) -> None:
    sampled = GridSample(0.1)(room, np.random.default_rng(0))
    shuffled = ShufflePoint()(sampled, np.random.default_rng(1))
    assert not np.array_equal(shuffled.coord, sampled.coord)
    assert np.array_equal(shuffled.grid_coord[shuffled.inverse], sampled.grid_coord[sampled.inverse])
    assert RandomDropout(0.5, p=1.0)(sampled, np.random.default_rng(0)).inverse is None
    assert SphereCrop(10**9)(sampled, np.random.default_rng(0)).inverse is None


def test_fragments_hold_every_point_once_or_more(room: Scene) -> None:
    fragments = grid_fragments(room, 0.2)
    assert np.array_equal(np.unique(np.concatenate([rows for _, rows in fragments])), np.arange(len(room)))
    for scene, rows in fragments:
        assert np.array_equal(scene.coord, room.coord[rows])
        assert len(np.unique(scene.grid_coord, axis=0)) == len(scene)


def test_stretching_is_refused(room: Scene) -> None:
    with pytest.raises(ValueError, match="orthonormal"):
        move_scene(room, np.diag([1.0, 1.0, 2.0]))


def test_bad_coordinates_name_the_scene(room: Scene) -> None:
    coord = room.coord.copy()
    coord[3, 1] = np.nan
    with pytest.raises(ValueError, match=r"'room'.*NaN"):
        GridSample()(replace(room, coord=coord), np.random.default_rng(0))


def test_fine_tuning_pipelines_are_the_official_ones():
    def described(pipeline):
        return [(type(t).__name__, {f.name: getattr(t, f.name) for f in fields(t)}) for t in pipeline.transforms]

    segment = described(segmentation_train_transforms(crop_ratio=0.6))
    instances = described(instance_train_transforms())
    names = ["CenterShift", "RandomDropout", *["RandomRotate"] * 3, "RandomScale", "RandomFlip", "RandomJitter"]
    names += ["ElasticDistortion", "ChromaticAutoContrast", "ChromaticTranslation", "ChromaticJitter", "GridSample"]
    assert [name for name, _ in segment] == [*names, "SphereCrop", "CenterShift", "ShufflePoint"]
    assert [name for name, _ in instances] == [*names, "SphereCrop"]
    values = [(dict(segment)[name], dict(instances)[name]) for name in ("RandomDropout", "ChromaticTranslation")]
    assert [(a["p"], b["p"]) for a, b in values] == [(0.2, 0.5), (0.95, 0.95)]
    assert (values[0][0]["ratio"], values[1][0]["ratio"], values[1][1]["ratio"]) == (0.2, 0.05, 0.1)
    assert (dict(segment)["SphereCrop"]["ratio"], dict(instances)["SphereCrop"]["ratio"]) == (0.6, 0.8)
    assert "ShufflePoint" not in dict(described(segmentation_train_transforms(shuffle=False)))
