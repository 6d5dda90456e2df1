"""A picture of instances: the true ones, the predicted ones in the same colours, and where they differ."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .colors import UNLABELLED, class_palette
from .grid import Grid, save_grid
from .previews import CORRECT, WRONG, orbit_rows

FOUND = 0.5  # intersection over union above which an instance counts as found


def write_instance_views(
    path: str | os.PathLike[str],
    coord: ArrayLike,
    prediction: ArrayLike,
    truth: ArrayLike,
    *,
    color: ArrayLike | None = None,
    normal: ArrayLike | None = None,
    title: str = "",
    num_views: int = 2,
) -> Path:
    """Write one PNG of a cloud from a few sides: colours (if given), true and predicted instances, error.

    A predicted instance has the colour of the true one that it finds (more than half of the union is shared), else a
    colour of its own. An error is a point of an instance that is not found, or of a prediction that finds none.

    Args:
        path: the file to write; its folder is made if needed.
        coord: (N, 3) metres, z up.
        prediction: (N,) number of each point's predicted instance, negative = none.
        truth: (N,) number of each point's true instance, negative = none.
        color: (N, 3) in 0-255.
        normal: (N, 3) unit; with normals, surfaces seen from behind are left out.
        title: a line above.
        num_views: rows.
    """
    xyz, guess, label = np.asarray(coord, dtype=np.float64), _numbered(prediction), _numbered(truth)
    if not len(xyz) == len(guess) == len(label):
        raise ValueError(
            f"Expected one predicted and one true instance per point; got {len(xyz)} points, {len(guess)} and "
            f"{len(label)}. Map instances to the labelled points first (`Instances.on_points`)."
        )
    partner = match_instances(guess, label)  # (P,) true instance or -1
    true_count = int(label.max(initial=-1)) + 1
    palette = np.concatenate([class_palette(true_count + len(partner)), [UNLABELLED]]).astype(np.uint8)
    hue = np.append(np.where(partner < 0, true_count + np.arange(len(partner)), partner), -1)[guess]
    images: list[NDArray[Any]] = [] if color is None else [np.asarray(color)]
    images += [palette[label], palette[hue], _errors(guess, label, partner)]
    rows = orbit_rows(xyz, images, normal, num_views=num_views)
    rows[-1][-1].caption = f"{(partner >= 0).sum()} of {true_count} found, {(partner < 0).sum()} wrong"
    headers = ["Cloud"] * (color is not None) + ["True instances", "Predicted instances", "Error"]
    chips = [("right", CORRECT), ("wrong", WRONG), ("no instance", tuple(int(c) for c in UNLABELLED))]
    return save_grid(Grid(headers, rows, title, chips=chips), path)  # pyright: ignore[reportArgumentType]


def match_instances(prediction: NDArray[np.int64], truth: NDArray[np.int64]) -> NDArray[np.int64]:
    """The true instance that each predicted one finds, or -1: numbers (N,) from 0, -1 = none -> (P,)."""
    size, true_size = (np.bincount(number[number >= 0]) for number in (prediction, truth))
    both = (prediction >= 0) & (truth >= 0)
    key, shared = np.unique(prediction[both] * (len(true_size) + 1) + truth[both], return_counts=True)
    first, second = np.divmod(key, len(true_size) + 1)
    found = shared / (size[first] + true_size[second] - shared) > FOUND  # at most one for each, on both sides
    partner = np.full(len(size), -1, dtype=np.int64)
    partner[first[found]] = second[found]
    return partner


def _numbered(number: ArrayLike) -> NDArray[np.int64]:
    """The same instances numbered from 0, -1 = none."""
    number = np.asarray(number, dtype=np.int64)
    known = number >= 0
    result = np.full(len(number), -1, dtype=np.int64)
    result[known] = np.unique(number[known], return_inverse=True)[1]
    return result


def _errors(guess: NDArray[np.int64], label: NDArray[np.int64], partner: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Colour of each point (N, 3)."""
    claimed = np.append(partner, -2)[guess]  # true instance that the point is said to belong to; -2: said to have none
    kind = np.where((guess < 0) & (label < 0), 2, np.where((claimed == label) & (label >= 0), 0, 1))
    return np.array([CORRECT, WRONG, UNLABELLED], np.uint8)[kind]
