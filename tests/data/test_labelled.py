"""Labelled scans: a small folder written here, and the real one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ponder_zoo.data.labelled import LabelledScans
from ponder_zoo.data.normals import estimate_normals, room_viewpoint
from ponder_zoo.data.scene import Scene

CLASSES = {"scannet20_nyu40_ids": [1, 2, 5, 39], "scannet20_names": ["wall", "floor", "chair", "otherfurniture"]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("room0_00", "room0_01", "room1_00", "room2_00", "room3_00"):
        np.savez(
            tmp_path / f"{name}.npz",
            xyz=rng.random((50, 3), dtype=np.float32),
            rgb=rng.integers(0, 256, (50, 3), dtype=np.uint8),
            semantic_nyu40=np.array([0, 1, 2, 5, 39, 38, 40, 5, 5, 1] * 5, dtype=np.int16),
            instance=np.array([0, 1] * 25, dtype=np.int16),
        )
    (tmp_path / "classes.json").write_text(json.dumps(CLASSES))
    return tmp_path


def test_labels_become_indices_and_the_rest_is_ignored(folder: Path) -> None:
    scene = LabelledScans(folder, "all")[0]
    assert scene.segment[:10].tolist() == [-1, 0, 1, 2, 3, -1, -1, 2, 2, 0]
    assert scene.instance[:2].tolist() == [-1, 1]
    assert scene.color.dtype == np.float32 and scene.color.max() > 1
    np.testing.assert_allclose(np.linalg.norm(scene.normal, axis=1), 1, atol=1e-5)
    assert LabelledScans(folder, "all", normals=False)[0].normal is None


def test_rescans_of_a_room_stay_on_one_side(folder: Path) -> None:
    train, val = LabelledScans(folder, "train", val_every=2), LabelledScans(folder, "val", val_every=2)
    assert train.names == ["room0_00", "room0_01", "room2_00"] and val.names == ["room1_00", "room3_00"]
    assert LabelledScans(folder, names=["room1_00"]).names == ["room1_00"]


def test_each_room_is_left_out_in_one_fold(folder: Path) -> None:
    folds = [LabelledScans(folder, "val", val_every=3, val_fold=fold).names for fold in range(3)]
    assert sorted(name for names in folds for name in names) == LabelledScans(folder, "all").names
    assert folds[2] == LabelledScans(folder, "val", val_every=3).names
    for fold, names in enumerate(folds):
        train = LabelledScans(folder, "train", val_every=3, val_fold=fold).names
        assert {name[:5] for name in names}.isdisjoint(name[:5] for name in train)
    with pytest.raises(ValueError, match="val_fold below it"):
        LabelledScans(folder, "val", val_every=3, val_fold=3)


def test_lists_end(folder: Path) -> None:
    data = LabelledScans(folder, "val", val_every=2, normals=False)
    assert len(list(data)) == 2 and data[-1].name == "room3_00"


def test_errors_name_the_file(folder: Path) -> None:
    file = folder / "room0_00.npz"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"room0_00\.npz.*Copy the file again"):
        LabelledScans(folder, "all")[0]
    np.savez(file, xyz=np.zeros((3, 3), np.float32))
    with pytest.raises(ValueError, match=r"rgb.*missing"):
        LabelledScans(folder, "all")[0]
    with pytest.raises(ValueError, match="no scan"):
        LabelledScans(folder, names=["nobody"])
    with pytest.raises(ValueError, match="split"):
        LabelledScans(folder, "test")
    (folder / "classes.json").write_text("{}")
    with pytest.raises(ValueError, match=r"classes\.json"):
        LabelledScans(folder)


def test_normals_of_a_box_are_its_faces(room: Scene) -> None:
    estimated = estimate_normals(room.coord, k=9, viewpoint=[2.0, 1.5, 1.2])
    cosine = (estimated * room.normal).sum(1)
    assert (cosine > 0.999).mean() > 0.75  # the rest is near an edge of the box
    assert not estimate_normals(room.coord[:2], viewpoint=[0, 0, 0]).any()


def test_chunks_change_nothing(room: Scene) -> None:
    whole, parts = (estimate_normals(room.coord, viewpoint=[2, 1, 1], chunk=chunk) for chunk in (10**6, 100))
    np.testing.assert_allclose(whole, parts)


def test_real_scans_have_the_20_classes_and_upward_floors(shared_dir: Path) -> None:
    root = shared_dir / "data/indoor/scannet_labelled"
    train, val = LabelledScans(root, "train"), LabelledScans(root, "val")
    assert len(train) == 12 and len(val) == 4 and len(train.classes) == 20
    assert not {name[:9] for name in train.names} & {name[:9] for name in val.names}
    scene = val[0]
    assert len(scene) == 50_000 and scene.segment.max() < 20 and scene.segment.min() == -1
    with np.load(root / f"{scene.name}.npz") as arrays:
        assert np.array_equal(scene.segment == 1, arrays["semantic_nyu40"] == 2)  # floor
    floor = scene.normal[scene.segment == train.classes.index("floor")]
    wall = scene.normal[scene.segment == train.classes.index("wall")]
    assert np.median(floor[:, 2]) > 0.95 and np.median(np.abs(wall[:, 2])) < 0.25
    viewpoint = room_viewpoint(scene.coord)
    assert (scene.coord.min(0) < viewpoint).all() and (viewpoint < scene.coord.max(0)).all()
