"""The configurations of the paper's indoor tables: each loads, and trains for a step when it is shrunk."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from ponder_zoo.train.config import load_config
from ponder_zoo.train.log import read_metrics

CONFIGS = Path(__file__).resolve().parents[2] / "recipes/configs/indoor"
ROWS = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
AVERAGES = [name for name in ROWS if "average" in name or "6fold" in name]
# One of each kind; the others differ in numbers.
KINDS = (
    *("pretrain_scannet_s3dis_structured3d", "official_pretrain"),
    *("table9_scannet_ponderv2", "table9_s3dis_area5_scratch", "table11_scannet200_ponderv2", "table12_la20_ponderv2"),
)
CONDITION = {"scannet": "ScanNet", "scannet200": "ScanNet", "s3dis": "S3DIS", "structured3d": "Structured3D"}


def recipe_of(name: str) -> str:
    if name in AVERAGES:
        return "evaluate"
    return "pretrain" if name.startswith(("pretrain", "official", "ablation")) else "finetune"


def files_of(name: str) -> list[Path]:
    """A row's file, after the one that it changes."""
    below = [CONFIGS / "pretrain_scannet_s3dis_structured3d.yaml"]
    return [*(below if name == "official_pretrain" or name.startswith("ablation") else []), CONFIGS / f"{name}.yaml"]


def arguments_of(name: str) -> list[str]:
    return [argument for file in files_of(name) for argument in ("--config", str(file))]


@pytest.mark.parametrize("name", ROWS)
def test_every_row_loads(recipe: Any, name: str) -> None:
    module = recipe(recipe_of(name))
    cfg = load_config(module.Config, arguments_of(name))
    assert cfg.output == f"runs/{name}" or not name.startswith(("table", "pretrain", "official", "ablation"))
    if name.startswith("table"):
        assert str(cfg.expected["table"]) == re.match(r"table(\d+)", name)[1]  # type: ignore[index]
        numbers = {key: value for key, value in cfg.expected.items() if key not in ("table", "row", "column")}
        assert numbers and all(0 < value < 100 for value in numbers.values())


def shrunk(name: str, cfg: Any, pretrain_settings: list[str], finetune_settings: list[str], out: Path) -> list[str]:
    """Settings with which a row takes a step on the built-in rooms in a second."""
    names = cfg.data.name.split(",")
    data = [f"data.name={','.join(['synthetic'] * len(names))}", "data.root=null", "data.workers=0"]
    data.append(f"data.condition={','.join(CONDITION[each] for each in names)}")
    small = [
        *data,
        "stop_step=1",
        f"output={out}",
        "batch_size=2",
        "log_every=1",
        'mixed_precision="no"',
        "data.val_scenes=1",
    ]
    if recipe_of(name) == "finetune":
        lists = ["scene_list=null", "annotations=null", "annotated_points=20"]
        return [*finetune_settings, *small, *lists, "semantic.table=one-hot", "init=scratch"]
    kept = [setting for setting in pretrain_settings if not setting.startswith(("lr=", "target_views="))]
    return [
        *kept,
        *small,
        "semantic.table=one-hot",
        "eval_stride=8",
        "input_views=2",
        f"target_views={min(cfg.target_views, 2)}",
    ]


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in KINDS else pytest.mark.slow) for name in ROWS if name not in AVERAGES],
)
def test_every_row_takes_a_step_when_shrunk(
    recipe: Any, run_recipe: Any, pretrain_settings: Any, finetune_settings: Any, name: str, tmp_path: Path
) -> None:
    module = recipe(recipe_of(name))
    arguments = arguments_of(name)
    cfg = load_config(module.Config, arguments)
    settings = shrunk(name, cfg, pretrain_settings, finetune_settings, tmp_path / "run")
    run_recipe(recipe_of(name), *arguments, *settings)
    losses = [row["loss"] for row in read_metrics(tmp_path / "run/metrics.jsonl") if "loss" in row]
    assert len(losses) == 1 and losses[0] > 0
    assert list((tmp_path / "run/checkpoints").iterdir())
