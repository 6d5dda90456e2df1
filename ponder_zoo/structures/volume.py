"""Axis-aligned volumes of cells, and features on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .base import TensorStruct


@dataclass(frozen=True, eq=False)
class VolumeGrid(TensorStruct):
    """One box per scene, divided into the same number of cells.

    `align` says where a cell's value sits when it is looked up: at the cell's centre, or (official code) with the first
    and last cell centres on the faces of the box. `docs/differences.md` has the effect.
    """

    bounds: Tensor  # (B, 2, 3) metres: lower and upper corner
    shape: tuple[int, int, int]  # (X, Y, Z) cells
    align: Literal["centers", "corners"] = "centers"

    @property
    def cell_size(self) -> Tensor:
        """(B, 3) metres."""
        extent = self.bounds[:, 1] - self.bounds[:, 0]
        # Axis by axis, because a tensor of the shape would be a copy to the device, which waits for it.
        return torch.stack([side / cells for side, cells in zip(extent.unbind(-1), self.shape, strict=True)], -1)

    def flat_index(self, coord: Tensor, batch: Tensor) -> Tensor:
        """Row of each point's cell in a (B * Z * Y * X) table; points outside get the spare row B * Z * Y * X: (N,)."""
        X, Y, Z = self.shape
        x, y, z = ((coord - self.bounds[batch, 0]) / self.cell_size[batch]).floor().long().unbind(-1)
        inside = (x >= 0) & (x < X) & (y >= 0) & (y < Y) & (z >= 0) & (z < Z)
        return torch.where(inside, ((batch * Z + z) * Y + y) * X + x, len(self.bounds) * X * Y * Z)


@dataclass(frozen=True, eq=False)
class FeatureVolume(TensorStruct):
    """Features of the cells of a VolumeGrid, in the axis order of torch's conv3d and grid_sample."""

    feat: Tensor  # (B, C, Z, Y, X)
    grid: VolumeGrid
