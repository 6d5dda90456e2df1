from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_sparse_unet import prepare
from torch import Tensor

from ponder_zoo.data.official import official_rays
from ponder_zoo.data.scene import Scene, Views
from ponder_zoo.data.unit_cube import to_unit_cube
from ponder_zoo.heads.text import TextAlignedHead
from ponder_zoo.losses.render import RenderLossWeights, point_loss, render_loss
from ponder_zoo.models._official import CLASSES
from ponder_zoo.models.ponder import Ponder, checkpoint_filter_fn
from ponder_zoo.models.sparse_unet import SparseUNet
from ponder_zoo.render import NeuS
from ponder_zoo.structures import PointBatch, RayBundle, RayTargets, RenderOutput, SceneInput, VolumeGrid
from ponder_zoo.volume import BlockMask, PointVolumeEncoder, UNet3D

SPCONV = (pytest.mark.spconv, pytest.mark.filterwarnings("ignore:.*getdefaultlocale:DeprecationWarning"))
TRITON = (pytest.mark.triton, pytest.mark.slow)
BACKENDS = ["torch", pytest.param("spconv", marks=SPCONV), pytest.param("triton", marks=TRITON)]


def official_ponder(config: dict[str, Any], backend: str = "torch") -> Ponder:
    """Our model of an official PonderIndoor configuration."""
    backbone, projection, renderer = config["backbone"], config["projection"], config["renderer"]
    field, sampler = renderer["field"], renderer["sampler"]
    encoder = SparseUNet(
        backbone["in_channels"],
        channels=backbone["channels"],
        depths=backbone["layers"],
        stem_channels=backbone["base_channels"],
        norm="prompt",
        conditions=backbone["conditions"],
        context_dim=backbone["context_channels"],
        affine=backbone["norm_affine"],
        backend=backend,
    )
    width = projection["f_maps"]
    unet = UNet3D(projection["in_channels"], projection["out_channels"], channels=[width * 2**i for i in range(4)])
    neus = NeuS(
        projection["out_channels"],
        hidden_dim=field["sdf_decoder"]["hidden_size"],
        geo_dim=field["sdf_decoder"]["out_dim"] - 1,
        num_blocks=field["sdf_decoder"]["n_blocks"],
        semantic_dim=field["semantic_decoder"]["out_dim"],
        share_volume=field["share_volume"],
        rgb_normal="gradient",
        frame="official",
        num_samples=sampler["num_samples"],
        num_importance=sampler["num_samples_importance"],
        num_upsample_steps=sampler["num_upsample_steps"],
        importance_sharpness=64.0,
        alpha_rule="official",
        sampler_frame="official",
    )
    classes = dict(zip(config["conditions"], config["valid_index"], strict=True))
    head = TextAlignedHead(backbone["channels"][-1], field["semantic_decoder"]["out_dim"], 36, classes)
    return Ponder(PointVolumeEncoder(encoder, unet, cells="official", grid_size=config["grid_size"]), neus, head)


@dataclass
class Case:
    tensors: dict[str, Tensor]
    info: dict[str, Any]
    model: Ponder
    scene: SceneInput
    rays: RayBundle
    targets: RayTargets

    def losses(self, output: RenderOutput) -> dict[str, Tensor]:
        weights, table = RenderLossWeights.official(), self.model.class_table(self.scene.points)
        return render_loss(output, self.targets, self.rays, weights, class_embeddings=table)


@pytest.fixture(params=BACKENDS)
def case(request: pytest.FixtureRequest, shared_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    prepare(request.param, monkeypatch)
    data = load_file(shared_dir / "parity/g_ponder_forward.safetensors")
    info = json.loads((shared_dir / "parity/g_ponder_forward.json").read_text())
    config = info["config"]
    model = official_ponder(config, request.param)
    state = {key.removeprefix("state."): value for key, value in data.items() if key.startswith("state.")}
    model.load_state_dict(checkpoint_filter_fn(state, model))  # strict
    cubes, pairs = [], []
    starts = [0, *data["in.offset"].tolist()]
    for b in range(2):
        views = Views(
            color=(data["in.rgb"][b] * 255.0).numpy(),
            depth=(data["in.depth"][b] * data["in.depth_scale"][b]).numpy(),
            intrinsics=data["in.intrinsic"][b].numpy(),
            cam_to_world=torch.linalg.inv(data["in.extrinsic"][b].double()).numpy(),
            segment=data["in.semantic"][b].numpy(),
        )
        cubes.append(to_unit_cube(Scene(f"{b}", data["in.coord"][starts[b] : starts[b + 1]].numpy(), views=views)))
        pairs.append(official_rays(cubes[-1][0].views, rays_per_view=config["ray_nsample"]))
    points = PointBatch(
        torch.cat([torch.as_tensor(scene.coord) for scene, _ in cubes]),
        data["in.feat"],
        data["in.offset"],
        grid_coord=data["in.grid_coord"].int(),
        condition=info["condition"],
    )
    bounds = torch.stack([torch.as_tensor(cube.bounds) for _, cube in cubes])
    size = torch.tensor([cube.metres_per_unit for _, cube in cubes])
    rays, targets = zip(*pairs, strict=True)
    return Case(
        data,
        info,
        model,
        SceneInput(points, VolumeGrid(bounds, tuple(config["grid_shape"])), size),
        concatenate(RayBundle, rays),
        concatenate(RayTargets, targets),
    )


def concatenate(kind: type, items: tuple) -> Any:
    names = [name for name, value in vars(items[0]).items() if value is not None]
    return kind(**{name: torch.cat([getattr(item, name) for item in items]) for name in names})


def assert_near(ours: Tensor, official: Tensor, limit: float, name: str) -> None:
    error = (ours - official).abs().max() / official.abs().max()
    assert error <= limit, f"{name}: {float(error):.1e} > {limit:.0e}"


def test_the_whole_forward_pass_its_losses_and_gradients_match_the_official_code(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = case.model.train()
    # The vectors were made without stratification, which training mode has here and there.
    monkeypatch.setattr(model.renderer, "training", False)
    output = model(case.scene, case.rays)
    losses = case.losses(output)
    for name, value in losses.items():
        assert_near(value, case.tensors[f"train.{name}_loss"][0], 1e-4, name)
    total = torch.stack(list(losses.values())).sum()
    assert_near(total, case.tensors["train.loss"][0], 1e-4, "total")
    total.backward()
    official = {k.removeprefix("grad.state."): v for k, v in case.tensors.items() if k.startswith("grad.state.")}
    assert len(official) == 9
    parameters = dict(model.named_parameters())
    for name, value in checkpoint_filter_fn(official, model).items():
        assert_near(parameters[name].grad, value, 2e-3, name)


def test_the_class_table_of_rendered_semantics_is_the_official_one(case: Case) -> None:
    config = case.info["config"]
    valid = config["valid_index"][config["conditions"].index(case.info["condition"])]
    table = case.model.class_table(case.scene.points)
    assert torch.equal(table, case.tensors["state.class_embedding"][valid])


def test_the_language_guided_loss_is_the_official_one_and_unlike_there_trains_its_head_and_the_encoder(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = case.model.train()
    monkeypatch.setattr(model.renderer, "training", False)
    output = model(case.scene, case.rays, logits=True)
    assert output.logits is not None and output.logits.shape == (len(case.scene.points), 20)
    loss = point_loss(output.logits, case.tensors["in.segment"])
    assert_near(loss, case.tensors["train.ppt_loss"][0], 1e-4, "ppt_loss")
    for name, value in case.losses(output).items():
        assert_near(value, case.tensors[f"train.{name}_loss"][0], 1e-4, name)
    loss.backward()
    assert "proj_head.weight" in case.info["params_without_grad"]
    for parameter in (model.head.proj.weight, model.head.proj.bias, *model.encoder.stem.conv.parameters()):
        assert parameter.grad is not None and parameter.grad.abs().max() > 0
    assert model.head.logit_scale.grad is None, "frozen"


def test_a_training_step_with_stratified_samples_and_the_eval_mode_work_on_the_official_frame(case: Case) -> None:
    output = case.model.train()(case.scene, case.rays)
    assert all(value.isfinite() for value in case.losses(output).values())
    first, second = (case.model.eval()(case.scene, case.rays).rgb for _ in range(2))
    assert torch.equal(first, second) and first.isfinite().all()


def test_the_features_of_the_encoder_match_in_training_mode(case: Case) -> None:
    feat = case.model.train().encoder.forward_features(case.scene.points).feat
    assert_near(feat, case.tensors["train.sparse_backbone_feat"], 2e-5, "features")


def test_a_checkpoint_file_of_the_official_layout_loads_strictly(shared_dir: Path) -> None:
    file = shared_dir / "parity/f_mini_pretrain_checkpoint"
    state = torch.load(file.with_suffix(".pth"), weights_only=True)["state_dict"]
    model = official_ponder(json.loads(file.with_suffix(".json").read_text())["config"])
    ours = checkpoint_filter_fn(state, model)
    model.load_state_dict(ours)
    unused = [key for key in state if "laplace_density" in key]  # parameters of VolSDF, stored for NeuS too
    assert len(ours) == len(state) - len(unused)
    model.head = None  # then the text embeddings, their scale and the projection's two parameters have no place
    assert len(checkpoint_filter_fn(state, model)) == len(ours) - 4


def test_every_key_of_the_released_pre_training_checkpoint_has_its_place(shared_dir: Path) -> None:
    keys = json.loads((shared_dir / "parity/f_keys_pretrain_ponder_ppt.json").read_text())["keys"]
    with torch.device("meta"):
        encoder = SparseUNet(norm="prompt", conditions=("ScanNet", "S3DIS", "Structured3D"))
        neus = NeuS(128, semantic_dim=512, share_volume=False, frame="official")
        head = TextAlignedHead(96, 512, 36, CLASSES)
        model = Ponder(PointVolumeEncoder(encoder, UNet3D(96, 128), cells="official"), neus, head)
        ours = checkpoint_filter_fn({key: torch.empty(shape) for key, shape in keys.items()}, model)
    assert {key: tuple(value.shape) for key, value in ours.items()} == {
        key: tuple(value.shape) for key, value in model.state_dict().items()
    }


def small_ponder(mask: BlockMask | None = None) -> Ponder:
    encoder = SparseUNet(4, channels=(6,) * 8, depths=(1,) * 8, stem_channels=6)
    return Ponder(
        PointVolumeEncoder(encoder, UNet3D(6, 8, channels=(8, 8)), mask=mask), NeuS(8, num_samples=8, num_importance=4)
    )


def small_batch() -> tuple[SceneInput, RayBundle]:
    coord = torch.rand(120, 3)
    points = PointBatch(coord, torch.rand(120, 4), torch.tensor([70, 120]), (coord / 0.1).int())
    rays = RayBundle(
        torch.rand(2, 5, 3),
        torch.nn.functional.normalize(torch.randn(2, 5, 3), dim=-1),
        torch.zeros(2, 5),
        torch.ones(2, 5),
        torch.ones(2, 5, dtype=torch.bool),
    )
    return SceneInput(points, VolumeGrid(torch.tensor([[[0.0] * 3, [1.0] * 3]]).expand(2, 2, 3), (8, 8, 4))), rays


def test_rendering_trains_every_parameter() -> None:
    model = small_ponder(BlockMask(4, block=2))
    output = model(*small_batch())
    assert output.rgb.shape == (2, 5, 3) and output.depth.shape == (2, 5)
    (output.rgb.sum() + output.depth.sum() + output.field.gradient.square().sum()).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert all("position" in name for name in without), without  # the position inputs are off by default


def test_scenes_of_a_batch_do_not_see_each_other() -> None:
    model = small_ponder().eval()
    scene, rays = small_batch()
    together = model(scene, rays)
    alone = SceneInput(scene.points.split()[0], VolumeGrid(scene.grid.bounds[:1], scene.grid.shape))
    first = model(alone, RayBundle(**{name: value[:1] for name, value in vars(rays).items()}))
    torch.testing.assert_close(first.rgb[0], together.rgb[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(first.depth[0], together.depth[0], atol=1e-4, rtol=1e-4)


def test_the_encoder_detaches() -> None:
    model = small_ponder()
    assert model.encoder is model.volume_encoder.encoder
    other = SparseUNet(4, channels=(6,) * 8, depths=(1,) * 8, stem_channels=6)
    other.load_state_dict(model.encoder.state_dict())


def test_class_scores_of_points_need_a_head_and_one_condition() -> None:
    model = small_ponder()
    scene, rays = small_batch()
    assert model(scene, rays).logits is None and model.class_table(scene.points) is None
    with pytest.raises(ValueError, match=r"with a head, got none.*head=\{"):
        model(scene, rays, logits=True)
    model.head = TextAlignedHead(6, 5, 4, {"a": [0, 2, 3], "b": [1]})
    with pytest.raises(ValueError, match=r"one data set among \['a', 'b'\], got None"):
        model(scene, rays, logits=True)
    for condition, classes in (("a", 3), ("b", 1)):
        points = replace(scene.points, condition=condition)
        assert model(replace(scene, points=points), rays, logits=True).logits.shape == (120, classes)
    mixed = replace(scene.points, condition=("a", "b"))
    with pytest.raises(ValueError, match="batches of one data set each"):
        model(replace(scene, points=mixed), rays, logits=True)
    with pytest.raises(ValueError, match=r"Unknown condition 'c'; this head has classes for \['a', 'b'\]"):
        model.class_table(replace(scene.points, condition="c"))


def test_keys_of_another_model_are_an_error_and_our_own_pass() -> None:
    model = small_ponder(BlockMask(4))
    assert checkpoint_filter_fn(model.state_dict(), model).keys() == model.state_dict().keys()
    with pytest.raises(ValueError, match=r"such as 'seg_head.weight'"):
        checkpoint_filter_fn({"seg_head.weight": torch.zeros(1)}, model)


def test_the_mask_token_and_wrapper_prefixes_are_translated(case: Case) -> None:
    state = {f"module.{k.removeprefix('state.')}": v for k, v in case.tensors.items() if k.startswith("state.")}
    state["module.mtoken"] = torch.full((1, 6), 3.0)
    assert case.model.volume_encoder.mask is None
    ours = checkpoint_filter_fn(state, case.model)
    assert (ours.pop("volume_encoder.mask.token") == 3.0).all()
    assert ours.keys() == case.model.state_dict().keys()
