"""ScanNet's annotations: objects on the mesh, label images, and the classes that its raw categories belong to."""

from __future__ import annotations

import csv
import io
import json
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..files import read_label
from ..scene import Array
from .table_files import read_table

NYU40_IDS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16, 24, 28, 33, 34, 36, 39)  # of ScanNet-20, in label order


@dataclass(frozen=True, eq=False)
class LabelTable:
    """Classes of raw categories, which label images know by their ids and meshes by their names."""

    ids: Mapping[str, int]  # raw category -> raw id
    nyu40: Array  # (largest raw id + 1,) int64: raw id -> nyu40 id; 0 = none

    @classmethod
    def from_file(cls, file: Path) -> LabelTable:
        """Read scannetv2-labels.combined.tsv."""
        try:
            with file.open(newline="", encoding="utf-8") as stream:
                rows = list(csv.DictReader(stream, delimiter="\t"))
            ids = {row["raw_category"]: int(row["id"]) for row in rows}
            nyu40 = np.zeros(max(ids.values()) + 1, dtype=np.int64)
            for row in rows:
                nyu40[int(row["id"])] = int(row["nyu40id"] or 0)
        except (OSError, KeyError, ValueError) as error:
            raise ValueError(
                f"{file}: expected ScanNet's label table with columns id, raw_category and nyu40id; {error!r}. "
                "Download it with the option --label_map of ScanNet's script."
            ) from error
        return cls(ids, nyu40)

    def ids_of(self, categories: Iterable[str]) -> Array:
        """Raw ids of raw categories; 0 where there is none."""
        return np.array([self.ids.get(category, 0) for category in categories], dtype=np.int64)

    def scannet20(self, raw_id: Array) -> Array:
        """Raw ids -> classes of ScanNet-20, -1 for what is none."""
        nyu40 = self.nyu40[np.where(raw_id < len(self.nyu40), raw_id, 0)]
        return _position(nyu40, NYU40_IDS)


def scannet200(raw_id: Array) -> Array:
    """Raw ids -> classes of ScanNet200, -1 for what is none."""
    return _position(raw_id, read_table("scannet200")["ids"])


def _position(values: Array, ids: Sequence[int]) -> Array:
    table = np.full(max(int(values.max(initial=0)), *ids) + 1, -1, dtype=np.int64)
    table[list(ids)] = np.arange(len(ids))
    return table[values]


@dataclass(frozen=True, eq=False)
class Objects:
    """Annotated objects of a scene."""

    row: Array  # (N,) int64 object of each vertex, as a row of the following; -1 = none
    ids: Array  # (G,) int64
    categories: tuple[str, ...]  # (G,) raw categories

    def spread(self, values: Array) -> Array:
        """Values of the objects (G,) at their vertices (N,); -1 at the others."""
        return np.append(values, -1)[self.row]


def read_objects(folder: Path, scene: str, num_points: int) -> Objects:
    """Objects on the mesh. Where two overlap the later one counts, as in the official code.

    Raises:
        ValueError: if a file is missing, damaged, or of another mesh.
    """
    try:
        segments = np.asarray(
            _read_json(folder / f"{scene}_vh_clean_2.0.010000.segs.json")["segIndices"], dtype=np.int64
        )
        groups = _read_json(folder / f"{scene}.aggregation.json")["segGroups"]
        ids = np.array([group["id"] for group in groups], dtype=np.int64)
        categories = tuple(str(group["label"]) for group in groups)
        if segments.shape != (num_points,):
            raise ValueError(f"{len(segments)} segment numbers for {num_points} vertices")
        names, which = np.unique(segments, return_inverse=True)
        owner = np.full(len(names), -1, dtype=np.int64)
        for row, group in enumerate(groups):
            owner[np.isin(names, group["segments"])] = row
    except (KeyError, TypeError) as error:
        raise ValueError(f"expected segIndices and segGroups with id, label and segments; {error!r}") from error
    return Objects(owner[which.reshape(-1)], ids, categories)


def _read_json(file: Path) -> Any:
    if not file.is_file():
        raise ValueError(f"{file.name}: there is no such file")
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file.name}: expected JSON; {error}") from error


class LabelImages:
    """Label images of a scene, in their zip file: raw ids, at the size of the colour images."""

    def __init__(self, path: Path, table: LabelTable) -> None:
        self.path, self.table = path, table

    @cached_property
    def problem(self) -> str | None:
        """Why there are no label images at all, if so."""
        if not self.path.is_file():
            return "there is no such file, so no label images (--no-image-labels if none are wanted)"
        return None if zipfile.is_zipfile(self.path) else "expected a zip file; it is damaged or truncated"

    def read(self, number: int, size: tuple[int, int], color_size: tuple[int, int]) -> bytes:
        """PNG of the class + 1 at each pixel of the depth image, 0 = unlabelled.

        Args:
            number: of the frame.
            size: (H, W) of the depth image.
            color_size: (H, W) that the label image has.

        Raises:
            ValueError: if it is missing, damaged or of another size.
        """
        name = f"label-filt/{number}.png"
        try:
            with zipfile.ZipFile(self.path) as archive:
                content = archive.read(name)
        except (KeyError, OSError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"{self.path.name}: no readable {name}; {error}") from error
        raw = read_label(content, name).astype(np.int64)
        if raw.shape != color_size:
            raise ValueError(
                f"{name} of {raw.shape[1]}x{raw.shape[0]} pixels, colour has {color_size[1]}x{color_size[0]}"
            )
        grid = [((np.arange(n) + 0.5) * full / n).astype(int) for n, full in zip(size, raw.shape, strict=True)]
        return _png((self.table.scannet20(raw[np.ix_(*grid)]) + 1).astype(np.uint8))


def _png(image: Array) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()
