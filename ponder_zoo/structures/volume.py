"""Axis-aligned volumes of cells, and features on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
        return (self.bounds[:, 1] - self.bounds[:, 0]) / self.bounds.new_tensor(self.shape)

    def flat_index(self, coord: Tensor, batch: Tensor) -> Tensor:
        """Row of each point's cell in a (B * Z * Y * X) table; points outside get the spare row B * Z * Y * X: (N,)."""
        X, Y, Z = self.shape
        cell = ((coord - self.bounds[batch, 0]) / self.cell_size[batch]).floor().long()  # (N, 3)
        inside = ((cell >= 0) & (cell < cell.new_tensor(self.shape))).all(-1)
        x, y, z = cell.unbind(-1)
        index = ((batch * Z + z) * Y + y) * X + x
        return index.where(inside, index.new_tensor(len(self.bounds) * X * Y * Z))


@dataclass(frozen=True, eq=False)
class FeatureVolume(TensorStruct):
    """Features of the cells of a VolumeGrid, in the axis order of torch's conv3d and grid_sample."""

    feat: Tensor  # (B, C, Z, Y, X)
    grid: VolumeGrid
