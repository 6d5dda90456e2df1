"""Structured3D from a miniature of the download; the generator's exact surfaces are the oracle."""

from __future__ import annotations

import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data.raw_rooms import RawRoom, png
from data.raw_structured3d import NYU40, write_structured3d, zip_structured3d
from data.skips import Skips, no_skip

from ponder_zoo.data.checks import check_scene
from ponder_zoo.data.files import read_image
from ponder_zoo.data.prepare.record import Frame, PreparedScene
from ponder_zoo.data.prepare.structured3d import Structured3D, panorama_rays
from ponder_zoo.data.prepare.table_files import read_table
from ponder_zoo.data.scene import Views
from ponder_zoo.data.synthetic import signed_distance
from ponder_zoo.data.synthetic.geometry import distance_to
from ponder_zoo.data.unproject import view_points

BEDROOM = "scene_00000_room_485142"
SIZE = (54, 96)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_structured3d(tmp_path_factory.mktemp("structured3d"), size=SIZE)


@pytest.fixture
def copy(raw: Path, tmp_path: Path) -> Path:
    """A raw folder that a test may damage."""
    return Path(shutil.copytree(raw, tmp_path / "raw"))


@pytest.fixture(scope="module")
def room() -> RawRoom:
    return RawRoom.draw(0, num_views=3, image_size=SIZE)


def room_folder(root: Path) -> Path:
    return root / "Structured3D/scene_00000/2D_rendering/485142"


def seen_points(frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    """World position of the pixels with depth, and their class."""
    assert frame.segment is not None
    depth = read_image(frame.depth, "")[None].astype(np.float32) * np.float32(frame.depth_scale)
    views = Views(
        color=read_image(frame.color, "")[None],
        depth=depth,
        intrinsics=frame.intrinsics[None].astype(np.float32),
        cam_to_world=frame.cam_to_world[None].astype(np.float32),
    )
    segment = read_image(frame.segment, "").astype(int) - 1
    return view_points(views)[depth > 0], segment[depth[0] > 0]


def class_at(room: RawRoom, points: np.ndarray) -> np.ndarray:
    """Class index of the nearest primitive, -1 where Structured3D's 25 classes have none."""
    primitives = room.room.primitives
    distance = np.stack(
        [
            np.abs(
                distance_to(
                    int(primitives.kind[p]),
                    primitives.half[p],
                    (points - primitives.center[p]) @ primitives.rotation[p],
                )
            )
            for p in range(len(primitives))
        ]
    )
    ids = list(read_table("structured3d")["ids"].values())
    table = np.array([ids.index(NYU40[name]) if NYU40[name] in ids else -1 for name in room.class_names])
    return table[distance.argmin(0)]


def test_rooms_and_their_splits(raw: Path) -> None:
    reader = pickle.loads(pickle.dumps(Structured3D(raw)))
    assert reader.scenes() == [BEDROOM, "scene_03100_room_17", "scene_03400_room_2053"]
    assert [reader.split(scene) for scene in reader.scenes()] == ["train", "val", "test"]
    edges = [reader.split(f"scene_{number:05d}_room_1") for number in (2999, 3000, 3249, 3250)]
    assert edges == ["train", "val", "val", "test"]
    with pytest.raises(ValueError, match="zip files or folders scene_00000"):
        Structured3D(raw / "Structured3D/scene_00000/2D_rendering").scenes()


def test_points_lie_on_the_surfaces_that_the_images_show(raw: Path, room: RawRoom) -> None:
    prepared = Structured3D(raw).read(BEDROOM, no_skip)
    check_scene(prepared.scene)
    distance = signed_distance(room.room.primitives, prepared.scene.coord)
    assert np.abs(distance).max() < 1e-3  # depth is stored in millimetres
    assert len(np.unique(np.floor(prepared.scene.coord / 0.01), axis=0)) == len(prepared.scene)


@pytest.mark.parametrize("kind", ["panorama", "perspective"])
def test_either_kind_of_image_is_enough_and_lies_on_the_surfaces(copy: Path, room: RawRoom, kind: str) -> None:
    shutil.rmtree(room_folder(copy) / kind)
    prepared = Structured3D(copy).read(BEDROOM, no_skip)
    assert len(prepared.frames) == (3 if kind == "panorama" else 0)
    assert np.abs(signed_distance(room.room.primitives, prepared.scene.coord)).max() < 1e-3


@pytest.mark.parametrize("kind", ["panorama", "perspective"])
def test_normals_are_those_of_the_surfaces(copy: Path, room: RawRoom, kind: str) -> None:
    shutil.rmtree(room_folder(copy) / kind)
    scene = Structured3D(copy).read(BEDROOM, no_skip).scene
    step = 1e-4 * np.eye(3)
    gradient = np.stack(
        [
            signed_distance(room.room.primitives, scene.coord[::5] + step[axis])
            - signed_distance(room.room.primitives, scene.coord[::5] - step[axis])
            for axis in range(3)
        ],
        axis=1,
    )
    cosine = (scene.normal[::5] * gradient).sum(1) / 2e-4
    assert (cosine > 0.97).mean() > 0.8 and np.median(cosine) > 0.995
    flat = scene.normal[scene.segment == 1]  # floor
    assert (flat[:, 2] > 0.98).mean() > 0.8  # not all: the window of a coarse image reaches over edges


def test_frames_land_on_the_surfaces_with_their_classes(raw: Path, room: RawRoom) -> None:
    for stride in (1, 2):
        for frame in Structured3D(raw, image_stride=stride).read(BEDROOM, no_skip).frames:
            points, segment = seen_points(frame)
            assert np.abs(signed_distance(room.room.primitives, points)).max() < 1e-3
            assert (segment[::4] == class_at(room, points[::4])).mean() > 0.97  # not all: where two surfaces meet
    assert np.abs(frame.cam_to_world[:3, :3] @ frame.cam_to_world[:3, :3].T - np.eye(3)).max() < 1e-9


def test_points_have_the_class_of_their_surface_by_name(raw: Path, room: RawRoom) -> None:
    reader = Structured3D(raw)
    scene = reader.read(BEDROOM, no_skip).scene
    assert (scene.segment[::4] == class_at(room, scene.coord[::4])).mean() > 0.97
    names = np.array(reader.classes["segment"])
    low, high = np.quantile(scene.coord[:, 2], [0.01, 0.99])
    assert set(names[scene.segment[(scene.coord[:, 2] < low) & (scene.segment >= 0)]]) == {"floor"}
    assert "ceiling" in names[scene.segment[scene.coord[:, 2] > high]]


def test_the_middle_of_a_panorama_looks_along_y_and_its_derivatives_are_right() -> None:
    ray, across, down = panorama_rays(64, 128)
    np.testing.assert_allclose(np.linalg.norm(ray, axis=-1), 1, atol=1e-12)
    np.testing.assert_allclose(ray[31:33, 63:65].mean((0, 1)), [0, 1, 0], atol=1e-3)
    assert ray[32, 96, 0] > 0.99 and ray[0, 0, 2] > 0.99  # right is +x, the first row is up
    np.testing.assert_allclose((ray[:, 2:] - ray[:, :-2]) / 2, across[:, 1:-1], atol=1e-4)
    np.testing.assert_allclose((ray[2:] - ray[:-2]) / 2, down[1:-1], atol=1e-4)


def test_zip_files_give_the_same_as_folders(raw: Path, tmp_path: Path) -> None:
    zipped = Structured3D(zip_structured3d(raw, tmp_path / "zips"))
    assert zipped.scenes() == Structured3D(raw).scenes()
    for scene in zipped.scenes()[:2]:
        one, other = zipped.read(scene, no_skip), Structured3D(raw).read(scene, no_skip)
        assert_same(one, other)
    (tmp_path / "zips" / "Structured3D_panorama_01.zip").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(ValueError, match=r"panorama_01\.zip"):
        Structured3D(tmp_path / "zips").scenes()


def assert_same(one: PreparedScene, other: PreparedScene) -> None:
    for field in ("coord", "color", "normal", "segment"):
        np.testing.assert_array_equal(getattr(one.scene, field), getattr(other.scene, field))
    assert [(f.name, f.color, f.depth, f.segment) for f in one.frames] == [
        (f.name, f.color, f.depth, f.segment) for f in other.frames
    ]


def test_scenes_that_the_authors_call_invalid_are_left_out(copy: Path) -> None:
    shutil.move(copy / "Structured3D/scene_00000", copy / "Structured3D/scene_01155")
    assert Structured3D(copy).scenes() == ["scene_03100_room_17", "scene_03400_room_2053"]


def test_what_is_seen_through_windows_is_left_out(copy: Path) -> None:
    view = room_folder(copy) / "perspective/full/1"
    ids = read_image((view / "semantic.png").read_bytes(), "").copy()
    ids[:27] = 0
    (view / "semantic.png").write_bytes(png(ids))
    frame = Structured3D(copy, image_stride=1).read(BEDROOM, no_skip).frames[1]
    depth = read_image(frame.depth, "")
    assert not depth[:27].any() and depth[27:].any()


def write(name: str, text: str) -> Callable[[Path], None]:
    return lambda view: (view / name).write_text(text) and None


def cut(name: str) -> Callable[[Path], None]:
    return lambda view: (view / name).write_bytes((view / name).read_bytes()[:100]) and None


def shrink(view: Path) -> None:
    (view / "rgb_rawlight.png").write_bytes(png(np.zeros((27, 48, 3), np.uint8)))


def blind(view: Path) -> None:
    (view / "depth.png").write_bytes(png(np.zeros(SIZE, np.uint16)))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (cut("depth.png"), "readable image"),
        (cut("rgb_rawlight.png"), "readable image"),
        (cut("semantic.png"), "readable image"),
        (shrink, "expected 96x54 pixels"),
        (blind, "0% of its pixels"),
        (lambda view: (view / "depth.png").unlink(), "No such file"),
        (write("camera_pose.txt", "0 0 0 nan 0 0 0 0 1 0.7 0.4 1"), "11 finite numbers"),
        (write("camera_pose.txt", "0 0 0 1 0 0"), "11 finite numbers"),
        (write("camera_pose.txt", "0 0 0 0 0 1 0 0 1 0.7 0.4 1"), "a view direction"),
        (write("camera_pose.txt", "garbage"), "expected numbers"),
    ],
)
def test_a_damaged_image_is_skipped_with_a_reason(copy: Path, damage: Callable[[Path], None], reason: str) -> None:
    damage(room_folder(copy) / "perspective/full/1")
    skips = Skips()
    frames = Structured3D(copy).read(BEDROOM, skips).frames
    assert [frame.name for frame in frames] == ["perspective_0", "perspective_2"]
    ((item, found),) = skips.items()
    assert item == f"{BEDROOM}/perspective_1" and re.search(reason, found)


def test_a_room_without_a_usable_image_is_an_error(copy: Path) -> None:
    shutil.rmtree(room_folder(copy) / "perspective")
    (room_folder(copy) / "panorama/full/depth.png").unlink()
    skips = Skips()
    with pytest.raises(ValueError, match="none of its images"):
        Structured3D(copy).read(BEDROOM, skips)
    assert list(skips) == [f"{BEDROOM}/panorama"]
    with pytest.raises(ValueError, match="no scene"):
        Structured3D(copy).read("scene_00001_room_1", skips)
