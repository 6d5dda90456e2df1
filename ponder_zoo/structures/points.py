"""Packed point clouds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .base import TensorStruct


@dataclass(frozen=True, eq=False)
class PointBatch(TensorStruct):
    """B point clouds packed along one axis; N is the total number of points.

    Example:
        >>> batch = PointBatch.from_list([{"coord": torch.rand(5, 3), "feat": torch.rand(5, 6)}])
        >>> batch.batch_size, batch.batch.tolist()
        (1, [0, 0, 0, 0, 0])
    """

    coord: Tensor  # (N, 3) float32, metres
    feat: Tensor  # (N, C)
    offset: Tensor  # (B,) int64, cumulative point counts: scene b is rows offset[b-1]:offset[b]
    grid_coord: Tensor | None = None  # (N, 3) int32, cell index at the grid size it was sampled with
    inverse: Tensor | None = None  # (M,) int64, the row of this batch that stands for each original point
    condition: str | tuple[str, ...] | None = None  # data set whose norms and context to use: one, or one per scene

    @property
    def batch(self) -> Tensor:
        """Scene index of each point: (N,) int64."""
        rows = torch.arange(len(self.coord), device=self.coord.device)
        return torch.bucketize(rows, self.offset, right=True)

    @property
    def batch_size(self) -> int:
        return len(self.offset)

    def __len__(self) -> int:
        return len(self.coord)

    @classmethod
    def from_list(cls, scenes: Sequence[Mapping[str, Any]]) -> PointBatch:
        """Pack scenes given as mappings, checking their values once, here.

        Args:
            scenes: each with `coord (n, 3)` in metres and `feat (n, C)`; optionally `grid_coord (n, 3)`,
                `inverse (m,)` with rows of this scene, and `condition` (a name). Arrays or tensors.

        Raises:
            ValueError: for an empty list, a scene without points, a key that only some scenes have, differing column
                counts, or values that are not finite. The message names the scene.
        """
        if len(scenes) == 0:
            raise ValueError("PointBatch.from_list expected at least one scene, got an empty list.")
        keys = {key for key in ("grid_coord", "inverse", "condition") if scenes[0].get(key) is not None}
        checked = [_check_scene(scene, index, keys) for index, scene in enumerate(scenes)]
        widths = sorted({scene["feat"].shape[1] for scene in checked})
        if len(widths) > 1:
            raise ValueError(
                f"All scenes of a batch must have the same feature columns; got scenes with {widths} columns. "
                "Use one transform (the same `feature_columns`) for all of them."
            )
        counts = torch.tensor([len(scene["coord"]) for scene in checked])
        offset = counts.cumsum(0)
        starts = (offset - counts).tolist()
        inverse = None
        if "inverse" in keys:
            inverse = torch.cat([scene["inverse"] + start for scene, start in zip(checked, starts, strict=True)])
        conditions = tuple(scene["condition"] for scene in checked) if "condition" in keys else None
        if conditions is not None and len(set(conditions)) == 1:
            conditions = conditions[0]
        return cls(
            coord=torch.cat([scene["coord"] for scene in checked]),
            feat=torch.cat([scene["feat"] for scene in checked]),
            offset=offset,
            grid_coord=torch.cat([scene["grid_coord"] for scene in checked]) if "grid_coord" in keys else None,
            inverse=inverse,
            condition=conditions,
        )

    def split(self) -> list[PointBatch]:
        """One PointBatch per scene. Reads `offset` on the host: for use outside a model's forward pass."""
        ends = self.offset.tolist()
        starts = [0, *ends[:-1]]
        return [self._scene(index, start, end) for index, (start, end) in enumerate(zip(starts, ends, strict=True))]

    def _scene(self, index: int, start: int, end: int) -> PointBatch:
        inverse = self.inverse
        if inverse is not None:
            inverse = inverse[(inverse >= start) & (inverse < end)] - start
        return replace(
            self,
            coord=self.coord[start:end],
            feat=self.feat[start:end],
            offset=self.offset.new_tensor([end - start]),
            grid_coord=None if self.grid_coord is None else self.grid_coord[start:end],
            inverse=inverse,
            condition=self.condition[index] if isinstance(self.condition, tuple) else self.condition,
        )


def _check_scene(scene: Mapping[str, Any], index: int, optional: set[str]) -> dict[str, Any]:
    missing = [key for key in ("coord", "feat", *sorted(optional)) if scene.get(key) is None]
    extra = [
        key for key in ("grid_coord", "inverse", "condition") if scene.get(key) is not None and key not in optional
    ]
    if missing or extra:
        raise ValueError(
            f"Scene {index} of the batch lacks {missing or extra}; it has {sorted(scene)}. "
            "Every scene needs `coord` and `feat`, and an optional key must be in all scenes or in none."
        )
    coord = torch.as_tensor(scene["coord"], dtype=torch.float32)
    feat = torch.as_tensor(scene["feat"])
    feat = feat if feat.is_floating_point() else feat.float()
    if coord.ndim != 2 or coord.shape[1] != 3 or feat.ndim != 2 or len(feat) != len(coord):
        raise ValueError(
            f"Scene {index}: expected coord (n, 3) and feat (n, C) with the same n; "
            f"got coord {tuple(coord.shape)} and feat {tuple(feat.shape)}."
        )
    if len(coord) == 0:
        raise ValueError(f"Scene {index} of the batch has no points. Drop it, or loosen the crop that emptied it.")
    for name, value in (("coord", coord), ("feat", feat)):
        if not torch.isfinite(value).all():
            rows = (~torch.isfinite(value)).any(1).nonzero()[:, 0]
            raise ValueError(
                f"Scene {index}: {len(rows)} of {len(value)} rows of `{name}` are NaN or infinite (first: row "
                f"{int(rows[0])}). Remove those points before batching."
            )
    result: dict[str, Any] = {"coord": coord, "feat": feat}
    if "grid_coord" in optional:
        result["grid_coord"] = torch.as_tensor(scene["grid_coord"]).to(torch.int32)
    if "inverse" in optional:
        result["inverse"] = torch.as_tensor(scene["inverse"]).to(torch.int64)
    if "condition" in optional:
        result["condition"] = scene["condition"]
    return result
