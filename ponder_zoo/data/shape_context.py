"""Shape context as labels that nobody has to give: what stands around a point, ring by ring and height by height.

Beyond the paper. Colour and depth of a pixel ask little of what an object is; what surrounds it asks more. Of the
descriptors of shape contexts (Belongie et al. 2002; in 3D Frome et al. 2004) this is the one for scenes whose up is
known: it does not change when a scene is turned about the vertical or mirrored. Its clusters take the place of classes.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2

from .checks import check_scene
from .scene import Array, Scene, StoredViews, Views
from .unproject import view_points

RINGS = ((0.0, 0.1), (0.1, 0.3), (0.3, 0.6), (0.6, 1.0), (1.0, 1.6))  # metres from the vertical through the point
SLABS = 10  # of height, the last one open
SLAB = 0.24  # metres
CELL = 0.08  # metres, of the map seen from above
UPWARD = 0.8  # |z| of the normals of horizontal surfaces
FLOOR = 0.005  # share of the points that may lie below what counts as the floor
KEPT = 2000  # scenes whose labels a process keeps, some 100 KB each
CHANNELS = len(RINGS) * SLABS * 2 + SLABS


class Surroundings(NamedTuple):
    """A scene as mean counts around each place, seen from above."""

    origin: NDArray[np.float32]  # (3,) metres, of the first cell; z of the floor
    rings: NDArray[np.float32]  # (X, Y, CHANNELS - SLABS) mean counts of voxels per cell, logarithmic

    @classmethod
    def of(cls, scene: Scene) -> Surroundings:
        """Count the occupied voxels of a cloud. Without normals every surface counts as upright.

        Raises:
            ValueError: if there are no points, if some are not finite, or if they span more than 100 m.
        """
        check_scene(scene)
        origin = np.array([*scene.coord[:, :2].min(0), np.quantile(scene.coord[:, 2], FLOOR)], np.float32)
        cell = np.floor((scene.coord - origin) / CELL).astype(np.int64)
        size = cell[:, :2].max(0) + 1
        level = np.zeros(len(scene), np.int64)
        if scene.normal is not None:
            level = (np.abs(scene.normal[:, 2]) > UPWARD).astype(np.int64)
        place = (cell[:, 2].clip(0, 63), level, cell[:, 0], cell[:, 1])
        _, first = np.unique(np.ravel_multi_index(place, (64, 2, *size)), return_index=True)  # each voxel once
        counts = np.zeros((SLABS, 2, *size), np.float32)
        np.add.at(counts, (slabs(scene.coord[:, 2] - origin[2])[first], *(axis[first] for axis in place[1:])), 1.0)
        means = ring_means(counts.reshape(-1, *size))
        return cls(origin, np.log1p(10.0 * means).transpose(1, 2, 0))

    def describe(self, points: Array) -> NDArray[np.float32]:
        """Descriptors (N, CHANNELS): mean counts per ring, slab and kind of surface, and the slab of the point."""
        x, y, slab = locate(points, self.origin, self.rings.shape)
        return np.concatenate([self.rings[x, y], np.eye(SLABS, dtype=np.float32)[slab]], axis=1)

    def nearest(self, centres: NDArray[np.float32]) -> PlaceLabels:
        """Which of some descriptors (K, CHANNELS) is the nearest, for each cell and slab."""
        around, own = centres[:, :-SLABS], centres[:, -SLABS:]
        # |d - c|^2 = |d|^2 - 2 d c + |c|^2, of which the first is the same for all c
        distance = (centres**2).sum(1) - 2.0 * (self.rings @ around.T)  # (X, Y, K)
        table = np.stack([(distance - 2.0 * each).argmin(-1) for each in own.T], axis=-1).astype(np.int16)
        return PlaceLabels(self.origin, table)


class ContextLabels:
    """A source whose scenes have clusters of shape contexts as labels, of points and pixels, in place of any others.

    The whole cloud of a scene counts, however little of it an encoder will see. Its labels by place are kept: finding
    them takes half the time that a scene needs before a training step.

    Args:
        source: map-style data set of scenes, z up.
        centres: (K, CHANNELS) descriptors, from `context_clusters`.
    """

    def __init__(self, source: Any, centres: NDArray[np.float32]) -> None:
        self.source, self.centres = source, centres
        self.classes = tuple(f"context {number}" for number in range(len(centres)))
        self._known: OrderedDict[int, PlaceLabels] = OrderedDict()

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Scene:
        scene = self.source[index]
        labels = self._known.get(index) or Surroundings.of(scene).nearest(self.centres)
        self._known[index] = labels
        if len(self._known) > KEPT:
            self._known.popitem(last=False)
        views = None if scene.views is None else labels.on_views(scene.views)
        stored = None if scene.stored_views is None else LabelledViews(scene.stored_views, labels)
        return replace(scene, segment=labels.of(scene.coord).astype(np.int64), views=views, stored_views=stored)


@dataclass(frozen=True, eq=False)
class PlaceLabels:
    """Labels by place."""

    origin: NDArray[np.float32]  # as in Surroundings
    table: NDArray[np.int16]  # (X, Y, SLABS)

    def of(self, points: Array) -> NDArray[np.int16]:
        """(N, 3) -> (N,)."""
        return self.table[locate(points, self.origin, self.table.shape)]

    def on_views(self, views: Views) -> Views:
        """Views with a label at each pixel that has depth."""
        points = view_points(views)
        labels = self.of(points.reshape(-1, 3)).reshape(points.shape[:3])
        return replace(views, segment=np.where(views.depth > 0, labels, np.int16(-1)))


@dataclass(frozen=True, eq=False)
class LabelledViews:
    """Views in files, labelled when they are read."""

    views: StoredViews
    labels: PlaceLabels

    def __len__(self) -> int:
        return len(self.views)

    def read(self, index: Array, /) -> Views:
        return self.labels.on_views(self.views.read(index))


def context_clusters(scenes: Iterable[Scene], number: int, *, per_scene: int = 600) -> NDArray[np.float32]:
    """Descriptors in the middle of `number` clusters (k-means) of those of evenly spaced points: (number, CHANNELS)."""
    rows = []
    for scene in scenes:
        chosen = np.linspace(0, len(scene) - 1, min(per_scene, len(scene))).astype(np.int64)
        rows.append(Surroundings.of(scene).describe(scene.coord[chosen]))
    found = np.concatenate(rows)
    if not 2 <= number <= len(found):
        raise ValueError(f"Expected semantic.clusters between 2 and the {len(found)} points at hand, got {number}.")
    # SciPy calls it `rng` from 1.15 on, and takes the old name as well
    centres, _ = kmeans2(found, number, iter=25, minit="++", seed=0)  # pyright: ignore[reportCallIssue]
    return centres.astype(np.float32)


def locate(points: Array, origin: NDArray[np.float32], size: Sequence[int]) -> tuple[NDArray[np.int64], ...]:
    """Cell in x and y, and slab, of points (N, 3) in a map of (X, Y, ...) cells; the nearest ones of those outside."""
    cell = np.floor((points[:, :2] - origin[:2]) / CELL).astype(np.int64)
    x, y = cell.clip(0, np.array(size[:2]) - 1).T
    return x, y, slabs(points[:, 2] - origin[2])


def slabs(height: NDArray[np.float32]) -> NDArray[np.int64]:
    """Which slab a height above the floor is in."""
    return np.floor(height / SLAB).astype(np.int64).clip(0, SLABS - 1)


def ring_means(maps: NDArray[np.float32], rings: Sequence[tuple[float, float]] = RINGS) -> NDArray[np.float32]:
    """Means over rings around each cell, with nothing outside the map: (C, X, Y) -> (R * C, X, Y).

    A ring has the cells whose centres are further than its inner radius and not further than its outer one; the first
    has its own cell, too. By Fourier transforms: rings of 1.6 m have 1,257 cells.
    """
    X, Y = maps.shape[1:]
    reach = math.ceil(max(outer for _, outer in rings) / CELL)
    shape = [reach + max(size, reach + 1) for size in (X, Y)]  # nothing wraps around
    offset = [np.minimum(np.arange(size), size - np.arange(size)) * CELL for size in shape]
    distance = np.hypot(offset[0][:, None], offset[1]).round(6)  # centres on a ring's edge belong to it
    spectrum = np.fft.rfft2(maps, s=shape)
    result = []
    for inner, outer in rings:
        ring = ((distance <= outer) & ((distance > inner) | (inner == 0.0))).astype(np.float32)
        mean = np.fft.irfft2(spectrum * np.fft.rfft2(ring / ring.sum()), s=shape)[:, :X, :Y]
        result.append(np.maximum(mean, 0.0))  # no rounding below zero
    return np.concatenate(result)
