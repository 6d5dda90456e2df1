from __future__ import annotations

from pathlib import Path

import pytest

from ponder_zoo.train.config import load_config
from ponder_zoo.train.log import read_metrics

CONFIGS = Path(__file__).resolve().parents[2] / "recipes/configs"


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.yaml")))
def test_every_configuration_loads_and_builds_what_it_names(recipe, name):
    pretrain = recipe("pretrain")
    arguments = ["--config", str(CONFIGS / f"{name}.yaml")]
    if name == "official_indoor":
        arguments = ["--config", str(CONFIGS / "paper_indoor.yaml"), *arguments]
    cfg = load_config(pretrain.Config, arguments)
    model = pretrain.build_model(cfg)
    assert model.encoder.grid_size == cfg.grid_size
    if name == "official_indoor":
        parameters = sum(parameter.numel() for parameter in model.encoder.parameters())
        assert parameters == 43_598_272 + 768, "the released encoder, and the table of contexts"
        assert (cfg.loss.rgb, cfg.loss.sdf, cfg.rays_per_view, cfg.lr) == (10.0, 10.0, 256, 8e-4)


@pytest.mark.slow
def test_the_smoke_configuration_runs(run_recipe, rooms, tmp_path):
    small = ["data.views=4", "data.image_size=[24,32]", "max_steps=2", "eval_stride=8", "rays_per_view=8"]
    run_recipe("pretrain", "--config", str(CONFIGS / "smoke.yaml"), *small, f"output={tmp_path}", rooms[4])
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl") if "loss" in row] == [1, 2]
