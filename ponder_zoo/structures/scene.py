"""Batches of the pre-training task."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .base import TensorStruct
from .points import PointBatch
from .rays import RayBundle, RayTargets
from .volume import VolumeGrid


@dataclass(frozen=True, eq=False)
class SceneInput(TensorStruct):
    """What a volume encoder reads: B scenes and the box to describe each in."""

    points: PointBatch
    grid: VolumeGrid
    metres_per_unit: Tensor | None = (
        None  # (B,) set where coordinates, grid and rays are in unit-cube frames; else metres
    )


@dataclass(frozen=True, eq=False)
class PretrainBatch(TensorStruct):
    """Inputs and targets of one pre-training step."""

    scene: SceneInput
    rays: RayBundle
    targets: RayTargets
    segment: Tensor | None = None  # (N,) int64 class index of each point, -1 = unlabelled
