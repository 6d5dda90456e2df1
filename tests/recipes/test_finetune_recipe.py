from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

import ponder_zoo as pz
from ponder_zoo.data.collate import PointCollate
from ponder_zoo.data.scene import Scene
from ponder_zoo.train.config import ConfigError
from ponder_zoo.train.log import read_metrics


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory, pretrain_settings):
    return tmp_path_factory.mktemp("pretrained") / "run"


def state(run, step):
    return torch.load(run / f"checkpoints/step_{step:08d}/model.pt", weights_only=True)


def losses(run):
    return [row["loss"] for row in read_metrics(run / "metrics.jsonl") if "loss" in row]


def test_a_pretrained_encoder_is_found_in_its_run_folder(
    run_recipe, pretrain_settings, finetune_settings, pretrained, tmp_path, caplog
):
    run_recipe("pretrain", *pretrain_settings, f"output={pretrained}", "max_steps=1")
    export = pz.create_model(f"local-dir:{pretrained / 'export'}", pretrained=True).state_dict()
    for mode, trains in (("full", ("stem", "dec.0", "head")), ("decoder", ("dec.0", "head")), ("linear", ("head",))):
        run = tmp_path / mode
        run_recipe(
            "finetune", *finetune_settings, f"init={pretrained}", f"output={run}", "max_steps=2", "save_every=1",
            f"mode={mode}", "warmup=1.0", "weight_decay=0",
        )  # fmt: skip
        end = state(run, 2)
        for part in ("stem", "enc.0", "dec.0"):
            same = all(torch.equal(end[key], value) for key, value in export.items() if key.startswith(part))
            moves = part in trains or (mode == "full")
            assert same != moves, (mode, part)
        assert end["head.weight"].shape == (20, 8) and not torch.equal(end["head.weight"], state(run, 1)["head.weight"])
    scores = json.loads((tmp_path / "full/eval.json").read_text())
    assert len(scores["iou"]) == 20 and 0 <= scores["metrics"]["mIoU"] <= 1
    model = pz.create_model(f"local-dir:{tmp_path / 'full/export'}", pretrained=True)
    assert model.num_classes == 20 and model.pretrained_cfg.label_names[0] == "wall"


def test_resuming_is_bit_equal_and_evaluation_repeats_the_scores(run_recipe, finetune_settings, tmp_path):
    settings = [*finetune_settings, "init=scratch", "max_steps=4", "save_every=1", "layer_decay=0.8", "ema=0.9"]
    run_recipe("finetune", *settings, f"output={tmp_path / 'whole'}")
    run_recipe("finetune", *settings, f"output={tmp_path / 'part'}", "stop_step=2")
    run_recipe("finetune", *settings, f"output={tmp_path / 'part'}")
    first, second = state(tmp_path / "whole", 4), state(tmp_path / "part", 4)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert losses(tmp_path / "whole") == losses(tmp_path / "part")
    assert all(math.isfinite(loss) for loss in losses(tmp_path / "whole"))
    scores = json.loads((tmp_path / "whole/eval.json").read_text())["metrics"]
    run_recipe("evaluate", f"run={tmp_path / 'whole'}", f"output={tmp_path / 'again'}")
    again = json.loads((tmp_path / "again/eval.json").read_text())
    assert again["metrics"] == pytest.approx(scores)
    run_recipe("evaluate", f"run={tmp_path / 'whole'}", f"output={tmp_path / 'votes'}", "votes=2", "fragments=0")
    assert json.loads((tmp_path / "votes/eval.json").read_text())["votes"] == 2


def test_every_point_gets_votes_and_copies_are_turned(recipe):
    evaluate = recipe("evaluate")

    class Second(torch.nn.Linear):
        num_classes = 2

        def forward(self, points):
            return torch.stack([points.coord[:, 0] * 0, points.coord[:, 0] * 0 + 20], -1)

    rng = np.random.default_rng(0)
    coord = rng.uniform(0, 1, (400, 3)).astype(np.float32)
    scene = Scene("x", coord, color=coord * 255, normal=coord)
    for votes in (1, 4, 13):
        total = evaluate.vote(Second(1, 1), scene, PointCollate(), grid_size=0.3, votes=votes)
        assert (total.sum(-1) >= votes - 1e-4).all(), "every point is in some fragment of each copy"
        assert (total.argmax(-1) == 1).all()
        total = evaluate.vote(Second(1, 1), scene, PointCollate(), grid_size=0.3, votes=votes, fragments=2)
        torch.testing.assert_close(total.sum(-1), torch.full((400,), 2.0 * votes))
    assert len({(tuple(turn.round(6).ravel()), scale) for turn, scale in evaluate.augmentations(13)}) == 12, (
        "both flips are a half turn"
    )
    with pytest.raises(ValueError, match="1 to 13 votes"):
        evaluate.augmentations(14)


def test_a_pretraining_that_is_not_there_is_explained(run_recipe, finetune_settings, tmp_path):
    with pytest.raises(ConfigError, match="Run recipes/pretrain"):
        run_recipe("finetune", *finetune_settings, "init=/nowhere", f"output={tmp_path}")


def test_labelled_scans_are_read_and_scored(run_recipe, finetune_settings, shared_dir, tmp_path):
    (tmp_path / "scans").mkdir()
    for name in ("classes.json", "scene0001_00.npz", "scene0004_00.npz"):  # two rooms: normals take a second per scan
        (tmp_path / "scans" / name).symlink_to(shared_dir / "data/indoor/scannet_labelled" / name)
    run_recipe(
        "finetune", *finetune_settings, "init=scratch", "data.name=scannet_labelled", f"data.root={tmp_path / 'scans'}",
        "data.val_every=2", "max_steps=1", "batch_size=1", "grid_size=0.2", "fragments=1", f"output={tmp_path / 'run'}",
    )  # fmt: skip
    assert len(json.loads((tmp_path / "run/eval.json").read_text())["iou"]) == 20


def test_a_model_is_named_as_the_start(recipe, tmp_path, monkeypatch):
    finetune = recipe("finetune")
    monkeypatch.chdir(tmp_path)
    assert finetune.initial_model(finetune.Config(init="sparseunet_ponderv2_tiny")) == "sparseunet_ponderv2_tiny"
    run = tmp_path / "sparseunet_tiny"  # a folder that happens to be called like a model
    run.mkdir()
    (run / "model.safetensors").touch()
    assert finetune.initial_model(finetune.Config(init="sparseunet_tiny")) == "local-dir:sparseunet_tiny"
