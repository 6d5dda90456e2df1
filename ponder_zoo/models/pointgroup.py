"""PointGroup (arXiv:2004.01658): a sparse U-Net with a semantic head and offsets to instance centres."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Unpack, cast, overload

import torch
from torch import Tensor, nn

from ..heads.instances import propose_instances
from ..structures import Instances, PointBatch, VolumeGrid
from ._builder import build_model
from ._config import PretrainedCfg
from ._official import POINTGROUP_KEYS, released_instance_cfgs
from ._registry import generate_default_cfgs, register_model
from .sparse_unet import SIZES, Intermediate, IntermediateFormat, SparseUNet, SparseUNetArgs, choose_condition, prompted
from .sparse_unet import checkpoint_filter_fn as filter_encoder


class PointGroup(nn.Module):
    """The network of PointGroup: class scores of points, and where the centre of each point's instance lies.

    It behaves as its encoder with a semantic head; `predict_offsets` is the other head, and `predict_instances` finds
    the instances.

    Args:
        in_chans: columns of `points.feat`.
        num_classes: of the semantic head; 0 for none.
        encoder: arguments of `SparseUNet`.
    """

    stem_weight_name = f"encoder.{SparseUNet.stem_weight_name}"

    def __init__(self, in_chans: int = 6, num_classes: int = 0, **encoder: Unpack[SparseUNetArgs]) -> None:
        super().__init__()
        self.encoder = SparseUNet(in_chans, num_classes, **encoder)
        self.in_chans = in_chans
        self.num_features = width = self.encoder.num_features
        self.grid_size = self.encoder.grid_size
        self.conditions, self.condition = self.encoder.conditions, self.encoder.condition
        self.append_one = self.encoder.append_one
        self.feature_info = [{**info, "module": f"encoder.{info['module']}"} for info in self.encoder.feature_info]
        norm = nn.BatchNorm1d(width, eps=1e-3, momentum=0.01)
        self.offset_head = nn.Sequential(nn.Linear(width, width), norm, nn.ReLU(), nn.Linear(width, 3))

    @property
    def num_classes(self) -> int:
        """Of the semantic head; 0 without one."""
        return self.encoder.num_classes

    @overload
    def forward(self, points: PointBatch, return_offsets: Literal[False] = False) -> Tensor: ...

    @overload
    def forward(self, points: PointBatch, return_offsets: Literal[True]) -> tuple[Tensor, Tensor]: ...

    def forward(self, points: PointBatch, return_offsets: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Class scores (N, num_classes), or features (N, num_features) without a head; on request also the offsets."""
        features = self.forward_features(points)
        logits = self.forward_head(features)
        return (logits, self.predict_offsets(features)) if return_offsets else logits

    def forward_features(self, points: PointBatch) -> PointBatch:
        """The same points with features (N, num_features)."""
        return self.encoder.forward_features(points)

    def forward_head(self, features: PointBatch, pre_logits: bool = False) -> Tensor:
        """Class scores (N, num_classes) of features; the features where `pre_logits` or without a head."""
        return self.encoder.forward_head(features, pre_logits)

    def predict_offsets(self, features: PointBatch) -> Tensor:
        """From each point to the centre of its instance: features (N, num_features) -> (N, 3) metres."""
        return self.offset_head(features.feat)

    @torch.no_grad()
    def predict_instances(
        self,
        points: PointBatch,
        *,
        ignored_classes: Sequence[int] = (0, 1),
        radius: float = 1.5,
        min_points: int = 100,
    ) -> Instances:
        """Find the instances among N points: the defaults are the official ones for cells of 2 cm.

        Args:
            points: as for `forward`; if they have `inverse`, instances are lists of the original points.
            ignored_classes: of which there are no instances; wall and floor in ScanNet's order.
            radius: points of a class that land closer than this belong together, in cells of `grid_size`.
            min_points: an instance has more, counted before `inverse`.

        Example:
            model = create_model("pointgroup", pretrained=True).eval()
            transform = create_transform(**resolve_model_data_config(model), is_training=False)
            found = model.predict_instances(transform("scan.ply"))  # found.point, found.label, found.score
        """
        logits, offset = self(points, return_offsets=True)
        options = {"ignored_classes": ignored_classes, "radius": radius, "min_points": min_points}
        return self.group_points(points, logits, offset, **options)

    def group_points(
        self,
        points: PointBatch,
        logits: Tensor,
        offset: Tensor,
        *,
        ignored_classes: Sequence[int] = (0, 1),
        radius: float = 1.5,
        min_points: int = 100,
    ) -> Instances:
        """`predict_instances` from what the network says of the points: class scores (N, K) and offsets (N, 3)."""
        found = propose_instances(
            points.coord + offset.float(),
            logits,
            batch=points.batch,
            radius=radius * self.grid_size,
            ignored_classes=ignored_classes,
            min_points=min_points,
        )
        return found if points.inverse is None else found.on_points(points.inverse)

    def forward_point_features(self, points: PointBatch) -> Tensor:
        """Features (M, num_features) of the original points in their order, before any grid sampling."""
        return self.encoder.forward_point_features(points)

    def forward_intermediates(
        self,
        points: PointBatch,
        indices: int | Sequence[int] | None = None,
        output_fmt: IntermediateFormat = "sparse",
        grid: VolumeGrid | None = None,
    ) -> list[Intermediate]:
        """Outputs of the encoder's stages; see `SparseUNet.forward_intermediates`."""
        return self.encoder.forward_intermediates(points, indices, output_fmt, grid)

    def get_classifier(self) -> nn.Module:
        return self.encoder.get_classifier()

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the semantic head by a new one for `num_classes`; 0 removes it."""
        self.encoder.reset_classifier(num_classes)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only each stage's output for the backward pass and compute the rest again: less memory, more time."""
        self.encoder.set_grad_checkpointing(enable)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layer groups for timm, in order: those of the encoder, then both heads."""
        index = "" if coarse else r"\.(\d+)"
        return {
            "stem": r"^encoder\.(?:stem|context)\.",
            "enc": [(rf"^encoder\.enc{index}", None)],
            "dec": [(rf"^encoder\.dec{index}", None)],
            "head": r"^(?:encoder\.head|offset_head)\.",
        }

    def no_weight_decay(self) -> set[str]:
        """Parameters that are looked up rather than multiplied with."""
        return {f"encoder.{name}" for name in self.encoder.no_weight_decay()}


def pointgroup_on(encoder: SparseUNet) -> PointGroup:
    """PointGroup around an encoder, pre-trained or not, whose weights, semantic head and columns it takes over.

    Example:
        encoder = create_model("local-dir:runs/pretrain/export", pretrained=True, num_classes=20)
        model = pointgroup_on(encoder)
    """
    cfg = cast(PretrainedCfg, encoder.pretrained_cfg)
    cfg = dataclasses.replace(cfg, architecture="pointgroup", tag="", classifier="encoder.head", model_args={})
    options = {"norm": encoder.norm, "conditions": encoder.conditions} | cast(dict[str, Any], encoder.model_args)
    model = pointgroup(
        pretrained_cfg=cfg,
        num_classes=encoder.num_classes,
        grid_size=encoder.grid_size,
        condition=encoder.condition,
        **options,
    )
    model.encoder = encoder
    if hasattr(encoder, "load_report"):  # with it, the facts about the weights remain in what is saved
        model.load_report = encoder.load_report
    return model


def checkpoint_filter_fn(state_dict: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Official PG-v1m1 weights under this package's names; weights that have them already pass through.

    Raises:
        ValueError: for a key inside the encoder that has no counterpart.
    """
    assert isinstance(model, PointGroup)
    if model.stem_weight_name in state_dict:
        return dict(state_dict)
    entries = {key.removeprefix("module."): value for key, value in state_dict.items()}
    result = {f"encoder.{key}": value for key, value in filter_encoder(state_dict, model.encoder).items()}
    for official, ours in POINTGROUP_KEYS.items():
        result |= {ours + k.removeprefix(official): v for k, v in entries.items() if k.startswith(official)}
    return result


default_cfgs = generate_default_cfgs(released_instance_cfgs("pointgroup"))


@register_model
def pointgroup(pretrained: bool = False, **kwargs: Any) -> PointGroup:
    """PointGroup's network on SparseUNet-34 with norms per data set (43.6M parameters, official PG-v1m1)."""
    options = choose_condition(SIZES["base"] | prompted(256) | kwargs)
    model = build_model(PointGroup, "pointgroup", pretrained, checkpoint_filter_fn=checkpoint_filter_fn, **options)
    return cast(PointGroup, model)
