"""ScanNet v2 and ScanNet200 from the raw download."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from ponder_zoo.ops.marching_cubes import vertex_normals

from ..ply import read_ply
from ..scene import Array, Scene
from .folders import find_folders
from .record import Frame, PreparedScene, Skip
from .scannet_labels import LabelImages, LabelTable, read_objects, scannet200
from .sens import SensFile
from .table_files import read_table

logger = logging.getLogger(__name__)

LABEL_FILE = "scannetv2-labels.combined.tsv"
SPLIT_FILES = {split: f"scannetv2_{split}.txt" for split in ("train", "val", "test")}
_SCENE = re.compile(r"scene\d{4}_\d{2}")


@dataclass(frozen=True)
class ScanNet:
    """ScanNet v2 as downloaded, with the labels of ScanNet-20 and of ScanNet200.

    The raw folder holds `scannetv2-labels.combined.tsv` and, up to two folders deep, a folder per scene with

        SCENE_vh_clean_2.ply                   mesh: its vertices are the points
        SCENE_vh_clean_2.0.010000.segs.json    segment of each vertex             (not of the test scenes)
        SCENE.aggregation.json                 objects, made of segments          (not of the test scenes)
        SCENE.sens                             colour, depth and pose of each frame
        SCENE_2d-label-filt.zip                label image of each frame          (not of the test scenes)

    Args:
        raw: the folder.
        frame_start: first frame to take.
        frame_end: how many of the last frames to leave out.
        frame_step: take every so many-th frame.
        skip_list: file of frames to leave out, "SCENE NUMBER" in each line.
        splits: folder with scannetv2_train.txt, scannetv2_val.txt and scannetv2_test.txt; without it, those in the raw
            folder count, or else the official lists.
        images: read the recordings.
        image_labels: read the label images.
    """

    raw: str | Path
    frame_start: int = 40
    frame_end: int = 60
    frame_step: int = 10
    skip_list: str | None = None
    splits: str | None = None
    images: bool = True
    image_labels: bool = True

    name = "scannet"

    @property
    def classes(self) -> Mapping[str, Sequence[str]]:
        return {"segment": read_table("classes")["ScanNet"], "ScanNet200": read_table("scannet200")["names"]}

    def scenes(self) -> list[str]:
        """Scenes that are there. Fails here, before any work, where no scene could be read."""
        if self.frame_step < 1 or min(self.frame_start, self.frame_end) < 0:
            raise ValueError(
                "Expected frame_step >= 1, frame_start >= 0 and frame_end >= 0; got "
                f"{self.frame_step}, {self.frame_start} and {self.frame_end}."
            )
        assert self._table.ids and self._skipped is not None
        found, listed = set(self._folders), set(self._split_of)
        if listed - found:
            logger.warning(
                "%d of %d scenes of the split lists are not in %s.", len(listed - found), len(listed), self.raw
            )
        return sorted(found)

    def split(self, scene: str) -> str:
        """train, val or test."""
        if scene not in self._split_of:
            raise ValueError("it is in none of the split lists. Pass --splits with a folder of your own lists")
        return self._split_of[scene]

    def read(self, scene: str, skip: Skip) -> PreparedScene:
        """One scene with its images."""
        folder, split = self._folders[scene], self.split(scene)
        points = _read_mesh(folder / f"{scene}_vh_clean_2.ply", scene)
        further: dict[str, Array] = {}
        if split != "test":
            points, further = self._label(points, folder, skip)
        return PreparedScene(points, split, tuple(self._frames(folder, split, skip)), further)

    def _label(self, points: Scene, folder: Path, skip: Skip) -> tuple[Scene, dict[str, Array]]:
        """The scene with its labels, and those of ScanNet200."""
        try:
            objects = read_objects(folder, points.name, len(points))
        except ValueError as error:
            skip("labels", str(error))
            return points, {}
        unknown = sorted(set(objects.categories) - set(self._table.ids))
        if unknown:
            skip("labels", f"categories {unknown} are not in {LABEL_FILE}: these objects stay unlabelled")
        raw_id = self._table.ids_of(objects.categories)
        segment, instance = objects.spread(self._table.scannet20(raw_id)), objects.spread(objects.ids)
        return replace(points, segment=segment, instance=instance), {"ScanNet200": objects.spread(scannet200(raw_id))}

    def _frames(self, folder: Path, split: str, skip: Skip) -> list[Frame]:
        if not self.images:
            return []
        path = folder / f"{folder.name}.sens"
        if not path.is_file():
            skip(path.name, "there is no such file, so no images (--no-images if none are wanted)")
            return []
        try:
            recording = SensFile(path)
        except ValueError as error:
            skip(path.name, str(error))
            return []
        whole, count = len(recording.starts), recording.header.num_frames
        if whole < count:
            skip(path.name, f"truncated: {whole} of {count} frames are there in whole")
        left_out = self._skipped.get(folder.name, set())
        chosen = set(range(self.frame_start, count - self.frame_end, self.frame_step)) & set(range(whole)) - left_out
        labels = None
        if self.image_labels and split != "test" and chosen:
            labels = LabelImages(folder / f"{folder.name}_2d-label-filt.zip", self._table)
            if labels.problem is not None:
                skip(labels.path.name, labels.problem)
                labels = None
        return [frame for number in sorted(chosen) if (frame := _read_frame(recording, number, labels, skip))]

    @cached_property
    def _folders(self) -> Mapping[str, Path]:
        return {folder.name: folder for folder in find_folders(Path(self.raw), _SCENE)}

    @cached_property
    def _table(self) -> LabelTable:
        return LabelTable.from_file(Path(self.raw) / LABEL_FILE)

    @cached_property
    def _split_of(self) -> Mapping[str, str]:
        """Scene -> split."""
        place = Path(self.splits or self.raw)
        files = {split: place / name for split, name in SPLIT_FILES.items() if (place / name).is_file()}
        if files:
            return {scene: split for split, file in files.items() for scene in file.read_text().split()}
        if self.splits is not None:
            raise ValueError(f"{place}: expected {', '.join(SPLIT_FILES.values())}; there are none. Check --splits.")
        official = read_table("scannet_splits")
        return {scene: split for split in SPLIT_FILES for scene in official[split]}

    @cached_property
    def _skipped(self) -> Mapping[str, set[int]]:
        """Scene -> frames to leave out."""
        frames: dict[str, set[int]] = {}
        if self.skip_list is None:
            return frames
        for line in filter(None, map(str.strip, Path(self.skip_list).read_text().splitlines())):
            words = line.split()
            if len(words) != 2 or not words[1].isdecimal():
                raise ValueError(
                    f"{self.skip_list}: expected a scene and a number of a frame in each line, got {line!r}."
                )
            frames.setdefault(words[0], set()).add(int(words[1]))
        return frames


def _read_mesh(file: Path, scene: str) -> Scene:
    if not file.is_file():
        raise ValueError(f"{file}: there is no such file. Download it")
    ply = read_ply(file)
    missing = sorted({"x", "y", "z", "red", "green", "blue"} - set(ply.vertex))
    if missing or ply.faces is None:
        raise ValueError(f"{file}: expected a mesh with colours; it has no {missing or 'faces'}")
    coord = np.stack([ply.vertex[axis] for axis in "xyz"], axis=1).astype(np.float32)
    color = np.stack([ply.vertex[channel] for channel in ("red", "green", "blue")], axis=1).astype(np.float32)
    return Scene(scene, coord, color=color, normal=vertex_normals(coord, ply.faces))


def _read_frame(recording: SensFile, number: int, labels: LabelImages | None, skip: Skip) -> Frame | None:
    header = recording.header
    try:
        frame = recording.frame(number)
    except ValueError as error:
        skip(f"frame {number}", str(error))
        return None
    segment = None
    if labels is not None:
        try:
            segment = labels.read(number, header.depth_size, header.color_size)
        except ValueError as error:
            skip(f"label image {number}", str(error))
    return Frame(
        name=str(number),
        color=frame.color,
        depth=frame.depth,
        depth_scale=1.0 / header.depth_shift,
        intrinsics=header.intrinsics_depth[:3, :3].astype(np.float64),
        cam_to_world=frame.cam_to_world,
        segment=segment,
    )
