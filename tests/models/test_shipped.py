"""Weights that come with the package: writing them, finding them by name, and noticing when they are damaged."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ponder_zoo as pz
from ponder_zoo.models import _registry, _ship, _shipped
from ponder_zoo.models._reference import reference_points
from ponder_zoo.models._ship import MAX_BYTES, ShipReport, ship
from ponder_zoo.models._shipped import configs_folder, sha256, shipped_config, shipped_folder
from ponder_zoo.models.sparse_unet import fill_untrained_conditions

ARCH, NAME = "sparseunet_ponderv2_tiny", "sparseunet_ponderv2_tiny.rooms"
RENDERER = "neus.sparseunet_ponderv2_tiny_rooms"
SMALL: dict[str, Any] = dict(channels=(6,) * 8, depths=(1,) * 8, stem_channels=6, context_dim=4)
ABOUT = {"license": "mit", "training_data": "corners", "training": {"command": "python train.py", "seed": "3"}}


def trained_encoder(condition: str = "ScanNet", seen: str | None = None) -> Any:
    """After some batches of one condition, as pre-training leaves it."""
    torch.manual_seed(0)
    encoder = pz.create_model(ARCH, grid_size=0.1, condition=condition, **SMALL)
    points = reference_points(encoder.pretrained_cfg)  # type: ignore[arg-type]
    for _ in range(3):
        encoder(dataclasses.replace(points, condition=seen or condition))
    return encoder


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    encoder = trained_encoder()
    args = {"num_samples": 6, "num_importance": 4, "hidden_dim": 6, "geo_dim": 3}
    ponder = pz.create_pretrainer(encoder, volume_channels=4, unet_channels=(4, 4), renderer_args=args)
    return pz.save_for_hf(encoder, folder, renderer=ponder, reference=False)


def new_clone(folder: Path) -> Path:
    """The package's folder in an empty clone."""
    (folder / "hub_configs").mkdir(parents=True)
    return folder / "ponder_zoo"


def register(monkeypatch: pytest.MonkeyPatch, package: Path) -> None:
    """As if this package lay there and was imported again."""
    monkeypatch.setattr(_shipped, "PACKAGE", package)
    base = {ARCH: pz.PretrainedCfg(condition="ScanNet"), "neus": pz.PretrainedCfg()}
    cfgs = {**base, **_shipped.shipped_cfgs(ARCH), **_shipped.shipped_renderer_cfgs()}
    for name, group in _registry.generate_default_cfgs(cfgs).items():
        entry = dataclasses.replace(_registry._architectures[name], cfgs=group)
        monkeypatch.setitem(_registry._architectures, name, entry)


@pytest.fixture
def shipped(export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ShipReport:
    package = new_clone(tmp_path / "clone")
    report = ship(export, NAME, metadata=ABOUT, package=package)
    register(monkeypatch, package)
    return report


def rounded(model: nn.Module) -> dict[str, torch.Tensor]:
    state = model.state_dict()
    return {k: v.half().float() if v.is_floating_point() and v.ndim > 1 else v for k, v in state.items()}


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


# Finding and loading


def test_an_architecture_gets_its_shipped_weights_and_says_where_from(shipped: ShipReport, export: Path) -> None:
    model = pz.create_model(ARCH, pretrained=True)
    before = pz.create_model(f"local-dir:{export}", pretrained=True)
    fill_untrained_conditions(before)  # type: ignore[arg-type]
    assert same(model.state_dict(), rounded(before))
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert NAME in pz.list_pretrained() and pz.is_model(NAME)
    cfg = pz.get_pretrained_cfg(ARCH)
    assert cfg.tag == "rooms" and cfg.training_data == "corners" and cfg.license == "mit"
    assert str(shipped.folder) in str(cfg.file) and str(shipped.folder) in model.load_report.source  # type: ignore[union-attr]
    assert model.grid_size == cfg.point_cfg.grid_size == 0.1


def test_without_weights_the_architecture_is_its_own(shipped: ShipReport) -> None:
    assert pz.create_model(ARCH).grid_size == 0.02 and pz.create_model(ARCH).num_features == 32
    assert pz.create_model(NAME).grid_size == 0.1 and pz.create_model(NAME).num_features == 6  # asked for by its tag


def test_the_renderer_is_found_by_its_own_name(shipped: ShipReport, export: Path) -> None:
    expected = rounded(pz.create_renderer(f"local-dir:{export}", pretrained=True))
    assert same(pz.create_renderer("neus", pretrained=True).state_dict(), expected)
    assert same(pz.create_renderer(RENDERER, pretrained=True).state_dict(), expected)
    assert RENDERER in pz.list_models(pretrained=True, modality="renderer")
    assert pz.create_renderer(RENDERER).field.in_chans == 4  # type: ignore[union-attr]
    assert pz.create_renderer("neus", in_chans=12).num_samples != 6  # the defaults are not the shipped one's


def test_the_pretraining_model_comes_back_whole_or_with_another_renderer(shipped: ShipReport, export: Path) -> None:
    whole = pz.create_pretrainer(ARCH, pretrained=True)
    before = pz.create_pretrainer(f"local-dir:{export}", pretrained=True)
    fill_untrained_conditions(before.encoder)  # type: ignore[arg-type]
    assert same(whole.state_dict(), rounded(before))
    other = pz.create_pretrainer(ARCH, "volsdf", pretrained=True, volume_channels=8, unet_channels=(8, 8))
    assert same(other.encoder.state_dict(), whole.encoder.state_dict())  # type: ignore[union-attr]
    assert type(other.renderer).__name__ == "VolSDF"


def test_a_new_head_is_trained_on_shipped_weights(shipped: ShipReport) -> None:
    model = pz.create_model(ARCH, pretrained=True, num_classes=5)
    points = reference_points(model.pretrained_cfg)  # type: ignore[arg-type]
    model(points).logsumexp(1).mean().backward()
    assert model.head.weight.grad is not None and "new head" in str(model.load_report)  # type: ignore[union-attr]


def test_verify_replays_shipped_weights_by_name(shipped: ShipReport) -> None:
    report = pz.verify(ARCH)
    assert report.passed and report.error < 1e-5
    with pytest.raises(ValueError, match="sparseunet_tiny' is none of them"):
        pz.verify("sparseunet_tiny")


# Damage


@pytest.mark.parametrize("filename", ["model.safetensors", "renderer.safetensors"])
def test_damaged_files_are_noticed_before_they_are_used(shipped: ShipReport, filename: str) -> None:
    path = shipped.folder / filename
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{filename} is damaged: expected digest .*Install ponder_zoo again"):
        pz.create_pretrainer(ARCH, pretrained=True)


def test_an_incomplete_installation_is_named(shipped: ShipReport) -> None:
    (shipped.folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors.*installation is incomplete"):
        pz.create_model(ARCH, pretrained=True)
    assert NAME in pz.list_pretrained()  # a missing file is an error, not a reason to go on untrained


def test_weights_of_the_repository_alone_say_where_to_get_them(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = new_clone(tmp_path / "clone")
    report = ship(export, NAME, metadata=ABOUT, place="release", package=package)
    assert report.folder == tmp_path / "clone" / "release" / NAME
    register(monkeypatch, package)
    model = pz.create_model(ARCH, pretrained=True)
    copy = report.folder.rename(tmp_path / "copy")
    with pytest.raises(FileNotFoundError, match=rf"Copy the folder release/{NAME} of ponder_zoo's repository"):
        pz.create_model(ARCH, pretrained=True)
    assert same(pz.create_model(f"local-dir:{copy}", pretrained=True).state_dict(), model.state_dict())


# Conditions


def test_data_sets_that_training_never_saw_share_the_norms_of_the_one_it_saw(shipped: ShipReport) -> None:
    assert shipped.filled == ("S3DIS", "Structured3D")
    assert "No data of S3DIS and Structured3D" in (shipped.folder / "README.md").read_text()
    model = pz.create_model(ARCH, pretrained=True).eval()
    points = reference_points(model.pretrained_cfg)  # type: ignore[arg-type]
    assert points.condition == "ScanNet"
    with torch.no_grad():
        expected = model(points)
        for condition in (None, "S3DIS", "Structured3D"):
            assert torch.equal(model(dataclasses.replace(points, condition=condition)), expected)
        model.train()  # and fine-tuning starts from the same function
        assert torch.equal(model(dataclasses.replace(points, condition="S3DIS")), model(points))


def test_trained_norms_are_left_alone_and_stand_in_for_an_untrained_default() -> None:
    encoder = trained_encoder(seen="S3DIS")
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    assert fill_untrained_conditions(encoder) == ("ScanNet", "Structured3D")
    after = encoder.state_dict()
    for norm in ("stem.norm", "dec.3.blocks.0.norm1"):
        mean = after[f"{norm}.norms.1.running_mean"]
        assert torch.equal(mean, before[f"{norm}.norms.1.running_mean"]) and mean.abs().max() > 0
        assert torch.equal(after[f"{norm}.norms.0.running_mean"], mean)
    assert torch.equal(after["context.weight"], before["context.weight"][[1, 1, 1]])
    assert fill_untrained_conditions(encoder) == ("ScanNet", "Structured3D")  # copies are no training


def test_an_untrained_encoder_and_one_with_plain_norms_have_nothing_to_fill() -> None:
    for encoder in (
        pz.create_model(ARCH, **SMALL),
        pz.create_model("sparseunet_tiny", **SMALL | {"context_dim": None}),
    ):
        assert fill_untrained_conditions(encoder) == ()  # type: ignore[arg-type]


# Writing


def test_the_same_export_gives_the_same_bytes(export: Path, tmp_path: Path) -> None:
    contents = []
    for number in range(4):  # the metadata of a safetensors file would come in one of several orders
        package = new_clone(tmp_path / str(number))
        ship(export, NAME, metadata=ABOUT, package=package)
        files = sorted(path for path in package.parent.rglob("*") if path.is_file())
        contents.append({str(path.relative_to(package.parent)): path.read_bytes() for path in files})
    assert len(contents[0]) == 6 and all(content == contents[0] for content in contents)


def test_the_folder_says_how_it_was_made_and_takes_half_the_bytes(shipped: ShipReport, export: Path) -> None:
    card = (shipped.folder / "README.md").read_text()
    assert (
        "python train.py" in card and "| seed | 3 |" in card and "| Terms of the training data | not stated |" in card
    )
    files = list(shipped.folder.iterdir())
    assert shipped.size == sum(path.stat().st_size for path in files)
    size = [(folder / "model.safetensors").stat().st_size for folder in (shipped.folder, export)]
    assert size[0] < 0.75 * size[1]  # of so small a model the names and the vectors are a large part
    assert 0.0 < shipped.rounding < 1e-2
    assert f"{shipped.rounding:.2g}" in str(shipped) and "S3DIS, Structured3D" in str(shipped)


def test_what_cannot_be_shipped_is_refused_and_leaves_nothing(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = new_clone(tmp_path / "clone")
    with pytest.raises(ValueError, match=r"sparseunet_ponderv2_tiny\.TAG' for these weights, got 'sparseunet_tiny\.x'"):
        ship(export, "sparseunet_tiny.x", metadata=ABOUT, package=package)
    with pytest.raises(ValueError, match=r"\.TAG"):
        ship(export, ARCH, metadata=ABOUT, package=package)
    with pytest.raises(ValueError, match="must say their license"):
        ship(export, NAME, metadata={"training_data": "corners"}, package=package)
    with pytest.raises(ValueError, match="Expected a clone"):
        ship(export, NAME, metadata=ABOUT, package=tmp_path / "elsewhere" / "ponder_zoo")
    monkeypatch.setitem(MAX_BYTES, "package", 1000)
    with pytest.raises(ValueError, match=r"the package holds at most 0 MB per model.*release"):
        ship(export, NAME, metadata=ABOUT, package=package)
    assert not [path for path in package.parent.rglob("*") if path.is_file()]


def test_values_that_half_precision_cannot_hold_are_named(tmp_path: Path) -> None:
    encoder = trained_encoder()
    with torch.no_grad():
        encoder.enc[1].blocks[0].conv1.weight[0] = 1e5
    ponder = pz.create_pretrainer(encoder, volume_channels=4, unet_channels=(4, 4), renderer_args={"hidden_dim": 6})
    pz.save_for_hf(encoder, tmp_path / "export", renderer=ponder, reference=False)
    with pytest.raises(ValueError, match=r"enc\.1\.blocks\.0\.conv1\.weight' has values up to 1e\+05"):
        ship(tmp_path / "export", NAME, metadata=ABOUT, package=new_clone(tmp_path / "clone"))


def test_metrics_with_intervals_reach_the_card(export: Path, tmp_path: Path) -> None:
    package = new_clone(tmp_path)
    metadata = ABOUT | {"metrics": {"psnr": 18.25, "mIoU": [0.5, 0.4, 0.6]}}
    card = (ship(export, NAME, metadata=metadata, package=package).folder / "README.md").read_text()
    assert "| psnr | 18.25 |" in card and "| mIoU | 0.5 (0.4 to 0.6) |" in card


# What is shipped

SHIPPED = [name for name in pz.list_pretrained() if shipped_config(name) is not None]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_weights_are_complete_small_and_free(name: str) -> None:
    config = shipped_config(name)
    assert config is not None
    folder = shipped_folder(name, config["shipped"]["in"])
    assert (folder / "config.json").read_bytes() == (configs_folder() / f"{name}.json").read_bytes()
    files = {path.name: path for path in folder.iterdir()}
    assert config["shipped"]["sha256"] == {k: sha256(path) for k, path in files.items() if k.endswith(".safetensors")}
    assert {"model.safetensors", "renderer.safetensors", "reference.safetensors"} <= set(files)
    assert sum(path.stat().st_size for path in files.values()) <= _ship.MAX_BYTES[config["shipped"]["in"]]
    cfg = config["pretrained_cfg"]
    assert cfg["license"] == cfg["training_data_license"] == "mit" and "generator version" in cfg["training_data"]
    card = files["README.md"].read_text()
    assert config["training"]["command"] in card and config["training"]["commit"] in card
    assert json.loads(json.dumps(config["metrics"])) and pz.verify(name).passed
