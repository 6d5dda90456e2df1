"""Limited reconstructions and limited annotations."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from ponder_zoo.data.limited import LimitedScenes, read_annotations, read_scene_list
from ponder_zoo.data.scene import Scene
from ponder_zoo.data.transforms import GridSample, RandomDropout, segmentation_train_transforms


class Rooms:
    classes, condition, name = ("wall", "chair"), None, "rooms"

    def __init__(self, count=4, points=500):
        rng = np.random.default_rng(0)
        self.scenes = [
            Scene(
                f"room{i}",
                rng.uniform(0, 1, (points, 3)).astype(np.float32),
                segment=rng.integers(-1, 2, points),
                instance=rng.integers(-1, 5, points),
            )
            for i in range(count)
        ]

    def __len__(self):
        return len(self.scenes)

    def __getitem__(self, index):
        return self.scenes[index]


def test_listed_scenes_remain_in_the_order_of_the_list(tmp_path):
    (tmp_path / "list.txt").write_text("# twenty percent\nroom2\n\nroom0  # a room\n")
    limited = LimitedScenes(Rooms(), names=read_scene_list(tmp_path / "list.txt"))
    assert [limited[i].name for i in range(len(limited))] == ["room2", "room0"]
    assert limited[0].segment is limited.source[2].segment, "all labels remain"
    with pytest.raises(ValueError, match=r"1 of 2 are unknown, first \['roomX'\]"):
        LimitedScenes(Rooms(), names=["room0", "roomX"])


def test_names_are_taken_from_a_source_that_has_them():
    class Named(Rooms):
        def __getitem__(self, index):
            raise AssertionError("no scene has to be read")

    named = Named()
    named.scenes = type("Scenes", (list,), {"names": [f"room{i}" for i in range(4)]})(named.scenes)
    assert LimitedScenes(named, names=["room3"]).rows == [3]


@pytest.mark.parametrize("kind", ["json", "npz", "pth", "tensors.pth"])
def test_only_annotated_points_keep_their_label(tmp_path, kind):
    rooms, file = Rooms(2), tmp_path / f"points.{kind}"
    points = {"room0": np.array([3, 7, 100]), "room1": np.array([], np.int64)}
    if kind == "json":
        file.write_text(json.dumps({name: rows.tolist() for name, rows in points.items()}))
    elif kind == "npz":
        np.savez(file, **points)
    else:
        as_tensors = {name: torch.from_numpy(rows) for name, rows in points.items()}
        torch.save(as_tensors if kind.startswith("t") else points, file)
    limited = LimitedScenes(rooms, annotations=read_annotations(file))
    kept = np.isin(np.arange(500), points["room0"])
    for column in ("segment", "instance"):
        full = getattr(rooms[0], column)
        assert np.array_equal(getattr(limited[0], column), np.where(kept, full, -1)), "the listed ones, not the others"
    assert (limited[1].segment == -1).all()


def test_a_number_of_points_is_drawn_from_the_labelled_ones_by_seed_and_name():
    rooms = Rooms()
    labelled = [set(np.flatnonzero(LimitedScenes(rooms, annotations=20)[i].segment >= 0)) for i in range(4)]
    assert all(len(rows) == 20 for rows in labelled) and labelled[0] != labelled[1]
    again = LimitedScenes(rooms, names=["room1"], annotations=20)
    assert set(np.flatnonzero(again[0].segment >= 0)) == labelled[1], "whatever other scenes there are"
    other = LimitedScenes(rooms, annotations=20, seed=1)
    assert set(np.flatnonzero(other[1].segment >= 0)) != labelled[1]


def test_labelled_points_survive_dropout_and_sampling_without_doubled_voxels():
    scene = LimitedScenes(Rooms(1, 5000), annotations=10)[0]
    rng = np.random.default_rng(0)
    for _ in range(5):
        dropped = RandomDropout(0.9, p=1.0, keep_labelled=True)(scene, rng)
        assert (dropped.segment >= 0).sum() == 10 and len(dropped) <= 510
        sampled = GridSample(0.2, keep_labelled=True)(dropped, rng)
        assert len(np.unique(sampled.grid_coord, axis=0)) == len(sampled)
        cells = GridSample(0.2)(dropped, rng)
        labelled = np.unique(cells.inverse[dropped.segment >= 0])
        assert np.array_equal(np.flatnonzero(sampled.segment >= 0), labelled), "each cell that holds a labelled point"
    kept = segmentation_train_transforms(0.05, keep_labelled=True)(scene, rng)
    assert (kept.segment >= 0).sum() >= 8, "two in one cell at most"


def test_each_labelled_point_of_a_cell_is_drawn_at_times():
    scene = Scene("x", np.zeros((6, 3), np.float32), segment=np.array([-1, 4, -1, 5, 6, -1]))
    rng = np.random.default_rng(0)
    drawn = {int(GridSample(1.0, keep_labelled=True)(scene, rng).segment[0]) for _ in range(60)}
    assert drawn == {4, 5, 6}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("list.json", "[1, 2]", "mapping from names"),
        ("nested.json", '{"room0": [[1]]}', "nested"),
        ("x.pth", "", "pth"),
    ],
)
def test_wrong_annotations_are_explained(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_annotations(tmp_path / name)


def test_annotations_of_other_scenes_are_explained():
    with pytest.raises(ValueError, match="name no points of scene 'room0'"):
        LimitedScenes(Rooms(), annotations={"other": np.array([1])})[0]
    with pytest.raises(ValueError, match="another version"):
        LimitedScenes(Rooms(), annotations={"room0": np.array([500])})[0]
