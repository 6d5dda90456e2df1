"""How close a reconstructed surface is to the true one, between points sampled on both."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class SurfaceScores:
    """Distances in metres, the rest in [0, 1]. NaN where there is nothing to average."""

    accuracy: float  # mean distance from predicted points to the truth
    completeness: float  # mean distance from true points to the prediction
    chamfer: float  # mean of the two
    precision: float  # share of predicted points within the threshold of the truth
    recall: float  # share of true points within the threshold of the prediction
    f_score: float  # harmonic mean of the two
    normal_consistency: float  # mean |cos| between the normals of nearest points, both ways; NaN without normals


def surface_scores(
    predicted: Tensor | NDArray[np.floating],
    true: Tensor | NDArray[np.floating],
    *,
    threshold: float = 0.05,
    predicted_normal: Tensor | NDArray[np.floating] | None = None,
    true_normal: Tensor | NDArray[np.floating] | None = None,
    seen: NDArray[np.bool_] | None = None,
) -> SurfaceScores:
    """Compare two sampled surfaces (definitions of Knapitsch et al. 2017, and Mescheder et al. 2019 for normals).

    An empty prediction has precision, recall and F-score 0 and distances NaN. With `seen`, what no sensor saw need not
    be found, but is not wrong where it is: it counts in accuracy and precision only.

    Args:
        predicted: (P, 3) metres.
        true: (T, 3) metres, T > 0.
        threshold: metres; a point at exactly this distance counts as close.
        predicted_normal: (P, 3), any length; needed with `true_normal` for the normal consistency. The sign of a
            normal does not count: sampled meshes and clouds disagree about it.
        true_normal: (T, 3).
        seen: (T,) bool, the true points to find: those that completeness, recall and the normals compared from the
            truth average over. None: all.

    Raises:
        ValueError: if shapes do not fit, the truth (or what is seen of it) is empty, or values are not finite.
        ImportError: if scipy is not installed.
    """
    try:
        from scipy.spatial import KDTree
    except ImportError as error:
        raise ImportError("Surface metrics use scipy, which is not installed. Run: pip install scipy") from error
    guess, truth = _points("predicted", predicted), _points("true", true)
    if len(truth) == 0:
        raise ValueError(
            "Surface metrics need at least one true point; got `true` (0, 3). Leave scenes without a surface out."
        )
    find = np.ones(len(truth), dtype=bool) if seen is None else np.asarray(seen)
    if find.shape != truth.shape[:1] or find.dtype != bool or not find.any():
        raise ValueError(
            f"Surface metrics need `seen` of shape ({len(truth)},), bool, true somewhere; got {find.shape} "
            f"{find.dtype} with {int(find.sum())} true. Pass None to count all true points."
        )
    if len(guess) == 0:
        return SurfaceScores(math.nan, math.nan, math.nan, 0.0, 0.0, 0.0, math.nan)
    to_truth, nearest_truth = KDTree(truth).query(guess)
    to_guess, nearest_guess = KDTree(guess).query(truth[find])
    precision, recall = float((to_truth <= threshold).mean()), float((to_guess <= threshold).mean())
    consistency = math.nan
    if predicted_normal is not None and true_normal is not None:
        first = _unit("predicted_normal", predicted_normal, len(guess))
        second = _unit("true_normal", true_normal, len(truth))
        there = np.abs((first * second[nearest_truth]).sum(-1)).mean()
        back = np.abs((second[find] * first[nearest_guess]).sum(-1)).mean()
        consistency = float(0.5 * (there + back))
    accuracy, completeness = float(to_truth.mean()), float(to_guess.mean())
    return SurfaceScores(
        accuracy=accuracy,
        completeness=completeness,
        chamfer=0.5 * (accuracy + completeness),
        precision=precision,
        recall=recall,
        f_score=2.0 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0,
        normal_consistency=consistency,
    )


def _points(name: str, value: Tensor | NDArray[np.floating]) -> NDArray[np.float64]:
    array = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] != 3 or not np.isfinite(array).all():
        raise ValueError(
            f"Surface metrics need `{name}` (N, 3) with finite values; got {array.shape}, of which "
            f"{int((~np.isfinite(array)).sum())} are not finite. Sample the surface first and drop such points."
        )
    return array


def _unit(name: str, value: Tensor | NDArray[np.floating], count: int) -> NDArray[np.float64]:
    array = _points(name, value)
    if len(array) != count:
        raise ValueError(
            f"Surface metrics need one normal per point: `{name}` should have {count} rows, it has {len(array)}. "
            "Sample points and normals together."
        )
    return array / np.maximum(np.linalg.norm(array, axis=-1, keepdims=True), 1e-12)


def sample_mesh(
    vertices: NDArray[np.floating], faces: NDArray[np.integer], count: int, *, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points spread evenly over a triangle mesh, and the normals of their faces: (count, 3) and (count, 3) unit.

    Args:
        vertices: (V, 3) metres.
        faces: (F, 3) rows of `vertices`, F > 0, with some area.
        count: points to draw.
        rng: source of randomness.

    Raises:
        ValueError: if the mesh has no area.
    """
    corners = np.asarray(vertices, dtype=np.float64)[faces]  # (F, 3, 3)
    across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = np.linalg.norm(across, axis=-1)
    if not area.sum() > 0:
        raise ValueError(
            f"Sampling needs a mesh with some area; got {len(faces)} faces with a total of {area.sum()}. "
            "Check that the mesh is not empty."
        )
    face = rng.choice(len(area), size=count, p=area / area.sum())
    first, second = np.sqrt(rng.random((count, 1))), rng.random((count, 1))
    weights = np.concatenate([1.0 - first, first * (1.0 - second), first * second], -1)  # uniform in a triangle
    points = np.einsum("nc,ncd->nd", weights, corners[face])
    return points, across[face] / area[face, None]
