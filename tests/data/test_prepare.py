"""Preparing data: what is written, what is left out and why, and that nothing is lost or changed by an interruption."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from data.rooms_reader import Rooms, frames_of, png

from ponder_zoo.data.prepare.__main__ import main
from ponder_zoo.data.prepare.frame_checks import usable_frames
from ponder_zoo.data.prepare.runner import prepare
from ponder_zoo.data.prepare.storage import frames_file, read_images
from ponder_zoo.data.prepared import PreparedScenes
from ponder_zoo.data.unproject import select_views, unproject

COUNT = 5


@pytest.fixture(scope="session")
def raw(tmp_path_factory, make_views) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    for number in range(COUNT):
        views = make_views(num_views=4 + number % 2)
        np.savez(folder / f"room_{number:02d}.npz", **{k: v for k, v in vars(views).items() if v is not None})
    return folder


@pytest.fixture(scope="session")
def prepared(raw, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("prepared")
    prepare(Rooms, raw, out, progress=False)
    return out


@pytest.fixture
def damaged(raw, tmp_path) -> Path:
    """A raw folder of two rooms to spoil."""
    folder = tmp_path / "damaged"
    folder.mkdir()
    for name in ("room_00", "room_01"):
        (folder / f"{name}.npz").symlink_to(raw / f"{name}.npz")
    return folder


def tree(folder: Path) -> dict[str, str]:
    """Digest of every file below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_scenes_come_back_as_they_were(raw, prepared):
    train, val = PreparedScenes(prepared, "train"), PreparedScenes(prepared, "val")
    assert (len(train), len(val), train.classes[1]) == (4, 1, "class 1")
    reader = Rooms(raw)
    for scene, name in zip([train[0], train[2], val[0]], ["room_00", "room_03", "room_02"], strict=True):
        expected = reader.read(name, lambda *_: None).scene
        assert scene.name == name
        for column in ("coord", "normal", "segment"):
            np.testing.assert_array_equal(getattr(scene, column), getattr(expected, column))
        np.testing.assert_array_equal(scene.color, np.rint(expected.color))
        assert scene.segment.dtype == np.int64 and scene.color.dtype == np.float32
    halves = PreparedScenes(prepared, "train", label_set="halves")
    assert halves.classes == ("low", "high")
    np.testing.assert_array_equal(halves[0].segment, halves[0].coord[:, 2] > 1.0)


def test_chosen_images_alone_are_read_and_decoded(make_views, prepared, monkeypatch):
    import ponder_zoo.data.prepared as module

    scene = PreparedScenes(prepared, "train")[0]
    decoded = []
    read_depth = module.read_depth
    monkeypatch.setattr(module, "read_depth", lambda *a: decoded.append(a[1]) or read_depth(*a))
    views = scene.stored_views.read(np.array([3, 1]))
    expected = select_views(make_views(num_views=4), np.array([3, 1]))
    assert len(scene.stored_views) == 4 and decoded == ["room_00, frame 000003", "room_00, frame 000001"]
    np.testing.assert_allclose(views.depth, expected.depth, atol=0.51e-3)
    for column in ("color", "segment", "intrinsics", "cam_to_world"):
        np.testing.assert_array_equal(getattr(views, column), getattr(expected, column))
    # the images and the cloud are in one frame
    points = unproject(views).coord
    distance = np.linalg.norm(scene.coord[None] - points[::97, None], axis=-1).min(1)
    assert distance.max() < 2e-3
    assert PreparedScenes(prepared, "train", label_set="halves")[0].stored_views.read(np.array([0])).segment is None


def test_files_of_images_are_read_in_part(make_views):
    frame = frames_of(make_views(num_views=1))[0]
    noise = np.random.default_rng(0).integers(0, 256, (30, 100_000), dtype=np.uint8)
    frames = [dataclasses.replace(frame, name=str(i), color=noise[i].tobytes()) for i in range(30)]

    class Counting(io.BytesIO):
        count = 0

        def read(self, size=-1):
            part = super().read(size)
            self.count += len(part)
            return part

    file = Counting(frames_file(frames))
    images = read_images(file, [7, 3])
    assert [image["name"] for image in images] == ["7", "3"] and images[0]["color"] == frames[7].color
    assert file.count < 0.15 * file.getbuffer().nbytes, "two of 30 images and the table of contents"


def test_the_manifest_tells_what_there_is(prepared):
    manifest = json.loads((prepared / "manifest.json").read_text())
    assert manifest["counts"]["train"] == {"scenes": 4, "frames": 18, "points": 4 * 4 * 24 * 32 + 2 * 24 * 32}
    assert manifest["failed"] == [] and manifest["dataset"] == "rooms"
    for record in manifest["scenes"]:
        for path, entry in record["files"].items():
            content = (prepared / path).read_bytes()
            assert entry == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_preparing_again_changes_nothing(raw, prepared):
    before = tree(prepared)
    stamps = {path: path.stat().st_mtime_ns for path in prepared.rglob("*.parquet")}
    prepare(Rooms, raw, prepared, progress=False)
    assert tree(prepared) == before
    assert stamps == {path: path.stat().st_mtime_ns for path in prepared.rglob("*.parquet")}, "scenes are not redone"
    with pytest.raises(ValueError, match="prepared with options"):
        prepare(Rooms, raw, prepared, options={"pause": 0.1}, progress=False)


def test_a_killed_run_goes_on_to_the_same_bytes(raw, prepared, tmp_path):
    """Killed with its workers busy, with a file half written, then started again."""
    program = (
        "from pathlib import Path; from data.rooms_reader import Rooms\n"
        "from ponder_zoo.data.prepare.runner import prepare\n"
        f"if __name__ == '__main__': prepare(Rooms, Path({str(raw)!r}), Path({str(tmp_path / 'out')!r}), "
        "options={'pause': 0.3}, workers=1, progress=False)"
    )
    script = tmp_path / "run.py"
    script.write_text(program)
    path = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parents[2])])
    process = subprocess.Popen([sys.executable, str(script)], env=os.environ | {"PYTHONPATH": path})
    records = tmp_path / "out/records"
    deadline = time.monotonic() + 120
    while not (records.is_dir() and any(records.glob("*.json"))):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(0.5)  # workers notice
    left = len(list(records.glob("*.json")))
    assert 1 <= left < COUNT and not (tmp_path / "out/manifest.json").exists()
    with pytest.raises(ValueError, match="not finished"):
        PreparedScenes(tmp_path / "out", "train")
    (next((tmp_path / "out/scenes").rglob("*.parquet")).parent / ".room_03.parquet.1.abc.tmp").write_bytes(b"half")
    prepare(Rooms, raw, tmp_path / "out", options={"pause": 0.3}, progress=False)
    whole = tree(prepared)
    resumed = tree(tmp_path / "out")
    for file in ("prepare.json", "manifest.json"):  # they tell the option `pause`, nothing else differs
        text = (tmp_path / "out" / file).read_text().replace('"pause": 0.3', "").replace("{\n  \n }", "{}")
        assert text == (prepared / file).read_text()
        del whole[file], resumed[file]
    assert resumed == whole


@pytest.mark.parametrize("last", [0, 1, 3, 5, 8, 10, 15, 17])
def test_a_kill_at_any_write_costs_nothing_that_was_written(raw, prepared, tmp_path, monkeypatch, last):
    """The run dies in the middle of each kind of write: of settings, points, images, records, card, manifest."""
    import ponder_zoo.data.prepare.layout as layout
    import ponder_zoo.data.prepare.runner as runner

    write, count = runner.write_atomic, iter(range(1000))

    def dying(path, content):
        if next(count) == last:
            path.parent.mkdir(parents=True, exist_ok=True)
            half = content[: len(content) // 2]
            path.with_name(f".{path.name}.1.abc.tmp").write_bytes(half if isinstance(half, bytes) else half.encode())
            raise KeyboardInterrupt
        return write(path, content)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(runner, "write_atomic", dying)
        patch.setattr(layout, "write_atomic", dying)
        prepare(Rooms, raw, tmp_path / "out", progress=False)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/records").rglob("*.json")}
    assert len(kept) == min(max(last - 1, 0) // 3, COUNT)
    prepare(Rooms, raw, tmp_path / "out", progress=False)
    assert tree(tmp_path / "out") == tree(prepared)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_files_that_were_damaged_later_are_named(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "copy")
    scenes = PreparedScenes(tmp_path / "copy", "train")
    for path, size in (scenes.files[0].scene, scenes.files[1].frames):
        (tmp_path / "copy" / path).write_bytes(bytes(size))
    with pytest.raises(ValueError, match=r"expected scenes/train/./room_00\.parquet as manifest.json has it"):
        scenes[0]
    with pytest.raises(ValueError, match=r"expected frames/train/./room_01\.parquet as manifest.json has it"):
        scenes[1].stored_views.read(np.array([0]))
    (tmp_path / "copy" / scenes.files[2].scene[0]).unlink()
    with pytest.raises(ValueError, match=r"expected a file scenes/train/./room_03\.parquet"):
        scenes[2]


def test_what_cannot_be_used_is_left_out_with_a_reason_or_is_an_error(damaged, tmp_path):
    (damaged / "room_00.bad").touch()
    (damaged / "room_01.label").touch()
    manifest = prepare(Rooms, damaged, tmp_path / "out", progress=False)
    assert manifest["failed"] == [{"scene": "room_00", "reason": "there is no mesh"}]
    assert manifest["scenes"][0]["skipped"] == [["labels", "the label file is empty"]]
    with pytest.raises(ValueError, match="room_01: labels: the label file is empty"):
        prepare(Rooms, damaged, tmp_path / "out", strict=True, progress=False)
    with pytest.raises(ValueError, match="room_00: there is no mesh"):
        prepare(Rooms, damaged, tmp_path / "strict", strict=True, progress=False)
    (damaged / "room_00.bad").unlink()
    manifest = prepare(Rooms, damaged, tmp_path / "out", progress=False)
    assert manifest["failed"] == [] and len(manifest["scenes"]) == 2, "repaired scenes are added"


def test_a_download_may_come_in_parts(raw, prepared, tmp_path):
    """What was prepared stays, whether or not its raw data do."""
    part = tmp_path / "part"
    part.mkdir()
    for number in range(COUNT):
        (part / f"room_{number:02d}.npz").symlink_to(raw / f"room_{number:02d}.npz")
        prepare(Rooms, part, tmp_path / "out", progress=False)
        (part / f"room_{number:02d}.npz").unlink()
        (part / f"room_{number:02d}.bad").touch()
    assert tree(tmp_path / "out") == tree(prepared)


def test_damaged_images_are_left_out(make_views):
    good = frames_of(make_views(num_views=4))
    lost = np.full((4, 4), -np.inf)
    other = frames_of(make_views(num_views=1, height=30, width=40))[0]
    empty = png(np.zeros((24, 32), dtype=np.uint16))
    spoiled = {
        "NaN or infinite": {"cam_to_world": lost},
        "no rotation": {"cam_to_world": good[0].cam_to_world * 1.2},
        "another shape": {"color": png(np.zeros((24, 24, 3), dtype=np.uint8))},
        "truncated": {"color": good[0].color[:-200]},
        "depth image: expected a readable": {"depth": good[0].depth[: len(good[0].depth) // 2]},
        "16-bit": {"depth": png(np.zeros((24, 32), dtype=np.uint8))},
        "has a depth": {"depth": empty},
        "label image": {"segment": png(np.zeros((12, 16), dtype=np.uint8))},
        "principal point": {"intrinsics": good[0].intrinsics * [[3], [3], [1]]},
        "depth image of 40x30 pixels among others of 32x24": vars(other),
    }
    skipped: list[tuple[str, str]] = []
    frames = [dataclasses.replace(good[0], **change | {"name": str(i)}) for i, change in enumerate(spoiled.values())]
    assert usable_frames([*good, *frames], lambda *entry: skipped.append(entry)) == tuple(good)
    reasons = dict(skipped)
    for number, reason in enumerate(spoiled):
        assert reason in reasons[f"frame {number}"], (reason, reasons[f"frame {number}"])


def test_wrong_folders_and_names_are_explained(raw, tmp_path, capsys):
    for arguments, message in (
        (["nowhere"], "expected a data set of"),
        (["scannet", "--raw", str(tmp_path / "no"), "--out", str(tmp_path / "out")], "expected the folder of the raw"),
        (["scannet", "--raw", str(raw), "--out", str(raw / "sub/out")], "outside of the raw data"),
        (["scannet", "--raw", str(raw), "--out", str(raw)], "outside of the raw data"),
    ):
        assert main(arguments) != 0
        assert message in capsys.readouterr().err
    assert main([]) == 2 and "scannet" in capsys.readouterr().out
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").touch()
    with pytest.raises(ValueError, match="holds other files"):
        prepare(Rooms, raw, tmp_path / "full", progress=False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="found none"):
        prepare(Rooms, tmp_path / "empty", tmp_path / "out", progress=False)
    with pytest.raises(ValueError, match="expected prepared data"):
        PreparedScenes(tmp_path / "empty", "train")


def test_labels_that_the_classes_lack_fail_a_scene(damaged, tmp_path):
    with pytest.raises(ValueError, match=r"None of 2 scenes could be prepared. room_00: Expected .* labels of -1 to 1"):
        prepare(Rooms, damaged, tmp_path / "out", options={"label_names": 2}, progress=False)


def test_two_runs_do_not_write_into_one_folder(raw, tmp_path):
    from filelock import FileLock

    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out/.lock"), pytest.raises(ValueError, match="another process"):
        prepare(Rooms, raw, tmp_path / "out", progress=False)
