"""Official checkpoints: converted, loaded from the authors' repository, and giving the official code's numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_sparse_unet import prepare
from torch import Tensor, nn

import ponder_zoo as pz
from ponder_zoo.losses.segmentation import cross_entropy_lovasz
from ponder_zoo.models._official import CLASS_NAMES, CLASSES, FINE_TUNED, LABELS, PRETRAINED, REPO
from ponder_zoo.models._pretrained import read_weights

CONDITIONS = ("ScanNet", "S3DIS", "Structured3D")


@pytest.fixture
def mini(shared_dir: Path) -> Path:
    return shared_dir / "parity" / "f_mini_pretrain_checkpoint.pth"


@pytest.fixture
def parity(shared_dir: Path) -> Any:
    return lambda name: load_file(shared_dir / "parity" / f"{name}.safetensors")


def save_pth(state: dict[str, Tensor], path: Path) -> Path:
    """The outer layout of a released file."""
    content = {"epoch": 1, "state_dict": {f"module.{key}": value for key, value in state.items()}, "scaler": None}
    torch.save(content, path)
    return path


def points(tensors: dict[str, Tensor], condition: str | None = None) -> pz.PointBatch:
    cells = tensors["in.grid_coord"]
    return pz.PointBatch(
        cells * 0.02, tensors["in.feat"], tensors["in.offset"], grid_coord=cells.int(), condition=condition
    )


def error(output: Tensor, expected: Tensor) -> float:
    return ((output - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("backend", ["torch", pytest.param("triton", marks=[pytest.mark.triton, pytest.mark.slow])])
def test_case_f_and_i_the_mini_checkpoint_gives_the_official_logits(
    backend: str, mini: Path, parity: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(backend, monkeypatch)
    report = pz.convert(mini, tmp_path)
    assert report.layout == "pretrain" and set(report.left_out) == {
        "renderer.field.laplace_density.beta",
        "renderer.field.laplace_density.beta_min",
    }
    tensors = parity("i_ppt_from_pretrain")
    what: dict[str, Any] = {"pretrained": True, "backend": backend}
    model = pz.create_model(f"local-dir:{tmp_path}", **what, head="text", num_classes=20).eval()
    assert not model.load_report.adapted and not model.load_report.missing
    for condition in CONDITIONS:
        expected = tensors[f"eval.seg_logits.{condition}"]
        assert error(model(points(tensors, condition)), expected) < 1e-4
    with pytest.raises(ValueError, match="one condition for the batch"):
        model(points(tensors, CONDITIONS[:2]))  # type: ignore[arg-type]
    features = pz.create_model(f"local-dir:{tmp_path}", **what).eval()
    assert features.num_classes == 0 and features(points(tensors)).shape == (569, 4)
    torch.testing.assert_close(
        features(points(tensors, "S3DIS")), model.forward_features(points(tensors, "S3DIS")).feat
    )
    assert pz.verify(tmp_path, backend=backend).passed


def test_case_i_the_losses_and_gradients_of_fine_tuning_match(mini: Path, parity: Any, tmp_path: Path) -> None:
    pz.convert(mini, tmp_path)
    tensors = parity("i_ppt_from_pretrain")
    model = pz.create_model(f"local-dir:{tmp_path}", pretrained=True, head="text", num_classes=20)
    official = json.loads((mini.parent / "i_ppt_from_pretrain.json").read_text())["losses"]

    def loss(condition: str) -> Tensor:
        logits = model(points(tensors, condition))
        return torch.stack(list(cross_entropy_lovasz(logits, tensors[f"in.segment.{condition}"]).values())).sum()

    model.eval()
    for condition in CONDITIONS:
        assert loss(condition).item() == pytest.approx(official[f"eval.{condition}"], rel=1e-4)
    model.train()
    value = loss("ScanNet")
    assert value.item() == pytest.approx(official["train.ScanNet"], rel=1e-4)
    value.backward()
    gradient = {
        "stem.conv.weight": tensors["grad.backbone.conv_input.conv.weight"],
        "head.proj.weight": tensors["grad.proj_head.weight"],
        "context.weight": tensors["grad.embedding_table.weight"][[1, 2, 0]],  # the table's order is another
    }
    for name, expected in gradient.items():
        assert error(model.get_parameter(name).grad, expected) < 1e-4, name


def test_the_converted_pretrainer_holds_every_number_of_the_checkpoint(mini: Path, tmp_path: Path) -> None:
    pz.convert(mini, tmp_path)
    ponder = pz.create_pretrainer(f"local-dir:{tmp_path}", pretrained=True)
    assert ponder.volume_encoder.cells == "official" and not ponder.load_report.missing
    state = {key.removeprefix("module."): value for key, value in read_weights(mini).items()}
    unet, field = ponder.volume_encoder.unet, ponder.renderer.field
    assert torch.equal(unet.head.weight, state["proj_net.final_conv.weight"])
    assert torch.equal(field.semantic_mlp.inject[0].weight, state["renderer.field.semantic_decoder.fc_c.0.weight"])
    assert ponder.renderer.log_sharpness == state["renderer.field.deviation_network.variance"]
    renderer = pz.create_renderer(f"local-dir:{tmp_path}", pretrained=True)
    assert torch.equal(renderer.field.sdf_mlp.layers[0].weight, field.sdf_mlp.layers[0].weight)


@pytest.mark.parametrize("case", ["b_spunet_v1m3", "b_spunet_v1m3_noaffine_nc5"])
def test_case_b_prompt_driven_encoders(case: str, parity: Any, tmp_path: Path) -> None:
    tensors = parity(case)
    state = {f"backbone.{k.removeprefix('state.')}": v for k, v in tensors.items() if k.startswith("state.")}
    rows = dict(zip(CONDITIONS, tensors["in.context"][:, 0], strict=True))
    state["embedding_table.weight"] = torch.stack([rows[c] for c in ("Structured3D", "ScanNet", "S3DIS")])
    pz.convert(save_pth(state, tmp_path / "b.pth"), tmp_path / "out")
    model = pz.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    for condition in CONDITIONS:
        assert error(model(points(tensors, condition)), tensors[f"eval.out.{condition}"]) < 2e-5


@pytest.mark.parametrize("case", ["a_spunet_v1m1_nc0", "a_spunet_v1m1_nc13"])
def test_case_a_plain_encoders(case: str, parity: Any, tmp_path: Path) -> None:
    tensors = parity(case)
    state = {k.removeprefix("state."): v for k, v in tensors.items() if k.startswith("state.")}
    report = pz.convert(save_pth(state, tmp_path / "a.pth"), tmp_path / "out")
    assert report.architecture == "sparseunet34"
    model = pz.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    assert error(model(points(tensors)), tensors["eval.out"]) < 2e-5


def shapes(shared_dir: Path, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    listed = json.loads((shared_dir / "parity" / f"f_keys_{name}.json").read_text())
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1 << 20, generator=generator)
    state = {}
    for key, shape in listed["keys"].items():
        size = torch.Size(shape)
        if key.endswith("num_batches_tracked"):
            state[key] = torch.zeros(size, dtype=torch.int64)
        else:  # cheap, and different in every tensor
            state[key] = (noise.repeat(-(-size.numel() // len(noise)))[: size.numel()].view(size) * 0.01).roll(len(key))
            state[key] = state[key].abs() + 0.5 if "running_var" in key else state[key]
    return state, listed["params"]["params"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layout", "not_ours"),
    [
        ("pretrain_ponder_ppt", "pretrain", 2),  # the two parameters of VolSDF
        ("semseg_ppt_scannet_s3dis", "text segmentation", 0),
        ("spunet_v1m1_nohead", "encoder", 0),
        ("spunet_v1m1_scannet20", "segmentation", 0),
    ],
)
def test_full_size_checkpoints_convert_and_load_to_the_last_parameter(
    name: str, layout: str, not_ours: int, shared_dir: Path, tmp_path: Path
) -> None:
    state, params = shapes(shared_dir, name)
    report = pz.convert(save_pth(state, tmp_path / "full.pth"), tmp_path / "out")
    assert report.layout == layout and len(report.left_out) == not_ours
    files = [load_file(path) for path in (tmp_path / "out").glob("[mr][oe][dn]*.safetensors")]
    numbers = sum(value.numel() for file in files for value in file.values())
    assert numbers == params["total"] + params["buffers"] - not_ours
    model = pz.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    assert not model.load_report.missing and not model.load_report.unexpected
    if layout != "pretrain":
        assert sum(p.numel() for p in model.parameters()) == params["total"]
    else:
        ponder = pz.create_pretrainer(f"local-dir:{tmp_path / 'out'}", pretrained=True)
        head = params["total"] - sum(p.numel() for p in ponder.parameters()) - not_ours
        assert head == 512 * 96 + 512 + 1  # projection and logit scale, kept beside the encoder


def mini_state(mini: Path) -> dict[str, Tensor]:
    return {key.removeprefix("module."): value for key, value in read_weights(mini).items()}


def offset_head() -> nn.Module:
    """As the official code builds it (PG-v1m1), for encoders of width 4."""
    head = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, eps=1e-3, momentum=0.01), nn.ReLU(), nn.Linear(4, 3))
    nn.init.normal_(head[1].running_mean)
    return head.eval()


def test_pointgroup_and_segmentor_layouts(mini: Path, parity: Any, tmp_path: Path) -> None:
    """Their encoder sits one level deeper; PointGroup has two heads."""
    old = mini_state(mini)
    deep = {f"backbone.{k}": v for k, v in old.items() if k.startswith(("backbone.", "embedding_table."))}
    seg = {"seg_head.weight": torch.randn(20, 4), "seg_head.bias": torch.randn(20)}
    official = offset_head()
    bias = {f"bias_head.{key}": value for key, value in official.state_dict().items()}
    report = pz.convert(save_pth(deep | seg | bias, tmp_path / "ft-insseg-scannet.pth"), tmp_path / "pg")
    assert (report.layout, report.architecture) == ("pointgroup", "pointgroup")
    model = pz.create_model(f"local-dir:{tmp_path / 'pg'}", pretrained=True).eval()
    inputs = points(parity("i_ppt_from_pretrain"), "ScanNet")
    feat = model.forward_features(inputs).feat
    torch.testing.assert_close(model(inputs), feat @ seg["seg_head.weight"].T + seg["seg_head.bias"])
    torch.testing.assert_close(model.predict_offsets(model.forward_features(inputs)), official(feat))
    final = {
        "backbone.backbone.final.weight": torch.randn(200, 1, 1, 1, 4),
        "backbone.backbone.final.bias": torch.randn(200),
    }
    report = pz.convert(save_pth(deep | final, tmp_path / "200.pth"), tmp_path / "semseg", condition="S3DIS")
    assert report.layout == "segmentation"
    model = pz.create_model(f"local-dir:{tmp_path / 'semseg'}", pretrained=True).eval()
    matrix = final["backbone.backbone.final.weight"].reshape(4, 200)  # the memory read as (in, out)
    expected = model.forward_features(inputs).feat @ matrix + final["backbone.backbone.final.bias"]
    torch.testing.assert_close(model(inputs), expected)
    assert model.condition == "S3DIS"


def test_what_is_no_such_checkpoint_is_refused(mini: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no official SpUNet"):
        pz.convert(save_pth({"layer.weight": torch.zeros(2)}, tmp_path / "x.pth"), tmp_path / "out")
    state = mini_state(mini)
    with pytest.raises(ValueError, match=r"such as 'surprise'"):
        pz.convert(save_pth(state | {"surprise": torch.zeros(3)}, tmp_path / "x.pth"), tmp_path / "out")
    semseg = {k: v for k, v in state.items() if not k.startswith(("proj_net.", "renderer."))}
    with pytest.raises(ValueError, match=r"3 of its .* numbers have no place"):
        pz.convert(save_pth(semseg | {"surprise": torch.zeros(3)}, tmp_path / "x.pth"), tmp_path / "out")
    with pytest.raises(ValueError, match="without embedding_table"):
        pz.convert(
            save_pth({k: v for k, v in state.items() if k != "embedding_table.weight"}, tmp_path / "x.pth"), tmp_path
        )
    (tmp_path / "x.pth").write_bytes(b"\x80\x02cos\nsystem\n.")
    with pytest.raises(ValueError, match="no zip archive"):
        pz.convert(tmp_path / "x.pth", tmp_path / "out")


SMALL = dict(channels=(4, 6, 6, 8, 8, 6, 6, 4), depths=(1,) * 8, stem_channels=4, context_dim=8)


def test_released_names_load_the_authors_file_from_their_repository(
    hub: Any, mini: Path, parity: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ponder_zoo.models._builder._told", set())
    state = mini_state(mini)
    semseg = {k: v for k, v in state.items() if not k.startswith(("proj_net.", "renderer."))}
    fine_tuned = save_pth(semseg, tmp_path / "ft.pth").read_bytes()
    file = FINE_TUNED.format(task="semseg", data="s3dis")
    hub.put(REPO, {PRETRAINED: mini.read_bytes(), file: fine_tuned})
    access: dict[str, Any] = {"endpoint": hub.endpoint, "cache_dir": tmp_path / "cache", "pretrained": True}
    name = "sparseunet_ponderv2.scannet_s3dis_structured3d"
    assert name in pz.list_pretrained()
    model = pz.create_model("sparseunet_ponderv2", **access, **SMALL)
    assert not model.load_report.missing and model.load_report.source.startswith(f"{REPO}@")
    assert caplog.text.count("Terms of the training data") == 1
    tensors = parity("i_ppt_from_pretrain")
    again = pz.create_model(name, **access, **SMALL)  # from the safetensors that the first load kept
    assert len(list((tmp_path / "cache" / "ponder_zoo").glob("*.safetensors"))) == 1
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in again.state_dict().items())
    assert caplog.text.count("Terms of the training data") == 1
    head = {"embed_dim": 24, "num_embeddings": 36, "classes": CLASSES}
    tuned = pz.create_model(f"{name}_ft_s3dis", **access, **SMALL, text_head=head).eval()
    assert tuned.num_classes == 13 and tuned.pretrained_cfg.label_names == LABELS["S3DIS"]
    assert error(tuned(points(tensors)), tensors["eval.seg_logits.S3DIS"]) < 1e-4


@pytest.mark.parametrize(("data", "classes"), [("scannet", 20), ("scannet200", 200)])
def test_released_instance_and_200_class_weights_load_from_their_repository(
    data: str, classes: int, hub: Any, mini: Path, parity: Any, tmp_path: Path
) -> None:
    old = mini_state(mini)
    deep = {f"backbone.{k}": v for k, v in old.items() if k.startswith(("backbone.", "embedding_table."))}
    official = offset_head()
    heads = {f"bias_head.{key}": value for key, value in official.state_dict().items()}
    heads |= {"seg_head.weight": torch.randn(classes, 4), "seg_head.bias": torch.randn(classes)}
    final = {"backbone.backbone.final.weight": torch.randn(200, 1, 1, 1, 4)}
    final |= {"backbone.backbone.final.bias": torch.randn(200)}
    files = {
        FINE_TUNED.format(task="insseg", data=data): save_pth(deep | heads, tmp_path / "a.pth").read_bytes(),
        FINE_TUNED.format(task="semseg", data="scannet200"): save_pth(deep | final, tmp_path / "b.pth").read_bytes(),
    }
    hub.put(REPO, files)
    access: dict[str, Any] = {"endpoint": hub.endpoint, "cache_dir": tmp_path / "cache", "pretrained": True}
    tag = "scannet_s3dis_structured3d_ft"
    model = pz.create_model(f"pointgroup.{tag}_{data}", **access, **SMALL).eval()
    assert model.num_classes == classes and not model.load_report.missing and not model.load_report.unexpected
    features = model.forward_features(points(parity("i_ppt_from_pretrain"), "ScanNet"))
    torch.testing.assert_close(model.predict_offsets(features), official(features.feat))
    scores = features.feat @ heads["seg_head.weight"].T + heads["seg_head.bias"]
    torch.testing.assert_close(model.forward_head(features), scores)
    other = pz.create_model(f"sparseunet_ponderv2.{tag}_scannet200", **access, **SMALL).eval()
    again = other.forward_features(points(parity("i_ppt_from_pretrain"), "ScanNet")).feat
    torch.testing.assert_close(again, features.feat)
    assert other(points(parity("i_ppt_from_pretrain"), "ScanNet")).shape[1] == 200


@pytest.mark.parametrize(("classes", "parameters"), [(20, 43_610_775), (200, 43_628_235)])
def test_pointgroup_has_the_official_number_of_parameters(classes: int, parameters: int) -> None:
    with torch.device("meta"):
        model = pz.create_model("pointgroup", num_classes=classes)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_facts_of_other_weights_do_not_stick_to_new_ones(tmp_path: Path) -> None:
    pz.save_for_hf(pz.create_model("sparseunet_ponderv2_tiny"), tmp_path, reference=False)
    small = pz.create_model("sparseunet_ponderv2", **SMALL)
    pz.save_for_hf(small, tmp_path, reference=False)
    cfg = json.loads((tmp_path / "config.json").read_text())["pretrained_cfg"]
    assert cfg["training_data"] is None and cfg["origin_url"] is None and cfg["training_data_license"] is None


def test_the_class_tables_agree_with_the_official_configuration(mini: Path) -> None:
    config = json.loads(mini.with_suffix(".json").read_text())["config"]
    assert list(CLASS_NAMES) == config["class_name"]
    assert [CLASSES[name] for name in config["conditions"]] == config["valid_index"]
    assert all(len(LABELS[name]) == len(CLASSES[name]) for name in CONDITIONS)
