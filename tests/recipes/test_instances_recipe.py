"""Fine-tuning for instances, on several sets at once, and with limited data; submissions and folds."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import ponder_zoo as pz
from ponder_zoo.models.pointgroup import PointGroup
from ponder_zoo.train.config import ConfigError
from ponder_zoo.train.log import read_metrics

ROOT = Path(__file__).resolve().parents[2]


def state(run, step):
    return torch.load(run / f"checkpoints/step_{step:08d}/model.pt", weights_only=True)


def losses(run):
    return [row["loss"] for row in read_metrics(run / "metrics.jsonl") if "loss" in row]


@pytest.fixture(scope="module")
def instance_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("instances") / "run"


@pytest.fixture
def instance_settings(finetune_settings):
    return [*finetune_settings, "task=instances", "init=scratch", "cluster_points=1", "mix=0.5", "save_every=1"]


@pytest.fixture
def instance_run(run_recipe, instance_settings, instance_folder):
    """A finished run of two steps, which the first test that wants it makes."""
    if not instance_folder.exists():
        run_recipe("finetune", *instance_settings, f"output={instance_folder}", "max_steps=2")
    return instance_folder


def test_instances_are_trained_and_scored(instance_run):
    rows = [row for row in read_metrics(instance_run / "metrics.jsonl") if "loss" in row]
    assert {"cross_entropy", "offset_l1", "offset_direction"} <= rows[0].keys() and len(rows) == 2
    assert all(math.isfinite(row["loss"]) and -1 <= row["offset_direction"] <= 1 for row in rows)
    evaluation = json.loads((instance_run / "eval.json").read_text())
    assert {"AP", "AP50", "AP25", "mIoU"} <= evaluation["metrics"].keys()
    assert len(evaluation["ap50"]) == 20 and evaluation["ap50"]["wall"] is None, "NaN: walls have no instances"
    assert (instance_run / "previews/instances.png").is_file() and (instance_run / "report.html").is_file()
    model = pz.create_model(f"local-dir:{instance_run / 'export'}", pretrained=True)
    assert isinstance(model, PointGroup) and model.pretrained_cfg.label_names[0] == "wall"


def test_a_stopped_run_goes_on_bit_for_bit_and_evaluation_repeats_the_scores(
    run_recipe, instance_settings, instance_run, tmp_path
):
    settings = [*instance_settings, f"output={tmp_path / 'run'}", "max_steps=2"]
    run_recipe("finetune", *settings, "stop_step=1")
    run_recipe("finetune", *settings)
    first, second = state(instance_run, 2), state(tmp_path / "run", 2)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert losses(instance_run) == losses(tmp_path / "run")
    out = tmp_path / "out"
    run_recipe("evaluate", f"run={instance_run}", f"output={out}", f"submission={out / 'submission'}")
    scores, again = (json.loads((run / "eval.json").read_text())["metrics"] for run in (instance_run, out))
    assert again == pytest.approx(scores)
    (listed,) = (out / "submission").glob("*.txt")
    for line in listed.read_text().splitlines()[:3]:
        name, label, score = line.split()
        assert set(np.loadtxt(out / "submission" / name, dtype=int)) <= {0, 1} and int(label) <= 39
        assert 0 <= float(score) <= 1


def test_decoder_mode_trains_both_heads_and_no_encoder(run_recipe, instance_settings, instance_run, tmp_path):
    arguments = [s for s in instance_settings if not s.startswith(("init", "grid_size", "encoder_args"))]
    run_recipe(
        "finetune", *arguments, f"init={instance_run}", f"output={tmp_path}", "max_steps=1", "mode=linear",
        "weight_decay=0",
    )  # fmt: skip
    before, after = state(instance_run, 2), state(tmp_path, 1)
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    heads = ("encoder.head.", "offset_head.")
    assert all(key.startswith(heads) for key in moved)
    assert {"encoder.head.weight", "offset_head.0.weight", "offset_head.3.weight"} <= moved


@pytest.mark.parametrize("head", ["per_condition", "text"])
def test_sets_with_different_classes_train_jointly(run_recipe, recipe, finetune_settings, tmp_path, head):
    arguments = [
        *finetune_settings, "init=scratch", "data.name=synthetic,synthetic:S3DIS", "data.condition=rooms,others",
        "max_steps=2", f"head={head}", f"output={tmp_path / 'run'}", "save_every=1",
        "semantic.table=one-hot",
    ]  # fmt: skip
    run_recipe("finetune", *arguments)
    assert all(math.isfinite(loss) for loss in losses(tmp_path / "run"))
    metrics = json.loads((tmp_path / "run/eval.json").read_text())["metrics"]
    assert {"mIoU", "mIoU_others"} <= metrics.keys()
    model = pz.create_model(f"local-dir:{tmp_path / 'run/export'}", pretrained=True).eval()
    points = pz.PointBatch(torch.rand(30, 3), torch.rand(30, 6), torch.tensor([30]), condition="others")
    assert model(points).shape == (30, 13)
    if head == "per_condition":
        first, second = (state(tmp_path / "run", step)["head.linear.1.weight"] for step in (1, 2))
        assert not torch.equal(first, second), "the second step is of the second set"
    with pytest.raises(ConfigError, match="head=per_condition"):
        run_recipe("finetune", *arguments, "head=linear", f"output={tmp_path / 'linear'}")
    with pytest.raises(ConfigError, match=r"one data\.condition for each"):
        run_recipe("finetune", *arguments, "data.condition=null", f"output={tmp_path / 'unnamed'}")


def test_limited_scenes_and_annotations(run_recipe, recipe, finetune_settings, tmp_path):
    from ponder_zoo.train.config import load_config

    finetune = recipe("finetune")
    (tmp_path / "list.txt").write_text("train_000002\n")
    limits = [f"scene_list={tmp_path / 'list.txt'}", "annotated_points=20"]
    cfg = load_config(finetune.Config, [*finetune_settings, "init=scratch", *limits])
    sources = finetune.open_labelled(cfg.data, "train")
    (data,) = finetune.training_sets(cfg, sources, 0.1)
    assert len(data) == 1 and data[0].name == "train_000002"
    assert 10 <= (data[0].segment >= 0).sum() <= 20 < len(data[0])
    run_recipe("finetune", *finetune_settings, "init=scratch", *limits, f"output={tmp_path / 'run'}", "max_steps=1")
    assert math.isfinite(losses(tmp_path / "run")[0])


def test_folds_are_added_up(run_recipe, instance_run, tmp_path):
    folds = f"folds=[{instance_run},{instance_run}]"
    run_recipe("evaluate", folds, f"output={tmp_path}")
    one, two = (json.loads((run / "eval.json").read_text())["metrics"] for run in (instance_run, tmp_path))
    assert two["mIoU"] == pytest.approx(one["mIoU"])
    counts = [np.sum(json.loads((run / "confusion.json").read_text())["matrix"]) for run in (instance_run, tmp_path)]
    assert counts[1] == 2 * counts[0]


@pytest.mark.slow
def test_two_processes_have_the_scores_of_one(run_recipe, start_recipe, instance_run, tmp_path):
    settings = [f"run={instance_run}", "data.val_scenes=3", "cluster_points=1"]
    run_recipe("evaluate", *settings, f"output={tmp_path / 'one'}")
    start_recipe("evaluate", *settings, f"output={tmp_path / 'two'}", processes=2)
    one, two = (json.loads((tmp_path / name / "eval.json").read_text()) for name in ("one", "two"))
    assert two["metrics"] == pytest.approx(one["metrics"]) and two["iou"] == pytest.approx(one["iou"], nan_ok=True)
    assert (tmp_path / "one/confusion.json").read_text() == (tmp_path / "two/confusion.json").read_text()
