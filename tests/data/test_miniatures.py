"""What holds for the reader of every data set, on miniatures of their raw downloads."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from data.miniatures import NAMES, prepare_miniature

import ponder_zoo.data.prepare.runner as runner


def tree(folder: Path) -> dict[str, str]:
    """Digest of every file below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("name", NAMES)
def test_an_interrupted_preparation_gives_the_same_bytes(name, raw_miniature, tmp_path, monkeypatch):
    raw = raw_miniature(name)
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in raw.rglob("*")}
    prepare_miniature(name, raw, tmp_path / "whole", strict=True)
    prepare_scene = runner.prepare_scene
    done: list[str] = []

    def first_only(reader, out, scene, strict=False):
        if done:
            raise KeyboardInterrupt
        done.append(scene)
        return prepare_scene(reader, out, scene, strict)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(runner, "prepare_scene", first_only)
        prepare_miniature(name, raw, tmp_path / "parts")
    assert len(list((tmp_path / "parts/records").rglob("*.json"))) == 1
    prepare_miniature(name, raw, tmp_path / "parts")
    assert tree(tmp_path / "parts") == tree(tmp_path / "whole")
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in raw.rglob("*")} == before, "only read"
