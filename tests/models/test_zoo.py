"""What every model of the zoo can do, over `list_models()`: registering a model adds it to every test here."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from loopback_hub import OWNER
from test_sparse_unet import prepare
from torch import Tensor, nn

import ponder_zoo as pz
from ponder_zoo.models._reference import reference_points

NARROW: dict[str, Any] = dict(channels=(8,) * 8, depths=(1,) * 8, stem_channels=8)  # the full size is in test_convert
PLAIN = ("sparseunet34", "sparseunet_small", "sparseunet_tiny")  # without norms per data set
MODEL_ARGS: dict[str, dict[str, Any]] = {
    name: {**NARROW, **({} if name in PLAIN else {"context_dim": 8})}
    for name in (*pz.list_models("sparseunet*"), "pointgroup")
}
NAMES = pz.list_models(modality="points")
EVERY = pytest.mark.parametrize("name", NAMES)
# What is about the network and not about files: also through Triton, one model of each kind (NARROW ones are equal).
TRITON = [
    pytest.param(name, "triton", marks=[pytest.mark.triton, pytest.mark.slow])
    for name in ("sparseunet_tiny", "sparseunet_ponderv2_tiny", "pointgroup")
]
THROUGH = pytest.mark.parametrize(("name", "backend"), [*[(name, "torch") for name in NAMES], *TRITON])


@pytest.fixture(autouse=True)
def _bearable(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "backend" in request.fixturenames:
        prepare(request.getfixturevalue("backend"), monkeypatch)


def create(name: str, **args: Any) -> nn.Module:
    return pz.create_model(name, **{**MODEL_ARGS.get(name, {}), **args})


def points(model: nn.Module) -> pz.PointBatch:
    return reference_points(model.pretrained_cfg)


def same_weights(one: nn.Module, two: nn.Module) -> bool:
    a, b = one.state_dict(), two.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@torch.no_grad()
def output(model: nn.Module, given: pz.PointBatch | None = None) -> Tensor:
    return model.eval()(points(model) if given is None else given)


@THROUGH
def test_forward_and_backward_reach_every_parameter_in_use(name: str, backend: str) -> None:
    model = create(name, backend=backend, num_classes=5)
    given = points(model)
    logits = model(given)
    assert logits.shape == (len(given), 5) and torch.isfinite(logits).all()
    logits.square().sum().backward()
    unused = {key for key, value in model.named_parameters() if value.grad is None}
    # Norms of the data sets that are not in the batch, and the head that is no part of `forward`.
    assert all(".norms." in key or key.startswith("offset_head.") for key in unused)
    assert all(torch.isfinite(value.grad).all() for value in model.parameters() if value.grad is not None)


@THROUGH
def test_the_parts_of_forward_compose(name: str, backend: str) -> None:
    model = create(name, backend=backend, num_classes=5).eval()
    given = points(model)
    with torch.no_grad():
        features = model.forward_features(given)
        assert features.feat.shape[1] == model.num_features
        torch.testing.assert_close(model.forward_head(features), model(given))
        assert torch.equal(model.forward_head(features, pre_logits=True), features.feat)
        twice = dataclasses.replace(given, inverse=torch.arange(len(given)).flip(0).repeat(2))
        assert model.forward_point_features(twice).shape == (2 * len(given), model.num_features)


@THROUGH
def test_intermediates_and_features_only_agree_with_feature_info(name: str, backend: str) -> None:
    model = create(name, backend=backend).eval()
    given = points(model)
    with torch.no_grad():
        every = model.forward_intermediates(given)
        assert [out.feat.shape[1] for out in every] == [info["num_chs"] for info in model.feature_info]
        wrapped = create(name, backend=backend, features_only=True, out_indices=[0, -1]).eval()
        wrapped.model.load_state_dict(model.state_dict())
        chosen = wrapped(given)
        at_points = model.forward_intermediates(given, output_fmt="points")
        low, high = given.coord.amin(0), given.coord.amax(0) + 1e-3
        grid = pz.VolumeGrid(torch.stack([low, high]).expand(given.batch_size, 2, 3), (32, 16, 16))
        dense = model.forward_intermediates(given, output_fmt="dense", grid=grid)
    for info, sparse, point, volume in zip(model.feature_info, every, at_points, dense, strict=True):
        assert torch.equal(point.feat, sparse.feat[sparse.inverse]) and torch.equal(point.coord, given.coord)
        assert volume.grid.shape == tuple(side // info["reduction"] for side in (32, 16, 16))
        X, Y, Z = volume.grid.shape
        cell = ((sparse.coord - low) / (high - low) * torch.tensor([X, Y, Z])).floor().long()
        here = (cell == cell[0]).all(1) & (sparse.batch == sparse.batch[0])  # by brute force, for the first one's cell
        x, y, z = cell[0].tolist()
        torch.testing.assert_close(volume.feat[sparse.batch[0], :, z, y, x], sparse.feat[here].mean(0))
    assert len(chosen) == len(wrapped.feature_info) == 2
    assert torch.equal(chosen[0].feat, every[0].feat) and torch.equal(chosen[1].feat, every[-1].feat)


@EVERY
def test_the_classifier_is_replaced_and_removed(name: str) -> None:
    model = create(name, num_classes=5)
    model.reset_classifier(7)
    assert output(model).shape[1] == model.num_classes == 7
    model.reset_classifier(0)
    assert output(model).shape[1] == model.num_features and isinstance(model.get_classifier(), nn.Identity)


@THROUGH
def test_scenes_of_a_batch_do_not_see_each_other(name: str, backend: str) -> None:
    model = create(name, backend=backend, num_classes=3)
    given = points(model)
    alone = torch.cat([output(model, scene) for scene in given.split()])
    torch.testing.assert_close(output(model, given), alone, atol=1e-5, rtol=1e-4)


@THROUGH
def test_copies_and_pickles_compute_the_same(name: str, backend: str) -> None:
    model = create(name, backend=backend, num_classes=3)
    expected = output(model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(output(other), expected)
        assert other.pretrained_cfg == model.pretrained_cfg and other.model_args == model.model_args


@THROUGH
def test_bf16_autocast_stays_close_and_trains(name: str, backend: str) -> None:
    model = create(name, backend=backend, num_classes=3)
    expected = output(model)
    with torch.autocast("cpu", torch.bfloat16):
        close = output(model).float()
        loss = model.train()(points(model)).float().square().mean()
    assert (close - expected).abs().max() < 0.1 * expected.abs().max()
    loss.backward()
    assert all(torch.isfinite(value.grad).all() for value in model.parameters() if value.grad is not None)


@EVERY
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")  # the choice of the backend
def test_torch_compile_computes_the_same(name: str) -> None:
    """With graph breaks around sparse convolutions, whose kernel maps depend on the data: right, not faster."""
    model = create(name, num_classes=3)
    expected = output(model)
    with torch.no_grad():
        compiled = torch.compile(model.eval(), backend="eager")(points(model))
    torch.testing.assert_close(compiled, expected, atol=1e-5, rtol=1e-4)


@EVERY
def test_a_folder_and_a_hub_give_it_back_bit_exact(name: str, hub: Any, tmp_path: Path) -> None:
    model = create(name, num_classes=3)
    pz.save_for_hf(model, tmp_path / "folder", reference=False)
    pz.push_to_hf_hub(model, f"org/{name}", endpoint=hub.endpoint, token=OWNER, reference=False)
    access: dict[str, Any] = {"endpoint": hub.endpoint, "cache_dir": tmp_path / "cache"}
    for source, args in ((f"local-dir:{tmp_path / 'folder'}", {}), (f"hf-hub:org/{name}", access)):
        again = pz.create_model(source, pretrained=True, **args)
        assert same_weights(again, model) and torch.equal(output(again), output(model))
        assert not again.load_report.missing and not again.load_report.unexpected and not again.load_report.adapted


@EVERY
def test_columns_are_adapted_exactly_at_their_fill_values(name: str, tmp_path: Path) -> None:
    cfg = pz.get_pretrained_cfg(name)
    old_columns = cfg.point_cfg.feature_columns
    fill = tuple(0.0 if i == 1 else value for i, value in enumerate(cfg.point_cfg.fill))  # normalized: not zero
    cfg = dataclasses.replace(cfg, point_cfg=dataclasses.replace(cfg.point_cfg, fill=fill), model_args={})
    old = create(name, pretrained_cfg=cfg, num_classes=3)
    pz.save_for_hf(old, tmp_path, reference=False)
    kept = [column for i, column in enumerate(old_columns) if i != 1][::-1]
    new = pz.create_model(f"local-dir:{tmp_path}", pretrained=True, feature_columns=["curvature", *kept])
    given = points(old)
    feat = given.feat.clone()
    feat[:, 1] = (fill[1] - cfg.point_cfg.mean[1]) / cfg.point_cfg.std[1]
    reordered = torch.stack([torch.randn(len(feat)), *(feat[:, old_columns.index(column)] for column in kept)], 1)
    torch.testing.assert_close(
        output(new, dataclasses.replace(given, feat=reordered)),
        output(old, dataclasses.replace(given, feat=feat)),
        atol=1e-5,
        rtol=1e-5,
    )
    assert new.load_report.columns["curvature"] == "new, zero weights"
