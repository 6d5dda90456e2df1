"""From raw points to what a model takes, as its config says: `create_transform(**resolve_model_data_config(model))`."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from ponder_zoo.structures import PointBatch, SceneInput

from .checks import check_scene
from .collate import PointCollate, collate_scenes
from .features import POINT_COLUMNS
from .grid import fit_grid
from .motion import bounding_box
from .normals import estimate_normals as normals_of
from .normals import room_viewpoint
from .readers import read_scene, scene_from_arrays
from .scene import Scene
from .transforms import (
    CenterShift,
    Compose,
    GridSample,
    RandomDropout,
    segmentation_test_transforms,
    segmentation_train_transforms,
)

_logger = logging.getLogger(__name__)
Center = Literal["none", "xy_mid_z_min"]
_FEWEST_CELLS = 8  # along the longest side of the box; fewer, with many points, means wrong units


class HasConfig(Protocol):
    """A model of the zoo: it carries what it was built from."""

    pretrained_cfg: Any


def resolve_model_data_config(model: HasConfig) -> dict[str, Any]:
    """What `create_transform` needs to know of a model, as a dict that can be changed or saved as JSON.

    Example:
        config = resolve_model_data_config(model)
        transform = create_transform(**config, is_training=False)
    """
    cfg = getattr(model, "pretrained_cfg", None)
    points = getattr(cfg, "point_cfg", None)
    if points is None:
        raise TypeError(
            f"Expected a model with pretrained_cfg.point_cfg, as create_model returns; got {type(model).__name__}. "
            "Pass the model itself, not a wrapper, or call create_transform with your own values."
        )
    names = ("grid_size", "feature_columns", "mean", "std", "fill", "center", "max_extent")
    return {**{name: getattr(points, name) for name in names}, "condition": getattr(cfg, "condition", None)}


def model_collate(model: Any) -> PointCollate:
    """What packs scenes into the columns that a model of `create_model` takes."""
    config = resolve_model_data_config(model)
    return _collate(*(config[name] for name in ("feature_columns", "mean", "std", "fill")))


def _collate(
    feature_columns: Sequence[str], mean: Sequence[float], std: Sequence[float], fill: Sequence[float | None]
) -> PointCollate:
    lengths = {"feature_columns": len(feature_columns), "mean": len(mean), "std": len(std), "fill": len(fill)}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"Expected one mean, std and fill per feature column; got {lengths}. Give all of them.")
    unknown = [name for name in feature_columns if name not in POINT_COLUMNS]
    if unknown:
        raise ValueError(f"Expected feature_columns of {list(POINT_COLUMNS)}; got {unknown}. Use these names.")
    if not all(value > 0 for value in std):
        raise ValueError(f"Expected a positive std; got {tuple(std)}. Correct the config.")
    filled = {
        name: (value - m) / s
        for name, value, m, s in zip(feature_columns, fill, mean, std, strict=True)
        if value is not None
    }
    return PointCollate(
        tuple(feature_columns),
        mean=dict(zip(feature_columns, mean, strict=True)),
        std=dict(zip(feature_columns, std, strict=True)),
        fill=filled,
    )


def create_transform(
    *,
    grid_size: float,
    feature_columns: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
    fill: Sequence[float | None],
    center: Center = "xy_mid_z_min",
    max_extent: float = 100.0,
    condition: str | None = None,
    is_training: bool = False,
    estimate_normals: bool = False,
    viewpoint: tuple[float, float, float] | None = None,
    max_points: int = 100_000,
) -> ModelTransform:
    """Build the transform that turns a file, a scene or raw arrays into a model's input.

    Args:
        grid_size: metres.
        feature_columns: names of `data.features.POINT_COLUMNS`, in the model's order.
        mean: one per column, in raw units.
        std: one per column.
        fill: raw value that stands for an absent column; None: the column must be there.
        center: "xy_mid_z_min" puts the middle of the box at x = y = 0 and the lowest point at z = 0.
        max_extent: metres; a larger cloud is taken to be in other units.
        condition: name of the data set, where the scene has none.
        is_training: add the augmentations of fine-tuning; the transform then needs `rng`.
        estimate_normals: where the model reads normals and there are none, estimate them instead of filling.
        viewpoint: (x, y, z) metres that estimated normals point towards, in the raw frame; for a laser scanner its
            position. None: over the middle of the floor, as in a room.
        max_points: in training, the points of a crop.

    Example:
        transform = create_transform(**resolve_model_data_config(model), is_training=False)
        feat = model.forward_point_features(transform("scan.ply"))  # one row per point of the file, in its order
    """
    collate = _collate(feature_columns, mean, std, fill)
    if not grid_size > 0:
        raise ValueError(f"Expected a positive grid_size; got {grid_size}. Correct the config.")
    if is_training:
        steps = segmentation_train_transforms(grid_size, max_points=max_points)
    else:
        steps = segmentation_test_transforms(grid_size)
    if center == "none":
        steps = Compose(tuple(step for step in steps.transforms if not isinstance(step, CenterShift)))
    return ModelTransform(
        grid_size=grid_size,
        steps=steps,
        collate=collate,
        max_extent=max_extent,
        condition=condition,
        is_training=is_training,
        estimate_normals=estimate_normals,
        viewpoint=viewpoint,
    )


@dataclass(frozen=True)
class ModelTransform:
    """Raw points to a PointBatch; see `create_transform`, which builds it.

    `prepare` gives the scene before packing, labels included, for a data set of one's own; `collate` then makes a
    batch of several: `points, segment = transform.collate([transform.prepare(path, rng=i) for ...])`.
    """

    grid_size: float
    steps: Compose
    collate: PointCollate
    max_extent: float
    condition: str | None
    is_training: bool
    estimate_normals: bool
    viewpoint: tuple[float, float, float] | None

    def __call__(
        self, data: str | Path | Scene | Mapping[str, Any] | NDArray[Any], *, rng: Generator | int | None = None
    ) -> PointBatch:
        """Turn one cloud into a batch of one scene.

        Args:
            data: a file for `read_scene`, a Scene, or arrays for `scene_from_arrays`.
            rng: generator or seed of the augmentations; not read outside training.

        Returns:
            One point per grid cell, with `inverse`, so that `model.forward_point_features` answers for every point that
            came in. In training `inverse` is None, because points are dropped.
        """
        return self.collate.pack([self.prepare(data, rng=rng)])

    def prepare(
        self, data: str | Path | Scene | Mapping[str, Any] | NDArray[Any], *, rng: Generator | int | None = None
    ) -> Scene:
        """The scene that the model will see, before packing."""
        if rng is None and self.is_training:
            raise ValueError(
                "Expected rng, a seed or a numpy Generator, since is_training=True augments at random; got None. "
                "Pass another seed for every item and epoch."
            )
        scene = self._guarded(self._scene(data))
        generator = rng if isinstance(rng, Generator) else np.random.default_rng(0 if rng is None else rng)
        return self.steps(self._with_columns(scene), generator)

    def _scene(self, data: str | Path | Scene | Mapping[str, Any] | NDArray[Any]) -> Scene:
        if isinstance(data, str | Path):
            scene = read_scene(data, max_extent=self.max_extent)
        elif isinstance(data, Scene):
            scene = replace(data, grid_coord=None, inverse=None)
        else:
            scene = scene_from_arrays(data)
        if scene.condition is None and self.condition is not None:
            scene = replace(scene, condition=self.condition)
        return replace(scene, coord=np.asarray(scene.coord, dtype=np.float32))

    def _guarded(self, scene: Scene) -> Scene:
        check_scene(scene, max_extent=self.max_extent)
        extent = float(np.diff(bounding_box(scene.coord), axis=0).max())
        if len(scene) > _FEWEST_CELLS**2 and extent < _FEWEST_CELLS * self.grid_size:
            raise ValueError(
                f"Scene {scene.name!r} spans {extent:.3g} m, less than {_FEWEST_CELLS} cells of {self.grid_size} m; "
                "expected metres. If it is normalized or in kilometres, scale it back; if the object is that small, "
                "choose a smaller grid_size."
            )
        if scene.color is not None and 0 < scene.color.max(initial=0) <= 1.0:
            raise ValueError(
                f"Scene {scene.name!r}: expected colours in [0, 255]; got at most {scene.color.max():.3g}. "
                "Multiply colours in [0, 1] by 255."
            )
        return scene

    def _with_columns(self, scene: Scene) -> Scene:
        needed = {POINT_COLUMNS[name][0] for name in self.collate.feature_columns}
        if self.estimate_normals and "normal" in needed and scene.normal is None:
            viewpoint = room_viewpoint(scene.coord) if self.viewpoint is None else self.viewpoint
            scene = replace(scene, normal=normals_of(scene.coord, viewpoint=viewpoint))
        absent = tuple(sorted(field for field in needed if getattr(scene, field) is None))
        if absent:
            _tell_filled(absent)
        return scene


def volume_input(
    scene: Scene, encoder: Any, shape: tuple[int, int, int], *, margin: float, dropout: float = 0.0, seed: int = 0
) -> tuple[Scene, SceneInput, NDArray[np.float32]]:
    """One scene as a pre-training model reads it, without augmentation: points and the grid of their volume.

    Args:
        scene: its views, if it has any, are moved with the points.
        encoder: of the model; its config says which columns and how large the cells are that keep one point.
        shape: (X, Y, Z) cells of the volume.
        margin: metres around the points that the volume covers, too.
        dropout: share of the points to leave out: the statistics of norms depend on the density, so as in training.
        seed: of what is left out.

    Returns:
        The scene that is encoded, in the model's frame; the input of `volume_encoder`, for one scene; and (3,) metres
        to add to coordinates of the model's frame to be back in the scene's.
    """
    rng = np.random.default_rng(seed)
    kept = RandomDropout(dropout, p=1.0)(scene, rng)
    centred = CenterShift()(kept, rng)
    sampled = replace(GridSample(encoder.grid_size, pick="first")(centred, rng), inverse=None)
    bounds = fit_grid(sampled.coord, shape, margin=margin)
    item = collate_scenes([sampled], [bounds], shape, points=model_collate(encoder))
    return sampled, item, kept.coord[0] - centred.coord[0]


@functools.cache
def _tell_filled(fields: tuple[str, ...]) -> None:
    """Say once per process and set of fields that the config's fill values stand for them."""
    hint = " Normals can be estimated: create_transform(..., estimate_normals=True)." if "normal" in fields else ""
    _logger.warning(
        "The points have no %s, which the model reads; the fill values of its config stand for it.%s",
        " and no ".join(fields),
        hint,
    )
