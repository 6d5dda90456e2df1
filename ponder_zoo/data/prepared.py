"""Prepared data sets (see `data.prepare`) as scenes: from a folder, a web server, a bucket or the Hub."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .files import read_color, read_depth, read_label
from .prepare.layout import MANIFEST, PREPARE, scene_paths
from .prepare.storage import FORMAT_VERSION, FrameTable, read_images, read_scene
from .remote import Folder
from .scene import Array, Scene, Views

if TYPE_CHECKING:
    from datasets import IterableDataset


logger = logging.getLogger(__name__)


class PreparedScenes:
    """Map-style data set of prepared scenes. Of remote ones, only what an item needs is fetched, when it is needed.

    Scenes have `stored_views` in place of `views`: whoever takes an item decides which images are read and decoded.

    Args:
        root: folder or URL of the prepared form.
        split: one of its splits, or several; of several, some may be missing.
        dataset: what it must hold: scannet, s3dis, ... None: anything.
        label_set: which labels become `segment`; image labels exist for the main set, "segment", only.
        views: whether scenes come with their images; those without any are then left out.
        labelled: leave out scenes without labels of the set.

    Example:
        scenes = PreparedScenes("data/scannet", "train")
        scenes[0].stored_views.read(np.array([3, 17]))  # two of its images, as Views
    """

    def __init__(
        self,
        root: str | Path,
        split: str | Sequence[str],
        *,
        dataset: str | None = None,
        label_set: str = "segment",
        views: bool = True,
        labelled: bool = False,
    ) -> None:
        self.folder, self.label_set, self.views = Folder(root), label_set, views
        manifest = read_manifest(self.folder)
        if dataset not in (None, manifest["dataset"]):
            raise ValueError(f"{root}: expected {dataset}, it holds {manifest['dataset']}. Check data.root.")
        if label_set not in manifest["classes"]:
            raise ValueError(
                f"{root}: expected labels {label_set!r}, the prepared form has {list(manifest['classes'])}. "
                "Check data.name, or prepare the data set again."
            )
        splits = [split] if isinstance(split, str) else list(split)
        records = [
            record
            for record in _of_splits(manifest, splits, self.folder)
            if (record["frames"] or not views) and (label_set in record["labels"] or not labelled)
        ]
        if not records:
            wanted = " and ".join(["images"] * views + ["labels"] * labelled) or "points"
            raise ValueError(f"{root}: none of the scenes of {splits} has {wanted}. See its {MANIFEST}.")
        self.classes: tuple[str, ...] = tuple(manifest["classes"][label_set])
        self.names = [record["scene"] for record in records]
        self.files = [_files(record) for record in records]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Scene:
        return self.read(self.files[index])

    def read(self, files: SceneFiles) -> Scene:
        """The scene of an entry of `files`."""
        with _opened(self.folder, *files.scene) as file:
            scene, frames = read_scene(file, self.label_set)
        if files.frames is None or not self.views:
            return scene
        labelled = self.label_set == "segment"
        return replace(scene, stored_views=PreparedViews(self.folder, *files.frames, frames, scene.name, labelled))


def _of_splits(manifest: dict[str, Any], splits: Sequence[str], folder: Folder) -> list[dict[str, Any]]:
    """Records of the scenes of some splits."""
    known = list(manifest["counts"])
    missing = [split for split in splits if split not in known]
    if len(missing) == len(splits):
        raise ValueError(f"{folder.root}: expected splits of {known}, got {splits}. Check data.root.")
    if missing:
        logger.warning("%s has no scenes of %s; only those of %s are used.", folder.root, missing, known)
    return [record for record in manifest["scenes"] if record["split"] in splits]


class SceneFiles(NamedTuple):
    """Paths and sizes in bytes of a scene's files."""

    scene: tuple[str, int]
    frames: tuple[str, int] | None  # None: it has no images


def _files(record: dict[str, Any]) -> SceneFiles:
    scene, frames = scene_paths(record["split"], record["scene"])
    sizes = {path: entry["bytes"] for path, entry in record["files"].items()}
    return SceneFiles((scene, sizes[scene]), (frames, sizes[frames]) if frames in sizes else None)


@contextmanager
def _opened(folder: Folder, path: str, size: int) -> Iterator[Any]:
    """An open file; what goes wrong while it is read becomes an error that names it."""
    with folder.open(path, size) as file:
        try:
            yield file
        except (OSError, ValueError) as error:  # also what pyarrow raises
            raise ValueError(
                f"{folder.root}: expected {path} as {MANIFEST} has it; {error}. Copy the file again, or remove it and "
                "prepare the data set again."
            ) from error


@dataclass(frozen=True, eq=False)
class PreparedViews:
    """The images of a prepared scene, still in its file."""

    folder: Folder
    path: str
    size: int  # bytes
    frames: FrameTable
    scene: str  # its name, for errors
    labelled: bool  # whether to read their labels

    def __len__(self) -> int:
        return len(self.frames.names)

    def read(self, index: Array, /) -> Views:
        """Decode the images of these numbers, colours and labels at the size of the depth."""
        with _opened(self.folder, self.path, self.size) as file:
            images = read_images(file, [int(number) for number in index])
        depth = [
            read_depth(image["depth"], self._name(image)).astype(np.float32) * np.float32(scale)
            for image, scale in zip(images, self.frames.depth_scale[index], strict=True)
        ]
        size = (depth[0].shape[0], depth[0].shape[1])
        return Views(
            color=np.stack([read_color(image["color"], size, self._name(image)) for image in images]),
            depth=np.stack(depth),
            intrinsics=self.frames.intrinsics[index].astype(np.float32),
            cam_to_world=self.frames.cam_to_world[index].astype(np.float32),
            segment=self._segment(images, size),
        )

    def _segment(self, images: Sequence[Mapping[str, Any]], size: tuple[int, int]) -> Array | None:
        if not self.labelled or all(image["segment"] is None for image in images):
            return None
        unknown = np.zeros(size, dtype=np.int16)
        labels = [
            unknown if image["segment"] is None else read_label(image["segment"], self._name(image)) for image in images
        ]
        return np.stack(labels).astype(np.int16) - np.int16(1)

    def _name(self, image: Mapping[str, Any]) -> str:
        return f"{self.scene}, frame {image['name']}"


def read_manifest(folder: Folder) -> dict[str, Any]:
    """What a prepared folder holds.

    Raises:
        ValueError: if it is not there, not complete, or of another version.
    """
    try:
        manifest = json.loads(folder.read(MANIFEST))
    except ValueError as error:
        try:
            folder.read(PREPARE)
        except ValueError:
            raise ValueError(
                f"{folder.root}: expected prepared data with a {MANIFEST}; {error} "
                "Make it with python -m ponder_zoo.data.prepare."
            ) from error
        raise ValueError(f"{folder.root}: its preparation is not finished. Run the same command again.") from error
    if manifest["format"] != FORMAT_VERSION:
        raise ValueError(
            f"{folder.root}: expected format {FORMAT_VERSION}, got {manifest['format']}. Prepare it again with this "
            "version of ponder_zoo."
        )
    return manifest


def stream_scenes(
    scenes: PreparedScenes, *, seed: int = 0, epoch: int = 0, shuffle: bool = True, processes: int = 1, process: int = 0
) -> IterableDataset:
    """An epoch of a data set as an iterable of `datasets`, for loops without a sampler; examples are `{"scene": ...}`.

    Every process gets its share of the scenes, and a DataLoader divides that among its workers: each scene comes once.
    The position can be saved and restored with `state_dict` and `load_state_dict`. (The recipes need none of this:
    their sampler draws from PreparedScenes, remote ones too.)

    Args:
        scenes: from a folder or a URL.
        seed: of the order.
        epoch: with the seed it decides the order.
        shuffle: False gives the order of the manifest.
        processes: how many share the epoch.
        process: number of this one.

    Example:
        for example in stream_scenes(PreparedScenes("hf://datasets/me/scannet", "train"), epoch=3):
            train_on(example["scene"])
    """
    from datasets import IterableDataset

    if not 0 <= process < processes <= len(scenes):
        raise ValueError(
            f"Expected process {process} to be one of {processes}, and at least one of {len(scenes)} scenes for each."
        )
    order = np.arange(len(scenes))
    if shuffle:
        order = np.random.default_rng(np.random.SeedSequence([seed, epoch])).permutation(len(scenes))
    files = [scenes.files[index] for index in order[process::processes].tolist()]
    return IterableDataset.from_generator(_examples, gen_kwargs={"files": files, "scenes": scenes})  # type: ignore


def _examples(files: list[SceneFiles], scenes: PreparedScenes) -> Iterator[dict[str, Scene]]:
    """One scene after another. `datasets` divides lists among workers: `files` is one."""
    for each in files:
        yield {"scene": scenes.read(each)}
