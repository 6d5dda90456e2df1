"""Labels of points, and instances as lists of points."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .base import TensorStruct


@dataclass(frozen=True, eq=False)
class PointLabels(TensorStruct):
    """What is known of N points of a batch: the target of segmentation."""

    segment: Tensor  # (N,) int64 class index, -1 = ignored
    instance: Tensor  # (N,) int64, different in each scene of the batch; -1 = none
    center: Tensor  # (N, 3) float32 metres, mean of the points of the same instance; zero where there is none


@dataclass(frozen=True, eq=False)
class Instances(TensorStruct):
    """I predicted instances as lists of points, M entries in total; they may overlap. Empty for I = 0.

    Example:
        >>> found = Instances(torch.tensor([0, 2, 1]), torch.tensor([2, 3]), torch.tensor([4, 5]), torch.rand(2))
        >>> len(found), found.index.tolist()
        (2, [0, 0, 1])
    """

    point: Tensor  # (M,) int64 row of each entry's point, instance after instance
    offset: Tensor  # (I,) int64, cumulative sizes: instance i is entries offset[i-1]:offset[i]
    label: Tensor  # (I,) int64 class index
    score: Tensor  # (I,) float32 in [0, 1]

    def __len__(self) -> int:
        return len(self.offset)

    @property
    def size(self) -> Tensor:
        """Points of each instance: (I,) int64."""
        return torch.diff(self.offset, prepend=self.offset.new_zeros(1))

    @property
    def index(self) -> Tensor:
        """Instance of each entry: (M,) int64."""
        return torch.repeat_interleave(self.size, output_size=len(self.point))

    def on_points(self, inverse: Tensor) -> Instances:
        """The same instances on the original points.

        Args:
            inverse: (P,) int64 row that stands for each original point, as in `PointBatch.inverse`.
        """
        order = inverse.argsort(stable=True)  # original points, those of row 0 first
        start, end = (torch.searchsorted(inverse[order], self.point, right=right) for right in (False, True))
        count = end - start
        first = count.cumsum(0) - count
        entry = torch.repeat_interleave(count)  # (M',) entry of each new entry
        point = order[torch.arange(len(entry), device=entry.device) + (start - first)[entry]]
        size = self.offset.new_zeros(len(self)).index_add(0, self.index, count)
        return replace(self, point=point, offset=size.cumsum(0))
