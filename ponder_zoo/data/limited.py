"""Fewer scenes or fewer labels than there are: limited reconstructions and limited annotations, as in the paper."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from .scene import Scene

Annotations = Mapping[str, NDArray[np.int64]]


class LimitedScenes:
    """A source of labelled scenes of which some scenes, or some labels, are missing.

    Args:
        source: map-style data set with `classes`; where its scenes have names in `names`, they need not be read.
        names: scenes to keep, in this order; None: all.
        annotations: points of each scene that keep their label, by name of the scene; or how many, drawn from the
            labelled ones by the seed and the scene's name; None: all.
        seed: for drawing.

    Labels of the other points become -1, in `segment` and `instance`.
    """

    def __init__(
        self,
        source: Any,
        *,
        names: Sequence[str] | None = None,
        annotations: Annotations | int | None = None,
        seed: int = 0,
    ) -> None:
        self.source, self.annotations, self.seed = source, annotations, seed
        self.classes, self.condition, self.name = source.classes, source.condition, source.name
        self.rows = list(range(len(source))) if names is None else _rows_of(source, names)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Scene:
        scene = self.source[self.rows[index]]
        return scene if self.annotations is None else self._annotated(scene, self.annotations)

    def _annotated(self, scene: Scene, annotations: Annotations | int) -> Scene:
        if scene.segment is None:
            raise ValueError(f"Scene {scene.name!r} has no labels to limit. Use a labelled data set.")
        rows = self._draw(scene, annotations) if isinstance(annotations, int) else _points_of(scene, annotations)
        kept = np.zeros(len(scene), bool)
        kept[rows] = True
        instance = None if scene.instance is None else np.where(kept, scene.instance, -1)
        return replace(scene, segment=np.where(kept, scene.segment, -1), instance=instance)

    def _draw(self, scene: Scene, count: int) -> NDArray[np.int64]:
        assert scene.segment is not None
        labelled = np.flatnonzero(scene.segment >= 0)
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, crc32(scene.name.encode())]))
        return rng.choice(labelled, min(count, len(labelled)), replace=False)


def read_scene_list(file: str | Path) -> list[str]:
    """Names of scenes from a text file, one per line; empty lines and `#` comments do not count."""
    lines = [line.partition("#")[0].strip() for line in Path(file).read_text().splitlines()]
    names = [line for line in lines if line]
    if not names:
        raise ValueError(f"{file}: expected one name of a scene per line; found none. Check the file.")
    return names


def read_annotations(file: str | Path) -> dict[str, NDArray[np.int64]]:
    """Rows of the labelled points by name of the scene.

    Args:
        file: `.json`, `.npz` (one array per scene), or `.pth` with tensors or lists, which is how the benchmark for
            ScanNet gives them; only data is read from it, no code.
    """
    path = Path(file)
    try:
        content = _read(path)
        points = {str(name): np.asarray(rows, dtype=np.int64) for name, rows in content.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{file}: expected a mapping from names of scenes to lists of point numbers; {type(error).__name__}: "
            f"{error}. Give a .json, .npz or .pth file."
        ) from error
    if any(rows.ndim != 1 for rows in points.values()):
        raise ValueError(f"{file}: expected one list of point numbers per scene, got nested ones. Check the file.")
    return points


def _read(path: Path) -> Mapping[str, Any]:
    if path.suffix == ".json":
        return json.loads(path.read_text())
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    import torch

    try:
        with torch.serialization.safe_globals([*_NUMPY_TYPES]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever its readers do
        raise ValueError(f"torch cannot read it: {error}"[:300]) from error


_REBUILD: Any = np.array(0).__reduce__()[0]
# What an array is rebuilt from, also under its older name; torch refuses everything else that a pickle could call.
_NUMPY_TYPES: tuple[Any, ...] = (
    *(np.ndarray, np.dtype, np.dtypes.Int64DType, np.dtypes.Int32DType, bytes),
    *((_REBUILD, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
)


def _rows_of(source: Any, names: Sequence[str]) -> list[int]:
    known = getattr(getattr(source, "scenes", source), "names", None)
    known = list(known) if known is not None else [source[index].name for index in range(len(source))]
    row = {name: index for index, name in enumerate(known)}
    unknown = [name for name in names if name not in row]
    if unknown:
        raise ValueError(
            f"Expected names of scenes that the training split has; {len(unknown)} of {len(names)} are unknown, first "
            f"{unknown[:3]}; it has {known[:3]}, ... Check that the list belongs to this data set."
        )
    return [row[name] for name in names]


def _points_of(scene: Scene, annotations: Annotations) -> NDArray[np.int64]:
    rows = annotations.get(scene.name)
    if rows is None:
        raise ValueError(
            f"The annotations name no points of scene {scene.name!r}; they have {sorted(annotations)[:3]}, ... "
            "Check that they belong to this data set, or list the scenes to train on."
        )
    if len(rows) and not 0 <= rows.min() <= rows.max() < len(scene):
        raise ValueError(
            f"Scene {scene.name!r} has {len(scene)} points; its annotations name {rows.min()} to {rows.max()}. "
            "They were made for another version of the scene."
        )
    return rows
