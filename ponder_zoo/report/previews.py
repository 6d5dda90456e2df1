"""Preview pictures: what a model rendered beside what the camera saw, and segmentations of a cloud.

All functions take arrays (numpy, or tensors that numpy can read) and write PNG files. Pillow is imported when they run.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .class_legend import class_chips, class_colors
from .colors import INVALID, UNLABELLED, class_palette, colorize, normal_to_rgb
from .grid import Bar, Grid, Tile, save_grid
from .splat import Camera, orbit_cameras, splat_points

CORRECT, WRONG = (88, 96, 108), (244, 67, 84)
COLUMNS = (
    "Input points",
    "Reference",
    "Rendered",
    "Colour error",
    "Reference depth",
    "Rendered depth",
    "Depth error",
    "Reference normal",
    "Rendered normal",
    "Reference classes",
    "Rendered classes",
    "Reference features",
    "Rendered features",
)
RGB_ERROR_RANGE = 0.4  # mean absolute difference of colours in [0, 1] that gets the brightest colour


@dataclass(frozen=True, eq=False)
class PreviewView:
    """One view the step did not train on. All images of a view have one size (h, w).

    The camera may have a higher resolution than the images (its own `image_size`); it only draws the input points.
    """

    reference_rgb: ArrayLike  # (h, w, 3) uint8, or float in [0, 1]
    rendered_rgb: ArrayLike  # (h, w, 3)
    rendered_depth: ArrayLike  # (h, w) z-depth in metres
    reference_depth: ArrayLike | None = None  # (h, w) z-depth in metres, 0 = none measured
    rendered_normal: ArrayLike | None = None  # (h, w, 3) world frame, length <= 1
    reference_normal: ArrayLike | None = None  # (h, w, 3) unit, world frame, zero = unknown
    opacity: ArrayLike | None = None  # (h, w) in [0, 1]; depth and normal of empty pixels (below 0.05) are not shown
    camera: Camera | None = None  # from where; with `points_*`, gives the column of input points
    points_coord: ArrayLike | None = None  # (N, 3) metres, what the encoder saw
    points_color: ArrayLike | None = None  # (N, 3) in 0-255
    name: str = ""
    reference_segment: ArrayLike | None = None  # (h, w) class index, negative = unlabelled
    rendered_segment: ArrayLike | None = None  # (h, w) class index
    class_names: Sequence[str] = ()  # in order of the indices
    reference_feature: ArrayLike | None = None  # (h, w, 3) features as colours in [0, 1]
    rendered_feature: ArrayLike | None = None  # (h, w, 3)


def preview_path(run_dir: str | os.PathLike[str], step: int, name: str = "views") -> Path:
    """Where a preview belongs in a run folder, so that the report can order it by step and group it by name."""
    return Path(run_dir) / "previews" / f"step_{step:08d}_{name}.png"


def psnr(rendered: ArrayLike, reference: ArrayLike) -> float:
    """Peak signal-to-noise ratio in dB of two images of equal shape, uint8 or float in [0, 1]; infinite if equal."""
    error = float(np.mean((_unit_rgb(rendered) - _unit_rgb(reference)) ** 2))
    return math.inf if error == 0.0 else -10.0 * math.log10(error)


def median_depth_error(rendered: ArrayLike, reference: ArrayLike) -> float:
    """Median absolute difference of two depth images in metres where the reference is measured; NaN if nowhere."""
    reference = np.asarray(reference, dtype=np.float64)
    known = np.isfinite(reference) & (reference > 0)
    if not known.any():
        return math.nan
    return float(np.median(np.abs(np.asarray(rendered, dtype=np.float64)[known] - reference[known])))


def write_view_grid(
    path: str | os.PathLike[str],
    views: Sequence[PreviewView],
    *,
    title: str = "",
    columns: Sequence[str] = (),
    tile_width: int = 256,
    point_size: float = 0.03,
) -> Path:
    """Write one PNG with a row per view and a labelled column per kind of image; columns nobody has are left out.

    Columns: input points (drawn from that view's camera), reference and rendered colour, colour error, reference and
    rendered depth, depth error, reference and rendered normal, classes and features. All depth images share
    one scale that depends on the references only, so pictures of different steps can be compared; the scales are drawn
    below.

    Args:
        path: the file to write; its folder is made if needed.
        views: at least one.
        title: a line above, such as the step.
        columns: headers of the columns to show, of `COLUMNS`; empty = all there is data for.
        tile_width: width of one image in pixels.
        point_size: diameter of the drawn input points in metres.

    Raises:
        ValueError: if there is no view, a column is not known, or images of a view differ in size.
    """
    if len(views) == 0:
        raise ValueError("A preview needs at least one view; got none. Keep back at least one frame of the scene.")
    for index, view in enumerate(views):
        _check_view(view, index)
    if unknown := sorted(set(columns) - set(COLUMNS)):
        raise ValueError(f"Expected columns of {COLUMNS}, got {unknown}. Use these names.")
    scale = _depth_scale(views)
    shown = [
        (header, draw) for header, draw in _view_columns(views, scale, point_size) if header in columns or not columns
    ]
    rows = [[draw(view, _tile_size(view, tile_width)) for _, draw in shown] for view in views]
    scales = {
        "Colour error": Bar("Colour error", "error", "0", f"{RGB_ERROR_RANGE:g}"),
        "Depth error": Bar("Depth error", "error", "0", _metres(scale.error)),
        "Rendered depth": Bar("Depth", "depth", _metres(scale.low), _metres(scale.high)),
    }
    bars = [scales[header] for header, _ in shown if header in scales]
    bars += [Bar("Nothing known", None, "", "")] if bars else []
    chips = [*class_chips(views), ("not labelled", UNLABELLED)] if "Rendered classes" in dict(shown) else []
    grid = Grid([header for header, _ in shown], rows, title, bars=bars, chips=chips)
    return save_grid(grid, path)


def write_segmentation_views(
    path: str | os.PathLike[str],
    coord: ArrayLike,
    prediction: ArrayLike,
    truth: ArrayLike,
    *,
    names: Sequence[str],
    color: ArrayLike | None = None,
    normal: ArrayLike | None = None,
    title: str = "",
    num_views: int = 2,
    tile_width: int = 420,
    point_size: float = 0.07,
    max_points: int = 200_000,
) -> Path:
    """Write one PNG of a labelled cloud from a few sides: colours (if given), truth, prediction, error; and a legend.

    Args:
        path: the file to write; its folder is made if needed.
        coord: (N, 3) metres, z up.
        prediction: (N,) class indices.
        truth: (N,) class indices; negative = not labelled, drawn dark grey and not counted.
        names: of the classes, in order of their indices.
        color: (N, 3) in 0-255.
        normal: (N, 3) unit; with normals, surfaces seen from behind (outer walls, ceilings) are left out, so that one
            looks into a room.
        title: a line above.
        num_views: rows, from equal angles around the cloud.
        tile_width: width of one image in pixels.
        point_size: diameter of the drawn points in metres.
        max_points: larger clouds are thinned evenly.

    Raises:
        ValueError: if lengths differ or a class index has no name.
    """
    xyz, guess, label = np.asarray(coord, dtype=np.float64), np.asarray(prediction), np.asarray(truth)
    _check_labels(xyz, guess, label, names)
    palette = np.concatenate([class_palette(len(names)), [UNLABELLED]]).astype(np.uint8)
    right = np.where(label < 0, 2, (guess != label).astype(np.int64))
    images = {
        "Cloud": None if color is None else np.asarray(color),
        "Truth": palette[np.where(label < 0, len(names), label)],
        "Prediction": palette[np.where(guess < 0, len(names), guess)],
        "Error": np.array([CORRECT, WRONG, UNLABELLED], np.uint8)[right],
    }
    images = {header: image for header, image in images.items() if image is not None}
    options = {"num_views": num_views, "tile_width": tile_width, "point_size": point_size, "max_points": max_points}
    rows = orbit_rows(xyz, list(images.values()), normal, **options)
    labelled = label >= 0
    share = float((guess == label)[labelled].mean()) if labelled.any() else math.nan
    rows[-1][-1].caption = f"{100 * share:.1f} % right" if labelled.any() else "no labels"
    present = np.union1d(np.unique(label[labelled]), np.unique(guess[guess >= 0]))
    chips = [(str(names[index]), _color(palette[index])) for index in present]
    chips += [("wrong", WRONG), ("not labelled", UNLABELLED)]
    return save_grid(Grid(list(images), rows, title, chips=chips), path)


def orbit_rows(
    coord: NDArray[Any],
    colorings: Sequence[NDArray[Any]],
    normal: ArrayLike | None = None,
    *,
    num_views: int = 2,
    tile_width: int = 420,
    point_size: float = 0.07,
    max_points: int = 200_000,
) -> list[list[Tile]]:
    """Pictures of a cloud (N, 3) from a few sides, one column per colouring (N, 3); see `write_segmentation_views`."""
    keep = np.linspace(0, len(coord) - 1, min(len(coord), max_points)).astype(np.int64)
    xyz, images = coord[keep], [image[keep] for image in colorings]
    size = (tile_width, round(0.75 * tile_width))
    facing = None if normal is None else np.asarray(normal, dtype=np.float64)[keep]
    rows = []
    for camera in orbit_cameras(xyz, count=num_views, image_size=(size[1], size[0])):
        seen = slice(None)
        if facing is not None:
            seen = ((camera.cam_to_world[:3, 3] - xyz) * facing).sum(-1) >= 0
        drawn = [splat_points(xyz[seen], image[seen], camera, point_size=point_size) for image in images]
        rows.append([Tile(image, size) for image, _ in drawn])
    return rows


# Contents of the columns


@dataclass(frozen=True)
class _DepthScale:
    low: float  # metres
    high: float
    error: float  # brightest colour of the depth error


_Draw = Callable[[PreviewView, tuple[int, int]], Tile]


def _view_columns(views: Sequence[PreviewView], scale: _DepthScale, point_size: float) -> list[tuple[str, _Draw]]:
    def input_points(view: PreviewView, size: tuple[int, int]) -> Tile:
        if view.points_coord is None or view.camera is None:
            return _blank(size)
        cloud = np.asarray(view.points_coord)
        color = np.full((len(cloud), 3), 200) if view.points_color is None else np.asarray(view.points_color)
        camera = view.camera.resized((size[1], size[0]))
        return Tile(splat_points(cloud, color, camera, point_size=point_size)[0], size, f"{len(cloud):,} points")

    def depth(value: ArrayLike | None, view: PreviewView, size: tuple[int, int], *, rendered: bool) -> Tile:
        if value is None:
            return _blank(size)
        known = np.asarray(value) > 0
        if rendered:
            known &= _opaque(view)
        tile = Tile(colorize(np.asarray(value), "depth", low=scale.low, high=scale.high, valid=known), size, bold=True)
        if rendered and view.reference_depth is not None:
            error = median_depth_error(value, view.reference_depth)
            tile.caption = "no depth to compare" if math.isnan(error) else f"median error {_centimetres(error)}"
        return tile

    def depth_error(view: PreviewView, size: tuple[int, int]) -> Tile:
        if view.reference_depth is None:
            return _blank(size)
        reference = np.asarray(view.reference_depth, dtype=np.float64)
        error = np.abs(np.asarray(view.rendered_depth, dtype=np.float64) - reference)
        return Tile(colorize(error, "error", low=0.0, high=scale.error, valid=reference > 0), size)

    def rgb_error(view: PreviewView, size: tuple[int, int]) -> Tile:
        error = np.abs(_unit_rgb(view.rendered_rgb) - _unit_rgb(view.reference_rgb)).mean(-1)
        return Tile(colorize(error, "error", low=0.0, high=RGB_ERROR_RANGE), size)

    def rendered_normal(view: PreviewView, size: tuple[int, int]) -> Tile:
        if view.rendered_normal is None:
            return _blank(size)
        normal = np.where(_opaque(view)[..., None], np.asarray(view.rendered_normal), 0.0)
        tile = Tile(normal_to_rgb(normal), size, bold=True)
        if view.reference_normal is not None:
            angle = _median_angle(np.asarray(view.rendered_normal), np.asarray(view.reference_normal))
            tile.caption = "" if math.isnan(angle) else f"median error {angle:.1f}°"
        return tile

    def reference_normal(view: PreviewView, size: tuple[int, int]) -> Tile:
        return (
            _blank(size)
            if view.reference_normal is None
            else Tile(normal_to_rgb(np.asarray(view.reference_normal)), size)
        )

    def rendered_rgb(view: PreviewView, size: tuple[int, int]) -> Tile:
        value = psnr(view.rendered_rgb, view.reference_rgb)
        return Tile(_byte_rgb(view.rendered_rgb), size, f"PSNR {value:.1f} dB", bold=True)

    def classes(value: ArrayLike | None, view: PreviewView, size: tuple[int, int], *, rendered: bool) -> Tile:
        if value is None:
            return _blank(size)
        index, label = np.asarray(value), np.asarray(view.reference_segment)
        palette = np.array([*(colors[name] for name in view.class_names), UNLABELLED], np.uint8)
        image = palette[np.where(index < 0, len(palette) - 1, index)]
        if rendered:
            image[~_opaque(view)] = INVALID
        tile = Tile(image, size, bold=rendered)
        if rendered and (label >= 0).any():
            tile.caption = f"{100 * float((index == label)[label >= 0].mean()):.0f} % right"
        return tile

    def features(value: ArrayLike | None, view: PreviewView, size: tuple[int, int], *, rendered: bool) -> Tile:
        if value is None:
            return _blank(size)
        image = _byte_rgb(value)
        if rendered:
            image[~_opaque(view)] = INVALID
        return Tile(image, size, bold=rendered)

    colors = class_colors(views)
    some = {name: any(getattr(view, name) is not None for view in views) for name in PreviewView.__dataclass_fields__}
    drawn: list[tuple[_Draw, Any]] = [  # how to draw each of COLUMNS, and whether there is something to draw
        (input_points, some["points_coord"] and some["camera"]),
        (lambda view, size: Tile(_byte_rgb(view.reference_rgb), size, view.name), True),
        (rendered_rgb, True),
        (rgb_error, True),
        (lambda view, size: depth(view.reference_depth, view, size, rendered=False), some["reference_depth"]),
        (lambda view, size: depth(view.rendered_depth, view, size, rendered=True), True),
        (depth_error, some["reference_depth"]),
        (reference_normal, some["reference_normal"]),
        (rendered_normal, some["rendered_normal"]),
        (lambda view, size: classes(view.reference_segment, view, size, rendered=False), some["reference_segment"]),
        (lambda view, size: classes(view.rendered_segment, view, size, rendered=True), some["reference_segment"]),
        (lambda view, size: features(view.reference_feature, view, size, rendered=False), some["reference_feature"]),
        (lambda view, size: features(view.rendered_feature, view, size, rendered=True), some["rendered_feature"]),
    ]
    return [(header, draw) for header, (draw, wanted) in zip(COLUMNS, drawn, strict=True) if wanted]


def _blank(size: tuple[int, int]) -> Tile:
    return Tile(np.full((1, 1, 3), INVALID, np.uint8), size)


def _opaque(view: PreviewView) -> NDArray[np.bool_]:
    if view.opacity is None:
        return np.ones(np.asarray(view.rendered_depth).shape, np.bool_)
    return np.asarray(view.opacity) >= 0.05


def _unit_rgb(image: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(image)
    scale = 255.0 if array.dtype == np.uint8 else 1.0
    return np.nan_to_num(array.astype(np.float64) / scale).clip(0.0, 1.0)


def _byte_rgb(image: ArrayLike) -> NDArray[np.uint8]:
    return np.round(255 * _unit_rgb(image)).astype(np.uint8)


def _color(row: NDArray[Any]) -> tuple[int, int, int]:
    red, green, blue = (int(channel) for channel in row)
    return red, green, blue


def _median_angle(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Degrees between the normals where both are known; NaN if nowhere."""
    lengths = np.linalg.norm(first, axis=-1), np.linalg.norm(second, axis=-1)
    known = (lengths[0] > 0.1) & (lengths[1] > 0.1)
    if not known.any():
        return math.nan
    cosine = (first[known] * second[known]).sum(-1) / (lengths[0] * lengths[1])[known]
    return float(np.median(np.degrees(np.arccos(cosine.clip(-1.0, 1.0)))))


def _depth_scale(views: Sequence[PreviewView]) -> _DepthScale:
    """From the references alone where there are any, so that pictures of different steps share it."""
    depths = [view.reference_depth for view in views if view.reference_depth is not None]
    depths = depths or [view.rendered_depth for view in views]
    values = np.concatenate([np.asarray(depth, dtype=np.float64).ravel() for depth in depths])
    values = values[np.isfinite(values) & (values > 0)]
    low, high = np.quantile(values, [0.01, 0.99]) if len(values) else (0.0, 1.0)
    return _DepthScale(float(low), float(max(high, low + 1e-3)), float(max(0.25 * (high - low), 1e-3)))


def _metres(value: float) -> str:
    return f"{value:.3g} m"


def _centimetres(value: float) -> str:
    return f"{100 * value:.1f} cm" if value < 1.0 else f"{value:.2f} m"


# Checks


def _check_view(view: PreviewView, index: int) -> None:
    size = np.asarray(view.reference_rgb).shape[:2]
    images = ("rendered_rgb", "rendered_depth", "reference_depth", "rendered_normal", "reference_normal", "opacity")
    images += ("reference_segment", "rendered_segment", "reference_feature", "rendered_feature")
    for name in images:
        value = getattr(view, name)
        if value is None:
            continue
        channels = (3,) if name.endswith(("rgb", "normal", "feature")) else ()
        if np.shape(value) != (*size, *channels):
            raise ValueError(
                f"Preview view {index}: expected `{name}` {(*size, *channels)} like `reference_rgb`, got "
                f"{np.shape(value)}. If the image was rendered with a stride, pass reference[::stride, ::stride]."
            )


def _check_labels(coord: NDArray[Any], prediction: NDArray[Any], truth: NDArray[Any], names: Sequence[str]) -> None:
    if coord.ndim != 2 or not len(coord) == len(prediction) == len(truth) or len(coord) == 0:
        raise ValueError(
            f"Segmentation views need coord (N, 3), prediction (N,) and truth (N,) with one N > 0; got {coord.shape}, "
            f"{prediction.shape} and {truth.shape}. Bring the prediction back to the original points first."
        )
    largest = max(int(prediction.max()), int(truth.max()))
    if largest >= len(names):
        raise ValueError(
            f"Class index {largest} has no name: `names` has {len(names)} entries. "
            "Pass all class names, and labels below zero for points to ignore."
        )


def _tile_size(view: PreviewView, width: int) -> tuple[int, int]:
    h, w = np.asarray(view.reference_rgb).shape[:2]
    return width, max(1, round(width * h / w))
