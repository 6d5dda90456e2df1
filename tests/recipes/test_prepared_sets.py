"""Every data set, as a miniature of its raw download, goes through all steps of the recipes."""

from __future__ import annotations

import functools
import http.server
import json
import math
import threading

import pytest
from data.miniatures import NAMES, prepare_miniature

from ponder_zoo.train.log import read_metrics

WIDTHS = "{channels: [8,8,8,8,8,8,8,8], stem_channels: 8}"
SMALL = ["grid_size=0.2", f"encoder_args={WIDTHS}", "log_every=1", "batch_size=1", "max_steps=2"]
PRETRAIN = [
    *("volume_shape=[16,16,8]", "volume_channels=8", "unet_channels=[8,8]", "rays_per_view=16", "target_views=2"),
    *("eval_views=2", "eval_stride=8", "preview_every=100"),
    "renderer_args={num_samples: 12, num_importance: 4, hidden_dim: 16, geo_dim: 8}",
]


@pytest.fixture(scope="module", params=NAMES)
def prepared(request, raw_miniature, tmp_path_factory):
    """(name, folder of the prepared form)."""
    out = tmp_path_factory.mktemp(request.param)
    manifest = prepare_miniature(request.param, raw_miniature(request.param), out)
    assert not manifest["failed"]
    return request.param, out


def losses(run) -> list[float]:
    return [row["loss"] for row in read_metrics(run / "metrics.jsonl") if "loss" in row]


def manifest_of(folder):
    return json.loads((folder / "manifest.json").read_text())


def test_prepare_pretrain_finetune_evaluate(run_recipe, prepared, tmp_path):
    name, folder = prepared
    data = [f"data.name={name}", f"data.root={folder}"]
    first, second = tmp_path / "pretrain", tmp_path / "finetune"
    run_recipe("pretrain", *SMALL, *PRETRAIN, *data, f"output={first}")
    run_recipe("finetune", *SMALL, *data, f"init={first}", f"output={second}", "max_points=3000", "fragments=1")
    assert json.loads((first / "eval.json").read_text())["metrics"]["psnr"] > 0, "images of the validation scenes"
    for run in (first, second):
        assert len(losses(run)) == 2 and all(math.isfinite(loss) for loss in losses(run))
    classes = manifest_of(folder)["classes"]["segment"]
    scores = json.loads((second / "eval.json").read_text())
    assert list(scores["iou"]) == classes
    run_recipe("evaluate", f"run={second}", f"output={tmp_path / 'again'}")
    again = json.loads((tmp_path / "again/eval.json").read_text())
    assert again["metrics"] == pytest.approx(scores["metrics"], nan_ok=True)
    if name == "scannet":  # its test scenes have no labels
        out = tmp_path / "test"
        run_recipe("evaluate", f"run={second}", f"output={out}", "split=test", f"submission={out / 'files'}")
        (file,) = (out / "files").glob("*.txt")
        (scene,) = (record for record in manifest_of(folder)["scenes"] if record["split"] == "test")
        assert file.stem == scene["scene"] and len(file.read_text().splitlines()) == scene["points"]


@pytest.mark.slow
@pytest.mark.parametrize("prepared", ["scannet"], indirect=True)
def test_training_from_a_web_server_is_training_from_a_folder(run_recipe, prepared, tmp_path):
    _, folder = prepared
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        roots = {"near": str(folder), "far": f"http://127.0.0.1:{server.server_port}"}
        for run, root in roots.items():
            data = ["data.name=scannet", f"data.root={root}", "data.workers=2"]
            run_recipe("pretrain", *SMALL, *PRETRAIN, *data, f"output={tmp_path / run}")
        server.shutdown()
    assert losses(tmp_path / "near") == losses(tmp_path / "far")
