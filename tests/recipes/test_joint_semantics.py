"""Joint pre-training on data sets with different label spaces, in one process and in two."""

from __future__ import annotations

import importlib
import json
import math
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

import ponder_zoo as pz
from ponder_zoo.data.array_cache import read_arrays, write_arrays
from ponder_zoo.data.class_tables import CLASSES, UNIVERSAL
from ponder_zoo.data.collate import PretrainCollate
from ponder_zoo.data.semantics import CENTRES
from ponder_zoo.data.shape_context import CHANNELS
from ponder_zoo.train.config import ConfigError, load_config
from ponder_zoo.train.distributed import mean_over_processes, num_processes, process_index
from ponder_zoo.train.log import read_metrics
from ponder_zoo.train.sampler import StepSampler

ROOT = Path(__file__).resolve().parents[2]
SPACES = ("ScanNet", "S3DIS", "Structured3D")
JOINT = [
    "data.name=" + ",".join(f"synthetic:{space}" for space in SPACES),
    *("encoder=sparseunet_ponderv2_tiny", "data.scenes=2", "data.val_scenes=1", "eval_views=3", "norm_freeze=1"),
    *("semantic.targets=labels", "semantic.table=one-hot", "loss.semantic=0.1", "ppt_loss_weight=0.5"),
    "encoder_args={channels: [8,8,8,8,8,8,8,8], stem_channels: 8, context_dim: 8}",
]


@pytest.fixture(scope="session")
def joint_settings(pretrain_settings: list[str]) -> list[str]:
    return [*pretrain_settings, *JOINT]


@pytest.fixture(scope="module")
def joint_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs") / "joint"


@pytest.fixture
def joint_run(run_recipe, joint_settings: list[str], joint_folder: Path) -> Path:
    """A finished run of four steps, which the first test that wants it makes."""
    if not joint_folder.exists():
        run_recipe("pretrain", *joint_settings, f"output={joint_folder}", "max_steps=4", "save_every=1", "keep=9")
    return joint_folder


def state(run: Path, step: int) -> dict[str, torch.Tensor]:
    return torch.load(run / f"checkpoints/step_{step:08d}/model.pt", weights_only=True)


def rows(run: Path) -> list[dict[str, float]]:
    return [row for row in read_metrics(run / "metrics.jsonl") if "loss" in row]


def test_a_joint_run_trains_the_head_and_each_set_its_own_norms(joint_run):
    assert all(math.isfinite(value) for row in rows(joint_run) for value in row.values())
    assert all(row["semantic"] > 0 and row["ppt"] > 0 for row in rows(joint_run))
    states = [state(joint_run, step) for step in (1, 2, 3, 4)]
    for number in range(3):  # steps 2 to 4 are of S3DIS, Structured3D and ScanNet
        before, after = states[number], states[number + 1]
        moved = {key for key in before if key.endswith("running_mean") and not torch.equal(before[key], after[key])}
        moved = {key for key in moved if ".norms." in key}
        condition = (number + 1) % 3
        assert moved and all(f".norms.{condition}." in key for key in moved)
        assert not torch.equal(before["head.proj.weight"], after["head.proj.weight"])
    scores = json.loads((joint_run / "eval.json").read_text())["metrics"]
    assert 0 <= scores["class_accuracy"] <= 1 and 0 < scores["class_accuracy_constant"] < 1


def test_the_head_and_its_table_are_exported_and_restored(run_recipe, joint_run):
    ponder = pz.create_pretrainer(f"local-dir:{joint_run / 'export'}", pretrained=True)
    trained = state(joint_run, 4)
    assert torch.equal(ponder.head.proj.weight, trained["head.proj.weight"])
    assert torch.equal(ponder.head.class_embedding, torch.eye(len(UNIVERSAL)))
    for space in SPACES:
        names = [UNIVERSAL[row.argmax()] for row in ponder.head.table(space)]
        assert names == list(CLASSES[space])
    encoder = pz.create_model(f"local-dir:{joint_run / 'export'}", pretrained=True)
    assert not any("head" in key for key in encoder.state_dict())
    run_recipe("evaluate", f"run={joint_run}", "data.name=synthetic:S3DIS", "eval_views=2", f"output={joint_run}/s3dis")
    scores = json.loads((joint_run / "s3dis/eval.json").read_text())["metrics"]
    assert {"class_accuracy", "rgb_abs", "depth_abs"} <= scores.keys()
    assert (joint_run / "s3dis/previews/views.png").is_file()


@pytest.mark.slow
def test_a_joint_run_that_was_stopped_goes_on_bit_for_bit(run_recipe, joint_settings, joint_run, tmp_path):
    settings = [*joint_settings, f"output={tmp_path / 'run'}", "max_steps=4", "save_every=1"]
    run_recipe("pretrain", *settings, "stop_step=2")
    run_recipe("pretrain", *settings)
    first, second = state(joint_run, 4), state(tmp_path / "run", 4)
    assert not [key for key in first if not torch.equal(first[key], second[key])]


def test_features_of_an_image_model_are_rendered_without_labels(run_recipe, pretrain_settings, tmp_path):
    features = ["semantic.targets=features", "semantic.image_model=timm/resnet10t", "semantic.image_weights=random"]
    features += ["semantic.image_dim=6", f"semantic.cache={tmp_path / 'cache'}", "loss.feature=0.5"]
    settings = [*pretrain_settings, *features, "data.scenes=2", "max_steps=2", f"output={tmp_path / 'run'}"]
    run_recipe("pretrain", *settings)
    values = rows(tmp_path / "run")
    assert all(0.0 < row["feature"] < 1.0 for row in values), "0.5 (1 - cosine)"
    assert "semantic" not in values[0] and "ppt" not in values[0]
    ponder = pz.create_pretrainer(f"local-dir:{tmp_path / 'run/export'}", pretrained=True)
    assert ponder.head is None and ponder.renderer.field.semantic_dim == 6
    scores = json.loads((tmp_path / "run/eval.json").read_text())["metrics"]
    assert -1.0 < scores["feature_cosine"] < 1.0 and "class_accuracy" not in scores
    maps = len(list((tmp_path / "cache/map").rglob("*.safetensors")))
    assert maps == 2 * 5 + 2 * 2, "the images of two rooms, and two held-out views of two more, once each"


def test_clusters_of_shape_contexts_take_the_place_of_labels(run_recipe, pretrain_settings, tmp_path):
    clusters = ["semantic.targets=clusters", "semantic.clusters=5", "loss.semantic=0.1", "ppt_loss_weight=0.1"]
    run = tmp_path / "run"
    write_arrays(run / CENTRES, {"centres": np.zeros((5, CHANNELS), np.float32)})  # left by a run that never began
    run_recipe("pretrain", *pretrain_settings, *clusters, "data.scenes=2", "max_steps=2", f"output={run}")
    assert np.ptp(read_arrays(run / CENTRES)["centres"]) > 0
    assert all(row["semantic"] > 0 and row["ppt"] > 0 for row in rows(run))
    ponder = pz.create_pretrainer(f"local-dir:{run / 'export'}", pretrained=True)
    assert torch.equal(ponder.head.class_embedding, torch.eye(5))
    scores = json.loads((run / "eval.json").read_text())["metrics"]
    assert 0 <= scores["class_accuracy"] <= 1 and 0.2 <= scores["class_accuracy_constant"] < 1, "five clusters"

    # The export says what its classes are, whatever rooms are at hand to find clusters in.
    run_recipe("evaluate", f"run={run}", "data.scenes=1", f"output={tmp_path / 'again'}")
    found = json.loads((tmp_path / "again/eval.json").read_text())["metrics"]
    assert found["class_accuracy"] == pytest.approx(scores["class_accuracy"], abs=1e-6)


@pytest.mark.slow
def test_rooms_with_other_labels_than_a_run_knows_are_rendered_without_classes(run_recipe, pretrain_settings, tmp_path):
    labels = ["semantic.targets=labels", "semantic.table=one-hot", "loss.semantic=0.1", "data.scenes=2"]
    run = tmp_path / "run"
    run_recipe("pretrain", *pretrain_settings, *labels, "data.name=synthetic:S3DIS", "max_steps=1", f"output={run}")
    for name, known in (("synthetic:S3DIS", True), ("synthetic:ScanNet", False), ("synthetic", False)):
        run_recipe("evaluate", f"run={run}", f"data.name={name}", "eval_views=2", f"output={tmp_path / name}")
        scores = json.loads((tmp_path / name / "eval.json").read_text())["metrics"]
        assert ("class_accuracy" in scores) == known and "psnr" in scores


def test_colour_and_depth_may_have_the_first_steps_for_themselves(run_recipe, recipe, pretrain_settings, tmp_path):
    labels = ["semantic.targets=labels", "semantic.table=one-hot", "loss.semantic=0.4", "ppt_loss_weight=2"]
    settings = [*pretrain_settings, *labels, "data.scenes=2", "max_steps=5", "log_every=1"]
    run_recipe("pretrain", *settings, "semantic_after=0.4", f"output={tmp_path}")
    assert [row["semantic"] > 0 for row in rows(tmp_path)] == [row["ppt"] > 0 for row in rows(tmp_path)]
    assert [row["ppt"] > 0 for row in rows(tmp_path)] == [False] * 3 + [True] * 2

    pretrain = recipe("pretrain")
    late, early = (pretrain.Config(max_steps=10, semantic_after=share) for share in (0.4, 0.0))
    assert [pretrain.semantic_share(step, late) for step in range(10)] == [0, 0, 0, 0, 0, 0.25, 0.5, 0.75, 1, 1]
    assert all(pretrain.semantic_share(step, early) == 1 for step in range(10))
    with pytest.raises(ConfigError, match=r"semantic_after from 0 to 0\.5, got 0\.7"):
        run_recipe("pretrain", *settings, "semantic_after=0.7", f"output={tmp_path / 'late'}")
    assert not (tmp_path / "late").exists()


def test_class_scores_of_points_alone_need_no_rendered_classes(run_recipe, pretrain_settings, tmp_path):
    labels = ["semantic.targets=labels", "semantic.table=one-hot", "loss.semantic=0", "data.scenes=2"]
    run_recipe("pretrain", *pretrain_settings, *labels, "max_steps=1", f"output={tmp_path}")
    (row,) = rows(tmp_path)
    assert row["ppt"] > 0 and "semantic" not in row
    ponder = pz.create_pretrainer(f"local-dir:{tmp_path / 'export'}", pretrained=True)
    assert ponder.renderer.field.semantic_dim is None and list(ponder.head.classes) == ["synthetic"]


@pytest.mark.parametrize(
    ("targets", "weights", "temperature"),
    [
        ("none", (0.0, 0.0, 0.0), 0.01),
        ("labels", (0.4, 0.0, 2.0), 0.01),  # CLIP's
        ("clusters", (0.4, 0.0, 2.0), 1 / 16),
        ("features", (0.0, 0.7, 0.0), 0.01),
    ],
)
def test_targets_say_which_weights_count(recipe, targets: str, weights: tuple[float, ...], temperature: float) -> None:
    pretrain = recipe("pretrain")
    given = ["loss.semantic=0.4", "loss.feature=0.7", "ppt_loss_weight=2", f"semantic.targets={targets}"]
    cfg = pretrain.with_weights(load_config(pretrain.Config, given))
    assert (cfg.loss.semantic, cfg.loss.feature, cfg.ppt_loss_weight) == weights
    assert cfg.loss.temperature == temperature
    explicit = load_config(pretrain.Config, [*given, "semantic.scale=20", "loss.temperature=0.3"])
    assert pretrain.with_weights(explicit).loss.temperature == 0.3
    assert pretrain.with_weights(load_config(pretrain.Config, [*given, "semantic.scale=20"])).loss.temperature == 0.05


def one_step(settings: list[str], step: int) -> dict[str, dict[str, torch.Tensor]]:
    """Losses, gradients and buffers of one step, in float64."""
    sys.path.insert(0, str(ROOT / "recipes"))
    pretrain = importlib.import_module("pretrain")
    cfg = load_config(pretrain.Config, settings)
    sources = pretrain.open_views(cfg.data, "train")
    weights = {"loss.semantic": cfg.loss.semantic, "ppt_loss_weight": cfg.ppt_loss_weight}
    semantics = pretrain.make_semantics(cfg.semantic, sources, weights=weights)
    torch.manual_seed(0)
    model = pretrain.build_model(cfg, semantics).double()
    sets = pretrain.training_sets(cfg, model.encoder, sources, semantics)
    sampler = StepSampler(
        [len(each) for each in sets],
        2,
        start=step,
        stop=step + 1,
        processes=num_processes(),
        process=process_index(),
    )
    batch = PretrainCollate()([sets[key.source][key.epoch, key.index] for key in next(iter(sampler))])
    batch = batch.map(lambda value: value.double() if value.is_floating_point() else value)
    parallel = model if num_processes() == 1 else DistributedDataParallel(model, find_unused_parameters=True)
    torch.manual_seed(1)  # of the samples along the rays
    losses = pretrain.compute_losses(model, parallel(batch.scene, batch.rays, logits=True), batch, cfg)
    sum(losses.values()).backward()
    return {
        "loss": {name: mean_over_processes(loss.detach()) for name, loss in losses.items()},
        "gradient": {name: p.grad for name, p in model.named_parameters() if p.grad is not None},
        "buffer": dict(model.named_buffers()),
    }


def process(index: int, port: int, settings: list[str], folder: str, steps: list[int]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=index, world_size=2)
    for step in steps:
        result = one_step(settings, step)
        if index == 1:
            torch.save(result, f"{folder}/{step}.pt")
    dist.barrier()  # gloo aborts a process whose peer has left
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("steps", [[1], pytest.param([0, 2], marks=pytest.mark.slow)], ids=str)
def test_two_processes_take_the_joint_steps_of_one(joint_settings, tmp_path, steps):
    """One step of each data set: semantics, the head's loss and the norms of present and absent conditions agree."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = (port, joint_settings, str(tmp_path), steps)
    mp.start_processes(process, args=arguments, nprocs=2, start_method="spawn")
    for step in steps:
        one, two = one_step(joint_settings, step), torch.load(tmp_path / f"{step}.pt", weights_only=True)
        assert {"semantic", "ppt"} <= one["loss"].keys()
        # An absent norm has no gradient in either: one of zeros would let AdamW's momentum move it.
        reached = set(one["gradient"])
        assert {"head.proj.weight", "head.proj.bias", "renderer.field.semantic_mlp.layers.0.weight"} <= reached
        absent = [number for number in range(3) if number != step]
        assert not any(f".norms.{number}." in name for number in absent for name in reached)
        assert any(f".norms.{step}." in name for name in reached)
        for kind, values in one.items():
            assert values.keys() == two[kind].keys()
            for name, value in values.items():
                scale = value.abs().max().item() if value.is_floating_point() else 0
                torch.testing.assert_close(
                    two[kind][name], value, rtol=0, atol=1e-9 * scale + 1e-12, msg=f"{kind} {name}"
                )


@pytest.mark.slow
def test_two_launched_processes_have_the_joint_losses_of_one(start_recipe, joint_settings, tmp_path):
    common = [*joint_settings, "max_steps=9", "float64=true"]
    start_recipe("pretrain", *common, f"output={tmp_path / 'one'}", "batch_size=2")
    start_recipe("pretrain", *common, f"output={tmp_path / 'two'}", "batch_size=1", processes=2)
    first, second = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert [row["loss"] for row in second] == pytest.approx([row["loss"] for row in first], rel=1e-6)
