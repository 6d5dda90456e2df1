"""ScanNet's raw files give the points, labels and images that went into them; what is damaged is named."""

from __future__ import annotations

import json
import shutil
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from data.miniatures import prepare_miniature
from data.raw_scannet import CATEGORIES, OPTIONS, RAW_NAME, raw_categories, write_label_table, write_sens

from ponder_zoo.data.catalog import DataConfig, open_labelled, open_views
from ponder_zoo.data.files import read_color, read_depth
from ponder_zoo.data.ply import read_ply
from ponder_zoo.data.prepare.__main__ import main
from ponder_zoo.data.prepare.runner import prepare
from ponder_zoo.data.prepare.scannet import ScanNet
from ponder_zoo.data.prepare.scannet_labels import NYU40_IDS, LabelTable, read_objects, scannet200
from ponder_zoo.data.prepare.sens import SensFile
from ponder_zoo.data.prepared import PreparedScenes
from ponder_zoo.data.synthetic import CLASSES, SyntheticRooms
from ponder_zoo.data.unproject import unproject

TRAIN = ("scene0191_00", "scene0191_01")


@pytest.fixture(scope="session")
def raw(raw_miniature) -> Path:
    return raw_miniature("scannet")


@pytest.fixture(scope="session")
def prepared(raw, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("prepared") / "scannet"
    manifest = prepare_miniature("scannet", raw, out, strict=True)
    assert manifest["counts"] == {
        split: {"scenes": scenes, "frames": 4 * scenes, "points": manifest["counts"][split]["points"]}
        for split, scenes in (("test", 1), ("train", 2), ("val", 1))
    }
    return out


@pytest.fixture
def copy(raw, tmp_path) -> Path:
    """A raw folder with one scene to spoil."""
    folder = tmp_path / "raw"
    folder.mkdir()
    shutil.copy(raw / "scannetv2-labels.combined.tsv", folder)
    shutil.copytree(raw / "scans/scene0191_00", folder / "scene0191_00")
    return folder


@pytest.fixture(scope="session")
def room():
    rooms = SyntheticRooms(num_scenes=1, num_views=4, image_size=(24, 32), sensor="off")
    return rooms.room(0), rooms.recording(0)


def test_points_and_labels_are_those_of_the_mesh(prepared, room):
    source = PreparedScenes(prepared, "train", label_set="segment", labelled=True)
    full = PreparedScenes(prepared, "train", label_set="ScanNet200", labelled=True)
    assert source.names == list(TRAIN) and source.classes == CLASSES and len(full.classes) == 200
    scene, scene200 = source[0], full[0]
    labels = raw_categories(room[0])
    assert set(np.unique(scene.instance)) == set(range(len(labels)))
    for number, label in enumerate(labels):
        mine = scene.instance == number
        name = {raw: ours for ours, raw in RAW_NAME.items()}.get(label, label)
        (segment,), (segment200,) = np.unique(scene.segment[mine]), np.unique(scene200.segment[mine])
        assert segment == (CLASSES.index(name) if name in CLASSES else -1)
        assert full.classes[segment200] == label
    assert (scene.segment == -1).any() and (scene.segment >= 0).mean() > 0.5
    # normals of the mesh are those of its planes: floors look up
    floor = scene.segment == CLASSES.index("floor")
    assert scene.normal[floor, 2].mean() > 0.99


def test_images_lie_on_the_points_and_agree_with_their_labels(prepared, room):
    scene = PreparedScenes(prepared, "train")[0]
    _, recording = room
    views = scene.stored_views.read(np.array([2, 0]))
    np.testing.assert_allclose(views.depth, recording.depth[[2, 0]], atol=0.51e-3)
    np.testing.assert_allclose(views.cam_to_world, recording.cam_to_world[[2, 0]], atol=1e-6)
    np.testing.assert_allclose(views.intrinsics, recording.intrinsics[[2, 0]], atol=1e-4)
    difference = np.abs(views.color.astype(int) - recording.color[[2, 0]])
    assert np.median(difference) <= 3, "JPEG"
    primitive = recording.primitive[[2, 0]]
    expected = np.where(primitive >= 0, recording.segment_of[primitive], -1)
    np.testing.assert_array_equal(views.segment, expected)
    # unprojected pixels lie near vertices of the mesh that carry the same label
    points = unproject(views)
    from scipy.spatial import cKDTree

    distance, nearest = cKDTree(scene.coord).query(points.coord)
    assert np.median(distance) < 0.15, "the mesh has edges of 0.2 m"
    close = (distance < 0.05) & (points.segment >= 0)
    assert close.sum() > 100 and (scene.segment[nearest[close]] == points.segment[close]).mean() > 0.9


def test_both_label_sets_are_drawn_by_name_from_one_folder(prepared):
    (twenty,), (full,) = (
        open_labelled(DataConfig(name=name, root=str(prepared)), "train") for name in ("scannet", "scannet200")
    )
    assert (len(twenty.classes), len(full.classes)) == (20, 200) and twenty.condition == full.condition == "ScanNet"
    assert full[0].segment.max() > 19 and twenty[0].segment.max() <= 19
    (views,) = open_views(DataConfig(name="scannet200", root=str(prepared)), "train")
    assert views[0].stored_views.read(np.array([0])).segment is None, "images have the labels of ScanNet-20"


def test_test_scenes_have_no_labels(prepared):
    scene = PreparedScenes(prepared, "test")[0]
    assert scene.segment is None and scene.instance is None and len(scene.stored_views) == 4
    assert scene.stored_views.read(np.array([0])).segment is None
    with pytest.raises(ValueError, match="none of the scenes"):
        PreparedScenes(prepared, "test", labelled=True)


def test_label_ids_are_the_official_ones(raw):
    """By name, whatever the index: the ids of the label table lead to the classes of the same name."""
    by_id = dict(zip(NYU40_IDS, CLASSES, strict=True))
    assert by_id[1] == "wall" and by_id[16] == "curtain" and by_id[33] == "toilet" and by_id[39] == "otherfurniture"
    table, full = LabelTable.from_file(raw / "scannetv2-labels.combined.tsv"), ScanNet(raw).classes["ScanNet200"]
    for name, (raw_id, nyu40) in CATEGORIES.items():
        assert table.ids_of([name, "unheard of"]).tolist() == [raw_id, 0]
        index = table.scannet20(np.array([raw_id]))[0]
        assert (CLASSES[index] if index >= 0 else None) == by_id.get(nyu40)
        assert full[scannet200(np.array([raw_id]))[0]] == name
    assert scannet200(np.array([0, 1, 12, 5000])).tolist() == [-1, 0, -1, -1]
    assert table.scannet20(np.array([0, 1, 12, 5000])).tolist() == [-1, 0, -1, -1]


def test_where_objects_overlap_the_later_one_counts(tmp_path):
    (tmp_path / "s_vh_clean_2.0.010000.segs.json").write_text(json.dumps({"segIndices": [7, 7, 9, 100, 100, 3]}))
    groups = [{"id": 4, "label": "wall", "segments": [7, 9]}, {"id": 2, "label": "door", "segments": [9, 100]}]
    (tmp_path / "s.aggregation.json").write_text(json.dumps({"segGroups": groups}))
    objects = read_objects(tmp_path, "s", 6)
    assert objects.spread(objects.ids).tolist() == [4, 4, 2, 2, 2, -1] and objects.categories == ("wall", "door")


def test_frames_follow_the_published_rule(tmp_path, room):
    """Frames 40, 50, ... of the recording, the last 60 and those of the skip list left out."""
    _, recording = room
    few = [each[np.arange(123) % 4] for each in (recording.color, recording.depth, recording.cam_to_world)]
    folder = tmp_path / "scene0191_00"
    folder.mkdir()
    write_sens(folder / "scene0191_00.sens", few[0][:, :6, :8], few[1][:, :6, :8], recording.intrinsics[0], few[2])
    (tmp_path / "skip.txt").write_text("scene0191_00 50\nscene0000_00 40\n")

    def frames(**options):
        reader = ScanNet(tmp_path, image_labels=False, **options)
        return [frame.name for frame in reader._frames(folder, "test", pytest.fail)]

    (tmp_path / "scannetv2-labels.combined.tsv").write_text("id\traw_category\tnyu40id\n1\twall\t1\n")
    assert frames() == ["40", "50", "60"], "62 is the last of range(40, 123 - 60)"
    assert frames(skip_list=str(tmp_path / "skip.txt")) == ["40", "60"]
    assert frames(frame_start=0, frame_end=0, frame_step=61) == ["0", "61", "122"]


@pytest.mark.parametrize("compression", [0, 1])
def test_recordings_are_read_frame_by_frame(tmp_path, room, compression):
    _, recording = room
    file = tmp_path / "x.sens"
    intrinsics, poses = recording.intrinsics[0], recording.cam_to_world
    starts = write_sens(
        file, recording.color, recording.depth, intrinsics, poses, depth_compression=compression, quality=100
    )
    sens = SensFile(file)
    assert sens.starts == starts and sens.header.num_frames == 4 and sens.header.sensor == "StructureSen"
    assert sens.header.color_size == (48, 64) and sens.header.depth_size == (24, 32)
    np.testing.assert_allclose(sens.header.intrinsics_depth[:3, :3], intrinsics, rtol=1e-6)
    frame = sens.frame(3)
    np.testing.assert_array_equal(read_depth(frame.depth, ""), np.rint(recording.depth[3] * 1000))
    np.testing.assert_allclose(frame.cam_to_world, poses[3], rtol=1e-6)
    assert np.median(np.abs(read_color(frame.color, (24, 32), "") - recording.color[3].astype(int))) <= 2


def spoil_pose(folder: Path) -> None:
    file = folder / "scene0191_00.sens"
    data = bytearray(file.read_bytes())
    start = SensFile(file).starts[1]
    data[start : start + 64] = struct.pack("<16f", *[float("-inf")] * 16)
    file.write_bytes(data)


def spoil_size(folder: Path) -> None:
    """The header states another depth size than the frames have."""
    file = folder / "scene0191_00.sens"
    data = bytearray(file.read_bytes())
    at = 4 + 8 + 12 + 4 * 64 + 8 + 8
    assert struct.unpack_from("<2I", data, at) == (32, 24)
    struct.pack_into("<2I", data, at, 64, 48)
    file.write_bytes(data)


def truncate(folder: Path) -> None:
    file = folder / "scene0191_00.sens"
    file.write_bytes(file.read_bytes()[: SensFile(file).starts[2] + 500])


def remove(name: str):
    return lambda folder: (folder / name).unlink()


def write(name: str, content: bytes):
    return lambda folder: (folder / name).write_bytes(content)


def shorten_segments(folder: Path) -> None:
    file = folder / "scene0191_00_vh_clean_2.0.010000.segs.json"
    content = json.loads(file.read_text())
    content["segIndices"] = content["segIndices"][:-5]
    file.write_text(json.dumps(content))


def rename_category(folder: Path) -> None:
    file = folder / "scene0191_00.aggregation.json"
    content = json.loads(file.read_text())
    content["segGroups"][0]["label"] = "unheard of"
    file.write_text(json.dumps(content))


def drop_label_image(folder: Path) -> None:
    file = folder / "scene0191_00_2d-label-filt.zip"
    with zipfile.ZipFile(file) as archive:
        kept = {name: archive.read(name) for name in archive.namelist() if not name.endswith("2.png")}
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in kept.items():
            archive.writestr(name, content)


SPOILED = {
    "truncated recording": (truncate, 2, "scene0191_00.sens", "2 of 4 frames are there in whole"),
    "no recording": (remove("scene0191_00.sens"), 0, "scene0191_00.sens", "no such file"),
    "no .sens file": (write("scene0191_00.sens", b"x" * 2000), 0, "scene0191_00.sens", "of version 4"),
    "empty recording": (write("scene0191_00.sens", b""), 0, "scene0191_00.sens", "of version 4"),
    "NaN pose": (spoil_pose, 3, "frame 1", "tracking was lost"),
    "wrong image size": (spoil_size, 0, "frame 0", "the header says 64x48"),
    "no aggregation": (remove("scene0191_00.aggregation.json"), 4, "labels", "aggregation.json: there is no such file"),
    "broken aggregation": (write("scene0191_00.aggregation.json", b'{"segG'), 4, "labels", "expected JSON"),
    "other mesh": (shorten_segments, 4, "labels", "segment numbers for"),
    "unknown category": (rename_category, 4, "labels", "unheard of"),
    "no label images": (remove("scene0191_00_2d-label-filt.zip"), 4, "scene0191_00_2d-label-filt.zip", "no such file"),
    "broken zip": (write("scene0191_00_2d-label-filt.zip", b"PK"), 4, "scene0191_00_2d-label-filt.zip", "damaged"),
    "a label image lacks": (drop_label_image, 4, "label image 2", "no readable label-filt/2.png"),
}


@pytest.mark.parametrize("case", SPOILED)
def test_damaged_members_are_left_out_with_a_reason(copy, tmp_path, case):
    spoil, frames, item, reason = SPOILED[case]
    spoil(copy / "scene0191_00")
    manifest = prepare_miniature("scannet", copy, tmp_path / "out")
    (record,) = manifest["scenes"]
    assert record["frames"] == frames and record["skipped"][0][0] == item and reason in record["skipped"][0][1]
    without_labels = case in ("no aggregation", "broken aggregation", "other mesh")
    assert record["labels"] == ([] if without_labels else ["ScanNet200", "segment"])
    with pytest.raises(ValueError, match="scene0191_00: "):
        prepare_miniature("scannet", copy, tmp_path / "strict", strict=True)
    assert not (tmp_path / "strict/manifest.json").exists()


def test_a_scene_without_a_whole_mesh_fails(copy, tmp_path):
    mesh = copy / "scene0191_00/scene0191_00_vh_clean_2.ply"
    mesh.write_bytes(mesh.read_bytes()[:-100])
    shutil.copytree(copy / "scene0191_00", copy / "scene0900_00")
    shutil.copytree(copy / "scene0191_00", copy / "scene0191_01")
    with pytest.raises(ValueError, match="truncated"):
        prepare_miniature("scannet", copy, tmp_path / "none")
    (copy / "scene0191_02").mkdir()
    reader = ScanNet(copy, **OPTIONS)
    with pytest.raises(ValueError, match="none of the split lists"):
        reader.read("scene0900_00", pytest.fail)
    with pytest.raises(ValueError, match="no such file"):
        reader.read("scene0191_02", pytest.fail)


def test_own_split_lists_and_the_label_table_are_found(copy, tmp_path):
    (copy / "scannetv2_train.txt").write_text("scene0999_00\n")
    (copy / "scannetv2_val.txt").write_text("scene0191_00\n")
    manifest = prepare_miniature("scannet", copy, tmp_path / "out", strict=True)
    assert manifest["scenes"][0]["split"] == "val"
    (copy / "scannetv2-labels.combined.tsv").unlink()
    with pytest.raises(ValueError, match="expected ScanNet's label table"):
        prepare_miniature("scannet", copy, tmp_path / "other")


def test_a_real_mesh_keeps_its_points_and_gets_normals(shared_dir, tmp_path):
    """A scan of the data set itself, with labels of each vertex to compare; it has no recording."""
    sample = shared_dir / "data/indoor/scannet_mesh_scene0470_00"
    folder = tmp_path / "raw/scans/scene0470_00"
    folder.mkdir(parents=True)
    (folder / "scene0470_00_vh_clean_2.ply").symlink_to(sample / "scene0470_00_vh_clean_2.ply")
    write_label_table(tmp_path / "raw/scannetv2-labels.combined.tsv")
    nyu40 = read_ply(sample / "scene0470_00_vh_clean_2.labels.ply").vertex["label"].astype(int)
    names = {number: name for name, (_, number) in CATEGORIES.items()}
    groups = [
        {"id": int(number), "label": names[number], "segments": [int(number)]}
        for number in np.unique(nyu40) if number in names
    ]  # fmt: skip
    (folder / "scene0470_00.aggregation.json").write_text(json.dumps({"segGroups": groups}))
    segments = {"segIndices": nyu40.tolist()}
    (folder / "scene0470_00_vh_clean_2.0.010000.segs.json").write_text(json.dumps(segments))
    manifest = prepare(
        ScanNet, tmp_path / "raw", tmp_path / "out", options={"images": False}, progress=False, strict=True
    )
    assert manifest["scenes"][0]["points"] == 67_465 and manifest["scenes"][0]["split"] == "train"
    scene = PreparedScenes(tmp_path / "out", "train", views=False)[0]
    ids = np.array([*NYU40_IDS, -1])
    np.testing.assert_array_equal(ids[scene.segment], np.where(np.isin(nyu40, NYU40_IDS), nyu40, -1))
    assert abs(np.linalg.norm(scene.normal, axis=1) - 1).max() < 1e-5
    assert (scene.normal[nyu40 == 2, 2] > 0.7).mean() > 0.9, "floors look up"
    assert scene.color.min() >= 0 and scene.color.max() > 200


def test_the_command_line_has_the_readers_options(raw, prepared, tmp_path, capsys):
    few = ["--frame-start", "1", "--frame-end", "1", "--frame-step", "1", "--no-image-labels", "--workers", "0"]
    assert main(["scannet", "--raw", str(raw), "--out", str(tmp_path / "out"), *few]) == 0
    assert "train: 2 scenes" in capsys.readouterr().out
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    expected = {"frame_start": 1, "frame_end": 1, "frame_step": 1, "image_labels": False, "images": True}
    assert manifest["options"] == expected | {"skip_list": None, "splits": None}
    assert manifest["counts"]["train"]["frames"] == 2 * 2
    assert main(["scannet", "--raw", str(raw), "--out", str(tmp_path / "out"), "--workers", "0"]) == 1
    assert "was prepared with options" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["scannet", "--help"])
    help_text = capsys.readouterr().out
    assert "_2d-label-filt.zip" in help_text and "--skip-list" in help_text
