"""Augmentations of scenes: `transform(scene, rng) -> scene`, with the official parameters as defaults.

Geometric transforms move points, normals, cameras and depth together, so what the images show still lies where the
points are; the two exceptions (RandomJitter, ElasticDistortion) say so. Global colour changes apply to points and
images alike. Every transform draws from the generator it is given and returns a new Scene; none changes its input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray

from ponder_zoo.ops.grid_sample import GridCells, grid_cells, sample_fragments

from .motion import bounding_box, move_scene, take_points
from .scene import Scene

Transform = Callable[[Scene, Generator], Scene]
Axis = Literal["x", "y", "z"]
_CHUNK = 2**14  # points interpolated at a time, so that their eight neighbours' weights stay in the cache


@dataclass(frozen=True)
class Compose:
    """Apply transforms one after another.

    Example:
        >>> scene = Scene("room", coord=np.random.default_rng(0).random((100, 3), dtype=np.float32))
        >>> transform = Compose([CenterShift(), GridSample(grid_size=0.1)])
        >>> transform(scene, np.random.default_rng(0)).grid_coord.shape[1]
        3
    """

    transforms: Sequence[Transform]

    def __call__(self, scene: Scene, rng: Generator) -> Scene:
        for transform in self.transforms:
            scene = transform(scene, rng)
        return scene


# ---- geometry: points, normals, cameras and depth together


@dataclass(frozen=True)
class CenterShift:
    """Move the centre of the bounding box to x = y = 0 and, with `z`, the lowest point to z = 0."""

    z: bool = True

    def __call__(self, scene: Scene, rng: Generator) -> Scene:
        low, high = bounding_box(scene.coord)
        centre = (low + high) / 2
        return move_scene(scene, translation=(-centre[0], -centre[1], -float(low[2]) if self.z else 0.0))


@dataclass(frozen=True)
class RandomRotate:
    """With probability `p`, rotate about an axis by an angle (radians) drawn from a range.

    The axis goes through `center` (metres), or through the centre of the bounding box where that is None.
    """

    axis: Axis = "z"
    angle: tuple[float, float] = (-math.pi, math.pi)
    center: tuple[float, float, float] | None = None
    p: float = 0.5

    def __call__(self, scene: Scene, rng: Generator) -> Scene:
        if rng.random() >= self.p:
            return scene
        matrix = axis_rotation(self.axis, rng.uniform(*self.angle))
        centre = bounding_box(scene.coord).mean(0) if self.center is None else np.array(self.center)
        return move_scene(scene, matrix, translation=centre - matrix @ centre)


def axis_rotation(axis: Axis, angle: float) -> NDArray[np.float64]:
    """Right-handed rotation about a coordinate axis by `angle` radians: (3, 3)."""
    i = "xyz".index(axis)
    j, k = (i + 1) % 3, (i + 2) % 3
    matrix = np.eye(3)
    matrix[[j, k], [j, k]] = math.cos(angle)
    matrix[k, j], matrix[j, k] = math.sin(angle), -math.sin(angle)
    return matrix


@dataclass(frozen=True)
class RandomScale:
    """Scale everything, depth images included, by one factor about the origin."""

    scale: tuple[float, float] = (0.9, 1.1)

    def __call__(self, scene: Scene, rng: Generator) -> Scene:
        return move_scene(scene, scale=float(rng.uniform(*self.scale)))


@dataclass(frozen=True)
class RandomFlip:
    """With probability `p` for each axis, mirror the scene in x, in y. Images stay; cameras get mirrored axes."""

    p: float = 0.5
    axes: tuple[Axis, ...] = ("x", "y")

    def __call__(self, scene: Scene, rng: Generator) -> Scene:
        flips = rng.random(len(self.axes)) < self.p
        if not flips.any():
            return scene
        sign = np.ones(3)
        sign[["xyz".index(axis) for axis, flip in zip(self.axes, flips, strict=True) if flip]] = -1.0
        return move_scene(scene, np.diag(sign))


# ---- geometry: points only


@dataclass(frozen=True)
class RandomJitter:
    """Add clipped Gaussian noise (metres) to each point. Views do not move: it stands for sensor noise."""

    sigma: float = 0.005
    clip: float = 0.02

    def __call__(self, scene: Scene, rng: Generator) -> Scene:
        noise = rng.standard_normal(scene.coord.shape, dtype=np.float32) * self.sigma
        return replace(scene, coord=scene.coord + noise.clip(-self.clip, self.clip))


@dataclass(frozen=True)
class ElasticDistortion:
    """With probability `p`, displace points by smooth random fields of given (granularity, magnitude), in metres.

    Acts on points only (normals and views stay): for segmentation, not for rendering, where images would no longer
    agree with the points. Introduced for sparse convolutions by SparseConvNet (arXiv:1711.10275).
    """

    fields: tuple[tuple[float, float], ...] = ((0.2, 0.4), (0.8, 1.6))
    p: float = 0.95

    def __call__(self, scene: Scene, rng: Generator) -> Scene:
        if rng.random() >= self.p:
            return scene
        coord = scene.coord
        for granularity, magnitude in self.fields:
            coord = coord + _smooth_noise(coord, granularity, rng) * np.float32(magnitude)
        return replace(scene, coord=coord)


def _smooth_noise(coord: NDArray[Any], granularity: float, rng: Generator) -> NDArray[np.float32]:
    """Gaussian noise on a grid of spacing `granularity`, blurred twice along each axis, looked up linearly: (N, 3)."""
    lowest, highest = bounding_box(coord).astype(coord.dtype)
    low = lowest - granularity
    size = ((highest - low) // granularity).astype(np.int64) + 3
    noise = rng.standard_normal((*size, 3), dtype=np.float32)
    for axis in (0, 1, 2) * 2:
        padded = np.pad(noise, [(1, 1) if a == axis else (0, 0) for a in range(4)])
        before, here, after = (padded.take(np.arange(k, k + size[axis]), axis) for k in range(3))
        noise = (before + here + after) / np.float32(3)
    out = np.empty(coord.shape, dtype=np.float32)
    for start in range(0, len(coord), _CHUNK):
        rows = slice(start, start + _CHUNK)
        out[rows] = _look_up(noise, (coord[rows] - low) / granularity)
    return out


def _look_up(grid: NDArray[np.float32], position: NDArray[Any]) -> NDArray[np.float32]:
    """Linear interpolation of a grid (X, Y, Z, 3) at positions (N, 3) in cells, all inside: (N, 3)."""
    cell = position.astype(np.int64)  # positive, and at most the grid's size - 2
    upper = (position - cell).astype(np.float32).T  # (3, N) weight of the upper neighbour along each axis
    weight = np.stack([1 - upper, upper])  # (2, 3, N)
    stride = np.array([grid.shape[1] * grid.shape[2], grid.shape[2], 1])
    values, lowest = grid.reshape(-1, 3), cell @ stride
    out = np.zeros((len(position), 3), dtype=np.float32)
    for x, y, z in np.ndindex(2, 2, 2):
        share = weight[x, 0] * weight[y, 1] * weight[z, 2]
        out += share[:, None] * values.take(lowest + np.array([x, y, z]) @ stride, axis=0)
    return out


# ---- colour


@dataclass(frozen=True)
class ChromaticAutoContrast:
    """With probability `p`, blend the colours with their stretch to the full range; points and images alike.

    `blend` is the weight of the stretched colours; None draws it uniformly from [0, 1].
    """

    p: float = 0.2
    blend: float | None = None

    def __call__(self, scene: Scene, rng: Generator) -> Scene:
        if scene.color is None or rng.random() >= self.p:
            return scene
        blend = rng.random() if self.blend is None else self.blend
        low, high = bounding_box(scene.color)
        gain = 255.0 / np.maximum(high - low, 1e-3)
        return _map_color(scene, lambda color: (1 - blend) * color + blend * (color - low) * gain)


@dataclass(frozen=True)
class ChromaticTranslation:
    """With probability `p`, add one random colour of at most `ratio` of the full range; points and images alike."""

    p: float = 0.95
    ratio: float = 0.05

    def __call__(self, scene: Scene, rng: Generator) -> Scene:
        if scene.color is None or rng.random() >= self.p:
            return scene
        shift = (rng.random(3) - 0.5) * 255 * 2 * self.ratio
        return _map_color(scene, lambda color: color + shift)


@dataclass(frozen=True)
class ChromaticJitter:
    """With probability `p`, add noise of `std` of the full range to the colour of each point (not of images)."""

    p: float = 0.95
    std: float = 0.05

    def __call__(self, scene: Scene, rng: Generator) -> Scene:
        if scene.color is None or rng.random() >= self.p:
            return scene
        noise = rng.standard_normal(scene.color.shape, dtype=np.float32) * (self.std * 255)
        return replace(scene, color=(scene.color + noise).clip(0, 255).astype(np.float32))


@dataclass(frozen=True)
class ChannelShuffle:
    """With probability `p`, put red, green and blue in one of their six orders; points and images alike."""

    p: float = 1.0

    def __call__(self, scene: Scene, rng: Generator) -> Scene:
        if scene.color is None or rng.random() >= self.p:
            return scene
        order = rng.permutation(3)
        return _map_color(scene, lambda color: color[..., order])


@dataclass(frozen=True)
class RandomSaturation:
    """With probability `p`, move colours away from their grey by one factor; points and images alike."""

    factor: tuple[float, float] = (1.0, 3.0)
    p: float = 1.0

    def __call__(self, scene: Scene, rng: Generator) -> Scene:
        if scene.color is None or rng.random() >= self.p:
            return scene
        factor = np.float32(rng.uniform(*self.factor))

        def saturate(color: NDArray[Any]) -> NDArray[Any]:
            grey = color.mean(-1, keepdims=True, dtype=np.float32)
            return grey + factor * (color - grey)

        return _map_color(scene, saturate)


@dataclass(frozen=True)
class NormalizeColor:
    """Map the points' colours from [0, 255] to [-1, 1]. Images keep theirs.

    `data.features.feature_matrix` does this itself; use this transform only for code that reads `scene.color` directly.
    """

    def __call__(self, scene: Scene, rng: Generator) -> Scene:
        return scene if scene.color is None else replace(scene, color=(scene.color / 127.5 - 1.0).astype(np.float32))


@dataclass(frozen=True)
class ColumnDrop:
    """With probability `p`, forget a whole column ("color" or "normal"), so that a model learns to do without."""

    column: Literal["color", "normal"]
    p: float = 0.2

    def __call__(self, scene: Scene, rng: Generator) -> Scene:
        return replace(scene, **{self.column: None}) if rng.random() < self.p else scene


def _map_color(scene: Scene, function: Callable[[NDArray[Any]], NDArray[Any]]) -> Scene:
    """Apply a function of colours (..., 3) in [0, 255] to the points and to the images."""
    assert scene.color is not None
    views = scene.views
    if views is not None:
        views = replace(views, color=function(views.color).clip(0, 255).round().astype(np.uint8))
    return replace(scene, color=function(scene.color).clip(0, 255).astype(np.float32), views=views)


# ---- choice of points


@dataclass(frozen=True)
class RandomDropout:
    """With probability `p`, drop a share `ratio` of the points. At least one point stays.

    With `keep_labelled`, labelled points stay as well: for scenes of which few are.
    """

    ratio: float = 0.2
    p: float = 0.2
    keep_labelled: bool = False

    def __call__(self, scene: Scene, rng: Generator) -> Scene:
        if rng.random() >= self.p:
            return scene
        keep = max(1, int(len(scene) * (1 - self.ratio)))
        kept = np.zeros(len(scene), dtype=bool)
        kept[rng.choice(len(scene), keep, replace=False, shuffle=False)] = True
        if self.keep_labelled:
            kept[_labelled_rows(scene)] = True
        return take_points(scene, np.flatnonzero(kept))  # a tenth of the time of sorting the rows


@dataclass(frozen=True)
class ShufflePoint:
    """Put the points in random order."""

    def __call__(self, scene: Scene, rng: Generator) -> Scene:
        return take_points(scene, rng.permutation(len(scene)))


@dataclass(frozen=True)
class SphereCrop:
    """Keep the `max_points` (or share `ratio`) nearest to a random point, or to the middle of the box (`center`).

    Smaller clouds pass unchanged. `inverse` is dropped in any case, so that batches are uniform.
    """

    max_points: int = 100_000
    ratio: float | None = None
    center: Literal["random", "middle"] = "random"

    def __call__(self, scene: Scene, rng: Generator) -> Scene:
        scene = replace(scene, inverse=None)
        limit = self.max_points if self.ratio is None else max(1, int(len(scene) * self.ratio))
        if len(scene) <= limit:
            return scene
        coord = scene.coord
        middle = coord[rng.integers(len(coord))] if self.center == "random" else bounding_box(coord).mean(0)
        distance = ((coord - middle) ** 2).sum(1)
        kept = np.zeros(len(scene), dtype=bool)
        kept[np.argpartition(distance, limit - 1)[:limit]] = True
        return take_points(scene, np.flatnonzero(kept))


@dataclass(frozen=True)
class GridSample:
    """Keep one point per cell of `grid_size` metres; sets `grid_coord` (from zero) and `inverse` (paper Eq. 1).

    `pick="random"` draws uniformly among the points of each cell; `"first"` takes the first, for evaluation. Without
    `inverse` it is None, which saves what it costs where points are dropped anyway. With `keep_labelled`, a cell that
    holds labelled points keeps one of these, for scenes of which few points are labelled.
    """

    grid_size: float = 0.02
    pick: Literal["random", "first"] = "random"
    inverse: bool = True
    keep_labelled: bool = False

    def __call__(self, scene: Scene, rng: Generator) -> Scene:
        cells = _cells(scene, self.grid_size)
        count = cells.count.numpy()
        number = rng.integers(0, count) if self.pick == "random" else np.zeros_like(count)
        rows = cells.pick(torch.from_numpy(number)).numpy()
        if self.keep_labelled:
            labelled = rng.permutation(_labelled_rows(scene))  # the last one of a cell wins
            rows[cells.inverse.numpy()[labelled]] = labelled
        sampled = _one_per_cell(scene, cells, rows)
        return replace(sampled, inverse=cells.inverse.numpy()) if self.inverse else sampled


def _labelled_rows(scene: Scene) -> NDArray[np.int64]:
    return np.flatnonzero(scene.segment >= 0) if scene.segment is not None else np.zeros(0, np.int64)


def grid_fragments(scene: Scene, grid_size: float = 0.02) -> list[tuple[Scene, NDArray[np.int64]]]:
    """Split a scene into grid-sampled scenes that together hold every point, each with the rows it took (K,).

    The official test protocol: average predictions over the fragments onto the original points.
    """
    cells = _cells(scene, grid_size)
    inverse = cells.inverse.numpy()
    return [
        (replace(_one_per_cell(scene, cells, rows), inverse=inverse), rows) for rows in sample_fragments(cells).numpy()
    ]


def _cells(scene: Scene, grid_size: float) -> GridCells:
    try:
        # "W" copies read-only (memory-mapped) coordinates, which torch does not take
        return grid_cells(torch.from_numpy(np.require(scene.coord, requirements=["C", "W"])), grid_size)
    except ValueError as error:
        raise ValueError(f"Scene {scene.name!r}: {error}") from error


def _one_per_cell(scene: Scene, cells: GridCells, rows: NDArray[np.int64]) -> Scene:
    sampled = take_points(replace(scene, inverse=None, grid_coord=None), rows)
    return replace(sampled, grid_coord=cells.grid_coord.numpy())


# ---- presets


def pretrain_transforms(
    grid_size: float = 0.02, *, dropout: float = 0.8, recolor: bool = False, augment: bool = True
) -> Compose:
    """The official pre-training pipeline, which leaves colours alone.

    With `recolor`, each scene gets other and stronger colours, in points and images alike: an encoder that has seen
    few rooms otherwise learns their usual hues instead of those in its input (`docs/differences.md` has the effect).
    With `augment=False` (for validation): centring and the first point of each cell only.
    """
    if not augment:
        return Compose((CenterShift(), GridSample(grid_size, pick="first"), CenterShift(z=False)))
    colors = (ChannelShuffle(), RandomSaturation()) if recolor else ()
    return Compose((CenterShift(), RandomDropout(dropout, p=1.0), *colors, *_motions(), *_sample(grid_size)))


def segmentation_train_transforms(
    grid_size: float = 0.02,
    *,
    max_points: int = 100_000,
    crop_ratio: float | None = None,
    shuffle: bool = True,
    keep_labelled: bool = False,
) -> Compose:
    """The official fine-tuning pipeline for semantic segmentation.

    Args:
        grid_size: metres.
        max_points: of a crop: ScanNet and ScanNet200.
        crop_ratio: share of the points that a crop keeps, instead: 0.8 for Structured3D, 0.6 for S3DIS.
        shuffle: put the points in random order; not for ScanNet200, where the official pipeline does not.
        keep_labelled: for limited annotations: labelled points survive dropout and grid sampling.
    """
    colors = (ChromaticAutoContrast(), ChromaticTranslation(), ChromaticJitter())
    noise = (RandomJitter(), ElasticDistortion())
    sample = _sample(grid_size, _crop(max_points, crop_ratio), shuffle=shuffle, keep_labelled=keep_labelled)
    return Compose((CenterShift(), RandomDropout(keep_labelled=keep_labelled), *_motions(), *noise, *colors, *sample))


def instance_train_transforms(
    grid_size: float = 0.02,
    *,
    max_points: int = 100_000,
    crop_ratio: float | None = 0.8,
    keep_labelled: bool = False,
) -> Compose:
    """The official fine-tuning pipeline for instance segmentation; arguments as for semantic segmentation.

    More dropout and stronger shifts of colour, crops of 80 %, and no second centring.
    """
    colors = (ChromaticAutoContrast(), ChromaticTranslation(ratio=0.1), ChromaticJitter())
    noise = (RandomJitter(), ElasticDistortion())
    dropout = RandomDropout(p=0.5, keep_labelled=keep_labelled)
    sample = GridSample(grid_size, inverse=False, keep_labelled=keep_labelled)
    return Compose((CenterShift(), dropout, *_motions(), *noise, *colors, sample, _crop(max_points, crop_ratio)))


def segmentation_test_transforms(grid_size: float = 0.02) -> Compose:
    """Centring and the first point of each cell; `inverse` maps predictions to all points. Draws nothing."""
    return Compose((CenterShift(), GridSample(grid_size, pick="first"), CenterShift(z=False)))


def _motions() -> tuple[Transform, ...]:
    tilt = (-math.pi / 64, math.pi / 64)
    turn = RandomRotate("z", center=(0.0, 0.0, 0.0))
    return (turn, RandomRotate("x", tilt), RandomRotate("y", tilt), RandomScale(), RandomFlip())


def _crop(max_points: int, ratio: float | None) -> SphereCrop:
    return SphereCrop(max_points) if ratio is None else SphereCrop(ratio=ratio)


def _sample(
    grid_size: float, *crop: Transform, shuffle: bool = True, keep_labelled: bool = False
) -> tuple[Transform, ...]:
    order = (ShufflePoint(),) if shuffle else ()
    return (GridSample(grid_size, inverse=False, keep_labelled=keep_labelled), *crop, CenterShift(z=False), *order)
