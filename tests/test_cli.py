"""The command line, every command for real, in this process."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loopback_hub import OWNER, LoopbackHub
from PIL import Image

import ponder_zoo as pz
from ponder_zoo.cli import main
from ponder_zoo.cli.render import inside_cameras
from ponder_zoo.data.model_input import ModelTransform
from ponder_zoo.data.readers import read_scene
from ponder_zoo.data.synthetic import GENERATOR_VERSION
from ponder_zoo.report.run_files import write_run_info

SIZE = {"channels": (8,) * 8, "depths": (1,) * 8, "stem_channels": 8}


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a small pre-training export."""
    torch.manual_seed(0)
    run = tmp_path_factory.mktemp("run")
    model = pz.create_model("sparseunet_tiny", grid_size=0.1, **SIZE)
    args = {"num_samples": 8, "num_importance": 8, "hidden_dim": 16, "geo_dim": 8}
    ponder = pz.create_pretrainer(model, volume_channels=8, unet_channels=(8, 8), renderer_args=args)
    metadata = {"training_data": "nothing", "metrics": {"psnr": 12.5}}
    pz.save_for_hf(ponder.encoder, run / "export", renderer=ponder, metadata=metadata)
    return run


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """A scan without colour and normals: a floor and a wall."""
    rng = np.random.default_rng(0)
    flat = rng.random((1500, 2)) * [4, 3]
    floor, wall = np.c_[flat, np.zeros(1500)], np.c_[flat[:, :1], np.zeros(1500), flat[:, 1:]]
    np.save(tmp_path / "scan.npy", np.r_[floor, wall].astype(np.float32))
    return tmp_path / "scan.npy"


def test_the_installed_command_and_the_module_are_the_same() -> None:
    command = [sys.executable, "-m", "ponder_zoo", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    for name in ("list", "info", "doctor", "features", "render", "convert", "verify", "push", "ship"):
        assert f"    {name}" in done.stdout


def test_help_loads_nothing_but_torch_and_numpy() -> None:
    code = (
        "import sys, ponder_zoo.cli as cli; cli.build_parser(); "
        "print([m for m in ('scipy', 'PIL', 'timm', 'omegaconf', 'huggingface_hub', 'trimesh') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "command", ["list", "info", "doctor", "features", "render", "convert", "verify", "push", "ship"]
)
def test_every_command_has_help_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0 and f"example:\n  ponder-zoo {command}" in capsys.readouterr().out


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "tiny", "--json"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == pz.list_models("*tiny*")
    assert main(["list", "--pretrained"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in pz.list_pretrained())
    assert main(["list", "--modality", "renderer"]) == 0 and "volsdf" in capsys.readouterr().out
    assert main(["list", "no-such-model"]) == 1 and "No model matches" in capsys.readouterr().err


def test_info_of_a_name_a_folder_and_a_renderer(export: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "sparseunet_ponderv2", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["parameters"] == 43_599_040 and facts["conditions"] == ["ScanNet", "S3DIS", "Structured3D"]
    assert "non-commercial" in facts["terms_of_training_data"] and facts["columns"][0]["name"] == "red"
    assert main(["info", f"local-dir:{export / 'export'}"]) == 0
    text = capsys.readouterr().out
    assert "psnr 12.5" in text and "0.1 m" in text and "neus" in text
    assert main(["info", "neus"]) == 0 and "parameters" in capsys.readouterr().out
    assert main(["info", "sparsunet34"]) == 1 and "Did you mean sparseunet34" in capsys.readouterr().err


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["doctor", "--fast", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert status == (0 if found["ok"] else 1) and "cpu" in found["devices"]


def test_convert_then_verify_the_mini_checkpoint(
    shared_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = shared_dir / "parity" / "f_mini_pretrain_checkpoint.pth"
    assert main(["convert", str(checkpoint), str(tmp_path / "out"), "--condition", "S3DIS"]) == 0
    assert "from a pretrain checkpoint" in capsys.readouterr().out
    assert pz.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).condition == "S3DIS"
    assert main(["verify", str(tmp_path / "out"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["passed"]
    assert main(["verify", str(tmp_path / "out"), "--tolerance", "-1"]) == 1
    assert "DISAGREES" in capsys.readouterr().out


def test_convert_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.pth").write_bytes(b"no checkpoint")
    assert main(["convert", str(tmp_path / "bad.pth"), str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.startswith("ponder-zoo convert: ")
    with pytest.raises(ValueError):
        main(["--traceback", "convert", str(tmp_path / "bad.pth"), str(tmp_path / "out")])


def test_push_publishes_the_folder_as_it_is(hub: LoopbackHub, export: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--endpoint", hub.endpoint, "--token", OWNER]
    assert main(["push", str(export), "org/room", "--private", "--revision", "v1", *where]) == 0
    assert capsys.readouterr().out.startswith("hf-hub:org/room@") and hub.repos["org/room"].private
    files = hub.files("org/room", "v1")
    for name in ("model.safetensors", "renderer.safetensors", "reference.safetensors", "config.json"):
        assert files[name] == (export / "export" / name).read_bytes()
    assert b"hf-hub:org/room" in files["README.md"] and b"PATH_TO_THIS_FOLDER" not in files["README.md"]
    assert main(["verify", "hf-hub:org/room@v1", *where]) == 0
    assert main(["info", "hf-hub:org/room@v1", *where]) == 0 and "psnr 12.5" in capsys.readouterr().out
    assert main(["push", str(export), "org/room", "--endpoint", hub.endpoint, "--token", "hf_stranger"]) == 1
    assert main(["push", str(export / "nothing"), "org/room", *where]) == 1
    assert capsys.readouterr().err.count("ponder-zoo push: ") == 2


@pytest.fixture
def run(export: Path, tmp_path: Path) -> Path:
    """A copy of the run with the files that a finished recipe leaves beside its export."""
    folder = shutil.copytree(export, tmp_path / "run")
    data = {"name": "synthetic,synthetic:S3DIS", "scenes": 3, "views": 2, "image_size": [6, 8], "sensor": "tof"}
    data["val_scenes"] = 4
    settings = {"data": data, "seed": 7, "max_steps": 9, "volume_shape": [12, 12, 8], "margin": 0.3, "dropout": 0.1}
    settings |= {"eval_views": 8, "semantic": {"targets": "labels"}}
    (folder / "config.yaml").write_text(json.dumps(settings))  # JSON is YAML
    about = {"task": "pretrain", "command": "recipes/pretrain.py seed=7", "system": {"commit": "abc"}}
    write_run_info(folder, status="finished", **about)
    return folder


def test_ship_writes_weights_with_their_history(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "hub_configs").mkdir()
    (tmp_path / "metrics.json").write_text(json.dumps({"mIoU": [0.5, 0.4, 0.6]}))
    arguments = [str(run), "sparseunet_tiny.rooms", "--clone", str(tmp_path)]
    assert main(["ship", *arguments, "--metrics", str(tmp_path / "metrics.json")]) == 0
    assert "half precision changes features" in capsys.readouterr().out
    folder = tmp_path / "ponder_zoo" / "weights" / "sparseunet_tiny.rooms"
    card = (folder / "README.md").read_text()
    assert "python recipes/pretrain.py seed=7" in card and "| commit | abc |" in card and "| seed | 7 |" in card
    assert f"generator version {GENERATOR_VERSION}: 3 rooms of seed 0 (tof sensor), 3 rooms of seed" in card
    assert "as S3DIS), 2 views of 6 x 8" in card
    assert "8 views of 4 rooms that training never saw" in card
    assert "colour, depth and the labels of the generator." in card and "without labels" not in card
    assert "| mIoU | 0.5 (0.4 to 0.6) |" in card and "| psnr | 12.5 |" in card
    assert main(["verify", str(folder)]) == 0
    small = ["--size", "12", "16", "--views", "1", "--frames", "2"]
    with pytest.MonkeyPatch.context() as patch:
        asked: list[dict[str, Any]] = []
        scene_input = ModelTransform.scene_input
        patch.setattr(ModelTransform, "scene_input", lambda *args, **kw: asked.append(kw) or scene_input(*args, **kw))
        assert main(["render", str(folder), "room", str(tmp_path / "out"), *small]) == 0
    assert asked == [{"volume_shape": (12, 12, 8), "margin": 0.3}]  # as in pre-training
    assert main(["ship", *arguments, "--release"]) == 0
    assert (tmp_path / "release" / "sparseunet_tiny.rooms" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "synthetic,rgbd"}, "Expected a run on built-in rooms alone"),
        ({"status": "running"}, "Expected a finished run"),
    ],
)
def test_ship_refuses_unfinished_runs_and_data_of_others(
    change: dict[str, str], message: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, info = json.loads((run / "config.yaml").read_text()), json.loads((run / "run.json").read_text())
    config["data"] |= change
    (run / "config.yaml").write_text(json.dumps(config))
    (run / "run.json").write_text(json.dumps(info | change))
    (tmp_path / "hub_configs").mkdir()
    assert main(["ship", str(run), "sparseunet_tiny.rooms", "--clone", str(tmp_path)]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".ply", ".npz", ".glb"])
def test_features_of_a_scan_without_colour_and_normals(
    suffix: str, export: Path, scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / f"features{suffix}"
    assert main(["features", str(scan), str(out), "--model", str(export), "--estimate-normals"]) == 0
    assert "UNTRAINED" not in capsys.readouterr().out
    assert np.asarray(Image.open(f"{out}.png")).std() > 10
    if suffix == ".npz":
        with np.load(out) as arrays:
            assert arrays["features"].shape == (3000, 8) and arrays["feature_rgb"].shape == (3000, 3)
    elif suffix == ".ply":
        scene = read_scene(out)
        np.testing.assert_array_equal(scene.coord, np.load(scan))
        assert scene.color is not None and scene.color.std(0).min() > 1


def test_an_untrained_model_is_said_to_be_so(scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(scan), str(tmp_path / "o.ply"), "--model", "sparseunet_tiny", "--grid-size", "0.1"]
    assert main(["features", *arguments]) == 0 and "UNTRAINED" in capsys.readouterr().out
    assert main(["features", str(scan), str(tmp_path / "o.xyz"), "--model", "sparseunet_tiny"]) == 1
    assert "Expected OUT to end in" in capsys.readouterr().err


def test_the_condition_that_is_asked_for_is_used(scan: Path, tmp_path: Path) -> None:
    found = []
    for condition in ("ScanNet", "S3DIS"):
        torch.manual_seed(0)
        out = str(tmp_path / f"{condition}.npz")
        options = ["--untrained", "--model", "sparseunet_ponderv2_tiny", "--grid-size", "0.2", "--condition", condition]
        assert main(["features", str(scan), out, *options]) == 0
        with np.load(out) as arrays:
            found.append(arrays["features"])
    assert np.abs(found[0] - found[1]).max() > 1e-3


@pytest.mark.parametrize(
    "path",
    [
        "indoor/scannet_mesh_scene0470_00/scene0470_00_vh_clean_2.ply",
        "indoor/sunrgbd_000017/points.npz",
        "outdoor/kitti_000008/velodyne_reduced.bin",
    ],
)
def test_features_of_real_scans(path: str, shared_dir: Path, export: Path, tmp_path: Path) -> None:
    arguments = ["--model", str(export), "--max-points", "5000", "--grid-size", "0.2", "--estimate-normals"]
    assert main(["features", str(shared_dir / "data" / path), str(tmp_path / "out.npz"), *arguments]) == 0
    with np.load(tmp_path / "out.npz") as arrays:
        assert len(arrays["coord"]) == 5000 and np.isfinite(arrays["features"]).all()
        assert arrays["feature_rgb"].std(0).min() > 1
    assert np.asarray(Image.open(tmp_path / "out.npz.png")).std() > 10


def test_render_a_room_and_a_scan(export: Path, scan: Path, tmp_path: Path) -> None:
    small = ["--size", "12", "16", "--volume", "12", "12", "8"]
    assert main(["render", str(export), "room", str(tmp_path / "a"), "--views", "1", "--frames", "2", *small]) == 0
    depth = np.asarray(Image.open(tmp_path / "a" / "view_00.depth.png"))
    assert depth.shape == (12, 16) and depth.dtype.itemsize >= 2
    assert main(["render", str(export / "export"), str(scan), str(tmp_path / "b"), "--orbit", "2", *small]) == 0
    names = {path.name for path in (tmp_path / "b").iterdir()}
    assert names == {"overview.png"} | {f"orbit_0{n}.{k}.png" for n in (0, 1) for k in ("color", "depth", "normal")}


def test_render_posed_frames(export: Path, shared_dir: Path, tmp_path: Path) -> None:
    frames = str(shared_dir / "data/rgbd/iclnuim_livingroom_5")
    small = ["--size", "12", "16", "--volume", "12", "12", "8", "--views", "2", "--orbit", "1"]
    assert main(["render", str(export), frames, str(tmp_path), *small]) == 0
    assert len(list(tmp_path.glob("view_*.color.png"))) == 2 and (tmp_path / "orbit_00.color.png").is_file()


def test_render_refuses_what_it_cannot_do(
    export: Path, scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (
        ["sparseunet_tiny", str(scan), str(tmp_path)],  # no weights
        [str(export), str(scan), str(tmp_path), "--mesh", "a.xyz"],
        [str(export), str(tmp_path / "absent.ply"), str(tmp_path)],
        [str(export), str(scan), str(tmp_path), "--device", "abacus"],
    ):
        assert main(["render", *arguments]) == 1
        assert capsys.readouterr().err.startswith("ponder-zoo render: ")


def test_inside_cameras_are_inside_and_look_across(tmp_path: Path) -> None:
    coord: Any = np.random.default_rng(0).random((5000, 3)) * [4, 6, 3]
    for camera in inside_cameras(coord, count=4, image_size=(30, 40)):
        pose = camera.cam_to_world
        np.testing.assert_allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-9)
        assert np.linalg.det(pose[:3, :3]) > 0 and pose[2, 1] < 0  # right-handed; the image's y axis points down
        assert ((pose[:3, 3] > 0) & (pose[:3, 3] < [4, 6, 3])).all()
        assert pose[:3, 2] @ (coord.mean(0) - pose[:3, 3]) > 0
