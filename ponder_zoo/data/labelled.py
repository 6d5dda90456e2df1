"""Labelled scans: one `sceneXXXX_YY.npz` per scan and a `classes.json`.

Each npz holds `xyz` (N, 3) metres with z up, `rgb` (N, 3) uint8, `semantic_nyu40` (N,) with 0 = unlabelled, and
optionally `instance` (N,) with 0 = none. `classes.json` holds the benchmark's ids and names.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .normals import estimate_normals, room_viewpoint
from .scene import Scene


class LabelledScans:
    """Map-style data set of labelled clouds; `segment` is 0 to 19 (ScanNet-20) or -1.

    The split is by room, so that scans of the same room (`_00`, `_01`, ...) are never on both sides.

    Args:
        root: the folder.
        split: "train" and "val" share the rooms, "all" takes every scan.
        val_every: every n-th room (sorted by name) is for validation.
        val_fold: where they begin, 0 to n - 1, to leave each room out in turn; None: with the n-th.
        names: scans to use instead of a split, for example ("scene0001_00",).
        normals: estimate normals (about 0.5 s per 50 000 points, once per scan and process).
        condition: name of the data set, for models with norms per data set.

    Example:
        train, val = LabelledScans(root, "train"), LabelledScans(root, "val")
        train.classes[0], len(train[0])  # "wall", 50000
    """

    def __init__(
        self,
        root: str | Path,
        split: Literal["train", "val", "all"] = "train",
        *,
        val_every: int = 3,
        val_fold: int | None = None,
        names: Sequence[str] | None = None,
        normals: bool = True,
        condition: str | None = None,
    ) -> None:
        self.root = Path(root)
        self.split = split
        self.normals = normals
        self.condition = condition
        self.nyu40_ids, self.classes = _read_classes(self.root)
        found = sorted(file.stem for file in self.root.glob("*.npz"))
        if not found:
            raise ValueError(f"{self.root}: expected one .npz file per scan; found none. Check data.root.")
        self.names = list(names) if names is not None else split_by_room(found, split, val_every, val_fold)
        unknown = sorted(set(self.names) - set(found))
        if unknown:
            raise ValueError(f"{self.root}: there is no scan {unknown}; the folder has {found}.")
        self._scenes: dict[int, Scene] = {}

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Scene:
        index = range(len(self))[index]  # negative and out-of-range indices behave as in a list
        if index not in self._scenes:
            self._scenes[index] = self._read(self.names[index])
        return self._scenes[index]

    def _read(self, name: str) -> Scene:
        file = self.root / f"{name}.npz"
        try:
            with open(file, "rb") as stream, np.load(stream, allow_pickle=False) as arrays:
                columns = {key: arrays[key] for key in arrays.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"{file}: expected a readable .npz file; {error}. Copy the file again.") from error
        missing = [key for key in ("xyz", "rgb", "semantic_nyu40") if key not in columns]
        if missing:
            raise ValueError(
                f"{file}: expected arrays xyz, rgb and semantic_nyu40; {missing} missing, got {list(columns)}."
            )
        instance = columns.get("instance")
        scene = Scene(
            name=name,
            coord=columns["xyz"].astype(np.float32),
            color=columns["rgb"].astype(np.float32),
            segment=self._index_of_class(columns["semantic_nyu40"]),
            instance=None if instance is None else np.where(instance == 0, -1, instance).astype(np.int64),
            condition=self.condition,
        )
        if not self.normals:
            return scene
        return replace(scene, normal=estimate_normals(scene.coord, viewpoint=room_viewpoint(scene.coord)))

    def _index_of_class(self, nyu40: NDArray[Any]) -> NDArray[np.int64]:
        table = np.full(max(41, int(nyu40.max(initial=0)) + 1), -1, dtype=np.int64)
        table[self.nyu40_ids] = np.arange(len(self.nyu40_ids))
        return table[nyu40]


def split_by_room(names: Sequence[str], split: str, val_every: int, val_fold: int | None = None) -> list[str]:
    """Names of one side of the split; the room is what precedes the last underscore."""
    fold = val_every - 1 if val_fold is None else val_fold
    if split not in ("train", "val", "all") or val_every < 2 or not 0 <= fold < val_every:
        raise ValueError(
            f"Expected split 'train', 'val' or 'all', val_every >= 2 and val_fold below it; got {split!r}, {val_every} "
            f"and {val_fold}."
        )
    rooms = sorted({name.rpartition("_")[0] for name in names})
    val = set(rooms[fold::val_every]) or set(rooms[-1:])
    sides = {"all": set(rooms), "val": val, "train": set(rooms) - val}
    return [name for name in names if name.rpartition("_")[0] in sides[split]]


def _read_classes(root: Path) -> tuple[list[int], tuple[str, ...]]:
    file = root / "classes.json"
    try:
        content = json.loads(file.read_text())
        return list(content["scannet20_nyu40_ids"]), tuple(content["scannet20_names"])
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"{file}: expected JSON with scannet20_nyu40_ids and scannet20_names; {type(error).__name__}: {error}. "
            "Check data.root."
        ) from error
