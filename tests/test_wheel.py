"""The built wheel, installed alone in a fresh environment without network: what the README promises works there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest

from ponder_zoo.models._shipped import shipped_config
from ponder_zoo.report.pointcloud_io import write_ply

ROOT = Path(__file__).resolve().parents[1]
NAME = "sparseunet_ponderv2_tiny.synthetic"
PARTS = ("ponder_zoo", "hub_configs", "pyproject.toml", "README.md", "LICENSE")

# Runs before the user's lines: any connection is an error.
GUARD = """
import socket
def refused(*args, **kwargs):
    raise PermissionError(f"the network was used: {args[1:]}")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refused
"""
CHECKS = """
import ponder_zoo
assert "fresh" in ponder_zoo.__file__, ponder_zoo.__file__
assert features.shape == (len(read_scene("scan.ply")), ponder.encoder.num_features) and features.std() > 0
assert image.shape == (120, 160, 3) and 0 <= image.min() and image.max() <= 1 and image.std() > 0.01
model = pz.create_model("sparseunet_ponderv2_tiny", pretrained=True)
assert all(torch.equal(a, b) for a, b in zip(model.parameters(), ponder.encoder.parameters(), strict=True))
assert pz.verify("sparseunet_ponderv2_tiny").passed
renderer = pz.create_renderer("neus", pretrained=True)
assert all(torch.equal(a, b) for a, b in zip(renderer.parameters(), ponder.renderer.parameters(), strict=True))
"""


def readme_lines() -> str:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.partition("## Features of your own cloud")[2]
    (code,) = re.findall(r"```python\n(.*?)```", section.partition("\n## ")[0], flags=re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    return code


def run(*command: str, cwd: Path, **environment: str) -> str:
    done = subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the files that it is made of, with the build backend that is installed here."""
    pytest.importorskip("hatchling", reason="the wheel is built offline by hatchling: pip install '.[dev]'")
    clone, out = tmp_path_factory.mktemp("clone"), tmp_path_factory.mktemp("wheel")
    for part in PARTS:
        path = ROOT / part
        copy = shutil.copytree if path.is_dir() else shutil.copy
        copy(path, clone / part)
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")
    run(sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", str(out), str(clone), cwd=out)
    (built,) = out.glob("*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_holds_the_weights_of_the_package_and_no_others(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        names = archive.namelist()
    weights = {name for name in names if name.endswith(".safetensors")}
    parts = ("model", "renderer", "reference")
    assert {f"ponder_zoo/weights/{NAME}/{part}.safetensors" for part in parts} <= weights
    assert all(name.startswith("ponder_zoo/weights/") for name in weights)
    assert f"ponder_zoo/hub_configs/{NAME}.json" in names
    assert wheel.stat().st_size < 12_000_000


@pytest.mark.slow
@pytest.mark.skipif(shipped_config(NAME) is None, reason=f"no weights '{NAME}' are shipped")
def test_the_ten_lines_of_the_readme_run_after_installing_the_wheel(wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "fresh"
    venv.create(environment, with_pip=False)
    (packages,) = environment.glob("lib/python*/site-packages")
    target = ("install", "--no-deps", "--no-index", "--target", str(packages), "--disable-pip-version-check")
    run(sys.executable, "-m", "pip", *target, str(wheel), cwd=tmp_path)
    # The dependencies come from the environment of the tests: last, so that the wheel is found before this clone.
    dependencies = [path for path in sys.path if Path(path).name == "site-packages"]
    (packages / "zz_dependencies.pth").write_text("\n".join(dependencies) + "\n")
    rng = np.random.default_rng(0)
    flat = rng.random((4000, 2)) * [4, 3]
    coord = np.r_[np.c_[flat, np.zeros(4000)], np.c_[flat[:, :1], np.zeros(4000), flat[:, 1:]]].astype(np.float32)
    write_ply(tmp_path / "scan.ply", coord, color=rng.integers(0, 256, coord.shape).astype(np.uint8))
    script = tmp_path / "ten_lines.py"
    script.write_text(GUARD + readme_lines() + "from ponder_zoo.data.readers import read_scene\n" + CHECKS)
    run(
        str(environment / "bin" / "python"),
        "-P",
        str(script),
        cwd=tmp_path,
        PYTHONPATH="",
        OMP_NUM_THREADS="1",
        HF_HUB_OFFLINE="1",
    )
