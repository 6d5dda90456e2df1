"""Ponder: pre-train an encoder by rendering what it saw (PonderV2, arXiv:2310.08586, Fig. 3)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from ..render import AbstractSurfaceRenderer
from ..render import checkpoint_filter_fn as rename_renderer
from ..structures import RayBundle, RenderOutput, SceneInput
from ..volume import AbstractVolumeEncoder
from ..volume.unet3d import checkpoint_filter_fn as rename_unet
from ._pretrained import strip_wrappers
from .sparse_unet import checkpoint_filter_fn as rename_encoder

NOT_IN_PONDER = ("class_embedding", "logit_scale", "proj_head.")  # text embeddings and the head that compares with them


class Ponder(nn.Module):
    """A volume encoder and a renderer: indoors, outdoors, from points or cameras, only the former differs.

    Args:
        volume_encoder: SceneInput -> FeatureVolume (Eq. 1-3 from points, Eq. 10 from images).
        renderer: (RayBundle, FeatureVolume) -> RenderOutput (Eq. 4-7, 9).
    """

    def __init__(self, volume_encoder: AbstractVolumeEncoder, renderer: AbstractSurfaceRenderer) -> None:
        super().__init__()
        self.volume_encoder = volume_encoder
        self.renderer = renderer

    @property
    def encoder(self) -> nn.Module:
        """The network that pre-training is for, complete on its own."""
        return self.volume_encoder.encoder

    def forward(self, scene: SceneInput, rays: RayBundle) -> RenderOutput:
        volume = self.volume_encoder(scene)
        return self.renderer(rays, volume)


def checkpoint_filter_fn(state_dict: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Rename an official PonderIndoor state dict for a Ponder with a SparseUNet; ours pass unchanged.

    `backbone.*` and `embedding_table` become the encoder, `proj_net.*` the dense U-Net, `mtoken` the mask's token and
    `renderer.*` the renderer. The text embeddings (`class_embedding`), `logit_scale` and `proj_head` are no part of
    Ponder and are left out; read them from the checkpoint where the official semantic loss is to be reproduced.

    Raises:
        ValueError: for keys of no known part.
    """
    assert isinstance(model, Ponder)
    entries = strip_wrappers(state_dict)
    if any(key.startswith("volume_encoder.") for key in entries):
        return entries
    encoder = {k: v for k, v in entries.items() if k.startswith(("backbone.", "embedding_table."))}
    unet, renderer = _part(entries, "proj_net."), _part(entries, "renderer.")
    rest = [
        key
        for key in entries
        if not key.startswith(("backbone.", "embedding_table.", "proj_net.", "renderer.", "mtoken", *NOT_IN_PONDER))
    ]
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
    return {prefix + key: value for prefix, part in parts.items() for key, value in part.items()}


def _part(entries: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in entries.items() if key.startswith(prefix)}
