"""Posed RGB-D frames from any folder, as scenes: several views at a frame interval, unprojected into one cloud."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from .rgbd_check import check_sequence
from .rgbd_sequence import FRAME, RGBDOptions, RGBDSequence
from .scene import Scene
from .unproject import unproject

logger = logging.getLogger(__name__)


class PosedRGBD:
    """Map-style data set of scenes from posed RGB-D frames.

    Every `holdout_every`-th frame of a sequence (the last one of a shorter sequence) is held out: it is neither input
    nor target in training.

    - `split="train"`: item i is a window of `views_per_item` training frames; they are the views to render, and their
      pixels the points.
    - `split="val"`: one item per held-out frame; the points come from the nearest training frames, and the only view
      is the held-out frame.

    The world is turned so that z is up (`RGBDOptions.up`). Items depend on the index alone.

    Args:
        root: a folder of frames, a folder of such folders, or several of either.
        split: which items.
        views_per_item: frames per item; fewer where a sequence is too short.
        frame_interval: distance between them, in frames of the folder; smaller where a sequence is too short.
        holdout_every: hold out one frame in this many; None: none (then "val" is empty).
        options: how to read the files.
        max_points: keep this many points of an item. None: all.
        condition: name of the data set, for models with norms per data set.
        check: measure pose convention, depth units and intrinsics of each sequence (about 0.5 s each) and fail with an
            explanation if they cannot be right.

    Example:
        train = PosedRGBD("rgbd/7scenes_redkitchen", split="train", views_per_item=5, frame_interval=4)
        scene = train[0]  # len(scene.views) == 5
    """

    def __init__(
        self,
        root: str | Path | Sequence[str | Path],
        split: Literal["train", "val"] = "train",
        *,
        views_per_item: int = 5,
        frame_interval: int = 4,
        holdout_every: int | None = 10,
        options: RGBDOptions | None = None,
        max_points: int | None = None,
        condition: str | None = None,
        check: bool = True,
    ) -> None:
        if split not in ("train", "val"):
            raise ValueError(f"Expected split 'train' or 'val'; got {split!r}.")
        if views_per_item < 1 or frame_interval < 1 or (holdout_every is not None and holdout_every < 2):
            raise ValueError(
                "Expected views_per_item >= 1, frame_interval >= 1 and holdout_every >= 2 (or None); got "
                f"{views_per_item}, {frame_interval} and {holdout_every}."
            )
        self.split = split
        self.views_per_item = views_per_item
        self.frame_interval = frame_interval
        self.holdout_every = holdout_every
        self.options = options or RGBDOptions()
        self.max_points = max_points
        self.condition = condition
        self.sequences = [RGBDSequence(path, self.options) for path in find_sequences(root)]
        if check:
            for sequence in self.sequences:
                report = check_sequence(sequence)
                report.raise_for_problems()
                logger.log(logging.WARNING if report.remarks else logging.INFO, "%s", report)
        windows = self._train_windows if split == "train" else self._val_windows
        # (sequence, frames of the points, frames to render)
        self.items = [(s, *window) for s, sequence in enumerate(self.sequences) for window in windows(sequence)]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Scene:
        number, inputs, targets = self.items[index]
        sequence = self.sequences[number]
        training, held_out = self.frames(sequence)
        inputs = _usable(sequence, inputs, training)
        views = sequence.views(inputs)
        name = f"{sequence.name}/frame-{sequence.frame_ids[inputs[0]]}"
        if self.split == "val":
            targets = _usable(sequence, targets, held_out)
            name = f"{sequence.name}/frame-{sequence.frame_ids[targets[0]]}"
        scene = unproject(views, name=name, max_points=self.max_points)
        if self.split == "val":
            scene = replace(scene, views=sequence.views(targets))
        return replace(scene, condition=self.condition)

    def frames(self, sequence: RGBDSequence) -> tuple[list[int], list[int]]:
        """Positions of the training frames and of the held-out frames of a sequence."""
        count, every = len(sequence), self.holdout_every
        if every is None or count < 2:
            return list(range(count)), []
        held_out = list(range(every - 1, count, every)) or [count - 1]
        return sorted(set(range(count)) - set(held_out)), held_out

    def _train_windows(self, sequence: RGBDSequence) -> list[tuple[list[int], list[int]]]:
        training, _ = self.frames(sequence)
        views = min(self.views_per_item, len(training))
        interval = min(self.frame_interval, (len(training) - 1) // max(views - 1, 1)) if views > 1 else 1
        span = (views - 1) * interval
        windows = [training[start : start + span + 1 : interval] for start in range(len(training) - span)]
        return [(window, window) for window in windows]

    def _val_windows(self, sequence: RGBDSequence) -> list[tuple[list[int], list[int]]]:
        training, held_out = self.frames(sequence)
        return [(self._around(frame, training), [frame]) for frame in held_out]

    def _around(self, frame: int, training: list[int]) -> list[int]:
        """Training frames about a held-out one, spaced as in training: at -1, +1, -2, +2, ... intervals."""
        chosen: list[int] = []
        left = list(training)
        for step in range(1, self.views_per_item + 1):
            if not left:
                break
            wanted = frame + self.frame_interval * ((step + 1) // 2) * (-1 if step % 2 else 1)
            nearest = min(left, key=lambda position: (abs(position - wanted), position))
            left.remove(nearest)
            chosen.append(nearest)
        return sorted(chosen)


def find_sequences(root: str | Path | Sequence[str | Path]) -> list[Path]:
    """Folders of frames at or directly below each root, sorted by name."""
    roots = [root] if isinstance(root, str | Path) else list(root)
    found: list[Path] = []
    for path in map(Path, roots):
        if not path.is_dir():
            raise ValueError(f"{path}: expected a folder of posed RGB-D frames; there is none. Check data.root.")
        below = [path] if _has_frames(path) else sorted(child for child in path.iterdir() if _has_frames(child))
        if not below:
            raise ValueError(
                f"{path}: expected frame-*.color.jpg|png files here or in folders directly below; found none. "
                "See ponder_zoo/data/rgbd_sequence.py for the layout."
            )
        found += below
    if not found:
        raise ValueError("Expected at least one folder of posed RGB-D frames; got an empty list.")
    return found


def _has_frames(path: Path) -> bool:
    return path.is_dir() and any(FRAME.match(child.name) for child in path.iterdir())


def _usable(sequence: RGBDSequence, wanted: list[int], pool: list[int]) -> list[int]:
    """The wanted frames that have depth; if none has, the nearest one of the pool that does."""
    usable = [index for index in wanted if sequence.is_usable(index)]
    if usable:
        return usable
    for index in sorted(pool, key=lambda position: abs(position - wanted[0])):
        if sequence.is_usable(index):
            return [index]
    raise ValueError(
        f"{sequence.path}: none of the {len(pool)} frames of this split has a valid depth in at least "
        f"{100 * sequence.options.min_valid:g} % of its pixels. Check depth_scale, invalid and max_depth."
    )
