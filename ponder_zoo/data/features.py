"""Columns of a scene, by name, as the feature matrix that a model reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from .scene import Scene

POINT_COLUMNS: dict[str, tuple[str, int]] = {
    **{name: ("coord", axis) for axis, name in enumerate(("x", "y", "z"))},
    **{name: ("color", axis) for axis, name in enumerate(("red", "green", "blue"))},
    **{f"normal_{name}": ("normal", axis) for axis, name in enumerate("xyz")},
    "intensity": ("intensity", 0),
}
OFFICIAL_COLUMNS = ("red", "green", "blue", "normal_x", "normal_y", "normal_z")
MEAN: dict[str, float] = {"red": 127.5, "green": 127.5, "blue": 127.5}  # other columns: 0
STD: dict[str, float] = {"red": 127.5, "green": 127.5, "blue": 127.5}  # other columns: 1


def feature_matrix(
    scene: Scene,
    columns: Sequence[str] = OFFICIAL_COLUMNS,
    *,
    mean: Mapping[str, float] = MEAN,
    std: Mapping[str, float] = STD,
    fill: Mapping[str, float] | None = None,
) -> NDArray[np.float32]:
    """Put columns side by side as (value - mean) / std: (N, len(columns)).

    Args:
        scene: colours in [0, 255], which the default statistics map to [-1, 1] as the official models expect.
        columns: names of POINT_COLUMNS, in the model's order.
        mean: per column, in the column's own unit; 0 where a name is absent.
        std: per column; 1 where a name is absent.
        fill: what the model should read for columns the scene lacks (after normalization), for example
            {"normal_x": 0.0, ...}. A column that is neither there nor here is an error.
    """
    unknown = [name for name in columns if name not in POINT_COLUMNS]
    if unknown:
        raise ValueError(f"Unknown feature columns {unknown}; expected some of {list(POINT_COLUMNS)}.")
    missing = [name for name in columns if getattr(scene, POINT_COLUMNS[name][0]) is None and name not in (fill or {})]
    if missing:
        lacking = sorted({POINT_COLUMNS[name][0] for name in missing})
        raise ValueError(
            f"Scene {scene.name!r} has no {lacking}, which the feature columns {missing} need. Provide them, choose "
            f"other feature_columns, or say what to put there: fill={dict.fromkeys(missing, 0.0)}."
        )
    reads_color = any(POINT_COLUMNS[name][0] == "color" for name in columns)
    if reads_color and scene.color is not None and mean.get("red") and scene.color.min(initial=0) < 0:
        raise ValueError(
            f"Scene {scene.name!r}: expected colours in [0, 255]; got {scene.color.min():.3g} to "
            f"{scene.color.max():.3g}. They seem normalized already: leave out NormalizeColor, or pass mean={{}}."
        )
    return np.stack([_column(scene, name, mean, std, fill or {}) for name in columns], axis=1)


def _column(
    scene: Scene, name: str, mean: Mapping[str, float], std: Mapping[str, float], fill: Mapping[str, float]
) -> NDArray[np.float32]:
    field, axis = POINT_COLUMNS[name]
    values = getattr(scene, field)
    if values is None:
        return np.full(len(scene), fill[name], dtype=np.float32)
    return ((values[:, axis] - mean.get(name, 0.0)) / std.get(name, 1.0)).astype(np.float32)
