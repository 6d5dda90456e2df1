"""Prepared scenes from a web server, and as iterables of `datasets`: the same scenes, each of them once per epoch."""

from __future__ import annotations

import functools
import http.server
import json
import threading
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch.multiprocessing as mp
from data.rooms_reader import Rooms

import ponder_zoo.data.remote as remote
from ponder_zoo.data.prepare.runner import prepare
from ponder_zoo.data.prepared import PreparedScenes, stream_scenes
from ponder_zoo.data.remote import Folder
from ponder_zoo.data.scene import Scene

COUNT = 7


class PlainHandler(http.server.SimpleHTTPRequestHandler):
    """Python's own server, which knows no ranges."""

    def log_message(self, *arguments: Any) -> None:
        pass


class RangeHandler(PlainHandler):
    """What other servers do: send the range that is asked for. Counts bytes by path; fails once for listed paths."""

    sent: ClassVar[Counter[str]] = Counter()
    failing: ClassVar[set[str]] = set()

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if self.path in self.failing:
            self.failing.discard(self.path)
            self.send_error(503)
        elif "Range" not in self.headers or not path.is_file():
            super().do_GET()
        else:
            first, last = self.headers["Range"].removeprefix("bytes=").split("-")
            part = path.read_bytes()[int(first) : int(last) + 1]
            self.sent[self.path] += len(part)
            self.send_response(206)
            self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            self.wfile.write(part)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, make_views) -> Path:
    """Seven rooms, the last one of the size of a real recording."""
    folder = tmp_path_factory.mktemp("rooms")
    for number in range(COUNT):
        size = {"height": 120, "width": 160, "num_views": 24} if number == COUNT - 1 else {}
        views = make_views(**size)
        np.savez(folder / f"room_{number:02d}.npz", **{k: v for k, v in vars(views).items() if v is not None})
    prepare(Rooms, folder, folder.parent / "prepared_rooms", progress=False)
    return folder.parent / "prepared_rooms"


@pytest.fixture(params=[PlainHandler, RangeHandler])
def url(request, prepared):
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(request.param, directory=str(prepared))
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def same(first: Scene, second: Scene) -> bool:
    columns = ("coord", "color", "normal", "segment")
    return first.name == second.name and all(
        np.array_equal(getattr(first, name), getattr(second, name)) for name in columns
    )


def test_remote_scenes_are_the_local_ones(url, prepared):
    local, away = PreparedScenes(prepared, "train"), PreparedScenes(url, "train")
    assert len(away) == len(local) == 5 and away.classes == local.classes and away.names == local.names
    for first, second in zip(local, away, strict=True):
        assert same(first, second)
    views, others = (each[4].stored_views.read(np.array([20, 2])) for each in (local, away))
    for column in ("color", "depth", "segment", "cam_to_world"):
        np.testing.assert_array_equal(getattr(views, column), getattr(others, column))


@pytest.mark.parametrize("url", [RangeHandler], indirect=True)
def test_only_the_drawn_images_cross_the_network(url, prepared):
    scenes = PreparedScenes(url, "train")
    path, size = scenes.files[4].frames
    RangeHandler.sent.clear()
    scenes[4].stored_views.read(np.array([5, 11]))
    assert size == (prepared / path).stat().st_size
    assert 0 < RangeHandler.sent[f"/{path}"] < 64 * 1024 + 0.1 * size, "two of 24 images and the table of contents"


@pytest.mark.parametrize("url", [RangeHandler], indirect=True)
def test_passing_errors_are_tried_again_and_others_explained(url, monkeypatch):
    monkeypatch.setattr(remote, "PAUSE", 0.01)
    RangeHandler.failing.add("/manifest.json")
    assert json.loads(Folder(url).read("manifest.json"))["dataset"] == "rooms"
    with pytest.raises(ValueError, match=r"expected a file nothing.json; .*404"):
        Folder(url).read("nothing.json")
    with pytest.raises(ValueError, match=r"expected prepared data with a manifest\.json"):
        PreparedScenes("http://127.0.0.1:9", "train")


def names_of_a_process(process: int, url: str, folder: str, out: str) -> None:
    """What one of two processes sees: in two epochs of a stream, and in the Parquet files as `datasets` reads them."""
    from datasets import load_dataset
    from datasets.distributed import split_dataset_by_node
    from torch.utils.data import DataLoader

    seen = []
    scenes = PreparedScenes(url, "train", views=False)
    for epoch, workers in enumerate((2, 0)):
        items = stream_scenes(scenes, seed=3, epoch=epoch, processes=2, process=process)
        how = "fork" if workers else None  # as outside of a spawned process: faster
        loader = DataLoader(items, batch_size=None, num_workers=workers, multiprocessing_context=how)  # type: ignore
        seen.append([example["scene"].name for example in loader])
    table = load_dataset(folder, split="train", streaming=True)
    seen.append([row["name"] for row in split_dataset_by_node(table, process, 2)])
    Path(out, f"{process}.json").write_text(json.dumps(seen))


@pytest.mark.parametrize("url", [RangeHandler], indirect=True)
def test_two_processes_see_every_scene_once_per_epoch(url, prepared, tmp_path):
    """With two loading workers in each from a web server, without any, and from local files by `datasets` alone."""
    mp.start_processes(names_of_a_process, args=(url, str(prepared), str(tmp_path)), nprocs=2, start_method="spawn")
    first, second = (json.loads((tmp_path / f"{process}.json").read_text()) for process in range(2))
    everything = sorted(PreparedScenes(prepared, "train").names)
    orders = [one + two for one, two in zip(first, second, strict=True)]
    assert [sorted(order) for order in orders] == [everything] * 3
    assert {len(first[0]), len(second[0])} == {2, 3} and orders[0] != orders[1], "another order in each epoch"


def test_a_stream_goes_on_where_it_was(prepared):
    scenes = PreparedScenes(prepared, "train")
    whole = [example["scene"].name for example in stream_scenes(scenes, seed=1, epoch=4)]
    stream = stream_scenes(scenes, seed=1, epoch=4)
    begun = []
    for example in stream:
        begun.append(example["scene"].name)
        if len(begun) == 2:
            state = stream.state_dict()
            break
    rest = stream_scenes(scenes, seed=1, epoch=4)
    rest.load_state_dict(state)
    assert begun + [example["scene"].name for example in rest] == whole
    plain = [example["scene"].name for example in stream_scenes(scenes, shuffle=False)]
    assert plain == scenes.names and sorted(whole) == sorted(plain) and whole != plain


def test_buckets_are_read_through_fsspec(prepared):
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(str(prepared), "/bucket", recursive=True)
    local, away = PreparedScenes(prepared, "val"), PreparedScenes("memory://bucket", "val")
    assert same(local[1], away[1])
    views, others = (each[1].stored_views.read(np.array([1])) for each in (local, away))
    np.testing.assert_array_equal(views.depth, others.depth)
    with pytest.raises(ValueError, match="expected prepared data"):
        PreparedScenes("memory://nowhere", "val")


def test_more_processes_than_scenes_are_refused(prepared):
    with pytest.raises(ValueError, match="at least one of 2 scenes for each"):
        stream_scenes(PreparedScenes(prepared, "val"), processes=3)


def test_datasets_reads_the_folder_without_this_package(prepared):
    from datasets import load_dataset

    table = load_dataset(str(prepared), split="val", streaming=True)
    rows = sorted(table, key=lambda row: row["name"])
    assert [row["name"] for row in rows] == ["room_02", "room_05"]
    scene = PreparedScenes(prepared, "val")[0]
    np.testing.assert_array_equal(np.float32(rows[0]["coord"]).reshape(-1, 3), scene.coord)
    images = load_dataset(str(prepared), "frames", split="train", streaming=True)
    assert next(iter(images))["color"][1:4] == b"PNG"
