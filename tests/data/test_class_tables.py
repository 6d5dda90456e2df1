"""Rows of the shared table are found by name, for every label space."""

from __future__ import annotations

import numpy as np
import pytest

from ponder_zoo.data.catalog import DataConfig, open_views
from ponder_zoo.data.class_tables import CLASSES, UNIVERSAL, class_table, universal_index
from ponder_zoo.data.synthetic import SyntheticRooms
from ponder_zoo.data.synthetic.label_spaces import SPACES
from ponder_zoo.models import _official


@pytest.mark.parametrize("condition", ["ScanNet", "S3DIS", "Structured3D"])
def test_every_label_has_the_row_with_its_own_name(condition: str) -> None:
    rows = universal_index(condition)
    assert [UNIVERSAL[row] for row in rows] == list(CLASSES[condition])
    assert len(set(rows)) == len(rows)


@pytest.mark.parametrize("condition", ["ScanNet", "S3DIS", "Structured3D"])
def test_the_official_rows_are_those_that_released_weights_need(condition: str) -> None:
    assert list(universal_index(condition, official=True)) == _official.CLASSES[condition]


def test_official_rows_of_s3dis_name_other_classes_for_all_but_two_labels() -> None:
    rows = universal_index("S3DIS", official=True)
    wrong = {
        label: UNIVERSAL[row] for label, row in zip(CLASSES["S3DIS"], rows, strict=True) if UNIVERSAL[row] != label
    }
    assert len(wrong) == 11 and wrong["ceiling"] == "wall" and wrong["wall"] == "chair" and wrong["board"] == "column"


def test_the_36_names_are_the_official_ones_up_to_spelling() -> None:
    spelled = [name.replace("other ", "other").replace("otherproperty", "otherprop") for name in _official.CLASS_NAMES]
    assert list(UNIVERSAL) == spelled


def test_names_beyond_the_36_get_rows_of_their_own_that_sets_share() -> None:
    names, rows = class_table({"a": ("wall", "robot"), "b": ("Robot", "other furniture", "crane")})
    assert names == (*UNIVERSAL, "robot", "crane")
    assert rows == {"a": (0, 36), "b": (36, 34, 37)}


def test_sets_without_universal_names_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="Expected a data set among"):
        universal_index("KITTI")
    monkeypatch.setitem(CLASSES, "Barn", ("wall", "cow"))
    with pytest.raises(ValueError, match=r"1 classes that are not among the 36 universal names, such as 'cow'"):
        universal_index("Barn")


@pytest.mark.parametrize("space", sorted(SPACES))
def test_the_built_in_rooms_label_their_objects_by_the_names_of_a_data_set(space: str) -> None:
    rooms = SyntheticRooms("train", num_scenes=3, num_views=2, image_size=(24, 32), labels=space)
    assert rooms.classes == CLASSES[space]
    index = {name: number for number, name in enumerate(rooms.classes)}
    expected = {  # object -> what each data set calls it
        "wall": {"ScanNet": "wall", "S3DIS": "wall", "Structured3D": "wall"},
        "ceiling": {"ScanNet": None, "S3DIS": "ceiling", "Structured3D": "ceiling"},
        "desk": {"ScanNet": "desk", "S3DIS": "table", "Structured3D": "desk"},
        "bookshelf": {"ScanNet": "bookshelf", "S3DIS": "bookcase", "Structured3D": "shelves"},
        "bed": {"ScanNet": "bed", "S3DIS": "clutter", "Structured3D": "bed"},
        "television": {"ScanNet": "otherfurniture", "S3DIS": "clutter", "Structured3D": "television"},
    }
    seen = set()
    for scene in range(3):
        instances = rooms.room(scene).instances
        views = rooms[scene].views
        assert views is not None and views.segment is not None and views.instance is not None
        for number, instance in enumerate(instances):
            labels = np.unique(views.segment[views.instance == number])
            if instance.name in expected and len(labels):
                name = expected[instance.name][space]
                assert labels.tolist() == [-1 if name is None else index[name]], instance.name
                seen.add(instance.name)
    assert {"wall", "ceiling"} <= seen and len(seen) >= 3


def test_the_catalog_has_one_built_in_set_per_label_space() -> None:
    names = "synthetic,synthetic:ScanNet,synthetic:S3DIS,synthetic:Structured3D"
    config = DataConfig(name=names, scenes=1, views=1, image_size=(24, 32), cache=None)
    sources = open_views(config, "train")
    assert [source.condition for source in sources] == [None, "ScanNet", "S3DIS", "Structured3D"]
    assert [len(source.classes) for source in sources] == [20, 20, 13, 25]
    assert len({source.scenes.seed for source in sources}) == 4, "no two sets share a room"
    assert sources[2][0].condition == "S3DIS"
    with pytest.raises(ValueError, match=r"synthetic:SPACE with one of \['S3DIS', 'ScanNet', 'Structured3D'\]"):
        open_views(DataConfig(name="synthetic:KITTI"), "train")
