"""Batches of the pre-training task."""

from __future__ import annotations

from dataclasses import dataclass

from .base import TensorStruct
from .points import PointBatch
from .rays import RayBundle, RayTargets
from .volume import VolumeGrid


@dataclass(frozen=True, eq=False)
class SceneInput(TensorStruct):
    """What a volume encoder reads: B scenes and the box to describe each in."""

    points: PointBatch
    grid: VolumeGrid


@dataclass(frozen=True, eq=False)
class PretrainBatch(TensorStruct):
    """Inputs and targets of one pre-training step."""

    scene: SceneInput
    rays: RayBundle
    targets: RayTargets
