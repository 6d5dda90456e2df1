"""Volume encoders: from what a scene shows (points, later images) to a feature volume."""

from __future__ import annotations

import abc
from typing import Literal

from torch import nn

from ..structures import FeatureVolume, PointBatch, SceneInput
from .densify import (
    densify,
    densify_official,
    occupied_cells,
    occupied_cells_official,
    official_lookup_grid,
)
from .mask import BlockMask
from .unet3d import UNet3D


class AbstractVolumeEncoder(nn.Module, abc.ABC):
    """Maps a SceneInput to a FeatureVolume. `encoder` is the network that pre-training is for, and detaches."""

    encoder: nn.Module

    @abc.abstractmethod
    def forward(self, scene: SceneInput) -> FeatureVolume: ...


class PointVolumeEncoder(AbstractVolumeEncoder):
    """Points -> (mask) -> encoder -> densify -> dense network: paper Eq. 1 to 3.

    Args:
        encoder: a module with `forward_features(PointBatch) -> PointBatch`; it may return other points than it got.
        unet: (B, C, Z, Y, X) -> (B, C', Z, Y, X), such as UNet3D.
        mask: hides part of the points from the encoder in training.
        cells: "metric" fills the cells of `scene.grid`. "official" uses the official code's cell rule and lookup
            convention, for released checkpoints: scenes in unit-cube frames with `metres_per_unit`.
        grid_size: metres; the rounding step of the official cell rule, not used otherwise.
    """

    def __init__(
        self,
        encoder: nn.Module,
        unet: nn.Module,
        *,
        mask: BlockMask | None = None,
        cells: Literal["metric", "official"] = "metric",
        grid_size: float = 0.02,
    ) -> None:
        super().__init__()
        width, expected = getattr(encoder, "num_features", None), getattr(unet, "in_chans", None)
        if width is not None and expected is not None and width != expected:
            raise ValueError(
                f"{type(unet).__name__} takes {expected} channels, but {type(encoder).__name__} gives {width}. "
                f"Build the former with in_chans={width}."
            )
        self.encoder = encoder
        self.unet = unet
        self.mask = mask
        self.cells = cells
        self.grid_size = grid_size

    def forward(self, scene: SceneInput) -> FeatureVolume:
        return self.fill(self.point_features(scene), scene)

    def point_features(self, scene: SceneInput) -> PointBatch:
        """The points with the encoder's features (paper Eq. 2)."""
        points = scene.points if self.mask is None else self.mask(scene.points)
        return self.encoder.forward_features(points)  # pyright: ignore[reportCallIssue]

    def fill(self, features: PointBatch, scene: SceneInput) -> FeatureVolume:
        """The dense volume of point features (paper Eq. 3)."""
        # On a CPU the U-Net gets the occupied cells alone, which saves much of its first layer (see `occupied.py`).
        sparse = features.feat.device.type == "cpu" and isinstance(self.unet, UNet3D)
        if self.cells == "metric":
            volume = occupied_cells(features, scene.grid) if sparse else densify(features, scene.grid).feat
            return FeatureVolume(self.unet(volume), scene.grid)
        if scene.metres_per_unit is None:
            raise ValueError(
                'cells="official" expected scenes in unit-cube frames, with `metres_per_unit`; got a scene in metres. '
                'Use the unit-cube transform (data.unit_cube), or cells="metric".'
            )
        arguments = features, scene.grid, scene.metres_per_unit
        volume = occupied_cells_official(*arguments, grid_size=self.grid_size) if sparse else None
        if volume is None:
            volume = densify_official(*arguments, grid_size=self.grid_size).feat
        return FeatureVolume(self.unet(volume), official_lookup_grid(scene.grid))
