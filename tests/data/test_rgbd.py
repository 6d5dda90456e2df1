"""Folders of posed RGB-D frames: a folder written from the analytic room, and real sequences."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ponder_zoo.data.motion import move_scene
from ponder_zoo.data.rgbd import PosedRGBD, find_sequences
from ponder_zoo.data.rgbd_check import check_sequence
from ponder_zoo.data.rgbd_sequence import RGBDOptions, RGBDSequence, rotation_to_z
from ponder_zoo.data.scene import Views
from ponder_zoo.data.unproject import unproject, view_points
from ponder_zoo.ops.knn import knn_tree
from ponder_zoo.ops.rays import project_points

STORED = RGBDOptions(image_size=None, up="keep")
SEQUENCES = ["7scenes_redkitchen", "hololens_office", "iclnuim_livingroom_5"]


def write_sequence(folder: Path, views: Views, *, color: str = "png", scale: float = 1000.0) -> Path:
    folder.mkdir(parents=True)
    for index in range(len(views)):
        stem = folder / f"frame-{10 * index:06d}"
        Image.fromarray(views.color[index]).save(f"{stem}.color.{color}")
        Image.fromarray((views.depth[index] * scale).round().astype(np.uint16)).save(f"{stem}.depth.png")
        np.savetxt(f"{stem}.pose.txt", views.cam_to_world[index])
    np.savetxt(folder / "camera-intrinsics.txt", views.intrinsics[0])
    (folder / "meta.json").write_text(json.dumps({"depth_scale": scale, "invalid": [0, 65535]}))
    return folder


@pytest.fixture
def sequence(tmp_path: Path, make_views: Callable[..., Views]) -> Path:
    return write_sequence(tmp_path / "room", make_views(num_views=12, height=48, width=64))


# ---- reading


@pytest.mark.parametrize(("fy_sign", "color", "scale"), [(1.0, "png", 1000.0), (-1.0, "jpg", 5000.0)])
def test_what_was_written_is_read(
    tmp_path: Path, make_views: Callable[..., Views], fy_sign: float, color: str, scale: float
) -> None:
    # with y up in the camera, poses are rotations in a mirrored world only (as in ICL-NUIM)
    scene = move_scene(
        unproject(make_views(num_views=3, height=48, width=64, fy_sign=fy_sign)), np.diag([fy_sign, 1, 1])
    )
    views = scene.views
    read = RGBDSequence(write_sequence(tmp_path / "room", views, color=color, scale=scale), STORED).views([0, 2])
    np.testing.assert_allclose(read.depth, views.depth[[0, 2]], atol=0.51 / scale)
    np.testing.assert_allclose(read.cam_to_world, views.cam_to_world[[0, 2]], atol=1e-6)
    np.testing.assert_allclose(read.intrinsics, views.intrinsics[[0, 2]], atol=1e-5)
    assert np.abs(read.color.astype(int) - views.color[[0, 2]]).mean() < (0.01 if color == "png" else 4)
    agree = (read.normal * views.normal[[0, 2]]).sum(-1) > 0.99
    assert agree.mean() > 0.6


def test_resizing_keeps_points_on_the_surfaces(sequence: Path) -> None:
    scene = PosedRGBD(sequence, options=RGBDOptions(image_size=(24, 32), up="keep"), check=False, views_per_item=2)[0]
    assert scene.views.depth.shape == (2, 24, 32)
    distance = np.abs(np.stack([scene.coord, scene.coord - [4.0, 3.0, 2.5]], axis=-1)).min((1, 2))
    # the nearest stored pixel is half a stored pixel off the centre: 2 m / 51 px / 2 at most, where walls are oblique
    assert np.median(distance) < 0.02 and distance.max() < 0.08


def test_resized_intrinsics_see_pixel_centres_where_they_are(sequence: Path) -> None:
    reader = RGBDSequence(sequence, STORED)
    k = reader.resized_intrinsics((24, 32))
    # the middle of the image is (W - 1) / 2 in either size
    assert k[0, 2] == pytest.approx(15.5) and k[1, 2] == pytest.approx(11.5)
    assert k[0, 0] == pytest.approx(reader.intrinsics[0, 0] / 2)


def test_invalid_codes_and_far_readings_are_no_depth(sequence: Path) -> None:
    file = sequence / "frame-000000.depth.png"
    raw = np.asarray(Image.open(file)).copy()
    raw[0, 0], raw[0, 1], raw[0, 2] = 0, 65535, 20_000
    Image.fromarray(raw).save(file)
    depth = RGBDSequence(sequence, STORED).frame(0).depth
    assert not depth[0, :3].any() and depth[0, 3] > 0


def test_a_z_up_world_is_found_whatever_the_folder_uses(tmp_path: Path, make_views: Callable[..., Views]) -> None:
    views = make_views(num_views=8, height=48, width=64)
    turn = rotation_to_z(np.array([0.3, -0.8, 0.2])).T.astype(np.float32)  # z of the room -> this direction
    poses = views.cam_to_world.copy()
    poses[:, :3] = turn @ poses[:, :3]
    moved = write_sequence(tmp_path / "tilted", Views(views.color, views.depth, views.intrinsics, poses))
    reader = RGBDSequence(moved, RGBDOptions(image_size=None))
    up = turn @ [0.0, 0.0, 1.0]
    assert np.degrees(np.arccos(reader.estimate_up() @ up)) < 0.5
    given = RGBDSequence(moved, RGBDOptions(image_size=None, up=tuple(up)))
    for turned in (reader, given):
        np.testing.assert_allclose(turned.poses[:, 2, :3], views.cam_to_world[:, 2, :3], atol=0.01)
        np.testing.assert_allclose(turned.poses[:, 2, 3], views.cam_to_world[:, 2, 3], atol=0.02)


def test_other_conventions_can_be_named(tmp_path: Path, make_views: Callable[..., Views]) -> None:
    views = make_views(num_views=8, height=48, width=64)
    opengl = np.linalg.inv(views.cam_to_world.astype(np.float64) @ np.diag([1.0, -1, -1, 1]))
    folder = write_sequence(tmp_path / "gl", Views(views.color, views.depth, views.intrinsics, opengl))
    options = RGBDOptions(image_size=None, up="keep", pose="world_to_camera", axes="opengl")
    np.testing.assert_allclose(RGBDSequence(folder, options).poses, views.cam_to_world, atol=1e-5)


def test_frames_are_decoded_once_and_shared_through_a_cache_folder(sequence: Path, tmp_path: Path) -> None:
    options = RGBDOptions(image_size=(24, 32), cache_dir=str(tmp_path / "cache"))
    first = RGBDSequence(sequence, options)
    views = first.views([0, 1])
    for file in sequence.glob("*.color.png"):
        file.write_bytes(b"")  # neither reader may open them again
        times = first._cache_folder  # named from the state before
    second = RGBDSequence(sequence, options)
    second.__dict__["_cache_folder"] = times
    for reader in (first, second):
        again = reader.views([0, 1])
        assert np.array_equal(again.color, views.color) and np.array_equal(again.depth, views.depth)
    assert not list((tmp_path / "cache").rglob("*.tmp"))


# ---- items


def test_held_out_frames_are_in_no_training_item(sequence: Path) -> None:
    train = PosedRGBD(sequence, "train", views_per_item=3, frame_interval=2, holdout_every=4, check=False)
    val = PosedRGBD(sequence, "val", views_per_item=3, frame_interval=2, holdout_every=4, check=False)
    used = {frame for _, inputs, targets in train.items for frame in (*inputs, *targets)}
    held = {frame for _, _, targets in val.items for frame in targets}
    assert held == {3, 7, 11} and used == set(range(12)) - held
    assert all(set(inputs) <= used and len(inputs) == 3 for _, inputs, _ in val.items)
    scene = val[0]
    assert len(scene.views) == 1 and scene.name == "room/frame-000030"
    poses = RGBDSequence(sequence).poses
    np.testing.assert_allclose(scene.views.cam_to_world[0], poses[3], atol=1e-6)
    assert len(scene) == 3 * 120 * 160


def test_short_sequences_give_what_they_can(tmp_path: Path, make_views: Callable[..., Views]) -> None:
    folder = write_sequence(tmp_path / "short", make_views(num_views=4, height=24, width=32))
    train = PosedRGBD(folder, views_per_item=5, frame_interval=10, options=STORED, check=False)
    val = PosedRGBD(folder, "val", options=STORED, check=False)
    assert [item[1] for item in train.items] == [[0, 1, 2]] and [item[2] for item in val.items] == [[3]]
    assert len(train[0].views) == 3 and train[0].normal is not None


def test_several_sequences_are_read_jointly(tmp_path: Path, make_views: Callable[..., Views]) -> None:
    for name in ("b", "a"):
        write_sequence(tmp_path / name, make_views(num_views=4, height=24, width=32))
    assert [path.name for path in find_sequences(tmp_path)] == ["a", "b"]
    both = PosedRGBD(tmp_path, views_per_item=2, frame_interval=1, options=STORED, check=False)
    listed = PosedRGBD([tmp_path / "a", tmp_path / "b"], views_per_item=2, options=STORED, check=False)
    assert {both[i].name.split("/")[0] for i in range(len(both))} == {"a", "b"} and len(listed.sequences) == 2


def test_frames_without_depth_are_skipped_and_named_in_the_log(
    sequence: Path, caplog: pytest.LogCaptureFixture
) -> None:
    empty = Image.fromarray(np.zeros((48, 64), np.uint16))
    empty.save(sequence / "frame-000010.depth.png")
    data = PosedRGBD(sequence, views_per_item=3, frame_interval=1, holdout_every=None, options=STORED, check=False)
    with caplog.at_level(logging.WARNING):
        assert len(data[0].views) == 2
        assert len(data[1].views) == 2
    assert caplog.text.count("frame-000010 is left out") == 1 and "0.00 %" in caplog.text
    for file in sequence.glob("*.depth.png"):
        empty.save(file)
    with pytest.raises(ValueError, match=r"none of the 12 frames.*depth_scale"):
        PosedRGBD(sequence, views_per_item=3, holdout_every=None, options=STORED, check=False)[0]
    assert "Only 0.0 % of the pixels have a valid depth" in str(check_sequence(sequence))


# ---- what can be wrong with a folder


def expect_error(sequence: Path, *words: str, options: RGBDOptions = STORED) -> None:
    with pytest.raises(ValueError) as caught:
        data = PosedRGBD(sequence, views_per_item=12, frame_interval=1, holdout_every=None, options=options)
        data[0]
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_inverse_poses_are_recognized(sequence: Path, make_views: Callable[..., Views]) -> None:
    assert check_sequence(sequence).ok
    for file in sequence.glob("*.pose.txt"):
        np.savetxt(file, np.linalg.inv(np.loadtxt(file)))
    expect_error(sequence, "world-to-camera", "pose='world_to_camera'")
    assert check_sequence(sequence, RGBDOptions(image_size=None, pose="world_to_camera")).ok


def test_imprecise_poses_are_remarked_on_but_read(sequence: Path, caplog: pytest.LogCaptureFixture) -> None:
    rng = np.random.default_rng(0)
    for file in sequence.glob("*.pose.txt"):
        pose = np.loadtxt(file)
        pose[:3, 3] += rng.normal(0, 0.15, 3)
        np.savetxt(file, pose)
    report = check_sequence(sequence, STORED)
    assert report.ok and "expected about 1 %" in str(report), str(report)
    with caplog.at_level(logging.WARNING):
        PosedRGBD(sequence, options=STORED)
    assert "expected about 1 %" in caplog.text


def test_opengl_axes_are_recognized(sequence: Path) -> None:
    for file in sequence.glob("*.pose.txt"):
        np.savetxt(file, np.loadtxt(file) @ np.diag([1.0, -1, -1, 1]))
    expect_error(sequence, "OpenGL", "axes='opengl'")


@pytest.mark.parametrize(("wrong", "said"), [(5000.0, "1000"), (200.0, "1000")])
def test_other_depth_units_are_recognized(sequence: Path, wrong: float, said: str) -> None:
    options = RGBDOptions(image_size=None, depth_scale=wrong, max_depth=100.0)
    expect_error(sequence, f"pass depth_scale={said}", options=options)


def test_millimetres_taken_as_metres_are_recognized(sequence: Path) -> None:
    options = RGBDOptions(image_size=None, depth_scale=1.0, max_depth=1e5)
    expect_error(sequence, "median depth", "depth_scale", "1000 for millimetres", options=options)


def test_intrinsics_of_another_image_size_are_recognized(sequence: Path) -> None:
    np.savetxt(sequence / "camera-intrinsics.txt", [[520, 0, 320], [0, 520, 240], [0, 0, 1]])
    expect_error(sequence, "64x48", "640x480", "scale them")


def test_a_missing_pose_is_an_error_or_skipped(sequence: Path) -> None:
    (sequence / "frame-000020.pose.txt").unlink()
    expect_error(sequence, "frame-000020 has no pose.txt", "missing='skip'")
    assert len(RGBDSequence(sequence, RGBDOptions(missing="skip"))) == 11


def test_lost_tracking_and_scaled_poses_name_the_file(sequence: Path) -> None:
    file = sequence / "frame-000020.pose.txt"
    good = np.loadtxt(file)
    np.savetxt(file, np.full((4, 4), -np.inf))
    expect_error(sequence, file.name, "tracking was lost")
    np.savetxt(file, good * 1000)
    expect_error(sequence, file.name, "singular values")
    file.write_text("1 0 0 zero")
    expect_error(sequence, file.name, "rows of numbers")


def test_unreadable_and_truncated_images_name_the_file(sequence: Path) -> None:
    for name in ("frame-000020.color.png", "frame-000020.depth.png"):
        file = sequence / name
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
        expect_error(sequence, name, "Copy the file again")
        file.write_bytes(b"not an image")
        expect_error(sequence, name, "Copy the file again")
        file.write_bytes(whole)
    shutil.copy(sequence / "frame-000000.color.png", sequence / "frame-000020.depth.png")
    expect_error(sequence, "16-bit grey")


def test_a_frame_of_another_size_is_an_error(sequence: Path) -> None:
    Image.fromarray(np.full((24, 32), 1000, np.uint16)).save(sequence / "frame-000020.depth.png")
    expect_error(sequence, "frame-000020.depth.png", "expected 64x48", "got 32x24")


def test_colour_of_another_shape_is_an_error(sequence: Path) -> None:
    Image.fromarray(np.zeros((48, 48, 3), np.uint8)).save(sequence / "frame-000020.color.png")
    expect_error(sequence, "48x48", "different shape")


def test_missing_folders_and_files_are_explained(tmp_path: Path, sequence: Path) -> None:
    expect_error(tmp_path / "nowhere", "expected a folder")
    (tmp_path / "empty").mkdir()
    expect_error(tmp_path / "empty", "found none")
    (sequence / "camera-intrinsics.txt").unlink()
    expect_error(sequence, "camera-intrinsics.txt", "intrinsics=(fx, fy, cx, cy)")
    given = RGBDOptions(image_size=None, intrinsics=(51.2, 51.2, 31.5, 23.5))
    assert check_sequence(sequence, given).ok


def test_an_error_in_a_worker_reaches_the_caller_with_the_file_name(sequence: Path) -> None:
    (sequence / "frame-000050.color.png").write_bytes(b"broken")
    data = PosedRGBD(sequence, views_per_item=2, frame_interval=1, holdout_every=None, options=STORED, check=False)
    loader = torch.utils.data.DataLoader(
        data, batch_size=1, num_workers=1, collate_fn=lambda items: items[0].name, timeout=60
    )
    with pytest.raises(ValueError, match="frame-000050"):
        list(loader)


# ---- real frames


@pytest.mark.parametrize("name", SEQUENCES)
def test_real_sequences_pass_the_check_and_match_their_readme(shared_dir: Path, name: str) -> None:
    report = check_sequence(shared_dir / "data/rgbd" / name)
    assert report.ok, str(report)
    assert report.nn_distance < 0.022  # README: 0.9-1.1, 1.5 and 1.3-2.2 cm
    wrong = [value for key, value in report.alternatives.items() if "depth" not in key and np.isfinite(value)]
    assert min(wrong) > 3 * report.nn_relative
    expected_valid = {"7scenes_redkitchen": 0.88, "hololens_office": 0.65, "iclnuim_livingroom_5": 1.0}[name]
    assert report.valid_fraction == pytest.approx(expected_valid, abs=0.02)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        (SEQUENCES[0], RGBDOptions(pose="world_to_camera"), "pose='world_to_camera'"),
        (SEQUENCES[0], RGBDOptions(axes="opengl"), "axes='opengl'"),
        (SEQUENCES[0], RGBDOptions(depth_scale=200.0), "pass depth_scale=1000"),
        (SEQUENCES[1], RGBDOptions(pose="world_to_camera"), "pose='world_to_camera'"),
        (SEQUENCES[2], RGBDOptions(depth_scale=1000.0, max_depth=50.0), "pass depth_scale=5000"),
        (SEQUENCES[2], RGBDOptions(intrinsics=(481.2, 480.0, 319.5, 239.5)), "negative fy"),
    ],
)
def test_real_sequences_read_wrongly_fail_the_check(
    shared_dir: Path, name: str, options: RGBDOptions, said: str
) -> None:
    report = check_sequence(shared_dir / "data/rgbd" / name, options, num_pairs=8)
    with pytest.raises(ValueError) as caught:
        report.raise_for_problems()
    assert said in str(caught.value) and "check=False" in str(caught.value)


def test_frames_20_apart_lie_a_centimetre_from_each_other(shared_dir: Path) -> None:
    sequence = RGBDSequence(shared_dir / "data/rgbd/7scenes_redkitchen", RGBDOptions(image_size=(240, 320)))
    found = []
    for start in (0, 60, 120):
        a, b = (unproject(sequence.views([index])).coord for index in (start, start + 4))
        found.append(np.median(knn_tree(b[::37], a, 1)[0]))
    assert np.median(found) < 0.012  # README: median 0.9 cm at full size


@pytest.mark.parametrize(
    ("name", "pair", "least"),
    [(SEQUENCES[0], (0, 2), 0.95), (SEQUENCES[1], (0, 2), 0.95), (SEQUENCES[2], (0, 1), 0.97)],
)
def test_colours_agree_where_frames_overlap(shared_dir: Path, name: str, pair: tuple[int, int], least: float) -> None:
    views = RGBDSequence(shared_dir / "data/rgbd" / name, RGBDOptions(image_size=(240, 320))).views(list(pair))
    right, shifted = (photometric_correlation(views, shift) for shift in (0, 10))
    assert right > least and shifted < right - 0.05


def photometric_correlation(views: Views, shift: int) -> float:
    """Correlation of grey values of points of frame 1 with those of frame 0 where they project (README's check)."""
    grey = views.color.astype(np.float32).mean(-1)
    keep = views.depth[1] > 0
    points = torch.from_numpy(view_points(views)[1][keep])
    pixels, z = project_points(points, torch.from_numpy(views.intrinsics[0]), torch.from_numpy(views.cam_to_world[0]))
    u, v = pixels.round().long().T.numpy()
    u = u + shift
    H, W = grey.shape[1:]
    inside = (z.numpy() > 0) & (u >= 0) & (u < W) & (v >= 0) & (v < H)
    other = views.depth[0][v[inside], u[inside] - shift if shift == 0 else u[inside]]
    visible = np.abs(other - z.numpy()[inside]) < 0.03 * z.numpy()[inside] if shift == 0 else other > 0
    return float(np.corrcoef(grey[1][keep][inside][visible], grey[0][v[inside], u[inside]][visible])[0, 1])


@pytest.mark.parametrize(("name", "up"), [(SEQUENCES[1], [0, 1, 0]), (SEQUENCES[2], [0, 1, 0])])
def test_the_vertical_of_y_up_worlds_is_found(shared_dir: Path, name: str, up: list[int]) -> None:
    assert RGBDSequence(shared_dir / "data/rgbd" / name).estimate_up().tolist() == up


def test_walls_are_upright_in_the_turned_world(shared_dir: Path) -> None:
    scene = PosedRGBD(shared_dir / "data/rgbd/7scenes_redkitchen", check=False)[40]
    nz = scene.normal[scene.normal.any(1), 2]
    assert ((np.abs(nz) < 0.1) | (np.abs(nz) > 0.98)).mean() > 0.35  # 0.1 + 0.02 of them if directions were random
