"""Adapting input columns by name, checked through whole models whose voxels have varying numbers of neighbours."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import ponder_zoo as pz
from ponder_zoo.models._columns import map_columns
from ponder_zoo.models._config import PointCfg, PretrainedCfg
from ponder_zoo.models._reference import reference_points

pytestmark = pytest.mark.usefixtures("dummies")

COLUMNS = ("red", "green", "blue", "height")
CFG = PretrainedCfg(
    architecture="neighbour_encoder",
    point_cfg=PointCfg(
        feature_columns=COLUMNS,
        mean=(127.5, 127.5, 127.5, 1.0),
        std=(127.5, 127.5, 127.5, 2.0),
        fill=(127.5, 0.0, 127.5, 0.0),  # normalized: 0, -1, 0, -0.5
    ),
)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[str, nn.Module]:
    model = pz.create_model("neighbour_encoder", pretrained_cfg=CFG, num_classes=3)
    model.norm.running_mean.uniform_(-1, 1)
    pz.save_for_hf(model, tmp_path / "model", reference=False)
    return f"local-dir:{tmp_path / 'model'}", model.eval()


def cloud(model: nn.Module, columns: dict[str, Tensor | float]) -> pz.PointBatch:
    """Random voxels whose feature columns are those of `model`, given by name and already normalized."""
    points = reference_points(CFG)
    names = model.pretrained_cfg.point_cfg.feature_columns
    feat = torch.stack([torch.as_tensor(columns[name]).expand(len(points)) for name in names], 1)
    return dataclasses.replace(points, feat=feat)


def values() -> dict[str, Tensor | float]:
    return {name: torch.randn(len(reference_points(CFG))) for name in (*COLUMNS, "intensity", "curvature")}


def test_reordered_columns_give_the_same_function(saved: tuple[str, nn.Module]) -> None:
    name, old = saved
    new = pz.create_model(name, pretrained=True, feature_columns=COLUMNS[::-1]).eval()
    given = values()
    torch.testing.assert_close(new(cloud(new, given)), old(cloud(old, given)), atol=1e-5, rtol=1e-5)
    assert dict(new.load_report.columns) == dict.fromkeys(COLUMNS, "copied")


def test_a_new_column_changes_nothing_until_it_is_trained(saved: tuple[str, nn.Module]) -> None:
    name, old = saved
    new = pz.create_model(name, pretrained=True, feature_columns=["curvature", *COLUMNS]).eval()
    given = values()
    output = new(cloud(new, given))
    torch.testing.assert_close(output, old(cloud(old, given)), atol=1e-5, rtol=1e-5)
    output.sum().backward()
    assert new.stem.grad[..., 0].abs().sum() > 0  # and it can be trained
    assert new.load_report.columns["curvature"] == "new, zero weights"


def test_a_column_dropped_at_zero_is_exact_and_adds_nothing(saved: tuple[str, nn.Module]) -> None:
    name, old = saved
    new = pz.create_model(name, pretrained=True, feature_columns=["green", "blue", "height"]).eval()
    given = values() | {"red": 0.0}
    torch.testing.assert_close(new(cloud(new, given)), old(cloud(old, given)), atol=1e-5, rtol=1e-5)
    assert not new.append_one and "exact at its fill value 127.5" in new.load_report.columns["red"]


def test_columns_dropped_at_other_values_are_exact_where_neighbours_vary(
    saved: tuple[str, nn.Module], tmp_path: Path
) -> None:
    name, old = saved
    new = pz.create_model(name, pretrained=True, feature_columns=["blue", "red"]).eval()
    given = values() | {"green": -1.0, "height": -0.5}
    expected = old(cloud(old, given))
    torch.testing.assert_close(new(cloud(new, given)), expected, atol=1e-5, rtol=1e-5)
    assert "column of ones" in new.load_report.columns["green"] and "column of ones" in str(new.load_report)
    assert new.in_chans == 2 and new.stem.shape[-1] == 3
    # What was adapted is saved and adapted again like anything else.
    pz.save_for_hf(new, tmp_path / "new", reference=False)
    again = pz.create_model(f"local-dir:{tmp_path / 'new'}", pretrained=True).eval()
    torch.testing.assert_close(again(cloud(again, given)), expected, atol=1e-5, rtol=1e-5)
    without = pz.create_model(f"local-dir:{tmp_path / 'new'}", pretrained=True, feature_columns=["blue"]).eval()
    torch.testing.assert_close(
        without(cloud(without, given)), old(cloud(old, given | {"red": 0.0})), atol=1e-5, rtol=1e-5
    )


def test_a_bias_would_not_have_been_exact(saved: tuple[str, nn.Module]) -> None:
    """The reason for the column of ones: the constant's contribution differs from voxel to voxel."""
    _, old = saved
    zero = {name: 0.0 for name in COLUMNS}
    stem = old.stem.detach()
    change = []
    for green in (0.0, -1.0):
        points = cloud(old, zero | {"green": green})
        old.norm, norm = nn.Identity(), old.norm
        old.trunk, trunk = nn.Identity(), old.trunk
        change.append(old.forward_features(points).feat)
        old.norm, old.trunk = norm, trunk
    assert (change[1] - change[0]).std(0).max() > 0.1 * stem.std()


def test_a_proxy_gets_the_mean_of_what_it_stands_for(saved: tuple[str, nn.Module]) -> None:
    name, old = saved
    new = pz.create_model(name, pretrained=True, feature_columns=["intensity", "height"])
    torch.testing.assert_close(new.stem[..., 0], old.stem[..., :3].mean(-1))
    assert new.load_report.columns["intensity"] == "mean of red, green, blue"
    declared = pz.create_model(
        name, pretrained=True, feature_columns=["curvature", *COLUMNS], column_proxies={"curvature": ["red", "height"]}
    )
    torch.testing.assert_close(declared.stem[..., 0], (old.stem[..., 0] + old.stem[..., 3]) / 2)
    with pytest.raises(ValueError, match=r"proxy 'x' stands for \['nope'\]; the weights read"):
        pz.create_model(name, pretrained=True, feature_columns=["x"], column_proxies={"x": ["nope"]})


def test_a_head_and_columns_are_adapted_together(saved: tuple[str, nn.Module]) -> None:
    name, _ = saved
    new = pz.create_model(name, pretrained=True, feature_columns=["blue", "red", "height", "green"], num_classes=7)
    assert set(new.load_report.adapted) == {"stem", "head.weight", "head.bias"}
    assert set(new.load_report.missing) == {"head.weight", "head.bias"}


def test_only_stems_of_other_columns_may_differ(saved: tuple[str, nn.Module]) -> None:
    name, _ = saved
    with pytest.raises(ValueError, match=r"shape \(trunk\.weight|another shape"):
        pz.create_model(name, pretrained=True, feature_columns=["blue"], width=9)


def test_no_column_in_common_is_warned_about(saved: tuple[str, nn.Module], caplog: pytest.LogCaptureFixture) -> None:
    pz.create_model(saved[0], pretrained=True, feature_columns=["curvature"])
    assert "its stem starts at zero" in caplog.text


def test_a_column_without_fill_cannot_be_dropped() -> None:
    old = dataclasses.replace(CFG.point_cfg, fill=(None, 0.0, 0.0, 0.0))
    with pytest.raises(ValueError, match=r"need the column 'red'.*no fill value"):
        map_columns(old, old.select(("green",)))


def test_a_model_that_cannot_append_a_column_says_what_it_cannot_drop(
    saved: tuple[str, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    import zoo_dummies

    class Plain(zoo_dummies.NeighbourEncoder):
        def __init__(self, in_chans: int, num_classes: int = 0, *, grid_size: float, backend: str = "auto") -> None:
            super().__init__(in_chans, num_classes, grid_size=grid_size, backend=backend)

    monkeypatch.setattr(zoo_dummies, "NeighbourEncoder", Plain)
    assert pz.create_model(saved[0], pretrained=True, feature_columns=["blue", "green", "height"]).in_chans == 3
    with pytest.raises(ValueError, match=r"cannot drop columns whose fill value is not zero.*green.*height"):
        pz.create_model(saved[0], pretrained=True, feature_columns=["blue", "red"])
