"""The factories on a small encoder and renderer that this file registers: the mechanism, not the members of the zoo."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import ponder_zoo as pz
from ponder_zoo.models import _registry
from ponder_zoo.models._builder import build_model, build_renderer
from ponder_zoo.models._config import PretrainedCfg
from ponder_zoo.models._pretrained import write_tensors
from ponder_zoo.models._registry import generate_default_cfgs, register_model, register_renderer

default_cfgs = generate_default_cfgs(
    {"dummy_encoder.good": PretrainedCfg(file="/nowhere/weights.safetensors"), "dummy_encoder.other": PretrainedCfg()}
)


class DummyEncoder(nn.Module):
    def __init__(self, in_chans: int, num_classes: int = 0, *, grid_size: float, width: int = 5, backend: str = "auto"):
        super().__init__()
        self.in_chans, self.num_classes, self.num_features, self.backend = in_chans, num_classes, width, backend
        self.trunk = nn.Linear(in_chans, width)
        self.feature_info = [{"num_chs": width}]
        self.reset_classifier(num_classes)

    def reset_classifier(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward_features(self, points: pz.PointBatch) -> pz.PointBatch:
        return dataclasses.replace(points, feat=self.trunk(points.feat))

    def forward_intermediates(self, points: pz.PointBatch, indices: list[int]) -> list[pz.PointBatch]:
        return [self.forward_features(points) for _ in indices]

    def forward(self, points: pz.PointBatch) -> Tensor:
        return self.head(self.forward_features(points).feat)


class DummyRenderer(nn.Module):
    def __init__(self, in_chans: int, *, hidden_dim: int = 4) -> None:
        super().__init__()
        self.field = nn.Linear(in_chans, hidden_dim)


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_registry, "_architectures", dict(_registry._architectures))

    def dummy_encoder(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return build_model(DummyEncoder, "dummy_encoder", pretrained, **kwargs)

    def dummy_renderer(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return build_renderer(DummyRenderer, "dummy_renderer", **kwargs)

    register_model(dummy_encoder)
    register_renderer(dummy_renderer)


def points(chans: int = 6) -> pz.PointBatch:
    return pz.PointBatch.from_list([{"coord": torch.rand(7, 3), "feat": torch.rand(7, chans)}])


def test_a_registered_model_is_listed_found_and_built() -> None:
    assert "dummy_encoder" in pz.list_models("dummy*") and pz.is_model("dummy_encoder.good")
    assert not pz.is_model("dummy_encoder.absent") and not pz.is_model("dummy_renderer")
    assert pz.list_renderers("dummy*") == ["dummy_renderer"] and "dummy_renderer" not in pz.list_models()
    assert pz.list_pretrained("dummy*") == ["dummy_encoder.good"]
    assert pz.create_model("dummy_encoder", num_classes=3)(points()).shape == (7, 3)


def test_listing_sorts_numbers_as_numbers() -> None:
    for name in ("net10", "net9"):
        function = lambda pretrained=False, **kwargs: nn.Identity()  # noqa: E731
        function.__name__ = name
        register_model(function)
    assert pz.list_models("net*") == ["net9", "net10"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dummy_encodr", "Did you mean dummy_encoder"),
        ("dummy_encoder.goood", "Unknown tag 'goood'.*good"),
        ("some/folder", "write 'local-dir:some/folder'"),
        ("s3:bucket", "Unknown scheme 's3:'"),
    ],
)
def test_an_unknown_name_gets_a_suggestion(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pz.create_model(name)


def test_pretrained_without_weights_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"'dummy_encoder\.other' has no published weights"):
        pz.create_model("dummy_encoder.other", pretrained=True)
    with pytest.raises(FileNotFoundError, match="/nowhere/weights"):
        pz.create_model("dummy_encoder.good", pretrained=True)


def test_an_unknown_argument_names_the_nearest() -> None:
    with pytest.raises(TypeError, match=r"no argument 'widht'\. Did you mean 'width'"):
        pz.create_model("dummy_encoder", widht=3)


def test_none_means_the_default() -> None:
    assert pz.create_model("dummy_encoder", width=None).num_features == 5


def test_a_saved_model_comes_back_bit_exact(tmp_path: Path) -> None:
    model = pz.create_model("dummy_encoder", num_classes=3, width=9, feature_columns=["red", "x"], grid_size=0.05)
    pz.save_for_hf(model, tmp_path)
    again = pz.create_model(f"local-dir:{tmp_path}", pretrained=True)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[key], value, rtol=0, atol=0)
    assert again.pretrained_cfg.point_cfg == model.pretrained_cfg.point_cfg
    assert again.pretrained_cfg.point_cfg.mean == (127.5, 0.0) and again.pretrained_cfg.point_cfg.grid_size == 0.05
    assert set(again.load_report.loaded) == set(model.state_dict()) and not again.load_report.missing
    assert "dummy_encoder" in (tmp_path / "README.md").read_text()


def test_the_same_tensors_and_metadata_are_the_same_bytes(tmp_path: Path) -> None:
    state, metadata = {"b": torch.ones(3), "a": torch.zeros(2, 2).half()}, {"condition": "A\nB", "stored_by": "x"}
    contents = set()
    for _ in range(8):  # the library writes the metadata in a random order
        write_tensors(tmp_path / "weights.safetensors", state, metadata)
        contents.add((tmp_path / "weights.safetensors").read_bytes())
    assert len(contents) == 1
    loaded = load_file(tmp_path / "weights.safetensors")
    assert all(torch.equal(loaded[key], value) for key, value in state.items())


def test_without_pretrained_a_folder_gives_the_architecture_alone(tmp_path: Path) -> None:
    model = pz.create_model("dummy_encoder", width=9)
    pz.save_for_hf(model, tmp_path)
    again = pz.create_model(f"local-dir:{tmp_path}")
    assert again.num_features == 9 and not torch.equal(again.trunk.weight, model.trunk.weight)


def test_another_number_of_classes_replaces_the_head_and_says_so(tmp_path: Path) -> None:
    model = pz.create_model("dummy_encoder", num_classes=3)
    pz.save_for_hf(model, tmp_path)
    again = pz.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=4)
    torch.testing.assert_close(again.trunk.weight, model.trunk.weight)
    assert set(again.load_report.adapted) == {"head.weight", "head.bias"}
    assert set(again.load_report.missing) == {"head.weight", "head.bias"}


def test_other_columns_are_refused_by_a_model_that_does_not_name_its_stem(tmp_path: Path) -> None:
    pz.save_for_hf(pz.create_model("dummy_encoder"), tmp_path)
    with pytest.raises(ValueError, match=r"read other columns.*stem_weight_name"):
        pz.create_model(f"local-dir:{tmp_path}", pretrained=True, feature_columns=["x", "y"])


def test_in_chans_warns_which_columns_it_means(caplog: pytest.LogCaptureFixture) -> None:
    model = pz.create_model("dummy_encoder", in_chans=2)
    assert model.pretrained_cfg.point_cfg.feature_columns == ("red", "green")
    assert "feature_columns=[...]" in caplog.text
    with pytest.raises(ValueError, match="contradicts"):
        pz.create_model("dummy_encoder", in_chans=2, feature_columns=["red"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("trunk.bias"), r"1 missing keys \(trunk.bias\)"),
        (lambda s: s.update(extra=torch.zeros(1)), r"1 unexpected keys \(extra\)"),
        (lambda s: s.update({"trunk.bias": torch.zeros(2)}), r"trunk.bias: file \(2,\), model \(5,\)"),
    ],
)
def test_weights_that_do_not_fit_load_nothing(tmp_path: Path, change: Any, message: str) -> None:
    pz.save_for_hf(pz.create_model("dummy_encoder"), tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    change(state)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=message):
        pz.create_model(f"local-dir:{tmp_path}", pretrained=True)


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    pz.save_for_hf(pz.create_model("dummy_encoder"), tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(ValueError, match=r"model.safetensors is not a readable safetensors file.*truncated"):
        pz.create_model(f"local-dir:{tmp_path}", pretrained=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(format_version=99), "format_version 99.*Upgrade"),
        (lambda c: c.pop("architecture"), r"lacks \['architecture'\]"),
        (lambda c: c["pretrained_cfg"].update(colour=1), r"no field \['colour'\]"),
        (lambda c: c.update(architecture="dummy_encod"), "Did you mean dummy_encoder"),
    ],
)
def test_a_bad_config_is_explained(tmp_path: Path, change: Any, message: str) -> None:
    pz.save_for_hf(pz.create_model("dummy_encoder"), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    change(config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        pz.create_model(f"local-dir:{tmp_path}", pretrained=True)


def test_an_edited_card_survives_the_next_export(tmp_path: Path) -> None:
    model = pz.create_model("dummy_encoder")
    pz.save_for_hf(model, tmp_path, metadata={"metrics": {"mIoU": 0.25}})
    assert "| mIoU | 0.25 |" in (tmp_path / "README.md").read_text()
    (tmp_path / "README.md").write_text("mine")
    pz.save_for_hf(model, tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_a_renderer_is_saved_beside_the_encoder_and_comes_back_alone(tmp_path: Path) -> None:
    renderer = pz.create_renderer("dummy_renderer", in_chans=3, hidden_dim=2)
    pz.save_for_hf(pz.create_model("dummy_encoder"), tmp_path, renderer=renderer)
    again = pz.create_renderer(f"local-dir:{tmp_path}", pretrained=True)
    torch.testing.assert_close(again.field.weight, renderer.field.weight)
    assert not any("field" in key for key in load_file(tmp_path / "model.safetensors"))


def test_a_folder_without_renderer_says_how_to_export_one(tmp_path: Path) -> None:
    pz.save_for_hf(pz.create_model("dummy_encoder"), tmp_path)
    with pytest.raises(ValueError, match="encoder without a renderer"):
        pz.create_renderer(f"local-dir:{tmp_path}", pretrained=True)


def test_saving_needs_a_model_of_a_factory(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="come from create_model"):
        pz.save_for_hf(nn.Linear(1, 1), tmp_path)


def test_features_only_returns_the_chosen_intermediates() -> None:
    model = pz.create_model("dummy_encoder", features_only=True, out_indices=[-1])
    assert [out.feat.shape for out in model(points())] == [(7, 5)] and len(model.feature_info) == 1
    with pytest.raises(ValueError, match="has 1 intermediate features"):
        pz.create_model("dummy_encoder", features_only=True, out_indices=[3])
