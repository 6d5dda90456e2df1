"""Rays, the samples along them, and what a renderer returns for them."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from .base import TensorStruct


@dataclass(frozen=True, eq=False)
class RayBundle(TensorStruct):
    """R rays for each of B scenes, padded: rays with `valid` False are padding or miss the volume."""

    origins: Tensor  # (B, R, 3) metres
    directions: Tensor  # (B, R, 3) unit length
    near: Tensor  # (B, R) metres along the ray
    far: Tensor  # (B, R) metres along the ray, >= near
    valid: Tensor  # (B, R) bool


@dataclass(frozen=True, eq=False)
class RayTargets(TensorStruct):
    """What was observed along the rays of a RayBundle; entries of padding rays are without meaning."""

    rgb: Tensor  # (B, R, 3) in [0, 1]
    depth: Tensor  # (B, R) metres along the ray (not z-depth); 0 = none measured
    normal: Tensor | None = None  # (B, R, 3) unit, world frame; zero = unknown
    segment: Tensor | None = None  # (B, R) int64 class index; -1 = unlabelled
    feature: Tensor | None = None  # (B, R, D) of an image model at that pixel; zero = unknown


@dataclass(frozen=True, eq=False)
class RaySamples(TensorStruct):
    """S intervals along each ray."""

    origins: Tensor  # (B, R, 3) metres
    directions: Tensor  # (B, R, 3) unit length
    t_starts: Tensor  # (B, R, S) metres along the ray
    t_ends: Tensor  # (B, R, S) metres along the ray

    @property
    def positions(self) -> Tensor:
        """Interval starts in the scene's frame: (B, R, S, 3) metres."""
        return self.origins[:, :, None] + self.t_starts[..., None] * self.directions[:, :, None]


@dataclass(frozen=True, eq=False)
class FieldOutput(TensorStruct):
    """What a field says at S positions along each ray."""

    sdf: Tensor  # (B, R, S) metres, positive in front of surfaces
    gradient: Tensor  # (B, R, S, 3) of sdf with respect to the position, differentiable
    rgb: Tensor  # (B, R, S, 3) in [0, 1]
    semantic_inputs: Tensor | None = None  # (B, R, S, H) of the last layer of phi_SEMANTIC, which is linear
    semantic_layer: tuple[Tensor, Tensor] | None = None  # that layer: weight (D, H) and bias (D,)

    @property
    def semantic(self) -> Tensor | None:
        """What phi_SEMANTIC says at each position: (B, R, S, D), or None. Computed when asked for.

        Compositing commutes with the last layer, so renderers composite its H inputs and never form these.
        """
        if self.semantic_inputs is None or self.semantic_layer is None:
            return None
        return F.linear(self.semantic_inputs, *self.semantic_layer)


@dataclass(frozen=True, eq=False)
class RenderOutput(TensorStruct):
    """Images, one row per ray, and the samples they were composited from (for regularizers)."""

    rgb: Tensor  # (B, R, 3)
    depth: Tensor  # (B, R) metres along the ray
    normal: Tensor  # (B, R, 3) composited unit normals (length <= 1)
    opacity: Tensor  # (B, R) sum of the weights, in [0, 1]
    weights: Tensor  # (B, R, S)
    samples: RaySamples
    field: FieldOutput  # without semantics
    semantic: Tensor | None = None  # (B, R, D)
    logits: Tensor | None = (
        None  # (N, K) class scores of the input points, where a model with a head was asked for them
    )
