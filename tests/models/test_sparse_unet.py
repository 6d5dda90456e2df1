"""SparseUNet: the official numbers, and the behaviour that a zoo's encoder promises."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ponder_zoo import create_model
from ponder_zoo.models.sparse_unet import RELEASED_CONDITIONS, SparseUNet, checkpoint_filter_fn, raise_hue
from ponder_zoo.sparse import SparseTensor
from ponder_zoo.structures import PointBatch

SPCONV = pytest.param("spconv", marks=pytest.mark.spconv)
TRITON = pytest.param("triton", marks=[pytest.mark.triton, pytest.mark.slow])  # 5 s forward, 20 s with gradients
BACKENDS = ["torch", SPCONV, TRITON]
SMALL: dict[str, Any] = {"channels": (8, 8, 12, 16, 16, 12, 8, 10), "depths": (1,) * 8, "stem_channels": 8}
PROMPT: dict[str, Any] = {"norm": "prompt", "conditions": ("A", "B", "C"), "context_dim": 6}


def make_model(num_classes: int = 0, **options: Any) -> SparseUNet:
    """A small model whose norms differ between conditions, as after training."""
    model = SparseUNet(6, num_classes, **SMALL | options)
    generator = torch.Generator().manual_seed(3)
    for name, tensor in model.state_dict().items():
        if "norm" in name and tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5, generator=generator)
    return model


def make_points(counts: tuple[int, ...] = (150, 100), *, extent: int = 24, seed: int = 0) -> PointBatch:
    """Points on a bumpy surface, so that voxels have neighbours; negative cells included."""
    generator = torch.Generator().manual_seed(seed)
    total = sum(counts)
    plane = torch.randint(-extent // 2, extent // 2, (total, 2), generator=generator)
    height = torch.randint(-2, 2, (total, 1), generator=generator)
    cells = torch.cat([plane, height], 1)
    return PointBatch(
        coord=(cells + 0.5) * 0.02,
        feat=torch.randn(total, 6, generator=generator),
        offset=torch.tensor(counts).cumsum(0),
        grid_coord=cells.int(),
    )


# The official numbers -------------------------------------------------------------------------------------------------


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.detach().double() - theirs.double()).abs().max() / theirs.double().abs().max())


def prepare(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a network run through the backend in bearable time."""
    if backend == "triton":
        from triton_inputs import use_large_blocks

        use_large_blocks(monkeypatch)


@dataclass
class Case:
    model: SparseUNet
    tensors: dict[str, Tensor]
    config: dict[str, Any]

    def points(self, feat: Tensor, condition: str | None) -> PointBatch:
        cells = self.tensors["in.grid_coord"].int()
        return PointBatch(cells * 0.02, feat, self.tensors["in.offset"], grid_coord=cells, condition=condition)

    def entries(self, prefix: str) -> dict[str, Tensor]:
        """Official entries with a prefix, under our names."""
        entries = {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}
        return checkpoint_filter_fn(entries, self.model)


def load_case(folder: Path, name: str, backend: str) -> Case:
    from safetensors.torch import load_file

    tensors = load_file(folder / f"{name}.safetensors")
    description = json.loads((folder / f"{name}.json").read_text())
    config = description["config"]
    options: dict[str, Any] = {}
    if config["type"] == "SpUNet-v1m3":
        options = {"norm": "prompt", "conditions": config["conditions"], "context_dim": config["context_channels"]}
        options["affine"] = config["norm_affine"]
    model = SparseUNet(
        config["in_channels"],
        config["num_classes"],
        channels=config["channels"],
        depths=config["layers"],
        stem_channels=config["base_channels"],
        backend=backend,
        **options,
    )
    case = Case(model, tensors, description)
    state = case.entries("state.")
    if options:
        state["context.weight"] = tensors["in.context"][:, 0]
    model.load_state_dict(state)
    return case


CASES = ["a_spunet_v1m1_nc0", "a_spunet_v1m1_nc13", "b_spunet_v1m3", "b_spunet_v1m3_noaffine_nc5"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CASES)
def test_official_outputs_in_eval_mode(
    name: str, backend: str, shared_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(backend, monkeypatch)
    case = load_case(shared_dir / "parity", name, backend)
    case.model.eval()
    outputs = [key for key in case.tensors if key.startswith("eval.out")]
    assert len(outputs) == max(len(case.model.conditions), 1)
    for key in outputs:
        condition = key.removeprefix("eval.out").removeprefix(".") or None
        with torch.no_grad():
            out = case.model(case.points(case.tensors["in.feat"], condition))
        assert relative_error(out, case.tensors[key]) < 2e-5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CASES)
def test_official_outputs_gradients_and_buffers_in_train_mode(
    name: str, backend: str, shared_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(backend, monkeypatch)
    case = load_case(shared_dir / "parity", name, backend)
    feat = case.tensors["in.feat"].clone().requires_grad_()
    condition = case.config.get("train_condition")
    out = case.model(case.points(feat, condition))
    (out * case.tensors["train.cotangent"]).sum().backward()
    assert relative_error(out, case.tensors["train.out"]) < 2e-5
    assert feat.grad is not None and relative_error(feat.grad, case.tensors["grad.in.feat"]) < 2e-5
    parameters = dict(case.model.named_parameters())
    gradients = case.entries("grad.state.")
    assert len(gradients) >= 6
    for key, value in gradients.items():
        grad = parameters[key].grad
        assert grad is not None and relative_error(grad, value) < 2e-5, key
    buffers = dict(case.model.named_buffers())
    after = case.entries("after_train.")
    assert len(after) >= 24
    for key, value in after.items():
        assert relative_error(buffers[key], value) < 2e-5, key
    if condition is not None:
        row = parameters["context.weight"].grad[case.model.conditions.index(condition)]
        assert relative_error(row[None], case.tensors["grad.in.context"]) < 2e-5
    without = {name for name, parameter in parameters.items() if parameter.grad is None}
    official = {key: torch.zeros(1) for key in case.config["no_grad_params"]}
    assert without == set(checkpoint_filter_fn(official, case.model))


def official_keys(folder: Path, name: str) -> dict[str, Tensor]:
    """Zeros of the shapes of a full-size official model; expanded, so that they take no memory."""
    shapes = json.loads((folder / f"f_keys_{name}.json").read_text())["keys"]
    return {key: torch.zeros(1).expand(shape) if shape else torch.zeros(()) for key, shape in shapes.items()}


@pytest.mark.parametrize(
    ("name", "architecture", "prefix"),
    [
        ("spunet_v1m1_nohead", "sparseunet34", ""),
        ("spunet_v1m1_scannet20", "sparseunet34", "module."),
        ("pretrain_ponder_ppt", "sparseunet_ponderv2", "module."),
        ("semseg_ppt_scannet_s3dis", "sparseunet_ponderv2", ""),
    ],
)
def test_every_key_of_the_full_size_official_models_has_a_place(
    name: str, architecture: str, prefix: str, shared_dir: Path
) -> None:
    with torch.device("meta"):
        model = create_model(architecture, num_classes=20 if name.endswith("20") else 0)
    state = {prefix + key: value for key, value in official_keys(shared_dir / "parity", name).items()}
    ours = {key: value.shape for key, value in checkpoint_filter_fn(state, model).items()}
    assert ours == {key: value.shape for key, value in model.state_dict().items()}


def test_parameter_counts_are_the_official_ones() -> None:
    with torch.device("meta"):
        plain = create_model("sparseunet34", num_classes=20)
        prompted = create_model("sparseunet_ponderv2", num_classes=0)
    assert sum(p.numel() for p in plain.parameters()) == 39_157_844
    assert sum(p.numel() for p in prompted.parameters()) == 43_598_272 + 3 * 256


@pytest.mark.parametrize(("size", "most"), [("tiny", 2_000_000), ("small", 10_000_000)])
def test_small_members_of_the_family_stay_small(size: str, most: int) -> None:
    for family in ("sparseunet", "sparseunet_ponderv2"):
        assert sum(p.numel() for p in create_model(f"{family}_{size}", num_classes=20).parameters()) <= most


def test_pointwise_official_weights_are_reinterpreted_not_transposed() -> None:
    model = make_model(num_classes=3)
    weight = torch.arange(30.0).view(3, 1, 1, 1, 10)
    ours = checkpoint_filter_fn({"final.weight": weight}, model)["head.weight"]
    x = torch.randn(4, 10)
    torch.testing.assert_close(x @ ours.t(), x @ weight.reshape(10, 3))


def test_contexts_and_norms_are_matched_by_name() -> None:
    model = make_model(**PROMPT | {"conditions": ("S3DIS", "Structured3D")})
    table = torch.tensor([[25.0], [20.0], [13.0]]).expand(3, 6)  # Structured3D, ScanNet, S3DIS
    norms = {f"backbone.conv_input.bn.bns.{i}.bias": torch.full((8,), float(i)) for i in range(3)}
    ours = checkpoint_filter_fn({"embedding_table.weight": table, **norms, "proj_head.bias": torch.zeros(1)}, model)
    assert ours["context.weight"][:, 0].tolist() == [13.0, 25.0]
    assert {key: value[0].item() for key, value in ours.items() if "norms" in key} == {
        "stem.norm.norms.0.bias": 1.0,  # S3DIS is the second of the official norms
        "stem.norm.norms.1.bias": 2.0,
    }


def test_own_weights_pass_the_filter_unchanged() -> None:
    state = make_model(num_classes=4, **PROMPT).state_dict()
    assert checkpoint_filter_fn(state, make_model(num_classes=4, **PROMPT)).keys() == state.keys()


def test_a_foreign_key_is_an_error_that_names_it() -> None:
    with pytest.raises(ValueError, match=r"'conv_input.bn9.weight' has no counterpart"):
        checkpoint_filter_fn({"conv_input.bn9.weight": torch.zeros(3)}, make_model())


# Behaviour ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, PROMPT | {"condition": "B"}], ids=["batch", "prompt"])
def test_order_of_points_does_not_matter(options: dict[str, Any]) -> None:
    model = make_model(5, **options).eval()
    points = make_points((150, 100))
    order = torch.cat([torch.randperm(150), 150 + torch.randperm(100)])
    assert points.grid_coord is not None
    shuffled = replace(points, coord=points.coord[order], feat=points.feat[order], grid_coord=points.grid_coord[order])
    torch.testing.assert_close(model(shuffled), model(points)[order], atol=1e-5, rtol=1e-5)


def test_scenes_of_a_batch_do_not_see_each_other_and_may_be_empty() -> None:
    model = make_model(5).eval()
    points = make_points((150, 100))
    first, second = points.split()
    expected = torch.cat([model(first), model(second)])
    torch.testing.assert_close(model(points), expected, atol=1e-4, rtol=1e-4)
    with_empty = replace(points, offset=torch.tensor([0, 150, 150, 250, 250]))
    torch.testing.assert_close(model(with_empty), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shift", [(16, -32, 48), (-1600, 0, 16)])
def test_shift_by_whole_coarsest_cells_does_not_matter(shift: tuple[int, int, int]) -> None:
    model, points = make_model(5).eval(), make_points()
    assert points.grid_coord is not None
    moved = replace(points, grid_coord=points.grid_coord + torch.tensor(shift, dtype=torch.int32))
    torch.testing.assert_close(model(moved), model(points))


def test_each_scene_can_have_its_own_condition() -> None:
    model = make_model(5, **PROMPT).eval()
    points = replace(make_points((80, 60, 90)), condition=("C", "A", "C"))
    expected = torch.cat([model(scene) for scene in points.split()])
    torch.testing.assert_close(model(points), expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(model(replace(points, condition="A")), expected, atol=1e-2)


def test_mixed_conditions_train_as_separate_batches_do() -> None:
    together, apart = make_model(5, **PROMPT), make_model(5, **PROMPT)
    apart.load_state_dict(together.state_dict())
    points = replace(make_points((150, 100)), condition=("C", "A"))
    expected = torch.cat([apart(scene) for scene in points.split()])
    torch.testing.assert_close(together(points), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(dict(together.named_buffers()), dict(apart.named_buffers()), atol=1e-5, rtol=1e-5)


def test_the_points_condition_wins_over_the_models_default() -> None:
    model, other = make_model(**PROMPT | {"condition": "A"}).eval(), make_model(**PROMPT).eval()
    other.load_state_dict(model.state_dict())
    points = make_points()
    assert model(points).equal(other(replace(points, condition="A")))
    assert model(replace(points, condition="B")).equal(other(replace(points, condition="B")))


def test_no_condition_an_unknown_one_or_too_few_are_errors() -> None:
    model, points = make_model(**PROMPT), make_points()
    with pytest.raises(ValueError, match=r"'A', 'B', 'C'.*Set `points.condition`"):
        model(points)
    with pytest.raises(ValueError, match=r"Unknown condition 'ScanNet'; this model knows \['A', 'B', 'C'\]"):
        model(replace(points, condition="ScanNet"))
    with pytest.raises(ValueError, match="each of 2 scenes, got 3"):
        model(replace(points, condition=("A", "B", "A")))
    with pytest.raises(ValueError, match="Unknown condition 'D'"):
        make_model(**PROMPT | {"condition": "D"})


def test_points_of_one_cell_share_its_result() -> None:
    model, points = make_model(5).eval(), make_points((60,), extent=6)
    out = model(points)
    assert points.grid_coord is not None
    cells, row = points.grid_coord.unique(dim=0, return_inverse=True)
    assert len(cells) < 60
    mean = torch.stack([points.feat[row == i].mean(0) for i in range(len(cells))])
    merged = PointBatch(cells * 0.02, mean, torch.tensor([len(cells)]), grid_coord=cells)
    torch.testing.assert_close(out, model(merged)[row], atol=1e-5, rtol=1e-5)


def test_coordinates_are_divided_by_the_grid_size_from_each_scenes_lowest_cell() -> None:
    model, points = make_model(5).eval(), make_points((80, 60))
    assert points.grid_coord is not None
    low = torch.stack([points.grid_coord[:80].amin(0), points.grid_coord[80:].amin(0)])[points.batch]
    raw = replace(points, grid_coord=None, coord=points.coord + torch.tensor([0.1, -7.0, 123.0]))
    torch.testing.assert_close(model(raw), model(replace(points, grid_coord=points.grid_coord - low)))


def test_point_features_are_in_the_order_of_the_original_points() -> None:
    model, points = make_model().eval(), make_points()
    inverse = torch.randint(0, 250, (700,))
    feat = model.forward_point_features(replace(points, inverse=inverse))
    assert feat.equal(model.forward_features(points).feat[inverse])
    assert feat.shape == (700, model.num_features)


def test_a_single_point_works_in_both_modes() -> None:
    model, points = make_model(5), make_points((1,))
    assert model.eval()(points).isfinite().all()
    out = model.train()(points)
    out.sum().backward()
    assert out.isfinite().all()


def test_no_points_are_an_error() -> None:
    with pytest.raises(ValueError, match="at least one point"):
        make_model()(make_points((0, 0)))


def test_raised_hue_leaves_brightness_and_the_other_columns() -> None:
    plain, raised = (create_model("sparseunet_tiny", backend="torch", **SMALL) for _ in range(2))
    raised.load_state_dict(plain.state_dict())
    assert raise_hue(raised, 4.0) is raised
    points = make_points()

    def stem(model: SparseUNet, feat: Tensor) -> Tensor:
        voxels, _ = SparseTensor.from_points(feat, points.grid_coord, points.batch, points.batch_size)
        return model.stem.conv(voxels).feat.detach()

    normals = points.feat * torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, 1.0])
    grey = torch.cat([points.feat[:, :1].expand(-1, 3), points.feat[:, 3:]], dim=1)
    hue = points.feat[:, :3] - points.feat[:, :3].mean(dim=1, keepdim=True)
    hue = torch.cat([hue, torch.zeros_like(hue)], dim=1)
    for same in (normals, grey):
        torch.testing.assert_close(stem(raised, same), stem(plain, same), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(stem(raised, hue), 4.0 * stem(plain, hue), atol=1e-6, rtol=1e-5)

    no_blue = create_model("sparseunet_tiny", feature_columns=("red", "green"), backend="torch", **SMALL)
    before = no_blue.stem.conv.weight.clone()
    assert torch.equal(raise_hue(no_blue, 4.0).stem.conv.weight, before)


def test_wrong_number_of_columns_is_an_error_with_the_remedy() -> None:
    points = replace(make_points(), feat=torch.zeros(250, 4))
    with pytest.raises(ValueError, match=r"takes 6 feature channels; `points.feat` is \(250, 4\). Pass in_chans=4"):
        make_model()(points)


def test_millimetres_given_as_metres_are_an_error() -> None:
    points = make_points()
    room = 5 * torch.rand(250, 3)
    with pytest.raises(ValueError, match="millimetres"):
        make_model()(replace(points, grid_coord=None, coord=1000 * room))


def test_head_can_be_replaced_and_removed() -> None:
    model, points = make_model(5).eval(), make_points()
    features = model.forward_features(points)
    assert features.feat.shape == (250, 10)
    torch.testing.assert_close(model.forward_head(features), model(points))
    assert model.forward_head(features, pre_logits=True) is features.feat
    model.reset_classifier(9)
    assert model(points).shape == (250, 9) and model.num_classes == 9
    assert model.get_classifier() is model.head
    model.reset_classifier(0)
    assert model(points).equal(features.feat)


def test_intermediates_are_described_by_feature_info() -> None:
    model, points = make_model().eval(), make_points()
    outputs = model.forward_intermediates(points)
    assert [info["module"] for info in model.feature_info] == [
        "stem", "enc.0", "enc.1", "enc.2", "enc.3", "dec.0", "dec.1", "dec.2", "dec.3",
    ]  # fmt: skip
    assert points.grid_coord is not None
    for info, out in zip(model.feature_info, outputs, strict=True):
        assert model.get_submodule(info["module"]) is not None
        assert out.feat.shape[1] == info["num_chs"]
        cell = points.grid_coord.div(info["reduction"], rounding_mode="floor")
        assert out.grid_coord is not None and out.inverse is not None
        assert out.grid_coord[out.inverse].equal(cell)
        assert out.batch[out.inverse].equal(points.batch)
        # Every point of a voxel is within its cell, so their mean is too.
        inside = out.coord / (0.02 * info["reduction"]) - out.grid_coord
        assert (inside >= 0).all() and (inside <= 1).all()
    torch.testing.assert_close(outputs[-1].feat[outputs[-1].inverse], model(points))


def test_intermediates_can_be_chosen_and_lead_back_to_the_original_points() -> None:
    model = make_model().eval()
    points = replace(make_points(), inverse=torch.randint(0, 250, (400,)))
    every = model.forward_intermediates(points)
    for indices, expected in ((2, [7, 8]), ([1, -1], [1, 8]), ([4, 0], [4, 0])):
        chosen = model.forward_intermediates(points, indices)
        assert [out.feat.equal(every[i].feat) for out, i in zip(chosen, expected, strict=True)] == [True, True]
    assert every[3].inverse is not None and len(every[3].inverse) == 400
    with pytest.raises(ValueError, match="9 stages"):
        model.forward_intermediates(points, [9])


@pytest.mark.parametrize("options", [{}, PROMPT | {"condition": "B"}], ids=["batch", "prompt"])
def test_checkpointing_changes_neither_gradients_nor_statistics(options: dict[str, Any]) -> None:
    plain, saving = make_model(5, **options), make_model(5, **options)
    saving.load_state_dict(plain.state_dict())
    saving.set_grad_checkpointing(True)
    points = make_points()
    for model in (plain, saving):
        model(points).square().sum().backward()
    torch.testing.assert_close(dict(saving.named_buffers()), dict(plain.named_buffers()))
    for (name, ours), theirs in zip(saving.named_parameters(), plain.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name
        if ours.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad)


def count_saved_bytes(run: Callable[[], Tensor]) -> int:
    total = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal total
        total += tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return total


def test_checkpointing_keeps_less() -> None:
    model, points = make_model(5), make_points()
    before = count_saved_bytes(lambda: model(points))
    model.set_grad_checkpointing(True)
    assert count_saved_bytes(lambda: model(points)) < 0.3 * before


def test_autocast_keeps_norms_in_float32_and_results_close() -> None:
    model, points = make_model(5, **PROMPT | {"condition": "A"}), make_points()
    expected = model.eval()(points)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(points)
    assert (out.float() - expected).norm() < 0.05 * expected.norm()
    model.train()
    with torch.autocast("cpu", torch.bfloat16):
        model(points).float().square().sum().backward()
    assert all(
        p.grad is None or (p.grad.dtype == torch.float32 and p.grad.isfinite().all()) for p in model.parameters()
    )


def test_layer_groups_follow_the_network() -> None:
    from timm.models import group_parameters

    model = make_model(5, **PROMPT)
    names = {name for name, _ in model.named_parameters()}
    groups = group_parameters(model, model.group_matcher())
    assert sorted(name for group in groups.values() for name in group) == sorted(names)
    places = [{name[: 5 if name[:3] in ("enc", "dec") else name.index(".")] for name in groups[i]} for i in range(10)]
    stages = [{f"{half}.{i}"} for half in ("enc", "dec") for i in range(4)]
    assert places == [{"context", "stem"}, *stages, {"head"}]
    assert len(group_parameters(model, model.group_matcher(coarse=True))) == 4


def test_contexts_are_not_decayed() -> None:
    assert make_model(**PROMPT).no_weight_decay() == {"context.weight"}
    assert make_model().no_weight_decay() == set()


def test_zero_init_starts_without_influence_of_the_context() -> None:
    model = SparseUNet(6, **SMALL, **PROMPT, zero_init=True).eval()
    points = make_points()
    assert model(replace(points, condition="A")).equal(model(replace(points, condition="B")))
    other = SparseUNet(6, **SMALL, **PROMPT).eval()
    assert not other(replace(points, condition="A")).equal(other(replace(points, condition="B")))


def test_initialization_is_the_official_one() -> None:
    model = SparseUNet(6, 20, norm="prompt", conditions=RELEASED_CONDITIONS)
    assert abs(model.enc[2].blocks[0].conv1.weight.std() - 0.02) < 1e-3
    assert abs(model.dec[0].blocks[0].shortcut.weight.std() - 0.02) < 1e-3
    assert abs(model.enc[0].down.norm.modulation.weight.std() - 0.02) < 1e-3
    assert model.enc[2].down.conv.weight.abs().max() <= (64 * 8) ** -0.5 * 2**0.5
    assert model.head.bias.abs().max() == 0


@pytest.mark.parametrize(
    "options", [{"channels": (8,) * 7}, {"depths": (0,) * 8}, {"norm": "layer"}, {"norm": "prompt"}]
)
def test_impossible_options_are_errors(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"Expected|needs"):
        SparseUNet(6, **SMALL | options)


def test_registered_models_take_other_conditions_and_default_to_the_first() -> None:
    points = make_points()
    model = create_model("sparseunet_ponderv2_tiny", conditions=("Rooms", "Kitchens")).eval()
    assert model(points).equal(model(replace(points, condition="Rooms")))
    assert create_model("sparseunet_ponderv2_tiny").condition == "ScanNet"
    assert create_model("sparseunet_ponderv2_tiny", condition="S3DIS").condition == "S3DIS"
