"""The README's Python blocks run as they stand, in a folder that looks as after `make pretrain`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import ponder_zoo as pz

README = Path(__file__).resolve().parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.splitlines()[-1][:40])
def test_block_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared_dir: Path) -> None:
    monkeypatch.chdir(tmp_path)
    model = pz.create_model("sparseunet_tiny", channels=(8,) * 8, stem_channels=8, grid_size=0.2)
    pz.save_for_hf(model, tmp_path / "runs/pretrain/export")
    exec(block.replace("PATH", str(shared_dir / "data/indoor/scannet_labelled")), {})


def test_the_fine_tuning_loop_is_short() -> None:
    (loop,) = (block for block in BLOCKS if "num_classes=20" in block)
    assert len([line for line in loop.splitlines() if line.strip()]) < 15
