"""S3DIS and 2D-3D-S from a miniature of the download; the generator's exact surfaces are the oracle."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data.raw_rooms import RawRoom
from data.raw_s3dis import ROOMS, s3dis_class, write_s3dis
from data.skips import Skips, no_skip
from PIL import Image

from ponder_zoo.data.checks import check_scene
from ponder_zoo.data.files import read_image
from ponder_zoo.data.prepare.mesh_normals import nearest_normals
from ponder_zoo.data.prepare.record import Frame, PreparedScene
from ponder_zoo.data.prepare.s3dis import S3DIS, _area_mesh
from ponder_zoo.data.scene import Views
from ponder_zoo.data.synthetic import signed_distance
from ponder_zoo.data.unproject import view_points
from ponder_zoo.ops.knn import knn_tree

OFFICE = "Area_1_office_1"


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_s3dis(tmp_path_factory.mktemp("s3dis"))


@pytest.fixture
def copy(raw: Path, tmp_path: Path) -> Path:
    """A raw folder that a test may damage."""
    return Path(shutil.copytree(raw, tmp_path / "raw"))


def views_of(frame: Frame) -> Views:
    segment = None if frame.segment is None else read_image(frame.segment, "")[None].astype(np.int16) - 1
    return Views(
        color=read_image(frame.color, "")[None],
        depth=read_image(frame.depth, "")[None].astype(np.float32) * frame.depth_scale,
        intrinsics=frame.intrinsics[None].astype(np.float32),
        cam_to_world=frame.cam_to_world[None].astype(np.float32),
        segment=segment,
    )


def distance_to_cloud(views: Views, prepared: PreparedScene) -> tuple[np.ndarray, np.ndarray]:
    """Of every pixel with depth, in metres, and the row of the nearest point."""
    seen = view_points(views)[views.depth > 0]
    distance, row = knn_tree(seen, prepared.scene.coord, 1)
    return distance[:, 0], row[:, 0]


def test_the_rooms_of_all_areas_are_found_and_a_reader_can_be_sent_to_a_worker(raw: Path) -> None:
    reader = pickle.loads(pickle.dumps(S3DIS(raw)))
    assert reader.scenes() == ["Area_1_hallway_2", OFFICE, "Area_5_office_12"]
    assert [reader.split(scene) for scene in reader.scenes()] == ["Area_1", "Area_1", "Area_5"]
    with pytest.raises(ValueError, match="Area_1 to Area_6"):
        S3DIS(raw / "2d3ds").scenes()


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_images_land_on_the_cloud_with_the_same_labels(raw: Path, number: int, aligned: bool) -> None:
    scene = ROOMS[number][0].replace("/", "_")
    prepared = S3DIS(raw, aligned=aligned, image_stride=1).read(scene, no_skip)
    check_scene(prepared.scene)
    assert prepared.split == scene[:6] and len(prepared.frames) == 3
    agree = []
    for frame in prepared.frames:
        views = views_of(frame)
        distance, row = distance_to_cloud(views, prepared)
        assert np.median(distance) < 0.1  # the spacing of the points
        assert views.segment is not None
        label = views.segment[views.depth > 0]
        near = distance < 0.03
        agree.append(label[near] == prepared.scene.segment[row[near]])
    assert np.concatenate(agree).mean() > 0.9


def test_an_aligned_room_is_turned_by_minus_its_angle_about_its_middle(raw: Path) -> None:
    for name, _, degrees, _, number in ROOMS:
        scene = name.replace("/", "_")
        turned = S3DIS(raw, frames=False, mesh_normals=False).read(scene, no_skip).scene.coord
        plain = S3DIS(raw, frames=False, aligned=False, mesh_normals=False).read(scene, no_skip).scene.coord
        middle = (plain.max(0) + plain.min(0)) / 2
        np.testing.assert_allclose((turned.max(0) + turned.min(0)) / 2, middle, atol=1e-4)
        if degrees == 0:
            np.testing.assert_array_equal(turned, plain)
        room = RawRoom.draw(number, num_views=3, image_size=(54, 54)).room
        low, high = room.plan.rectangles[:, :2].min(0), room.plan.rectangles[:, 2:].max(0)
        shift = middle[:2] - (low + high) / 2  # up to how far walls stand out: the box is that of the surfaces
        back = turned - np.append(shift, turned[:, 2].min())
        assert np.median(np.abs(signed_distance(room.primitives, back[::10]))) < 0.15


def test_every_point_has_the_class_of_its_file_and_unknown_names_are_clutter(raw: Path) -> None:
    reader = S3DIS(raw, frames=False, mesh_normals=False)
    names = np.array(reader.classes["segment"])
    prepared = reader.read(OFFICE, no_skip)
    for file in sorted((raw / "Stanford3dDataset_v1.2" / "Area_1/office_1/Annotations").iterdir()):
        rows = np.loadtxt(file, ndmin=2)
        color = (prepared.scene.color == rows[0, 3:]).all(1)
        expected = "clutter" if file.stem.startswith("stairs") else file.stem.split("_")[0]
        assert (names[prepared.scene.segment[color]] == expected).all() and color.sum() >= len(rows)
    raw_room = RawRoom.draw(0, num_views=3, image_size=(54, 54))
    assert set(names[prepared.scene.segment]) <= {s3dis_class(name) for name in raw_room.class_names}
    assert "ceiling" in names[prepared.scene.segment] and "wall" in names[prepared.scene.segment]
    assert len(np.unique(prepared.scene.instance)) == len(
        list((raw / "Stanford3dDataset_v1.2/Area_1/office_1/Annotations").iterdir())
    )


def test_normals_of_the_mesh_are_those_of_the_surfaces(raw: Path) -> None:
    exact = S3DIS(raw, frames=False).read(OFFICE, no_skip).scene
    guess = S3DIS(raw, frames=False, mesh_normals=False).read(OFFICE, no_skip).scene
    floor = exact.segment == 1
    assert (exact.normal[floor, 2] > 0.99).mean() > 0.9  # not all: where it meets walls
    assert (exact.normal[exact.segment == 0, 2] < -0.99).mean() > 0.9  # the ceiling faces down
    same = np.abs((exact.normal * guess.normal).sum(1)) > 0.9
    assert same.mean() > 0.7


def test_a_mesh_that_cannot_be_read_or_lies_elsewhere_is_said_and_normals_are_estimated(copy: Path) -> None:
    guess = S3DIS(copy, frames=False, mesh_normals=False).read(OFFICE, no_skip).scene.normal
    mesh = copy / "2d3ds/area_1/3d/rgb.obj"
    for text, reason in (
        ("v 0 0 0\nf 1 2 3\n", "refer to 1 vertices"),
        ("v 0 0 0\nv 1 0 0\nv 0 0 1\nf 1 2 3\n", "0.5 m"),
    ):
        mesh.write_text(text)
        _area_mesh.cache_clear()
        skips = Skips()
        np.testing.assert_array_equal(S3DIS(copy, frames=False).read(OFFICE, skips).scene.normal, guess)
        ((item, found),) = skips.items()
        assert item == "Area_1/office_1: mesh" and reason in found


def test_the_normal_is_that_of_the_nearest_triangle() -> None:
    vertices = np.array([[0, 0, 0], [4.0, 0, 0], [0, 4, 0], [0, 0, 1], [0, 4, 1]])
    faces = np.array([[0, 1, 2], [0, 2, 3], [0, 3, 1], [0, 0, 1]])  # floor, two walls, nothing
    points = np.array([[1.0, 1.0, 0.04], [0.03, 1.0, 0.4], [1.0, 0.02, 0.5]])
    np.testing.assert_allclose(nearest_normals(points, vertices, faces), [[0, 0, 1], [1, 0, 0], [0, 1, 0]], atol=1e-6)


def test_depth_is_picked_and_cameras_follow_the_stride(raw: Path) -> None:
    full, half, third = (S3DIS(raw, image_stride=stride).read(OFFICE, no_skip).frames[1] for stride in (1, 2, 3))
    depth = read_image(full.depth, "")
    np.testing.assert_array_equal(read_image(half.depth, ""), depth[1::2, 1::2])
    np.testing.assert_array_equal(read_image(third.depth, ""), depth[1::3, 1::3])
    points = view_points(views_of(full))[0]
    np.testing.assert_allclose(view_points(views_of(half))[0], points[1::2, 1::2], atol=1e-4)
    np.testing.assert_allclose(view_points(views_of(third))[0], points[1::3, 1::3], atol=1e-4)
    assert read_image(third.color, "").shape == (18, 18, 3)


def test_labels_of_images_are_read_with_and_without_the_list_of_names(copy: Path) -> None:
    with_list = S3DIS(copy).read(OFFICE, no_skip).frames
    (copy / "2d3ds/assets/semantic_labels.json").unlink()
    without = S3DIS(copy).read(OFFICE, no_skip).frames
    assert [frame.segment for frame in with_list] == [frame.segment for frame in without]


def test_pixels_that_show_another_room_lose_their_depth_and_such_images_are_left_out(copy: Path) -> None:
    annotations = copy / "Stanford3dDataset_v1.2/Area_1/office_1/Annotations"
    for file in annotations.glob("*.txt"):
        if file.stem.split("_")[0] not in ("floor", "table"):
            file.unlink()
    skips = Skips()
    prepared = S3DIS(copy, image_stride=1).read(OFFICE, skips)
    for frame in prepared.frames:
        assert distance_to_cloud(views_of(frame), prepared)[0].max() < 0.35
    assert len(prepared.frames) + len(skips) == 3 and all("a frame needs 25%" in reason for reason in skips.values())


def test_bytes_that_lost_a_bit_are_mended_and_unreadable_rows_are_skipped(
    copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = copy / "Stanford3dDataset_v1.2/Area_1/office_1/Annotations/ceiling_1.txt"
    rows = np.loadtxt(file)
    lines = file.read_bytes().splitlines()
    lines[3] = lines[3].replace(b"0", b"\x10", 1).replace(b" ", b"\x00", 1)  # as in the release
    lines[5] = b"1.0 2.0 nan 1 2 3"
    lines[7] = b"1.0 2.0 three 1 2 3"
    lines[9] = b"1.0 2.0 3.0"
    file.write_bytes(b"\n".join(lines))
    skips = Skips()
    scene = S3DIS(copy, frames=False, aligned=False, mesh_normals=False).read(OFFICE, skips).scene
    assert sorted(skips) == [f"Area_1/office_1/ceiling_1.txt:{number}" for number in (10, 6, 8)]
    ceiling = scene.coord[scene.segment == 0]
    assert len(ceiling) == len(rows) - 3
    np.testing.assert_allclose(ceiling[3], rows[3, :3], atol=1e-6)
    assert "Area_1/office_1/ceiling_1.txt:4 holds a damaged byte" in caplog.text


def test_a_copy_of_an_annotation_is_not_read_twice(copy: Path) -> None:
    reader = S3DIS(copy, frames=False, mesh_normals=False)
    before = len(reader.read(OFFICE, no_skip).scene)
    annotations = copy / "Stanford3dDataset_v1.2/Area_1/office_1/Annotations"
    shutil.copy(annotations / "ceiling_1.txt", annotations / "ceiling_1 (1).txt")
    assert len(reader.read(OFFICE, no_skip).scene) == before


def damage_pose(values: dict[str, object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        file = next((folder / "pose").glob("*_office_1_frame_1_*"))
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return damage


def cut(kind: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        file = next((folder / kind).glob("*_office_1_frame_1_*"))
        file.write_bytes(file.read_bytes()[:200])

    return damage


def shrink(folder: Path) -> None:
    file = next((folder / "rgb").glob("*_office_1_frame_1_*"))
    Image.open(file).resize((27, 27)).save(file)


def remove(folder: Path) -> None:
    next((folder / "depth").glob("*_office_1_frame_1_*")).unlink()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (cut("depth"), "readable image"),
        (cut("rgb"), "readable image"),
        (cut("pose"), "expected JSON"),
        (shrink, "expected 54x54 pixels"),
        (remove, "No such file"),
        (damage_pose({"camera_rt_matrix": [[float("nan")] * 4] * 3}), "expected a rotation"),
        (damage_pose({"camera_location": [0.0, 0.0, 0.0]}), "does not take camera_location to the origin"),
        (damage_pose({"camera_k_matrix": [[60, 0, 270.0], [0, 60, 270.0], [0, 0, 1]]}), "principal point"),
        (damage_pose({"camera_k_matrix": None}), "expected JSON|expected matrices"),
    ],
)
def test_a_damaged_image_is_skipped_with_a_reason(copy: Path, damage: Callable[[Path], None], reason: str) -> None:
    damage(copy / "2d3ds/area_1/data")
    skips = Skips()
    frames = S3DIS(copy, mesh_normals=False).read(OFFICE, skips).frames
    assert [frame.name[-1] for frame in frames] == ["0", "2"]
    ((item, found),) = skips.items()
    assert item.endswith("office_1_frame_1")
    assert re.search(reason, found)


def test_an_image_with_damaged_labels_is_kept_without_them(copy: Path) -> None:
    cut("semantic")(copy / "2d3ds/area_1/data")
    skips = Skips()
    frames = S3DIS(copy, mesh_normals=False).read(OFFICE, skips).frames
    assert [frame.segment is None for frame in frames] == [False, True, False]
    assert next(iter(skips)).endswith("office_1_frame_1_domain_semantic")


def test_a_room_without_an_angle_is_said_and_one_without_points_is_an_error(copy: Path) -> None:
    (copy / "Stanford3dDataset_v1.2/Area_1/Area_1_alignmentAngle.txt").unlink()
    skips = Skips()
    S3DIS(copy, frames=False, mesh_normals=False).read(OFFICE, skips)
    assert list(skips) == ["Area_1_alignmentAngle.txt:office_1"]
    shutil.rmtree(copy / "Stanford3dDataset_v1.2/Area_1/office_1/Annotations")
    with pytest.raises(ValueError, match="Annotations"):
        S3DIS(copy).read(OFFICE, skips)
    with pytest.raises(ValueError, match="no scene"):
        S3DIS(copy).read("Area_2_office_1", skips)


def test_reading_changes_nothing_in_the_raw_folder(raw: Path) -> None:
    def state() -> list[tuple[str, int, int]]:
        return sorted((str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in raw.rglob("*") if f.is_file())

    before = state()
    S3DIS(raw).read(OFFICE, no_skip)
    assert state() == before
