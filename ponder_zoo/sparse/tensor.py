"""Features on voxels."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from ..ops.segment import segment_mean
from .voxels import Voxels, voxelize


@dataclass(frozen=True, eq=False)
class SparseTensor:
    """Features of the occupied cells of B scenes. Tensors on the same voxels share their kernel maps.

    Example:
        >>> cells = torch.tensor([[0, 0, 0], [0, 0, 0], [0, 0, -1]])
        >>> feat = torch.tensor([[1.0], [3.0], [5.0]])
        >>> tensor, inverse = SparseTensor.from_points(feat, cells, torch.zeros(3).long(), 1)
        >>> tensor.feat[inverse].flatten().tolist()
        [2.0, 2.0, 5.0]
    """

    feat: Tensor  # (N, C)
    voxels: Voxels

    @property
    def grid_coord(self) -> Tensor:
        """(N, 3) int32 cells of this resolution."""
        return self.voxels.grid_coord

    @property
    def batch(self) -> Tensor:
        """(N,) int64 scene of each voxel, ascending."""
        return self.voxels.batch

    @property
    def batch_size(self) -> int:
        return self.voxels.batch_size

    def __len__(self) -> int:
        return len(self.feat)

    def with_feat(self, feat: Tensor) -> SparseTensor:
        """Other features on the same voxels."""
        return replace(self, feat=feat)

    @classmethod
    def from_points(
        cls, feat: Tensor, grid_coord: Tensor, batch: Tensor, batch_size: int
    ) -> tuple[SparseTensor, Tensor]:
        """Sort points by cell and average the features of points that share one. Differentiable in `feat`.

        Args:
            feat: (N, C).
            grid_coord: (N, 3) integer cells; negative ones are fine.
            batch: (N,) scene of each point.
            batch_size: number of scenes; some may be empty.

        Returns:
            The tensor, and the row of each point in it (N,): `tensor.feat[inverse]` is in the order of the points.
        """
        voxels, inverse = voxelize(grid_coord, batch, batch_size)
        return cls(segment_mean(feat, inverse, len(voxels)), voxels), inverse
