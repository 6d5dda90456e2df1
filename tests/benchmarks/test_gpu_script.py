"""The script for a lent GPU, in miniature on a CPU: it must not fail there for reasons that show here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[2]


def run(tmp_path: Path, *arguments: str) -> dict[str, dict[str, object]]:
    file = tmp_path / "gpu.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "--dry-run", "--output", str(file), *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads(file.read_text())["stages"]


@pytest.mark.triton
def test_stages_are_written_and_find_nothing_wrong(tmp_path: Path) -> None:
    stages = run(tmp_path, "--only", "ceilings,correctness,compile,tuning,other_parts")
    assert list(stages) == ["ceilings", "correctness", "compile", "tuning", "other_parts"]
    assert stages["correctness"]["number_wrong"] == 0 and stages["correctness"]["tables"] == "equal to kernel_map's"


@pytest.mark.triton
def test_stages_without_time_are_named(tmp_path: Path) -> None:
    assert run(tmp_path, "--budget", "0", "--only", "network") == {"network": {"skipped": "out of time"}}


@pytest.mark.slow
@pytest.mark.triton
def test_the_whole_script_runs(tmp_path: Path) -> None:
    """About a minute in the interpreter."""
    stages = run(tmp_path)
    assert not [name for name, stage in stages.items() if "error" in stage]
    assert {"maps", "forward float16", "graph forward float16"} <= set(stages["network"]["dense"]["ours"])  # type: ignore[index]
