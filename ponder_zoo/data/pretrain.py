"""The pre-training task: a cloud to encode, and rays to render from it with what was observed along them."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

from ponder_zoo.ops.rays import pixel_rays, ray_box
from ponder_zoo.structures import RayBundle, RayTargets

from .checks import check_scene, check_views
from .collate import PointCollate, PretrainItem, collate_scenes
from .grid import fit_grid
from .image_features import ImageFeatures, look_up
from .sampler import Key, item_rng, split_key
from .scene import Array, Scene, Views
from .segmentation import SceneSource
from .transforms import Transform
from .unproject import select_views, unproject

logger = logging.getLogger(__name__)

OFFICIAL_POINTS = PointCollate()
OVERSAMPLE = 4  # pixels drawn per ray kept, since surfaces outside the volume cannot be rendered


class PretrainDataset:
    """Scenes with views, as items for `PretrainCollate`.

    Of each scene, some views are input (their pixels become the points) and some are targets; everything is augmented
    together; a grid is fitted to the points; and rays are made for the picked pixels only.

    Args:
        source: map-style data set of scenes with views.
        transform: for example `pretrain_transforms()`; must end with GridSample or leave that to the model.
        volume_shape: (X, Y, Z) cells.
        cell_size: metres, or None to fit the cells to each cloud (see `fit_grid`).
        margin: metres around the cloud when fitting.
        stretch: fit each axis on its own.
        rays_per_view: rays per target view; fewer where fewer pixels are usable.
        input_views: how many views, drawn at random, give the points. None: the scene's own points.
        target_views: how many views, drawn at random, are rendered. None: all.
        targets: "any" draws targets from all views, "unseen" from those that are not input.
        points: packs the points into the encoder's columns; `data.model_input.model_collate` makes it of a model.
        include_invalid: also draw pixels without depth; their target depth is 0 and only their colour counts.
        near: metres in front of a camera where rays start.
        seed: with the epoch and the index it decides everything that is drawn.
        max_extent: metres; see `check_scene`.
        image_features: gives the targets of rendered features.

    Items are taken by index (epoch 0) or by (epoch, index), which `EpochSampler` yields.
    """

    def __init__(
        self,
        source: SceneSource,
        *,
        transform: Transform,
        volume_shape: tuple[int, int, int] = (64, 64, 32),
        cell_size: float | None = None,
        margin: float = 0.1,
        stretch: bool = False,
        rays_per_view: int = 128,
        input_views: int | None = None,
        target_views: int | None = None,
        targets: Literal["any", "unseen"] = "any",
        points: PointCollate = OFFICIAL_POINTS,
        include_invalid: bool = False,
        near: float = 0.05,
        seed: int = 0,
        max_extent: float = 100.0,
        image_features: ImageFeatures | None = None,
    ) -> None:
        if rays_per_view < 1 or targets not in ("any", "unseen") or (targets == "unseen" and input_views is None):
            raise ValueError(
                "Expected rays_per_view >= 1 and targets 'any', or 'unseen' together with input_views; got "
                f"rays_per_view={rays_per_view}, targets={targets!r}, input_views={input_views}."
            )
        self.source = source
        self.transform = transform
        self.volume_shape = volume_shape
        self.cell_size = cell_size
        self.margin = margin
        self.stretch = stretch
        self.rays_per_view = rays_per_view
        self.input_views = input_views
        self.target_views = target_views
        self.targets = targets
        self.points = points
        self.include_invalid = include_invalid
        self.near = near
        self.seed = seed
        self.max_extent = max_extent
        self.image_features = image_features

    def __len__(self) -> int:
        return len(self.source)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in label order; empty without labels."""
        return tuple(getattr(getattr(self.source, "scenes", self.source), "classes", ()))

    def __getitem__(self, key: Key) -> PretrainItem:
        epoch, index = split_key(key, len(self))
        rng = item_rng(self.seed, epoch, index)
        scene, bounds = self._prepare(index, rng)
        assert scene.views is not None
        pixels = draw_pixels(scene.views, OVERSAMPLE * self.rays_per_view, rng, include_invalid=self.include_invalid)
        rays, targets = make_rays(
            scene.views, pixels, bounds, rays_per_view=self.rays_per_view, near=self.near, name=scene.name
        )
        scene_input = collate_scenes([replace(scene, inverse=None)], [bounds], self.volume_shape, points=self.points)
        segment = None if scene.segment is None else torch.from_numpy(scene.segment.astype(np.int64))
        return PretrainItem(scene.name, scene_input, rays, targets, segment)

    def prepare(self, key: Key) -> tuple[Scene, Array]:
        """The augmented scene of an item, with its target views, and the bounds (2, 3) of its volume: for previews."""
        epoch, index = split_key(key, len(self))
        return self._prepare(index, item_rng(self.seed, epoch, index))

    def _prepare(self, index: int, rng: Generator) -> tuple[Scene, Array]:
        scene = self.source[index]
        check_scene(scene, max_extent=self.max_extent)
        scene = self.transform(self._choose_views(self._read_views(scene, rng), rng), rng)
        if len(scene) == 0:
            raise ValueError(f"Scene {scene.name!r}: the transform left no points. Loosen its crop or dropout.")
        bounds = fit_grid(
            scene.coord, self.volume_shape, cell_size=self.cell_size, margin=self.margin, stretch=self.stretch
        )
        inside = ((scene.coord >= bounds[0]) & (scene.coord <= bounds[1])).all(1)
        if not inside.any():
            raise ValueError(
                f"Scene {scene.name!r}: all {len(scene)} points lie outside the volume {bounds.tolist()}. "
                "Raise cell_size or volume_shape, or pass cell_size=None to fit the volume to the points."
            )
        return scene, bounds

    def _read_views(self, scene: Scene, rng: Generator) -> Scene:
        """Decode stored views: those drawn as targets, or all where some become points."""
        if scene.stored_views is None:
            return scene
        every = np.arange(len(scene.stored_views))
        draws = self.input_views is None and self.target_views is not None
        views = scene.stored_views.read(_draw(every, self.target_views, rng) if draws else every)  # type: ignore[arg-type]
        check_views(views, scene.name, max_depth=self.max_extent)
        return replace(scene, views=views, stored_views=None)

    def _choose_views(self, scene: Scene, rng: Generator) -> Scene:
        if scene.views is None or len(scene.views) == 0:
            raise ValueError(f"Scene {scene.name!r} has no views to render. Use a source of posed RGB-D images.")
        usable = np.flatnonzero((scene.views.depth > 0).any((1, 2)))
        if len(usable) == 0:
            raise ValueError(
                f"Scene {scene.name!r}: none of its {len(scene.views)} views has a pixel with depth. "
                "Check the depth scale and the codes that mean 'invalid'."
            )
        if len(usable) < len(scene.views):
            skipped = sorted(set(range(len(scene.views))) - set(usable.tolist()))
            logger.warning("Scene %r: views %s are skipped, they have no pixel with depth.", scene.name, skipped)
        candidates = usable
        if self.input_views is not None:
            inputs = _draw(usable, self.input_views, rng)
            points = unproject(select_views(scene.views, inputs), name=scene.name)
            scene = replace(points, views=scene.views, condition=scene.condition)
            candidates = np.setdiff1d(usable, inputs) if self.targets == "unseen" else usable
            if len(candidates) == 0:
                raise ValueError(
                    f"Scene {scene.name!r}: all {len(usable)} usable views are input, none is left as an unseen "
                    "target. Lower input_views, add views, or pass targets='any'."
                )
        chosen = candidates if self.target_views is None else _draw(candidates, self.target_views, rng)
        assert scene.views is not None
        views = select_views(scene.views, chosen)
        if self.image_features is not None:  # of the images as they were taken, before any change of their colours
            views = replace(views, feature=self.image_features.maps(views.color))
        return replace(scene, views=views)


@dataclass(frozen=True)
class PixelPicks:
    """Pixels drawn from the views of a scene, view by view."""

    view: NDArray[np.int64]  # (M,)
    row: NDArray[np.int64]  # (M,)
    column: NDArray[np.int64]  # (M,)


def draw_pixels(views: Views, per_view: int, rng: Generator, *, include_invalid: bool = False) -> PixelPicks:
    """Draw up to `per_view` different pixels of each view, uniformly among those with depth (or among all)."""
    H, W = views.depth.shape[1:]
    picks, counts = [], []
    for depth in views.depth.reshape(len(views), -1):  # ragged: each view has its own list of usable pixels
        usable = np.arange(H * W) if include_invalid else np.flatnonzero(depth > 0)
        picks.append(usable[rng.choice(len(usable), min(per_view, len(usable)), replace=False)])
        counts.append(len(picks[-1]))
    row, column = np.divmod(np.concatenate(picks), W)
    return PixelPicks(np.repeat(np.arange(len(views)), counts), row, column)


def make_rays(
    views: Views, pixels: PixelPicks, bounds: Array, *, rays_per_view: int, near: float, name: str
) -> tuple[RayBundle, RayTargets]:
    """Rays through pixels and what was observed along them, for a batch of one.

    Keeps the first `rays_per_view` pixels of each view whose ray meets the volume and whose surface lies inside.

    Args:
        views: V posed RGB-D images.
        pixels: candidates.
        bounds: (2, 3) metres.
        rays_per_view: at most this many per view.
        near: metres in front of a camera where rays start.
        name: of the scene, for errors.
    """
    view, row, column = pixels.view, pixels.row, pixels.column
    uv = torch.from_numpy(np.stack([column, row], axis=1).astype(np.float32))
    intrinsics, pose = torch.from_numpy(views.intrinsics[view]), torch.from_numpy(views.cam_to_world[view])
    origins, directions, z_to_ray = pixel_rays(uv, intrinsics, pose)
    depth = torch.from_numpy(views.depth[view, row, column]) * z_to_ray  # (M,) along the ray
    t_near, t_far, hit = ray_box(origins[None], directions[None], torch.from_numpy(bounds)[None], near=near)
    t_near, t_far, hit = t_near[0], t_far[0], hit[0]
    inside = hit & ((depth == 0) | ((depth > t_near) & (depth < t_far)))
    keep = torch.from_numpy(_first_of_each(view, inside.numpy(), rays_per_view))
    if len(keep) == 0:
        raise ValueError(
            f"Scene {name!r}: no surface seen in its {len(views)} target views lies in the volume {bounds.tolist()}. "
            "Expected views that look at the points: check that both are in one frame, or raise cell_size."
        )
    picked = (view[keep], row[keep], column[keep])

    def batched(values: Tensor) -> Tensor:
        return values[keep][None].float()

    rays = RayBundle(
        batched(origins),
        batched(directions),
        batched(t_near),
        batched(t_far),
        torch.ones(1, len(keep), dtype=torch.bool),
    )
    targets = RayTargets(
        rgb=torch.from_numpy(views.color[picked].astype(np.float32) / 255.0)[None],
        depth=batched(depth),
        normal=None if views.normal is None else torch.from_numpy(views.normal[picked].astype(np.float32))[None],
        segment=None if views.segment is None else torch.from_numpy(views.segment[picked].astype(np.int64))[None],
        feature=None
        if views.feature is None
        else torch.from_numpy(look_up(views.feature, *picked, views.depth.shape[1:]))[None],
    )
    return rays, targets


def _first_of_each(group: NDArray[np.int64], good: NDArray[np.bool_], limit: int) -> NDArray[np.int64]:
    """Rows of the first `limit` good entries of each group; groups are contiguous."""
    rows = np.flatnonzero(good)
    first_of_group = np.searchsorted(group[rows], group[rows], side="left")
    return rows[np.arange(len(rows)) - first_of_group < limit]


def _draw(values: NDArray[np.int64], number: int, rng: Generator) -> NDArray[np.int64]:
    return np.sort(rng.choice(values, min(number, len(values)), replace=False))
