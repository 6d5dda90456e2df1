"""From raw points to features of each of them, by the model's own config."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ponder_zoo as pz
from ponder_zoo.data.model_input import ModelTransform, volume_input
from ponder_zoo.data.scene import Scene


@pytest.fixture(scope="module")
def model() -> Any:
    return pz.create_model("sparseunet_ponderv2_tiny", num_classes=0).eval()


def room(number: int = 3000) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    coord = rng.uniform(0, 2, (number, 3)).astype("f4")
    coord[:, 2] = np.where(coord[:, 2] > 1, 0, coord[:, 2])  # a floor and what stands on it
    normal = np.tile(np.array([0, 0, 1], "f4"), (number, 1))
    return {"coord": coord, "color": rng.integers(2, 256, (number, 3)).astype("u1"), "normal": normal}


def make(model: Any, **changes: Any) -> ModelTransform:
    return pz.create_transform(**{**pz.resolve_model_data_config(model), "is_training": False, **changes})


def test_three_lines_from_a_file_to_features_of_every_point(tmp_path: Path, model: Any) -> None:
    arrays = room()
    np.savez(tmp_path / "scan.npz", **arrays)  # type: ignore[arg-type]
    transform = pz.create_transform(**pz.resolve_model_data_config(model), is_training=False)
    points = transform(tmp_path / "scan.npz")
    feat = model.forward_point_features(points)
    assert feat.shape == (3000, model.num_features)
    assert points.condition == "ScanNet"
    assert points.inverse is not None and points.grid_coord is not None
    shift = points.coord[points.inverse].numpy() - arrays["coord"]
    assert np.abs(shift - np.median(shift, axis=0)).max() <= 0.02 + 1e-5  # each point's row lies in its cell


def test_a_path_a_scene_and_arrays_are_the_same(tmp_path: Path, model: Any) -> None:
    arrays, transform = room(), make(model)
    np.savez(tmp_path / "scan.npz", **arrays)  # type: ignore[arg-type]
    scene = Scene("room", arrays["coord"], color=arrays["color"].astype("f4"), normal=arrays["normal"])
    tensors = {name: torch.from_numpy(value) for name, value in arrays.items()}
    expected = transform(arrays)
    for data in (tmp_path / "scan.npz", scene, tensors):
        points = transform(data)
        torch.testing.assert_close(points.feat, expected.feat)
        torch.testing.assert_close(points.coord, expected.coord)
        assert torch.equal(points.grid_coord, expected.grid_coord)  # type: ignore[arg-type]


def test_columns_are_normalized_as_the_config_says(model: Any) -> None:
    arrays = room(40)
    config = dict(
        grid_size=1e-3, feature_columns=("blue", "z", "intensity"), mean=(10.0, 1.0, 0.5), std=(2.0, 4.0, 0.1)
    )
    arrays["intensity"] = np.linspace(0, 1, 40, dtype="f4")
    points = pz.create_transform(**config, fill=(0.0, None, None), center="none")(arrays)  # type: ignore[arg-type]
    expected = np.stack([arrays["color"][:, 2], arrays["coord"][:, 2], arrays["intensity"]], axis=1).astype("f4")
    expected = (expected - config["mean"]) / config["std"]
    np.testing.assert_allclose(points.feat[points.inverse].numpy(), expected, rtol=1e-5, atol=1e-5)


def test_absent_columns_are_filled_and_said(model: Any, caplog: pytest.LogCaptureFixture) -> None:
    from ponder_zoo.data import model_input

    model_input._tell_filled.cache_clear()
    with caplog.at_level(logging.WARNING):
        points = make(model)({"coord": room()["coord"]})
    assert "no color and no normal" in caplog.text
    assert (points.feat == 0).all()  # fill is the mean
    points = make(model, fill=(255.0,) * 3 + (0.0,) * 3)({"coord": room()["coord"]})
    assert (points.feat[:, :3] == 1).all()
    with pytest.raises(ValueError, match=r"has no \['color', 'normal'\]"):
        make(model, fill=(None,) * 6)({"coord": room()["coord"]})


def test_normals_are_estimated_when_asked(model: Any) -> None:
    coord = room()["coord"]
    coord[:, 2] = 0
    points = make(model, estimate_normals=True, viewpoint=(1.0, 1.0, 5.0))({"coord": coord})
    torch.testing.assert_close(points.feat[:, 3:], torch.tensor([0.0, 0.0, 1.0]).expand(len(points), 3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: {**a, "coord": a["coord"] * 1000}, "millimetres"),
        (lambda a: {**a, "coord": a["coord"] / 1000}, "less than 8 cells"),
        (lambda a: {**a, "color": a["color"] * 2.0 - 100}, r"expected colours in \[0, 255\]"),
        (lambda a: Scene("s", a["coord"], color=a["color"] / np.float32(255)), "Multiply colours"),
        (lambda a: {**a, "coord": np.where(a["coord"] > 1.9, np.nan, a["coord"])}, "NaN"),
        (lambda a: {"coord": a["coord"], "colour": a["color"]}, "call it 'color'"),
        (lambda a: {**a, "normal": a["normal"][:5]}, "expected normal of shape"),
    ],
)
def test_wrong_input_says_what_to_do(model: Any, change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(model)(change(room()))


def test_training_draws_from_what_it_is_given(model: Any) -> None:
    transform, arrays = make(model, is_training=True), room()
    with pytest.raises(ValueError, match="Expected rng"):
        transform(arrays)
    first, same, other = (transform(arrays, rng=seed) for seed in (1, 1, 2))
    assert torch.equal(first.coord, same.coord) and torch.equal(first.feat, same.feat)
    assert first.coord.shape != other.coord.shape or not torch.equal(first.coord, other.coord)
    arrays["segment"] = np.arange(3000) % 20
    points, segment = transform.collate([transform.prepare(arrays, rng=seed) for seed in (1, 2)])
    assert points.batch_size == 2 and len(segment) == len(points) and set(segment.tolist()) <= set(range(20))


def test_something_else_than_a_model_is_refused() -> None:
    with pytest.raises(TypeError, match="as create_model returns; got Linear"):
        pz.resolve_model_data_config(torch.nn.Linear(1, 1))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "file",
    [
        "indoor/scannet_mesh_scene0470_00/scene0470_00_vh_clean_2.ply",
        "indoor/sunrgbd_000017/points.npz",
        "outdoor/kitti_000008/velodyne_reduced.bin",
    ],
)
def test_real_files_become_input(shared_dir: Path, model: Any, file: str) -> None:
    points = make(model)(shared_dir / "data" / file)
    assert points.feat.shape[1] == 6 and points.feat.abs().max() <= 1 + 1e-5
    assert points.inverse is not None and points.inverse.max() == len(points) - 1


def test_a_scene_for_the_volume_is_thinned_moved_and_comes_back(model: Any) -> None:
    arrays = room()
    scene = Scene("room", arrays["coord"] + 5, color=arrays["color"].astype("f4"), normal=arrays["normal"])
    seen, item, shift = volume_input(scene, model, (32, 32, 16), margin=0.5, dropout=0.9)
    again = volume_input(scene, model, (32, 32, 16), margin=0.5, dropout=0.9)[0]
    np.testing.assert_array_equal(seen.coord, again.coord)
    assert 250 < len(seen) <= 300  # a tenth, one per cell of 2 cm
    distance = np.linalg.norm((seen.coord + shift)[:, None] - scene.coord[None], axis=-1).min(1)
    assert distance.max() < 1e-5  # each is a point of the scene
    assert (
        abs(seen.coord[:, 2].min()) < 1e-5 and np.abs(seen.coord[:, :2].min(0) + seen.coord[:, :2].max(0)).max() < 0.05
    )
    torch.testing.assert_close(item.points.coord, torch.from_numpy(seen.coord))
    lower, upper = item.grid.bounds[0].numpy()
    assert (seen.coord.min(0) - lower >= 0.5 - 1e-5).all() and (upper - seen.coord.max(0) >= 0.5 - 1e-5).all()
    assert item.grid.shape == (32, 32, 16) and item.points.feat.shape[1] == 6
