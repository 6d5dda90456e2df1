from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import ponder_zoo as pz
from ponder_zoo.train.checkpoint import CheckpointError, list_checkpoints
from ponder_zoo.train.config import ConfigError
from ponder_zoo.train.log import read_metrics

ROOT = Path(__file__).resolve().parents[2]


def weights(run: Path, step: int, name: str = "model") -> dict[str, torch.Tensor]:
    return torch.load(run / f"checkpoints/step_{step:08d}/{name}.pt", weights_only=True)


def assert_same_ends(first: Path, second: Path, step: int, names: tuple[str, ...] = ("model",)) -> None:
    for name in names:
        one, other = weights(first, step, name), weights(second, step, name)
        assert one.keys() == other.keys()
        differing = [key for key in one if not torch.equal(one[key], other[key])]
        assert not differing, (name, differing)


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(run / "metrics.jsonl") if "loss" in row]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    return tmp_path_factory.mktemp("runs") / "whole"


def test_a_run_leaves_everything_that_is_promised(run_recipe, pretrain_settings, whole_run):
    run_recipe(
        "pretrain", *pretrain_settings, f"output={whole_run}", "max_steps=4", "save_every=1", "keep=2", "ema=0.9"
    )
    left = {path.name for path in whole_run.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "checkpoints", "export", "previews", "report.html", "eval.json"} <= left
    assert [path.name for path in list_checkpoints(whole_run)] == ["step_00000003", "step_00000004"]
    rows = read_metrics(whole_run / "metrics.jsonl")
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4]
    assert all(math.isfinite(row["loss"]) for row in rows if "loss" in row)
    assert {"rgb", "depth", "sdf", "eikonal", "lr", "gradient_norm"} <= next(
        row for row in reversed(rows) if "loss" in row
    ).keys()
    assert [row["step"] for row in rows if "val_psnr" in row] == [0, 4]
    scores = json.loads((whole_run / "eval.json").read_text())["metrics"]
    assert {"psnr", "psnr_constant", "depth_median", "depth_median_constant"} <= scores.keys()
    assert list((whole_run / "previews").glob("*.png"))


def test_the_export_is_the_trained_encoder(run_recipe, pretrain_settings, whole_run):
    model = pz.create_model(f"local-dir:{whole_run / 'export'}", pretrained=True)
    ema = weights(whole_run, 4, "ema")
    prefix = "module.volume_encoder.encoder."
    expected = {key.removeprefix(prefix): value for key, value in ema.items() if key.startswith(prefix)}
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())
    ponder = pz.create_pretrainer(f"local-dir:{whole_run / 'export'}", pretrained=True)
    assert torch.equal(ponder.state_dict()["renderer.log_sharpness"], ema["module.renderer.log_sharpness"])


def test_a_run_that_was_stopped_goes_on_bit_for_bit(run_recipe, pretrain_settings, whole_run, tmp_path):
    settings = [*pretrain_settings, f"output={tmp_path / 'run'}", "max_steps=4", "save_every=1", "keep=2", "ema=0.9"]
    run_recipe("pretrain", *settings, "stop_step=2")
    assert not (tmp_path / "run/export").exists()
    torch.rand(3)  # what happens in between does not matter
    run_recipe("pretrain", *settings)
    assert_same_ends(whole_run, tmp_path / "run", 4, ("model", "ema"))
    assert losses(whole_run) == losses(tmp_path / "run")


def test_a_finished_run_started_again_only_evaluates(run_recipe, pretrain_settings, whole_run):
    settings = [*pretrain_settings, f"output={whole_run}", "max_steps=4", "save_every=1", "keep=2", "ema=0.9"]
    before = losses(whole_run)
    run_recipe("pretrain", *settings)
    assert losses(whole_run) == before
    with pytest.raises(ConfigError, match=r"lr: 0\.0005 then, 0\.1 now"):
        run_recipe("pretrain", *settings, "lr=0.1")
    with pytest.raises(CheckpointError, match="lengths"):
        run_recipe(
            "pretrain", *settings[:-5], "data.scenes=3", f"resume={whole_run}", f"output={whole_run}-2", "ema=0.9"
        )
    with pytest.raises(CheckpointError, match="resume=none"):
        run_recipe("pretrain", *settings, "resume=none")


def test_accumulated_parts_are_the_batch(run_recipe, pretrain_settings, whole_run, tmp_path):
    run_recipe(
        "pretrain",
        *pretrain_settings,
        f"output={tmp_path}",
        "max_steps=4",
        "stop_step=1",
        "batch_size=1",
        "accumulate=2",
    )
    (loss,) = losses(tmp_path)
    assert loss == pytest.approx(losses(whole_run)[0], rel=0.2), "the same scenes; norms and counts are those of a part"


@pytest.mark.parametrize("renderer", ["volsdf", "unisurf"])
def test_the_other_renderers_train(run_recipe, pretrain_settings, tmp_path, renderer):
    settings = [setting for setting in pretrain_settings if not setting.startswith("renderer_args")]
    options = "{num_samples: 8, num_importance: 8, hidden_dim: 16, geo_dim: 8}"
    arguments = [*settings, f"renderer={renderer}", f"renderer_args={options}", f"output={tmp_path}"]
    run_recipe(
        "pretrain", *arguments, "max_steps=2", "mixed_precision=bf16", "grad_checkpointing=true", "mask_ratio=0.5"
    )
    assert all(math.isfinite(loss) for loss in losses(tmp_path)) and len(losses(tmp_path)) == 2


def test_several_sets_train_jointly_each_with_its_condition(run_recipe, pretrain_settings, shared_dir, tmp_path):
    frames = shared_dir / "data/rgbd/iclnuim_livingroom_5"
    arguments = ["data.name=synthetic,rgbd", f"data.root={frames}", "data.condition=rooms,frames", "batch_size=1"]
    encoder = (
        "encoder_args={channels: [8,8,8,8,8,8,8,8], stem_channels: 8, context_dim: 8, conditions: [rooms, frames]}"
    )
    run_recipe(
        "pretrain",
        *pretrain_settings,
        *arguments,
        encoder,
        *(
            "encoder=sparseunet_ponderv2_tiny",
            "norm_freeze=1",
            "max_steps=3",
            "data.max_points=2000",
            "data.views_per_item=2",
        ),
        *("eval_stride=40", f"output={tmp_path}", "save_every=1"),
    )
    start, end = weights(tmp_path, 1), weights(tmp_path, 3)
    moved = {
        key for key in start if "norm" in key and key.endswith("running_mean") and not torch.equal(start[key], end[key])
    }
    assert any(".norms.0." in key for key in moved) and any(".norms.1." in key for key in moved)


def test_a_run_folder_that_cannot_be_written_is_explained(run_recipe, pretrain_settings, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"output=PATH"):
        run_recipe("pretrain", *pretrain_settings, f"output={tmp_path / 'file' / 'run'}", "max_steps=2")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data.name=scannetv2"], r"data\.name to be some of \['rgbd', .*, 'synthetic'\]"),
        (["data.name=rgbd"], r"one folder in data\.root"),
        (["data.root=/x"], r"one folder in data\.root"),
        (["data.name=rgbd", "data.root=/nowhere"], "/nowhere"),
        (["ema=1.5"], "EMA decay"),
        (["data.ratios=[1,2]"], "one ratio"),
    ],
)
def test_wrong_settings_are_explained(run_recipe, pretrain_settings, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        run_recipe("pretrain", *pretrain_settings, f"output={tmp_path}", "max_steps=2", *arguments)


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_for_bit(pretrain_settings, tmp_path):
    common = [*pretrain_settings, "max_steps=12", "save_every=1", "data.workers=1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}

    def start(run: str) -> subprocess.Popen:
        command = [sys.executable, str(ROOT / "recipes/pretrain.py"), *common, f"output={tmp_path / run}"]
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    assert start("whole").wait() == 0
    for step in (2, 5, 9):
        process = start("killed")
        while len(losses(tmp_path / "killed")) < step and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert start("killed").wait() == 0
    assert_same_ends(tmp_path / "whole", tmp_path / "killed", 12)
    assert losses(tmp_path / "whole") == losses(tmp_path / "killed")


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "tolerance"), [("float64=false", 1e-4), ("float64=true", 1e-6)])
def test_two_processes_have_the_losses_of_one(start_recipe, pretrain_settings, tmp_path, precision, tolerance):
    common = [*pretrain_settings, "lr=3e-3", "max_steps=550", "stop_step=20", precision]  # the default schedule
    start_recipe("pretrain", *common, f"output={tmp_path / 'one'}", "batch_size=2")
    start_recipe("pretrain", *common, f"output={tmp_path / 'two'}", "batch_size=1", processes=2)
    assert "meta.json" in os.listdir(list_checkpoints(tmp_path / "two")[-1])
    assert json.loads((list_checkpoints(tmp_path / "two")[-1] / "meta.json").read_text())["num_processes"] == 2
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=tolerance)


def test_data_sets_without_data_are_exported_with_the_norms_of_the_trained_one(run_recipe, pretrain_settings, tmp_path):
    settings = ["encoder=sparseunet_ponderv2_tiny", "max_steps=1", f"output={tmp_path}"]
    run_recipe("pretrain", *pretrain_settings, *settings)
    state = pz.create_model(f"local-dir:{tmp_path / 'export'}", pretrained=True).state_dict()
    mean = [state[f"stem.norm.norms.{condition}.running_mean"] for condition in range(3)]
    assert mean[0].abs().max() > 0 and torch.equal(mean[1], mean[0]) and torch.equal(mean[2], mean[0])
    assert torch.equal(state["context.weight"][1], state["context.weight"][0])
