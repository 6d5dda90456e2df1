"""Does a folder of posed RGB-D frames mean what the reader thinks? Measured from the frames, explained in words.

If poses, intrinsics and depth units are right, frames that look at the same surfaces give points that lie on each
other. Every other convention that is common in the wild is tried on the same frames; where one of them fits better, the
report says which, and how to read the folder that way.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .rgbd_sequence import RGBDOptions, RGBDSequence

OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])
LOOSE = 0.05  # frames further apart than this share of the depth do not line up; right readings measure 0.4-0.7 %
FINE = 0.015  # as good as a right reading of real frames
BETTER = 0.75  # another reading is taken seriously when it brings the distance down to this share


@dataclass(frozen=True)
class SequenceCheck:
    """What was measured, and what is wrong (`problems`) or odd (`remarks`). `str()` gives a readable report."""

    name: str
    num_frames: int
    num_pairs: int  # pairs of frames seen to overlap
    nn_distance: (
        float  # metres, median over pairs of the median nearest-neighbour distance where they overlap; NaN: none
    )
    nn_relative: float  # the same over the depth
    alternatives: dict[str, float]  # nn_relative under other conventions
    depth_median: float  # metres
    valid_fraction: float
    problems: tuple[str, ...]
    remarks: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.problems

    def raise_for_problems(self) -> None:
        """Raise ValueError with the whole report if there are problems."""
        if self.problems:
            raise ValueError(f"{self}\nPass check=False to use the frames as they are.")

    def __str__(self) -> str:
        overlap = "no overlap among the frames looked at, so nothing is known about poses"
        if self.num_pairs:
            overlap = (
                f"overlapping frames {100 * self.nn_distance:.1f} cm apart "
                f"({100 * self.nn_relative:.1f} % of the depth, {self.num_pairs} pairs)"
            )
        first = (
            f"{self.name}: {self.num_frames} frames, depth median {self.depth_median:.2f} m, "
            f"{100 * self.valid_fraction:.0f} % valid, {overlap}."
        )
        return "\n".join([first, *(f"- {text}" for text in (*self.problems, *self.remarks))])


def check_sequence(
    path: str | Path | RGBDSequence, options: RGBDOptions | None = None, *, num_pairs: int = 10
) -> SequenceCheck:
    """Check poses, depth units and intrinsics of one folder of frames; reads about 2 `num_pairs` of them.

    Returns:
        A report. `report.ok` says whether it is fine, `report.raise_for_problems()` turns it into an error.
    """
    sequence = path if isinstance(path, RGBDSequence) else RGBDSequence(path, options)
    pairs = _pairs(len(sequence), num_pairs)
    indices = np.unique(np.array([*pairs, (0, 0)]))
    depths = np.stack([sequence.frame(index).depth for index in indices])
    valid = depths[depths > 0]
    scores = _scores(sequence, pairs) if len(valid) else dict.fromkeys(_CONVENTIONS, (np.nan, np.nan, 0))
    given, distance, overlapping = scores.pop("as given")
    alternatives = {name: score for name, (score, _, _) in scores.items()}
    median = float(np.median(valid)) if len(valid) else float("nan")
    fraction = float((depths > 0).mean())
    return SequenceCheck(
        name=sequence.name,
        num_frames=len(sequence),
        num_pairs=overlapping,
        nn_distance=distance,
        nn_relative=given,
        alternatives=alternatives,
        depth_median=median,
        valid_fraction=fraction,
        problems=(
            *_intrinsics_problems(sequence),
            *_depth_problems(sequence, median, fraction),
            *_pose_problems(given, alternatives, sequence.depth_scale),
        ),
        remarks=_remarks(given),
    )


def _pairs(num_frames: int, num_pairs: int) -> list[tuple[int, int]]:
    """Pairs of frames that are likely to overlap, and some with more motion between them."""
    if num_frames <= 7:
        return [(a, b) for a in range(num_frames) for b in range(a + 1, num_frames)]
    half = num_pairs // 2
    starts = {gap: np.linspace(0, num_frames - 1 - gap, half).astype(int) for gap in (2, 6)}
    return [(int(start), int(start) + gap) for gap, values in starts.items() for start in values]


# name -> (world-to-camera, OpenGL axes, flip fy, factor on depth)
_CONVENTIONS: dict[str, tuple[bool, bool, bool, float]] = {
    "as given": (False, False, False, 1.0),
    "inverse poses": (True, False, False, 1.0),
    "OpenGL axes": (False, True, False, 1.0),
    "inverse poses, OpenGL axes": (True, True, False, 1.0),
    "negative fy": (False, False, True, 1.0),
    **{f"depth x {factor:g}": (False, False, False, factor) for factor in (0.1, 0.2, 0.5, 2.0, 5.0, 10.0)},
}


def _scores(sequence: RGBDSequence, pairs: list[tuple[int, int]]) -> dict[str, tuple[float, float, int]]:
    """For each convention, over the pairs that overlap under it: median distance over depth, in metres, and pairs."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in _CONVENTIONS}
    for a, b in pairs:
        for flip in (False, True):
            for name, relative, median_depth in _distances(sequence, a, b, flip):
                found[name].append((relative, relative * median_depth))
    return {
        name: (*np.median(np.array(values), axis=0).tolist(), len(values)) if values else (np.nan, np.nan, 0)
        for name, values in found.items()
    }


def _distances(sequence: RGBDSequence, a: int, b: int, flip: bool) -> Iterator[tuple[str, float, float]]:
    """How far the points of frame b lie from those of frame a where a sees them: (convention, relative, depth of a)."""
    from scipy.spatial import KDTree  # imported here: `import ponder_zoo` must not cost scipy

    points_a, k, size = _camera_points(sequence, a, flip)
    points_b, _, _ = _camera_points(sequence, b, flip, limit=1200)
    if len(points_a) <= 50:
        return
    tree = KDTree(points_a)
    depth_a = float(np.median(points_a[:, 2]))
    for name, (inverse, opengl, flips, factor) in _CONVENTIONS.items():
        if flips != flip:
            continue
        pose_a, pose_b = (np.linalg.inv(pose) if inverse else pose for pose in sequence.stored_poses[[a, b]])
        pose_a, pose_b = (pose @ OPENGL if opengl else pose for pose in (pose_a, pose_b))
        # depth x factor is the same as camera positions / factor, with lengths in other units
        b_in_a = np.linalg.inv(pose_a) @ pose_b
        b_in_a[:3, 3] /= factor
        moved = _move(b_in_a, points_b)
        seen = moved[_in_image(moved, k, size)]
        # where less than a third of a frame is seen by the other, the rest of the median would come from the border
        if len(seen) > max(50, len(points_b) / 3):
            yield name, float(np.median(tree.query(seen)[0])) / depth_a, depth_a * factor


def _camera_points(
    sequence: RGBDSequence, index: int, flip: bool, *, limit: int = 20_000
) -> tuple[NDArray[np.float64], NDArray[np.float64], tuple[int, int]]:
    depth = sequence.frame(index).depth
    k = sequence.resized_intrinsics(depth.shape)
    k[1, 1] *= -1 if flip else 1
    step = max(1, round((depth.size / limit) ** 0.5))
    grid = np.zeros(depth.shape, dtype=bool)
    grid[::step, ::step] = True
    v, u = np.nonzero((depth > 0) & grid)
    z = depth[v, u].astype(np.float64)
    points = np.stack([(u - k[0, 2]) / k[0, 0] * z, (v - k[1, 2]) / k[1, 1] * z, z], axis=1)
    return points, k, (depth.shape[0], depth.shape[1])


def _move(pose: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.float64]:
    return points @ pose[:3, :3].T + pose[:3, 3]


def _in_image(points: NDArray[np.float64], k: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.bool_]:
    front = points[:, 2] > 1e-3
    pixels = (points @ k.T)[:, :2] / np.where(front, points[:, 2], 1.0)[:, None]
    return front & (pixels >= 0).all(1) & (pixels < [size[1], size[0]]).all(1)


def _pose_problems(given: float, alternatives: dict[str, float], depth_scale: float) -> list[str]:
    """The reading that fits best, if it fits clearly better than the given one (NaN: no overlap under it)."""
    best, least = None, given if np.isfinite(given) else LOOSE / BETTER
    for name, score in alternatives.items():
        # larger depths shrink any error of the poses relative to the depth, so units must fit well to be believed
        limit = FINE if name.startswith("depth") else LOOSE
        if score < min(limit, BETTER * least):
            best, least = name, score / BETTER  # the next one needs to be better than this one, by however little
    if best is None or given < 0.003:  # the camera hardly moved: any reading fits
        return []
    return [
        f"Overlapping frames do not line up as the folder is read ({_percent(given)}), but do with {best} "
        f"({_percent(alternatives[best])}). {_remedy(best, depth_scale)}"
    ]


def _remedy(name: str, depth_scale: float) -> str:
    if name.startswith("depth"):
        factor = _CONVENTIONS[name][3]
        return f"Depth is in other units: pass depth_scale={depth_scale / factor:g} (raw units per metre)."
    if name == "negative fy":
        return "The camera's y axis points up: give a negative fy in the intrinsics."
    words = []
    if "inverse" in name:
        words.append(
            "poses look like world-to-camera: pass pose='world_to_camera' (or 'camera_to_world' if you passed that)"
        )
    if "OpenGL" in name:
        words.append(
            "camera axes look like OpenGL's (y up, z backward): pass axes='opengl' (or 'opencv' if you passed that)"
        )
    return "The " + " and the ".join(words) + "."


def _remarks(given: float) -> tuple[str, ...]:
    if not given > LOOSE:
        return ()
    return (
        f"Frames that should overlap lie {_percent(given)} apart; expected about 1 %. Unless another reading is named "
        "above, none that is common fits better: check that poses, depth and intrinsics belong to the same frames and "
        "camera.",
    )


def _percent(value: float) -> str:
    return f"{100 * value:.1f} % of the depth" if np.isfinite(value) else "no overlap"


def _depth_problems(sequence: RGBDSequence, median: float, valid: float) -> list[str]:
    problems = []
    if valid and not 0.15 <= median <= 30:
        problems.append(
            f"The median depth is {median:.3g} m with depth_scale={sequence.depth_scale:g}; expected 0.15 to 30 m. "
            f"Raw values of the first frame: {_range(sequence.read_raw_depth(0))}. Pass depth_scale = raw units per "
            "metre (1000 for millimetres)."
        )
    if valid < 0.05:
        problems.append(
            f"Only {100 * valid:.1f} % of the pixels have a valid depth: other than {sequence.invalid} and within "
            f"{sequence.options.max_depth} m. Raw values of the first frame: {_range(sequence.read_raw_depth(0))}. "
            "Check depth_scale (raw units per metre), invalid and max_depth."
        )
    raw = sequence.read_raw_depth(0)
    share = float((raw == 65535).mean())
    if share > 0.002 and 65535 not in sequence.invalid:
        problems.append(f"{100 * share:.1f} % of the raw depths are 65535, a code for 'none': add it to invalid.")
    return problems


def _intrinsics_problems(sequence: RGBDSequence) -> list[str]:
    k, (height, width) = sequence.intrinsics, sequence.stored_size
    centre = (k[0, 2] / width, k[1, 2] / height)
    focal = abs(k[0, 0]) / width
    if all(0.25 < c < 0.75 for c in centre) and 0.2 < focal < 5 and 0.5 < abs(k[0, 0] / k[1, 1]) < 2:
        return []
    return [
        f"The intrinsics (fx {k[0, 0]:g}, fy {k[1, 1]:g}, cx {k[0, 2]:g}, cy {k[1, 2]:g}) do not suit images of "
        f"{width}x{height} pixels: expected the principal point near the middle ({width / 2:g}, {height / 2:g}) and a "
        f"focal length of 0.2 to 5 image widths. They look like those of a {2 * k[0, 2]:.0f}x{2 * k[1, 2]:.0f} image: "
        "scale them to the stored depth images, or pass intrinsics=(fx, fy, cx, cy)."
    ]


def _range(raw: NDArray[np.integer]) -> str:
    low, middle, high = np.percentile(raw, [1, 50, 99])
    return f"{low:.0f} to {high:.0f}, median {middle:.0f}"
