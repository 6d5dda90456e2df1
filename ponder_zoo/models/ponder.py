"""Ponder: pre-train an encoder by rendering what it saw (PonderV2, arXiv:2310.08586, Fig. 3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor, nn

from ..heads.text import TextAlignedHead
from ..render import AbstractSurfaceRenderer
from ..render import checkpoint_filter_fn as rename_renderer
from ..structures import PointBatch, RayBundle, RenderOutput, SceneInput
from ..volume import AbstractVolumeEncoder, PointVolumeEncoder
from ..volume.unet3d import checkpoint_filter_fn as rename_unet
from ._official import HEAD_KEYS
from ._pretrained import strip_wrappers
from .sparse_unet import checkpoint_filter_fn as rename_encoder


class Ponder(nn.Module):
    """A volume encoder and a renderer: indoors, outdoors, from points or cameras, only the former differs.

    Args:
        volume_encoder: SceneInput -> FeatureVolume (Eq. 1-3 from points, Eq. 10 from images).
        renderer: (RayBundle, FeatureVolume) -> RenderOutput (Eq. 4-7, 9).
        head: compares point features with class embeddings (Point Prompt Training). Its table is also what rendered
            semantics are compared with.
    """

    def __init__(
        self,
        volume_encoder: AbstractVolumeEncoder,
        renderer: AbstractSurfaceRenderer,
        head: TextAlignedHead | None = None,
    ) -> None:
        super().__init__()
        self.volume_encoder = volume_encoder
        self.renderer = renderer
        self.head = head

    @property
    def encoder(self) -> nn.Module:
        """The network that pre-training is for, complete on its own."""
        return self.volume_encoder.encoder

    def forward(self, scene: SceneInput, rays: RayBundle, *, logits: bool = False) -> RenderOutput:
        """Render rays; with `logits` also class scores of the points, in the label space of their condition."""
        if not logits:
            return self.renderer(rays, self.volume_encoder(scene))
        if self.head is None or not isinstance(self.volume_encoder, PointVolumeEncoder):
            raise ValueError(
                "logits=True expected a Ponder of points with a head, got none. Pass create_pretrainer(head={...})."
            )
        features = self.volume_encoder.point_features(scene)
        output = self.renderer(rays, self.volume_encoder.fill(features, scene))
        return replace(output, logits=self.head(features.feat, self.condition(features)))

    def condition(self, points: PointBatch) -> str:
        """The one data set of a batch, whose classes its labels are: as the points say, else the encoder's own."""
        known = [] if self.head is None else list(self.head.classes)
        condition = points.condition if points.condition is not None else getattr(self.encoder, "condition", None)
        if condition is None and len(known) == 1:
            return known[0]
        if not isinstance(condition, str):
            raise ValueError(
                f"Expected a batch of one data set among {known}, got {condition}: the classes differ between them. "
                "Set data.condition, and make batches of one data set each."
            )
        return condition

    def class_table(self, points: PointBatch) -> Tensor | None:
        """Embeddings (K, D) of the classes of a batch, for `render_loss`; None without a head."""
        return None if self.head is None else self.head.table(self.condition(points))


def checkpoint_filter_fn(state_dict: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Rename an official PonderIndoor state dict for a Ponder with a SparseUNet; ours pass unchanged.

    `backbone.*` and `embedding_table` become the encoder, `proj_net.*` the dense U-Net, `mtoken` the mask's token and
    `renderer.*` the renderer. The text embeddings (`class_embedding`), `logit_scale` and `proj_head` become the head,
    and are left out where the model has none.

    Raises:
        ValueError: for keys of no known part.
    """
    assert isinstance(model, Ponder)
    entries = strip_wrappers(state_dict)
    if any(key.startswith("volume_encoder.") for key in entries):
        return entries
    encoder = {k: v for k, v in entries.items() if k.startswith(("backbone.", "embedding_table."))}
    unet, renderer = _part(entries, "proj_net."), _part(entries, "renderer.")
    known = ("backbone.", "embedding_table.", "proj_net.", "renderer.", "mtoken", *HEAD_KEYS)
    rest = [key for key in entries if not key.startswith(known)]
    if rest:
        raise ValueError(
            "Expected the keys of an official pre-training checkpoint (backbone.*, proj_net.*, renderer.*, ...); got "
            f"{len(rest)} others, such as '{rest[0]}'. Convert checkpoints of downstream models with their own model."
        )
    parts = {
        "volume_encoder.encoder.": rename_encoder(encoder, model.encoder),
        "volume_encoder.unet.": rename_unet(unet, model),
        "volume_encoder.mask.": {"token": entries["mtoken"]} if "mtoken" in entries else {},
        "renderer.": rename_renderer(renderer, model.renderer),
    }
    result = {prefix + key: value for prefix, part in parts.items() for key, value in part.items()}
    if model.head is None:
        return result
    return result | {ours: entries[theirs] for theirs, ours in HEAD_KEYS.items() if theirs in entries}


def _part(entries: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in entries.items() if key.startswith(prefix)}
