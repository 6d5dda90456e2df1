from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import ponder_zoo as pz
from ponder_zoo.data.readers import read_scene
from ponder_zoo.data.scene import Scene
from ponder_zoo.ops.point_meshing import require_open3d
from ponder_zoo.render.field import AbstractField
from ponder_zoo.report.pointcloud_io import write_ply
from ponder_zoo.structures import FeatureVolume, FieldOutput
from ponder_zoo.train.config import ConfigError, load_config


@pytest.fixture
def export(tmp_path: Path) -> Path:
    model = pz.create_model("sparseunet_tiny", channels=(8,) * 8, stem_channels=8, grid_size=0.1)
    renderer_args = {"hidden_dim": 16, "geo_dim": 8, "initial_sdf": None}
    ponder = pz.create_pretrainer(model, "neus", volume_channels=8, unet_channels=(8, 8), renderer_args=renderer_args)
    pz.save_for_hf(model, tmp_path / "run/export", renderer=ponder)
    return tmp_path / "run"


@pytest.fixture
def settings(tmp_path: Path) -> list[str]:
    return [
        *("rooms=1", "tuning_rooms=1", "keep=0.2", "data.views=4", "data.image_size=[24,32]", "samples=2000"),
        *(
            "volume_shape=[16,16,8]",
            "reaches=[0.4,0.3]",
            "finer=[1]",
            "anchors=[0.1]",
            "facing=[0.0]",
            "depths=[5]",
            "balls=[[1.0,2.0]]",
        ),
        *(f"data.cache={tmp_path / 'rooms'}", f"run={tmp_path / 'run'}"),
    ]


def has_open3d() -> bool:
    try:
        require_open3d()
    except ImportError:
        return False
    return True


def test_it_leaves_scores_pictures_and_surfaces(
    run_recipe: Any, export: Path, settings: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="ponder_zoo"):
        run_recipe("reconstruct", *settings)
    found = json.loads((export / "surfaces/surfaces.json").read_text())
    methods = {"ours", "field alone", "screened Poisson", "ball pivoting"}
    assert set(found["summary"]) | set(found["missing"]) == methods
    (scene,) = found["scenes"].values()
    assert scene["points"] > 300 and set(scene["ours"]) >= {"accuracy", "f_score", "f_score_5cm", "threshold"}
    assert len([t for t in found["tuning"] if t["method"] == "ours"]) == 2  # one setting, two reaches
    best = max((t for t in found["tuning"] if t["method"] == "ours"), key=lambda t: t["f_score"])
    assert found["chosen"]["ours"] == best["setting"]
    assert {"config", "command", "system", "wall_time"} <= set(found)
    assert (export / "surfaces/test_000000.points.ply").is_file()
    assert np.asarray(Image.open(export / "surfaces/surfaces.png")).std() > 10
    assert all(name in caplog.text for name in methods)
    if not found["missing"]:
        mesh = read_scene(export / "surfaces/test_000000.screened_Poisson.ply")
        points = read_scene(export / "surfaces/test_000000.points.ply")
        assert scene["screened Poisson"]["f_score"] > 0.03 and scene["screened Poisson"]["accuracy"] < 0.2
        assert np.abs(np.median(mesh.coord, 0) - np.median(points.coord, 0)).max() < 0.6  # in the frame of the points


def test_without_open3d_the_rows_say_so(
    run_recipe: Any,
    recipe: Any,
    export: Path,
    settings: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse() -> None:
        raise ImportError("no Open3D")

    monkeypatch.setattr(recipe("reconstruct"), "require_open3d", refuse)
    with caplog.at_level(logging.INFO, logger="ponder_zoo"):
        run_recipe("reconstruct", *settings)
    found = json.loads((export / "surfaces/surfaces.json").read_text())
    assert found["missing"] == {"screened Poisson": "not installed", "ball pivoting": "not installed"}
    assert "| ball pivoting | not installed |" in caplog.text and "no Open3D" in caplog.text


class Ball(AbstractField):
    """The distance to a ball in the middle of the volume."""

    def __init__(self, radius: float) -> None:
        super().__init__()
        self.radius = radius

    def sdf(self, positions: Tensor, volume: Any) -> Tensor:
        return (positions - volume.grid.bounds.mean(1)).norm(dim=-1) - self.radius

    def forward(self, positions: Tensor, directions: Tensor, volume: Any) -> FieldOutput:
        gradient = torch.nn.functional.normalize(positions - volume.grid.bounds.mean(1), dim=-1)
        return FieldOutput(self.sdf(positions, volume), gradient, torch.ones_like(positions))


@pytest.mark.parametrize(("radius", "at_one_percent", "at_5_cm"), [(1.0, 1.0, 1.0), (1.03, 0.0, 1.0), (1.06, 0.0, 0.0)])
def test_a_known_field_has_the_known_scores(
    recipe: Any, settings: list[str], radius: float, at_one_percent: float, at_5_cm: float
) -> None:
    module = recipe("reconstruct")
    cfg = load_config(module.Config, [*settings, "volume_shape=[32,32,32]", "samples=20000"])
    direction = np.random.default_rng(0).standard_normal((20_000, 3))
    direction[:6] = np.concatenate([np.eye(3), -np.eye(3)])  # so that the middle of the box is that of the ball
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    centre = np.array([3.0, -2.0, 1.0])
    scene = Scene("ball", (centre + direction[:500]).astype(np.float32), normal=direction[:500].astype(np.float32))
    truth = module.Truth(centre + direction, direction, np.ones(len(direction), dtype=bool))
    encoder = pz.create_model("sparseunet_tiny", channels=(8,) * 8, stem_channels=8, grid_size=0.02)
    ponder = SimpleNamespace(
        encoder=encoder,
        parameters=encoder.parameters,
        volume_encoder=lambda item: FeatureVolume(torch.zeros(1, 1, 32, 32, 32), item.grid),
        renderer=SimpleNamespace(field=Ball(radius)),
    )
    task, (methods, _) = module.Task(scene, truth), module.available_methods(ponder, cfg)
    mesh, seconds = module.reconstruct(task, methods["ours"], {"finer": 2, "anchor": 0.0, "reach": 0.4, "facing": 0.0})
    scores = module.compare(mesh, truth, cfg)
    # Points on both are about 2 cm apart, which is what the distance between equal surfaces looks like.
    assert scores["accuracy"] == pytest.approx(radius - 1, abs=0.015) == scores["completeness"]
    assert scores["threshold"] == pytest.approx(0.02, rel=1e-2) and seconds > 0
    assert scores["f_score_5cm"] == pytest.approx(at_5_cm, abs=0.05)
    assert scores["f_score"] == pytest.approx(at_one_percent, abs=0.25)  # and so are many of them
    assert scores["normal_consistency"] > 0.99 and scores["f_score_all"] == scores["f_score"]


def test_own_scans_are_measured_by_what_was_left_out(
    run_recipe: Any, export: Path, settings: list[str], tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    coord = rng.random((4000, 3)) * [3, 2, 0.01]
    write_ply(tmp_path / "floor.ply", coord, color=rng.integers(0, 255, (4000, 3)))
    run_recipe("reconstruct", *settings, f"scans=[{tmp_path / 'floor.ply'}]", "tuning_rooms=0", "keep=0.1")
    found = json.loads((export / "surfaces/surfaces.json").read_text())
    assert list(found["scenes"]) == ["floor"] and found["scenes"]["floor"]["points"] in (399, 400)
    assert (
        found["chosen"]["ours"] == {"finer": 1, "anchor": 0.1, "reach": 0.4, "facing": 0.0} and found["tuning"] == []
    )  # the first values
    if not found["missing"]:
        assert found["scenes"]["floor"]["ball pivoting"]["accuracy"] < 0.05


def test_spread_is_over_the_scenes_with_a_surface(recipe: Any) -> None:
    module = recipe("reconstruct")
    row = dict.fromkeys(module.COLUMNS, 1.0)
    scenes = {
        "a": {"points": 9, "ours": row | {"f_score": 0.8}, "ball pivoting": row | {"f_score": 0.5}},
        "b": {
            "points": 9,
            "ours": row | {"f_score": 0.6, "accuracy": float("nan")},
            "ball pivoting": row | {"f_score": 0.5},
        },
    }
    summary = module.summarize(scenes, ["ours", "ball pivoting"])
    assert summary["ours"]["f_score"] == pytest.approx({"mean": 0.7, "std": 0.2 / 2**0.5, "scenes": 2})
    assert summary["ours"]["accuracy"] == pytest.approx({"mean": 1.0, "std": 0.0, "scenes": 1})
    assert summary["ball pivoting"]["ours_minus_this_f_score"]["mean"] == pytest.approx(0.2)


def test_settings_that_cannot_be_are_refused(recipe: Any) -> None:
    module = recipe("reconstruct")
    for wrong in ("keep=0", "keep=1.5", "rooms=0", "tuning_rooms=-1", "reaches=[]"):
        with pytest.raises(ConfigError, match="Expected"):
            load_config(module.Config, [wrong])


def test_scans_that_are_not_there_are_named_before_anything_runs(run_recipe: Any) -> None:
    with pytest.raises(ConfigError, match=r"absent\.ply"):
        run_recipe("reconstruct", "scans=[absent.ply]", "run=nowhere")


def test_data_and_volume_are_those_of_the_run(recipe: Any, tmp_path: Path) -> None:
    module = recipe("reconstruct")
    (tmp_path / "config.yaml").write_text("keep: 3\nmargin: 0.5\nvolume_shape: [8, 8, 4]\ndata: {views: 6}\n")
    for run in (tmp_path, tmp_path / "export"):
        run.mkdir(exist_ok=True)
        arguments = [f"run={run}"]
        cfg = load_config(module.Config, arguments, base=module.run_settings(arguments))
        assert (cfg.keep, cfg.margin, cfg.volume_shape, cfg.data.views) == (0.02, 0.5, (8, 8, 4), 6)
    assert module.run_settings([f"run={tmp_path / 'a/b/absent'}"]) == {}
