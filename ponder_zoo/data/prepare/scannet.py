"""ScanNet v2 and ScanNet200 from the raw download."""

from __future__ import annotations

import csv
import io
import json
import logging
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ponder_zoo.ops.marching_cubes import vertex_normals

from ..files import read_label
from ..ply import read_ply
from ..scene import Array, Scene
from .record import Frame, PreparedScene, Skip
from .sens import SensFile

logger = logging.getLogger(__name__)

TABLES = Path(__file__).parent / "tables"
NYU40_IDS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16, 24, 28, 33, 34, 36, 39)  # of ScanNet-20, in label order
LABEL_FILE = "scannetv2-labels.combined.tsv"
SCENE = re.compile(r"scene\d{4}_\d{2}")


@dataclass(frozen=True)
class ScanNet:
    """ScanNet v2 as downloaded, with the labels of ScanNet-20 and of ScanNet200.

    The raw folder holds `scannetv2-labels.combined.tsv` and, in `scans/` and `scans_test/` or right in it, per scene:

        SCENE_vh_clean_2.ply                   mesh: its vertices are the points
        SCENE_vh_clean_2.0.010000.segs.json    segment of each vertex             (not of the test scenes)
        SCENE.aggregation.json                 objects, made of segments          (not of the test scenes)
        SCENE.sens                             colour, depth and pose of each frame
        SCENE_2d-label-filt.zip                label image of each frame          (not of the test scenes)

    Of n recorded frames, every `frame_step`-th from `frame_start` to n - `frame_end` is taken. `skip_list` is a file
    of frames to leave out, "SCENE NUMBER" in each line. `splits` is a folder with scannetv2_train.txt,
    scannetv2_val.txt and scannetv2_test.txt; without it, those in the raw folder count, or else the official lists.
    """

    raw: Path
    frame_start: int = 40
    frame_end: int = 60
    frame_step: int = 10
    skip_list: str | None = None
    splits: str | None = None
    images: bool = True
    image_labels: bool = True

    name = "scannet"

    @cached_property
    def classes(self) -> Mapping[str, Sequence[str]]:
        return {"segment": _table("classes.json")["ScanNet"], "ScanNet200": _table("scannet200.json")["names"]}

    def scenes(self) -> list[str]:
        """Scenes that are there. The label table must be there too."""
        if self.frame_step < 1 or min(self.frame_start, self.frame_end) < 0:
            raise ValueError(
                "Expected frame_step >= 1, frame_start >= 0 and frame_end >= 0; got "
                f"{self.frame_step}, {self.frame_start} and {self.frame_end}."
            )
        LabelTable.read(_label_file(Path(self.raw)))
        found = sorted(_folders(Path(self.raw)))
        lacking = sorted(set(self._split_of) - set(found))
        if found and lacking:
            logger.warning(
                "%d of %d scenes of the split lists are not in %s.", len(lacking), len(self._split_of), self.raw
            )
        return found

    def read(self, scene: str, skip: Skip) -> PreparedScene:
        folder = _folders(Path(self.raw))[scene]
        if scene not in self._split_of:
            raise ValueError("it is in none of the split lists. Pass --splits with a folder of your own lists")
        split = self._split_of[scene]
        points = _read_mesh(folder / f"{scene}_vh_clean_2.ply", scene)
        labels: dict[str, Array] = {}
        if split != "test":
            points, labels = self._label(folder, points, skip)
        return PreparedScene(points, split, tuple(self._frames(folder, scene, split, skip)), labels)

    @cached_property
    def _split_of(self) -> Mapping[str, str]:
        return _read_splits(self.splits, str(self.raw))

    def _label(self, folder: Path, points: Scene, skip: Skip) -> tuple[Scene, dict[str, Array]]:
        try:
            groups = read_groups(folder, points.name, len(points))
        except (ValueError, OSError, KeyError, TypeError) as error:
            skip("labels", f"{error}")
            return points, {}
        table = LabelTable.read(_label_file(Path(self.raw)))
        unknown = sorted({label for label in groups.labels if label not in table.raw_id})
        if unknown:
            skip("labels", f"categories {unknown} are not in {LABEL_FILE}; their points stay unlabelled")
        nyu40 = np.array([table.nyu40_of_category.get(label, 0) for label in groups.labels], dtype=np.int64)
        raw_id = np.array([table.raw_id.get(label, 0) for label in groups.labels], dtype=np.int64)
        segment, segment200 = scannet20_index(nyu40), scannet200_index(raw_id)
        known = groups.row >= 0
        points = replace(
            points,
            segment=np.where(known, segment[groups.row], -1) if len(segment) else np.full(len(points), -1),
            instance=np.where(known, groups.ids[groups.row], -1) if len(segment) else np.full(len(points), -1),
        )
        full = np.where(known, segment200[groups.row], -1) if len(segment) else np.full(len(points), -1)
        return points, {"ScanNet200": full}

    def _frames(self, folder: Path, scene: str, split: str, skip: Skip) -> list[Frame]:
        if not self.images:
            return []
        path = folder / f"{scene}.sens"
        if not path.is_file():
            skip(path.name, "there is no such file, so no images (--no-images if none are wanted)")
            return []
        try:
            file = SensFile(path)
        except ValueError as error:
            skip(path.name, str(error))
            return []
        count = file.header.num_frames
        if len(file.starts) < count:
            skip(path.name, f"truncated: {len(file.starts)} of {count} frames are there in whole")
        left_out = _read_skip_list(self.skip_list).get(scene, frozenset())
        chosen = [
            number for number in range(self.frame_start, count - self.frame_end, self.frame_step)
            if number < len(file.starts) and number not in left_out
        ]  # fmt: skip
        labels = FrameLabels(folder / f"{scene}_2d-label-filt.zip", LabelTable.read(_label_file(Path(self.raw))))
        wanted = self.image_labels and split != "test" and bool(chosen)
        if wanted and (problem := labels.problem) is not None:
            skip(labels.path.name, problem)
            wanted = False
        return [frame for number in chosen if (frame := _frame(file, number, labels if wanted else None, skip))]


def _frame(file: SensFile, number: int, labels: FrameLabels | None, skip: Skip) -> Frame | None:
    try:
        read = file.frame(number)
    except ValueError as error:
        skip(f"frame {number}", str(error))
        return None
    segment = None
    if labels is not None:
        try:
            segment = labels.read(number, file.header.depth_size, file.header.color_size)
        except ValueError as error:
            skip(f"label image {number}", str(error))
    intrinsics = file.header.intrinsics_depth[:3, :3].astype(np.float64)
    return Frame(
        str(number), read.color, read.depth, 1.0 / file.header.depth_shift, intrinsics, read.cam_to_world, segment
    )


@dataclass(frozen=True, eq=False)
class Groups:
    """Annotated objects of a scene."""

    row: Array  # (N,) int64 object of each vertex as a row of the following, -1 = none
    ids: Array  # (G,) int64 ids of the objects
    labels: tuple[str, ...]  # (G,) raw categories


def read_groups(folder: Path, scene: str, num_points: int) -> Groups:
    """The object that each vertex belongs to. Where objects overlap the later one counts, as in the official code."""
    segments = np.asarray(_json(folder / f"{scene}_vh_clean_2.0.010000.segs.json")["segIndices"], dtype=np.int64)
    if segments.shape != (num_points,):
        raise ValueError(f"{scene}: {len(segments)} segment numbers for {num_points} vertices")
    groups = _json(folder / f"{scene}.aggregation.json")["segGroups"]
    names, which = np.unique(segments, return_inverse=True)
    owner = np.full(len(names), -1, dtype=np.int64)
    for row, group in enumerate(groups):
        owner[np.isin(names, group["segments"])] = row
    ids = np.array([group["id"] for group in groups], dtype=np.int64)
    return Groups(owner[which.reshape(-1)], ids, tuple(group["label"] for group in groups))


def _read_mesh(file: Path, scene: str) -> Scene:
    if not file.is_file():
        raise ValueError(f"{file}: there is no such file. Download it")
    ply = read_ply(file)
    missing = {"x", "y", "z", "red", "green", "blue"} - set(ply.vertex)
    if missing or ply.faces is None:
        raise ValueError(f"{file}: expected a mesh with colours; it lacks {sorted(missing) or 'faces'}")
    coord = np.stack([ply.vertex[axis] for axis in "xyz"], axis=1).astype(np.float32)
    color = np.stack([ply.vertex[channel] for channel in ("red", "green", "blue")], axis=1).astype(np.float32)
    return Scene(scene, coord, color=color, normal=vertex_normals(coord, ply.faces))


# Labels


@dataclass(frozen=True, eq=False)
class LabelTable:
    """Which ids a raw category has."""

    raw_id: Mapping[str, int]  # raw category -> id
    nyu40_of_category: Mapping[str, int]
    nyu40: Array  # (largest id + 1,) int64: raw id -> nyu40 id, 0 = none

    @staticmethod
    @lru_cache(maxsize=4)
    def read(file: Path) -> LabelTable:
        try:
            with file.open(newline="", encoding="utf-8") as stream:
                rows = list(csv.DictReader(stream, delimiter="\t"))
            ids = {row["raw_category"]: int(row["id"]) for row in rows}
            of_category = {row["raw_category"]: int(row["nyu40id"] or 0) for row in rows}
        except (OSError, KeyError, ValueError) as error:
            raise ValueError(
                f"{file}: expected ScanNet's label table with columns id, raw_category and nyu40id; {error!r}. "
                "Download it with the option --label_map of ScanNet's script."
            ) from error
        nyu40 = np.zeros(max(ids.values(), default=0) + 1, dtype=np.int64)
        for category, number in ids.items():
            nyu40[number] = of_category[category]
        return LabelTable(ids, of_category, nyu40)


def scannet20_index(nyu40: Array) -> Array:
    """nyu40 id -> class of ScanNet-20, -1 for the others."""
    return _index(nyu40, NYU40_IDS)


def scannet200_index(raw_id: Array) -> Array:
    """Raw id -> class of ScanNet200, -1 for the others."""
    return _index(raw_id, _table("scannet200.json")["ids"])


def _index(values: Array, ids: Sequence[int]) -> Array:
    table = np.full(max(int(values.max(initial=0)), *ids) + 1, -1, dtype=np.int64)
    table[list(ids)] = np.arange(len(ids))
    return table[values]


class FrameLabels:
    """Label images of a scene: raw ids in the zip file, classes of ScanNet-20 here."""

    def __init__(self, path: Path, table: LabelTable) -> None:
        self.path, self.table = path, table

    @cached_property
    def problem(self) -> str | None:
        """Why there are no labels at all, if so."""
        if not self.path.is_file():
            return "there is no such file, so no label images (--no-image-labels if none are wanted)"
        return None if zipfile.is_zipfile(self.path) else "expected a zip file; it is damaged or truncated"

    def read(self, number: int, depth_size: tuple[int, int], color_size: tuple[int, int]) -> bytes:
        """PNG of class + 1 at the size of the depth image, 0 = unlabelled."""
        from PIL import Image

        name = f"label-filt/{number}.png"
        try:
            with zipfile.ZipFile(self.path) as archive:
                content = archive.read(name)
        except (KeyError, OSError, zipfile.BadZipFile, zipfile.zlib.error) as error:  # type: ignore[attr-defined]
            raise ValueError(f"{self.path.name}: no readable {name}; {error}") from error
        raw = read_label(content, name).astype(np.int64)
        if raw.shape not in (color_size, depth_size):
            raise ValueError(
                f"{name} of {raw.shape[1]}x{raw.shape[0]} pixels, colour has {color_size[1]}x{color_size[0]}"
            )
        grid = [((np.arange(n) + 0.5) * full / n).astype(int) for n, full in zip(depth_size, raw.shape, strict=True)]
        raw = raw[np.ix_(*grid)]
        nyu40 = np.where(raw < len(self.table.nyu40), self.table.nyu40[np.minimum(raw, len(self.table.nyu40) - 1)], 0)
        file = io.BytesIO()
        Image.fromarray((scannet20_index(nyu40) + 1).astype(np.uint8)).save(file, "PNG")
        return file.getvalue()


# Files


@lru_cache(maxsize=8)
def _folders(raw: Path) -> dict[str, Path]:
    places = [raw / "scans", raw / "scans_test", raw]
    return {
        folder.name: folder
        for place in places
        if place.is_dir()
        for folder in place.iterdir()
        if folder.is_dir() and SCENE.fullmatch(folder.name)
    }


def _label_file(raw: Path) -> Path:
    return raw / LABEL_FILE


@lru_cache(maxsize=4)
def _table(name: str) -> Any:
    return json.loads((TABLES / name).read_text())


@lru_cache(maxsize=4)
def _read_splits(folder: str | None, raw: str) -> dict[str, str]:
    """Scene -> split."""
    names = {split: f"scannetv2_{split}.txt" for split in ("train", "val", "test")}
    place = Path(folder or raw)
    found = {split: place / name for split, name in names.items() if (place / name).is_file()}
    if found and "train" in found:
        return {scene: split for split, file in found.items() for scene in file.read_text().split()}
    if folder is not None:
        raise ValueError(
            f"{folder}: expected {', '.join(names.values())}; there is no {names['train']}. Check --splits."
        )
    official = _table("scannet_splits.json")
    return {scene: split for split in names for scene in official[split]}


@lru_cache(maxsize=4)
def _read_skip_list(file: str | None) -> dict[str, frozenset[int]]:
    if file is None:
        return {}
    frames: dict[str, set[int]] = {}
    for line in Path(file).read_text().splitlines():
        words = re.split(r"[\s,/]+", line.strip())
        if words == [""]:
            continue
        try:
            scene, number = words
            frames.setdefault(scene, set()).add(int(number.split(".")[0]))
        except ValueError as error:
            raise ValueError(f"{file}: expected a scene and a frame number in each line, got {line!r}.") from error
    return {scene: frozenset(numbers) for scene, numbers in frames.items()}


def _json(file: Path) -> Any:
    if not file.is_file():
        raise ValueError(f"{file.name}: there is no such file")
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file.name}: expected JSON; {error}") from error
