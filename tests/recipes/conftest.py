"""Recipes as modules, and settings with which they take a few seconds."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
WIDTHS = "[8,8,8,8,8,8,8,8]"


@pytest.fixture(scope="session")
def rooms(tmp_path_factory) -> list[str]:
    """A few small rooms, generated once."""
    cache = tmp_path_factory.mktemp("rooms")
    return [
        *("data.scenes=4", "data.val_scenes=2", "data.views=5", "data.image_size=[24,32]"),
        *(f"data.cache={cache}", "grid_size=0.1", f"encoder_args={{channels: {WIDTHS}, stem_channels: 8}}"),
    ]


@pytest.fixture(scope="session")
def pretrain_settings(rooms) -> list[str]:
    return [
        *rooms,
        *("volume_shape=[16,16,8]", "volume_channels=8", "unet_channels=[8,8]", "rays_per_view=16", "input_views=2"),
        *("target_views=2", "eval_views=2", "eval_stride=4", "log_every=1", "preview_every=100", "lr=5e-4"),
        "semantic_after=0",  # few steps, all of them with everything
        "renderer_args={num_samples: 12, num_importance: 4, hidden_dim: 16, geo_dim: 8}",
    ]


@pytest.fixture(scope="session")
def finetune_settings(rooms) -> list[str]:
    return [*rooms, "log_every=1", "max_points=3000", "data.val_scenes=1", "fragments=1"]


@pytest.fixture
def recipe(monkeypatch):
    """Import a recipe as a module."""
    monkeypatch.syspath_prepend(str(RECIPES))
    return importlib.import_module


@pytest.fixture
def run_recipe(recipe, monkeypatch):
    """Call a recipe's main with command-line arguments."""

    def run(name: str, *arguments: str) -> Any:
        from accelerate.state import AcceleratorState

        from ponder_zoo.train.config import load_config

        AcceleratorState._reset_state(reset_partial_state=True)  # one process stands for several here
        module = recipe(name)
        monkeypatch.setattr(sys, "argv", [f"recipes/{name}.py", *arguments])
        base = module.run_settings(arguments) if hasattr(module, "run_settings") else None
        module.main(load_config(module.Config, arguments, base=base))
        return module

    return run


@pytest.fixture
def start_recipe():
    """Start a recipe as users do, in one process or in several on the CPU, and wait until it has ended well."""

    def start(name: str, *arguments: str, processes: int = 1) -> None:
        launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", str(processes)]
        command = [sys.executable, *(launch if processes > 1 else []), str(RECIPES / f"{name}.py"), *arguments]
        environment = os.environ | {"PYTHONPATH": str(RECIPES.parent)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]

    return start
