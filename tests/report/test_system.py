from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch

from ponder_zoo.report import system
from ponder_zoo.report.system import git_commit, system_info


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    done = subprocess.run(["git", "-C", str(folder), *identity, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_system_info_is_json_and_names_what_matters() -> None:
    info = json.loads(json.dumps(system_info(), allow_nan=False))
    assert info["packages"]["torch"] == torch.__version__
    assert info["cpu_count"] >= 1 and info["memory_gib"] > 0
    assert {"ponder_zoo", "commit", "python", "platform", "cpu", "gpus", "cuda"} <= set(info)


def test_commit_and_uncommitted_changes_are_those_of_the_checkout(tmp_path: Path) -> None:
    assert git_commit(tmp_path) == (None, None)
    git(tmp_path, "init", "-q")
    (tmp_path / "file").write_text("one")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-q", "-m", "Start")
    assert git_commit(tmp_path) == (git(tmp_path, "rev-parse", "HEAD"), False)
    (tmp_path / "file").write_text("two")
    assert git_commit(tmp_path) == (git(tmp_path, "rev-parse", "HEAD"), True)


def test_a_package_installed_inside_another_project_does_not_claim_its_commit(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "Start")
    installed = tmp_path / ".venv" / "ponder_zoo"
    installed.mkdir(parents=True)
    (installed / "version.py").write_text("")
    assert git_commit(installed) == (None, None)


def test_no_git_on_the_machine_is_not_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_commit(Path(__file__).parent) == (None, None)


def test_spconv_is_found_under_the_name_it_was_installed_by(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "spconv_distributions", lambda: ["spconv-cu120"])
    monkeypatch.setattr(system.importlib.metadata, "version", lambda name: "2.3.6")
    assert system.distribution_version("spconv") == "2.3.6 (spconv-cu120)"
    monkeypatch.setattr(system, "spconv_distributions", lambda: [])
    assert system.distribution_version("spconv") is None
