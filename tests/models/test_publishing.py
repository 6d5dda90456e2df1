"""The real models through the Hub: what a pre-training run exports, and columns of the sparse U-Net."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from loopback_hub import OWNER
from torch import nn

import ponder_zoo as pz
from ponder_zoo.models._config import PointCfg, PretrainedCfg
from ponder_zoo.models._hub import model_config
from ponder_zoo.models._reference import reference_points
from ponder_zoo.models._safety import check_size
from ponder_zoo.models._shipped import shipped_config

SMALL: dict[str, Any] = dict(channels=(6,) * 8, depths=(1,) * 8, stem_channels=6)
NAME = "org/ponder"


def same_weights(one: nn.Module, two: nn.Module) -> bool:
    a, b = one.state_dict(), two.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_a_pretraining_export_is_pushed_and_every_part_pulled(hub: Any, tmp_path: Path) -> None:
    encoder = pz.create_model("sparseunet_ponderv2_tiny", condition="S3DIS", context_dim=4, **SMALL)
    args: dict[str, Any] = {"volume_channels": 4, "unet_channels": (4, 4), "mask_ratio": 0.5}
    ponder = pz.create_pretrainer(encoder, "volsdf", renderer_args={"hidden_dim": 6, "geo_dim": 3}, **args)
    pz.push_to_hf_hub(encoder, NAME, renderer=ponder, endpoint=hub.endpoint, token=OWNER)
    access = {"endpoint": hub.endpoint, "cache_dir": tmp_path}
    again = pz.create_pretrainer(f"hf-hub:{NAME}", pretrained=True, **access)
    assert same_weights(again, ponder) and again.volume_encoder.mask.ratio == 0.5
    assert same_weights(pz.create_renderer(f"hf-hub:{NAME}", pretrained=True, **access), ponder.renderer)
    model = pz.create_model(f"hf-hub:{NAME}", pretrained=True, **access)
    assert same_weights(model, encoder) and model.condition == "S3DIS"
    report = pz.verify(f"hf-hub:{NAME}", **access)
    assert report.passed and report.error < 1e-5


@pytest.mark.parametrize("part", ["unet_channels", "hidden_dim"])
def test_a_hostile_pretrainer_config_is_refused(part: str, tmp_path: Path) -> None:
    encoder = pz.create_model("sparseunet_tiny", **SMALL)
    ponder = pz.create_pretrainer(
        encoder, renderer_args={"hidden_dim": 6, "geo_dim": 3}, volume_channels=4, unet_channels=(4, 4)
    )
    pz.save_for_hf(encoder, tmp_path, renderer=ponder, reference=False)
    config = json.loads((tmp_path / "config.json").read_text())
    if part == "hidden_dim":
        config["renderer"]["model_args"][part] = 10**6
    else:
        config["pretrainer_args"][part] = [4, 10**6]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="asks for more than"):
        pz.create_pretrainer(f"local-dir:{tmp_path}", pretrained=True)


@pytest.mark.parametrize("name", pz.list_models())
def test_every_model_can_be_measured_before_it_is_built(name: str, caplog: pytest.LogCaptureFixture) -> None:
    model = None

    def build() -> nn.Module:
        nonlocal model
        model = pz.create_model(name)
        return model

    check_size(build, 10**9, name)
    assert "could not be checked" not in caplog.text
    assert model is not None and all(value.is_meta for value in model.state_dict().values())


@pytest.mark.parametrize("name", ["sparseunet_tiny", "sparseunet_ponderv2_tiny"])
def test_dropped_columns_are_exact_in_the_sparse_unet(name: str, tmp_path: Path) -> None:
    cfg = pz.get_pretrained_cfg(name)
    fill = (127.5, 0.0, 255.0, 0.0, 0.0, 1.0)  # normalized: 0, -1, 1, 0, 0, 1
    cfg = dataclasses.replace(cfg, point_cfg=dataclasses.replace(cfg.point_cfg, fill=fill))
    old = pz.create_model(name, pretrained_cfg=cfg, num_classes=5, **SMALL)
    with torch.no_grad():
        for key, value in old.state_dict().items():
            if key.endswith("running_mean"):
                value.uniform_(-0.1, 0.1)
    pz.save_for_hf(old, tmp_path, reference=False)
    new = pz.create_model(f"local-dir:{tmp_path}", pretrained=True, feature_columns=["height", "normal_x", "red"])
    points = reference_points(cfg)
    feat = points.feat.clone()
    feat[:, [1, 2, 5]] = torch.tensor([-1.0, 1.0, 1.0])
    feat[:, 4] = 0.0
    given = torch.stack([torch.randn(len(points)), feat[:, 3], feat[:, 0]], 1)
    expected = old.eval()(dataclasses.replace(points, feat=feat))
    output = new.eval()(dataclasses.replace(points, feat=given))
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)
    assert new.append_one and new.load_report.columns["height"] == "new, zero weights"


CONFIGS = Path(__file__).resolve().parents[2] / "hub_configs"


DOWNLOADED = [name for name in pz.list_pretrained() if shipped_config(name) is None]


@pytest.mark.parametrize("name", DOWNLOADED)
def test_every_published_checkpoint_has_its_config_in_the_repository(name: str) -> None:
    """`PONDER_ZOO_WRITE_CONFIGS=1 pytest -k published` writes the files again."""
    with torch.device("meta"):
        model = pz.create_model(name)
    model.load_report = pz.LoadReport(name)  # as after loading: the facts about the weights belong in the file
    config = model_config(model, None, {})
    del config["library_version"]  # of whoever exports
    file = CONFIGS / f"{name}.json"
    if os.environ.get("PONDER_ZOO_WRITE_CONFIGS"):
        file.write_text(json.dumps(config, indent=2) + "\n")
    assert json.loads(file.read_text()) == config
    again = PretrainedCfg.from_dict({**config["pretrained_cfg"], "point_cfg": PointCfg.from_dict(config["point_cfg"])})
    assert again.architecture == name.partition(".")[0] and again.training_data_license and again.origin_url


def test_every_config_in_the_repository_is_of_a_published_checkpoint() -> None:
    assert {path.stem for path in CONFIGS.glob("*.json")} == set(pz.list_pretrained())
