"""The generator as a map-style dataset, with a cache on disk that several workers may share."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import zipfile
from dataclasses import fields, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from ...files import write_atomic
from ..class_tables import CLASSES as LABELS
from ..scene import Scene, Views
from ..unproject import unproject
from .classes import GENERATOR_VERSION, SPLITS, Split
from .label_spaces import SPACES, instance_classes
from .layout import Room, draw_room
from .rendering import NORMAL_SCALE, Recording, record
from .sensor import SENSORS, SensorName

_log = logging.getLogger(__name__)

NormalSource = Literal["depth", "exact"]


class SyntheticRooms:
    """Procedural furnished rooms with posed RGB-D views and exact labels; no files are needed.

    Scene `i` of a split is a function of (GENERATOR_VERSION, seed, split, i) alone: whatever the number of workers, the
    order of access and the cache. `val` shows the same kinds of rooms as `train`; `test` has larger rooms, other
    colours, and styles of furniture that the others never show.

    Example:
        >>> rooms = SyntheticRooms("train", num_scenes=1, num_views=2, image_size=(30, 40))
        >>> scene = rooms[0]
        >>> scene.views.color.shape, rooms.classes[:2]
        ((2, 30, 40, 3), ('wall', 'floor'))
    """

    def __init__(
        self,
        split: Split = "train",
        *,
        num_scenes: int,
        num_views: int = 12,
        image_size: tuple[int, int] = (120, 160),
        sensor: SensorName = "kinect",
        normals: NormalSource = "depth",
        labels: str = "ScanNet",
        seed: int = 0,
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        """Describe the dataset; scenes are made on access.

        Args:
            split: "train", "val" or "test".
            num_scenes: length of the dataset.
            num_views: views per scene, evenly along one lap through the room.
            image_size: H, W of the views in pixels.
            sensor: "off" (exact images), "kinect" or "tof".
            normals: of views and points. "depth" estimates them from the depth images, as for any recording: an encoder
                that read exact ones would be told what no sensor knows. "exact" has those of the surfaces, for metrics.
            labels: data set whose classes the labels are: "ScanNet" (20), "S3DIS" (13) or "Structured3D" (25). Nothing
                else depends on it.
            seed: of the whole dataset; different seeds share no scene.
            cache_dir: where finished scenes are kept (5 MB each at the default size); None = nowhere.
        """
        if split not in SPLITS:
            raise ValueError(f"SyntheticRooms expected a split of {SPLITS}, got {split!r}. Pass one of them.")
        if sensor not in SENSORS:
            raise ValueError(f"SyntheticRooms expected a sensor of {tuple(SENSORS)}, got {sensor!r}. Pass one of them.")
        if normals not in get_args(NormalSource):
            raise ValueError(
                f"SyntheticRooms expected normals of ('depth', 'exact'), got {normals!r}. Pass one of them."
            )
        if labels not in SPACES:
            raise ValueError(f"SyntheticRooms expected labels of {tuple(SPACES)}, got {labels!r}. Pass one of them.")
        if min(num_scenes, num_views, *image_size) < 1 or seed < 0:
            raise ValueError(
                "SyntheticRooms expected num_scenes, num_views, image_size of at least 1 and a seed of at least 0; got "
                f"num_scenes={num_scenes}, num_views={num_views}, image_size={image_size}, seed={seed}. Raise them."
            )
        self.split: Split = split
        self.num_scenes = num_scenes
        self.num_views = num_views
        self.image_size = (int(image_size[0]), int(image_size[1]))
        self.sensor: SensorName = sensor
        self.normals: NormalSource = normals
        self.labels = labels
        self.seed = seed
        self.cache_dir = None if cache_dir is None else Path(cache_dir).expanduser()

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their indices."""
        return LABELS[self.labels]

    @property
    def names(self) -> list[str]:
        """Name of every scene, without making it."""
        return [_name(self.split, scene) for scene in range(self.num_scenes)]

    def __len__(self) -> int:
        return self.num_scenes

    def __getitem__(self, index: int) -> Scene:
        """Scene `index`: views with labels, and the points that they see (in the frame of the estimated poses)."""
        scene = self._check(index)
        recording = self.recording(scene)
        if self.labels != "ScanNet":  # whose classes a recording has
            classes = instance_classes(self.room(scene).instances, self.labels)
            recording = replace(recording, segment_of=classes[recording.instance_of])
        return scene_from_recording(_name(self.split, scene), recording, self.normals)

    def room(self, index: int) -> Room:
        """The exact geometry behind a scene: primitives, instances, floor plan. Takes 15 ms."""
        return draw_room(self.split, self._check(index), seed=self.seed)

    def recording(self, index: int) -> Recording:
        """The images of a scene, from the cache if it has them whole; it then needs no room, a third of the time."""
        path = self.cache_path(index)
        if path is not None:
            cached = _read(path)
            if cached is not None:
                return cached
        made = record(
            self.room(index),
            self.split,
            index,
            seed=self.seed,
            num_views=self.num_views,
            image_size=self.image_size,
            sensor=self.sensor,
        )
        if path is not None:
            _write(path, made)
        return made

    def cache_path(self, index: int) -> Path | None:
        """The file of a scene in the cache; its name holds everything that the scene depends on."""
        if self.cache_dir is None:
            return None
        columns = [field.name for field in fields(Recording)]
        config = json.dumps([self.num_views, self.image_size, self.sensor, repr(SENSORS[self.sensor]), columns])
        digest = hashlib.sha256(config.encode()).hexdigest()[:10]
        return self.cache_dir / f"rooms-v{GENERATOR_VERSION}-s{self.seed}-{digest}-{self.split}-{index:06d}.npz"

    def _check(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(
                f"SyntheticRooms has {len(self)} scenes; got index {index}. Raise num_scenes to have more."
            )
        return index % len(self)


def _name(split: str, scene: int) -> str:
    return f"{split}_{scene:06d}"


def scene_from_recording(name: str, recording: Recording, normals: NormalSource) -> Scene:
    """A Scene with labelled views, and with the points of all of them."""
    prim = recording.primitive  # (V, H, W); -1 reads the last entry, which is then replaced
    normal = recording.normal if normals == "depth" else recording.exact_normal
    views = Views(
        color=recording.color,
        depth=recording.depth,
        intrinsics=recording.intrinsics,
        cam_to_world=recording.cam_to_world,
        segment=np.where(prim >= 0, recording.segment_of[prim], np.int16(-1)),
        normal=normal.astype(np.float32) / np.float32(NORMAL_SCALE),
        instance=np.where(prim >= 0, recording.instance_of[prim], np.int32(-1)),
    )
    return unproject(views, name=name)


def _read(path: Path) -> Recording | None:
    """A cached recording, or None if the file is missing or damaged (zip members carry checksums)."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            return Recording(**{field.name: archive[field.name] for field in fields(Recording)})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
        _log.warning("The cached scene %s is damaged (%s); it is made again.", path, error)
        return None


def _write(path: Path, recording: Recording) -> None:
    file = io.BytesIO()
    np.savez(file, **{field.name: getattr(recording, field.name) for field in fields(Recording)})
    write_atomic(path, file.getvalue())
