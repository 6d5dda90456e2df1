"""The dataset of generated rooms: what it returns, its determinism, its cache, its errors."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import numpy as np
import pytest

from ponder_zoo.data.scene import Scene
from ponder_zoo.data.synthetic import CLASSES, SyntheticRooms

SMALL = {"num_scenes": 2, "num_views": 2, "image_size": (24, 32)}


def assert_equal(a: Scene, b: Scene) -> None:
    for field in dataclasses.fields(Scene):
        if field.name not in ("views", "name", "condition"):
            np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name), err_msg=field.name)
    assert a.views is not None and b.views is not None
    for field in dataclasses.fields(type(a.views)):
        np.testing.assert_array_equal(getattr(a.views, field.name), getattr(b.views, field.name), err_msg=field.name)


@pytest.mark.parametrize("sensor", ["off", "kinect", "tof"])
def test_a_scene_has_the_documented_arrays(sensor: str) -> None:
    scene = SyntheticRooms("train", sensor=sensor, **SMALL)[0]  # type: ignore[arg-type]
    views = scene.views
    assert views is not None and len(views) == 2
    assert views.color.shape == (2, 24, 32, 3) and views.color.dtype == np.uint8
    assert views.depth.shape == (2, 24, 32) and views.depth.dtype == np.float32
    assert views.segment is not None and views.segment.dtype == np.int16
    assert views.instance is not None and views.instance.dtype == np.int32
    assert views.normal is not None
    length = np.linalg.norm(views.normal, axis=-1)
    assert (((np.abs(length - 1) < 1e-3) | (length == 0)).all()) and (length > 0).mean() > 0.3
    rotation = views.cam_to_world[:, :3, :3]
    np.testing.assert_allclose(rotation @ rotation.transpose(0, 2, 1), np.broadcast_to(np.eye(3), (2, 3, 3)), atol=1e-5)
    assert scene.coord.shape == (int((views.depth > 0).sum()), 3) and scene.coord.dtype == np.float32
    for values, dtype in ((scene.color, np.float32), (scene.normal, np.float32), (scene.segment, np.int64)):
        assert values is not None and len(values) == len(scene) and values.dtype == dtype
    assert scene.segment is not None
    assert scene.segment.min() >= -1 and scene.segment.max() < len(CLASSES)


def test_exact_normals_are_those_of_the_surfaces_and_the_default_ones_are_estimated() -> None:
    size = {**SMALL, "image_size": (60, 80), "sensor": "off"}
    exact, estimated = SyntheticRooms("train", normals="exact", **size)[0], SyntheticRooms("train", **size)[0]
    assert exact.normal is not None and estimated.normal is not None
    np.testing.assert_allclose(np.linalg.norm(exact.normal, axis=1), 1.0, atol=1e-3)
    cosine = (exact.normal * estimated.normal).sum(1)
    assert (cosine < 1 - 1e-6).any() and np.median(np.degrees(np.arccos(np.clip(cosine, -1, 1)))) < 2
    np.testing.assert_array_equal(exact.coord, estimated.coord)


def test_a_scene_does_not_depend_on_order_or_length() -> None:
    a, b = SyntheticRooms("train", **SMALL), SyntheticRooms("train", **{**SMALL, "num_scenes": 5})
    last = a[1]
    assert_equal(a[0], b[0])
    assert_equal(last, b[-4])


def test_names_are_those_of_the_scenes() -> None:
    rooms = SyntheticRooms("val", num_scenes=3, num_views=1, image_size=(12, 16))
    assert rooms.names == [rooms[index].name for index in range(3)]


def test_seeds_and_splits_share_no_scene() -> None:
    scenes = [
        SyntheticRooms("train", **SMALL)[0],
        SyntheticRooms("train", seed=1, **SMALL)[0],
        SyntheticRooms("val", **SMALL)[0],
    ]
    colors = [scene.views.color for scene in scenes if scene.views is not None]
    assert not np.array_equal(colors[0], colors[1]) and not np.array_equal(colors[0], colors[2])


def test_a_cached_scene_equals_a_fresh_one(tmp_path: Path) -> None:
    fresh = SyntheticRooms("train", **SMALL)[0]
    cached = SyntheticRooms("train", cache_dir=tmp_path / "cache", **SMALL)
    assert_equal(cached[0], fresh)
    assert [file.name for file in (tmp_path / "cache").iterdir()] == [cached.cache_path(0).name]  # type: ignore[union-attr]
    assert_equal(cached[0], fresh)


def test_a_cached_scene_is_read_without_drawing_its_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rooms = SyntheticRooms("train", cache_dir=tmp_path, **SMALL)
    fresh = rooms[0]
    monkeypatch.setattr(rooms, "room", None)
    assert_equal(rooms[0], fresh)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "text"])
def test_a_damaged_cache_file_is_made_again(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    rooms = SyntheticRooms("train", cache_dir=tmp_path, **SMALL)
    fresh, path = rooms[0], rooms.cache_path(0)
    assert path is not None
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    damaged = {"truncated": content[: len(content) // 2], "flipped": content, "empty": b"", "text": b"not a zip file"}
    path.write_bytes(bytes(damaged[damage]))
    with caplog.at_level(logging.WARNING):
        assert_equal(rooms[0], fresh)
    assert "damaged" in caplog.text
    caplog.clear()
    assert_equal(rooms[0], fresh)
    assert "damaged" not in caplog.text


def test_a_change_of_configuration_uses_another_cache_file(tmp_path: Path) -> None:
    base = SyntheticRooms("train", cache_dir=tmp_path, **SMALL).cache_path(0)
    others = [
        SyntheticRooms("train", cache_dir=tmp_path, **{**SMALL, "num_views": 3}).cache_path(0),
        SyntheticRooms("train", cache_dir=tmp_path, sensor="off", **SMALL).cache_path(0),
        SyntheticRooms("train", cache_dir=tmp_path, seed=1, **SMALL).cache_path(0),
        SyntheticRooms("val", cache_dir=tmp_path, **SMALL).cache_path(0),
        SyntheticRooms("train", cache_dir=tmp_path, **SMALL).cache_path(1),
    ]
    assert len({base, *others}) == 6


@pytest.mark.parametrize(
    "wrong",
    [
        {"split": "training"},
        {"sensor": "lidar"},
        {"normals": "true"},
        {"num_scenes": 0},
        {"num_views": 0},
        {"image_size": (0, 4)},
        {"seed": -1},
    ],
)
def test_wrong_arguments_are_named(wrong: dict) -> None:
    with pytest.raises(ValueError, match=r"expected .* got .*"):
        SyntheticRooms(**{**SMALL, **wrong})


def test_an_index_beyond_the_end_is_an_index_error() -> None:
    with pytest.raises(IndexError, match="2 scenes"):
        SyntheticRooms("train", **SMALL)[2]


def test_threads_that_make_the_same_scene_leave_one_whole_file(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    fresh = SyntheticRooms("train", **SMALL)[0]
    with ThreadPoolExecutor(4) as pool:
        datasets = [SyntheticRooms("train", cache_dir=tmp_path, **SMALL) for _ in range(4)]
        scenes = list(pool.map(lambda rooms: rooms[0], datasets))
    for scene in scenes:
        assert_equal(scene, fresh)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_loader_with_workers_gives_the_same_scenes(tmp_path: Path) -> None:
    from torch.utils.data import DataLoader

    rooms = SyntheticRooms("train", cache_dir=tmp_path, **SMALL)
    loader = DataLoader(rooms, batch_size=None, num_workers=2, collate_fn=None, multiprocessing_context="fork")  # type: ignore[arg-type]
    alone = SyntheticRooms("train", **SMALL)
    for scene, expected in zip(loader, (alone[0], alone[1]), strict=True):
        assert scene.name == expected.name
        np.testing.assert_array_equal(np.asarray(scene.coord), expected.coord)


def test_an_unwritable_cache_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        SyntheticRooms("train", cache_dir=tmp_path / "file", **SMALL)[0]


def test_colour_and_height_do_not_give_the_class_away() -> None:
    from ponder_zoo.data.synthetic.baseline import report

    figures = report("val", train_scenes=6, test_scenes=3, per_scene=600)
    for features in ("colour", "height", "height + normal", "colour + height + normal"):
        assert figures[features] < 0.3, features
    assert figures["oracle: whole objects"] > 0.6 > 2 * figures["colour + height + normal"]
    assert sum(value for name, value in figures.items() if name.startswith("share")) == pytest.approx(1.0)


def test_cells_of_ten_centimetres_can_hold_most_of_the_colour() -> None:
    from ponder_zoo.data.synthetic.baseline import color_psnr

    rooms = SyntheticRooms("val", num_scenes=2, num_views=4, image_size=(60, 80))
    constant, cells = color_psnr(rooms)
    assert cells > constant + 7
    assert color_psnr(rooms, cell=0.03)[1] > cells > color_psnr(rooms, cell=0.5)[1]


def test_nearest_neighbours_find_classes_that_features_do_give_away() -> None:
    """The baseline itself works: with the label among the features it is perfect."""
    from ponder_zoo.data.synthetic.baseline import mean_iou, nearest_neighbour_labels

    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 600)
    features = np.column_stack([labels + 0.01 * rng.normal(size=600), rng.normal(size=600)])
    assert mean_iou(nearest_neighbour_labels(features[:400], labels[:400], features[400:], k=3), labels[400:]) == 1.0
    assert mean_iou(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])) == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_a_contact_sheet_shows_what_was_asked_for() -> None:
    from ponder_zoo.data.synthetic.preview import contact_sheet

    sheet = contact_sheet(SyntheticRooms("train", **SMALL), range(2), [1])
    assert sheet.shape == (48, 96, 3) and sheet.dtype == np.uint8
    views = SyntheticRooms("train", **SMALL)[1].views
    assert views is not None
    np.testing.assert_array_equal(sheet[24:, :32], views.color[1])
