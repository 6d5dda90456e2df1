"""From scenes and items to batches of tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from ponder_zoo.structures import (
    PointBatch,
    PointLabels,
    PretrainBatch,
    RayBundle,
    RayTargets,
    SceneInput,
    TensorStruct,
    VolumeGrid,
)

from .features import MEAN, OFFICIAL_COLUMNS, STD, feature_matrix
from .scene import Array, Scene


@dataclass(frozen=True, eq=False)
class PretrainItem(TensorStruct):
    """One scene of the pre-training task, before batching: a SceneInput, RayBundle and RayTargets of batch size 1."""

    name: str
    scene: SceneInput
    rays: RayBundle
    targets: RayTargets
    segment: Tensor | None = None  # (N,) int64 class index of each point, -1 = unlabelled


@dataclass(frozen=True)
class PointCollate:
    """Pack scenes into one PointBatch with features by column name; also a `collate_fn`.

    See `data.features.feature_matrix` for the arguments.
    """

    feature_columns: tuple[str, ...] = OFFICIAL_COLUMNS
    mean: Mapping[str, float] = field(default_factory=lambda: MEAN)
    std: Mapping[str, float] = field(default_factory=lambda: STD)
    fill: Mapping[str, float] | None = None

    def pack(self, scenes: Sequence[Scene]) -> PointBatch:
        """Points and features alone."""
        empty = [scene.name for scene in scenes if len(scene) == 0]
        if empty:
            raise ValueError(f"Scenes without points in a batch: {empty}. Drop them, or loosen what emptied them.")
        names = [scene.name for scene in scenes]
        try:
            return PointBatch.from_list([self._mapping(scene) for scene in scenes])
        except ValueError as error:
            raise ValueError(f"Batch of scenes {names}: {error}") from error

    def _mapping(self, scene: Scene) -> dict[str, object]:
        feat = feature_matrix(scene, self.feature_columns, mean=self.mean, std=self.std, fill=self.fill)
        return {
            "coord": _writable(scene.coord),
            "feat": feat,
            "grid_coord": None if scene.grid_coord is None else _writable(scene.grid_coord),
            "inverse": None if scene.inverse is None else _writable(scene.inverse),
            "condition": scene.condition,
        }

    def __call__(self, scenes: Sequence[Scene]) -> tuple[PointBatch, Tensor]:
        """Points, and their class indices (N,) int64: -1 where a scene has no labels."""
        segment = [np.full(len(s), -1) if s.segment is None else s.segment for s in scenes]
        return self.pack(scenes), torch.from_numpy(np.concatenate(segment).astype(np.int64))


@dataclass(frozen=True)
class LabelCollate:
    """Pack scenes with all that is known of their points: a `collate_fn` for semantic and instance segmentation.

    Args:
        points: packs the points.
        ignored_classes: classes without instances; points of no class have none either.
        mix: probability with which neighbours in the batch become one scene; see `mix_scenes`.
    """

    points: PointCollate = field(default_factory=PointCollate)
    ignored_classes: tuple[int, ...] = ()
    mix: float = 0.0

    def __call__(self, scenes: Sequence[Scene]) -> tuple[PointBatch, PointLabels]:
        instances = [_instances(scene, self.ignored_classes) for scene in scenes]
        pairs = list(zip(scenes, instances, strict=True))
        centers = np.concatenate([instance_centers(scene.coord, number) for scene, number in pairs])
        mixed = mix_scenes([replace(scene, instance=number) for scene, number in pairs], self.mix)
        numbers = [scene.instance for scene in mixed if scene.instance is not None]  # of all of them
        shift = np.cumsum([0, *(int(number.max(initial=-1)) + 1 for number in numbers[:-1])])
        instance = [np.where(number < 0, -1, number + start) for number, start in zip(numbers, shift, strict=True)]
        points, segment = self.points(mixed)
        return points, PointLabels(
            segment,
            torch.from_numpy(np.concatenate(instance).astype(np.int64)),
            torch.from_numpy(centers.astype(np.float32)),
        )


def _instances(scene: Scene, ignored_classes: Sequence[int]) -> Array:
    """Instance of each point (N,), numbered from 0; -1 for points without one or of an ignored class."""
    if scene.instance is None:
        return np.full(len(scene), -1, dtype=np.int64)
    counts = scene.instance >= 0
    if scene.segment is not None:
        counts &= (scene.segment >= 0) & ~np.isin(scene.segment, ignored_classes)
    result = np.full(len(scene), -1, dtype=np.int64)
    result[counts] = np.unique(scene.instance[counts], return_inverse=True)[1]
    return result


def instance_centers(coord: Array, instance: Array) -> Array:
    """Mean of the points of each point's instance: coord (N, 3), instance (N,) from 0 -> (N, 3); zero without one."""
    known = np.flatnonzero(instance >= 0)
    number = instance[known]
    count = np.bincount(number)
    total = np.stack([np.bincount(number, weights=axis) for axis in coord[known].T], axis=1)
    centers = np.zeros((len(coord), 3))
    centers[known] = (total / np.maximum(count, 1)[:, None])[number]
    return centers


def mix_scenes(scenes: Sequence[Scene], p: float) -> list[Scene]:
    """With probability `p`, merge each scene with the next one (Mix3D, arXiv:2110.02210): 0 with 1, 2 with 3, ...

    The last one of an odd number stays alone. Points keep their coordinates, so that two rooms lie in each other. What
    is drawn is a hash of the first scene's points, which its augmentation has drawn: it depends neither on the worker
    nor on what was drawn before, so that a resumed run repeats it.
    """
    result = []
    for first, second in zip(scenes[::2], [*scenes[1::2], None][: len(scenes[::2])], strict=True):
        drawn = crc32(np.ascontiguousarray(first.coord).tobytes()) / 2**32
        result += [first] if second is None else [_merge(first, second)] if drawn < p else [first, second]
    return result


def _merge(first: Scene, second: Scene) -> Scene:
    """Both scenes' points as one scene; instances of the second are numbered on."""
    columns = ("coord", "color", "normal", "intensity", "segment", "instance", "grid_coord")
    merged = {}
    for name in columns:
        values = [getattr(scene, name) for scene in (first, second)]
        if (values[0] is None) != (values[1] is None) or first.condition != second.condition:
            raise ValueError(
                f"Mix3D expected scenes with the same columns and condition; {first.name!r} and {second.name!r} differ "
                f"in {name} or condition. Give both what they lack, or mix with probability 0."
            )
        if name == "instance" and values[0] is not None:
            shift = int(values[0].max(initial=-1)) + 1
            values[1] = np.where(values[1] < 0, -1, values[1] + shift)
        merged[name] = None if values[0] is None else np.concatenate(values)
    return replace(first, name=f"{first.name}+{second.name}", inverse=None, views=None, **merged)


def collate_points(
    scenes: Sequence[Scene],
    feature_columns: Sequence[str] = OFFICIAL_COLUMNS,
    *,
    fill: Mapping[str, float] | None = None,
) -> tuple[PointBatch, Tensor]:
    """Pack scenes for segmentation: a PointBatch and the class index of each row (N,), -1 = ignored.

    `PointCollate(feature_columns)` is the same as an object that data-loader workers can be given.
    """
    return PointCollate(tuple(feature_columns), fill=fill)(scenes)


def collate_scenes(
    scenes: Sequence[Scene], bounds: Sequence[Array], shape: tuple[int, int, int], *, points: PointCollate
) -> SceneInput:
    """Pack scenes and the boxes (2, 3) of their volumes."""
    grid = VolumeGrid(torch.from_numpy(np.stack(bounds).astype(np.float32)), shape)
    return SceneInput(points.pack(scenes), grid)


@dataclass(frozen=True)
class PretrainCollate:
    """Batch items of the pre-training task: points packed, rays padded to the longest item with `valid` False.

    Normals or labels that only some items have are filled with zero (unknown) and -1 (unlabelled).
    """

    def __call__(self, items: Sequence[PretrainItem]) -> PretrainBatch:
        if len(items) == 0:
            raise ValueError("PretrainCollate expected at least one item; got an empty list.")
        shapes = {item.scene.grid.shape for item in items}
        if len(shapes) > 1:
            raise ValueError(f"All items of a batch need volumes of one shape; got {sorted(shapes)}.")
        grid = VolumeGrid(torch.cat([item.scene.grid.bounds for item in items]), items[0].scene.grid.shape)
        points = PointBatch.from_list([_unpacked(item.scene.points) for item in items])
        rays, targets = [item.rays for item in items], [item.targets for item in items]
        return PretrainBatch(
            scene=SceneInput(points, grid),
            rays=RayBundle(
                origins=_pad([r.origins for r in rays]),
                directions=_pad_directions([r.directions for r in rays]),
                near=_pad([r.near for r in rays]),
                far=_pad([r.far for r in rays]),
                valid=_pad([r.valid for r in rays]),
            ),
            targets=RayTargets(
                rgb=_pad([t.rgb for t in targets]),
                depth=_pad([t.depth for t in targets]),
                normal=_pad_optional([t.normal for t in targets], targets, 0.0),
                segment=_pad_optional([t.segment for t in targets], targets, -1),
                feature=_pad_optional([t.feature for t in targets], targets, 0.0),
            ),
            segment=_point_labels(items),
        )


def _point_labels(items: Sequence[PretrainItem]) -> Tensor | None:
    if all(item.segment is None for item in items):
        return None
    sizes = [len(item.scene.points) for item in items]
    none = torch.full((max(sizes),), -1)
    return torch.cat([none[:n] if item.segment is None else item.segment for n, item in zip(sizes, items, strict=True)])


def _unpacked(points: PointBatch) -> dict[str, object]:
    return {
        "coord": points.coord,
        "feat": points.feat,
        "grid_coord": points.grid_coord,
        "condition": points.condition,
    }


def _pad(rows: Sequence[Tensor], value: float | bool = 0) -> Tensor:
    """Stack (1, R_b, ...) tensors as (B, max R_b, ...)."""
    width = max(row.shape[1] for row in rows)
    out = rows[0].new_full((len(rows), width, *rows[0].shape[2:]), value)
    for index, row in enumerate(rows):
        out[index, : row.shape[1]] = row[0]
    return out


def _pad_directions(rows: Sequence[Tensor]) -> Tensor:
    """Like `_pad`, with +z in the padding: directions stay unit vectors, so nothing divides by zero."""
    padded = _pad(rows)
    for index, row in enumerate(rows):
        padded[index, row.shape[1] :, 2] = 1.0
    return padded


def _pad_optional(rows: Sequence[Tensor | None], targets: Sequence[RayTargets], value: float) -> Tensor | None:
    known = next((row for row in rows if row is not None), None)
    if known is None:
        return None
    filled = [
        known.new_full((1, target.depth.shape[1], *known.shape[2:]), value) if row is None else row
        for row, target in zip(rows, targets, strict=True)
    ]
    return _pad(filled, value)


def _writable(array: Array) -> Array:
    return np.require(array, requirements=["C", "W"])  # torch does not take read-only (memory-mapped) arrays
