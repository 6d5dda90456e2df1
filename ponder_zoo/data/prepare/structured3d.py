"""Structured3D from the raw download: rooms of designed houses, from their rendered panoramas and perspective images.

    scene_00000/2D_rendering/<room>/panorama/camera_xyz.txt         position in mm
    scene_00000/2D_rendering/<room>/panorama/full/{rgb_rawlight,depth,semantic}.png
    scene_00000/2D_rendering/<room>/perspective/full/<n>/{rgb_rawlight,depth,semantic}.png, camera_pose.txt

Facts: data_organization.md, misc/utils.py and misc/panorama.py of github.com/bertjiazheng/Structured3D (MIT): depth
in mm, 0 = none; labels are NYU40 ids; `camera_pose.txt` is `position (mm), view, up, half field of view across and
down, 1`; the world is right-handed with z up; the middle column of a panorama looks along +y, its right half towards
+x. Depth is along the optical axis in perspective images, as Pointcept (MIT) reads it too, and along the ray in
panoramas.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..files import read_image
from ..scene import Scene, Views
from ..transforms import GridSample
from ..unproject import fit_inverse_depth, view_normals, view_points
from .folders import find_folders
from .images import MIN_VALID, check_size, decode_color, decode_depth, encode_frame
from .record import Frame, PreparedScene, Skip
from .table_files import read_table

_SCENE = re.compile(r"scene_\d{5}")
_MEMBER = re.compile(r"(?:.*/)?(scene_\d{5})/2D_rendering/(\d+)/")
_DEPTH_SCALE = 1e-3  # metres per unit
_CELL = 0.01  # metres: one point of a room is kept per cell of this size
_GRAZING = 0.15  # cosine: pixels that see their surface at a smaller one mix two depths at its edge
_POLE = 0.995  # sine of the elevation beyond which the columns of a panorama are too close to tell a normal
_OUTSIDE = -2  # class of pixels with label 0: what is seen through windows

Folder = Path | zipfile.Path


class Structured3D:
    """The rooms of Structured3D, fully furnished. Splits are the published ones, by scene.

    The raw folder holds the zip files as downloaded, `Structured3D_panorama_*.zip`, `..._perspective_full_*.zip` or one
    kind of them, or what they contain. The scenes that the authors call invalid are left out.

    Args:
        raw: folder of the zip files as downloaded (panorama, perspective or both), or of the unpacked scenes, up to two
            folders deep.
        frames: give the perspective images, too.
        image_stride: keep every so many-th row and column of the images, which have 1280 x 720 pixels.
    """

    name = "structured3d"

    def __init__(self, raw: str | Path, *, frames: bool = True, image_stride: int = 2) -> None:
        self.raw = Path(raw)
        self.frames = frames
        self.image_stride = image_stride
        self.classes = {"segment": tuple(read_table("classes")["Structured3D"])}
        self._places: dict[str, list[Path]] | None = None  # where each room is: scene folders and zip files

    def scenes(self) -> list[str]:
        """Names such as scene_00000_room_485142, sorted."""
        rooms = sorted(self._rooms())
        if not rooms:
            raise ValueError(
                f"{self.raw}: expected zip files or folders scene_00000, ... of Structured3D, here or up to two "
                "folders deep; found none. Pass the folder of the download."
            )
        return rooms

    def split(self, scene: str) -> str:
        """train, val or test."""
        number = int(scene[len("scene_") :][:5])
        splits: dict[str, list[int]] = read_table("structured3d")["splits"]
        return next(name for name, (first, end) in splits.items() if first <= number < end)

    def read(self, scene: str, skip: Skip) -> PreparedScene:
        """One room with its perspective images."""
        places = self._rooms().get(scene)
        if places is None:
            raise ValueError(f"{self.raw}: there is no scene {scene!r}. `scenes()` lists them.")
        clouds, frames = [], []
        for part, folder in _parts(scene, places):
            try:
                if part == "panorama":
                    clouds.append(_panorama(folder))
                else:
                    cloud, frame = _perspective(folder, part, self.image_stride)
                    clouds.append(cloud)
                    frames.append(frame)
            except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
                skip(f"{scene}/{part}", str(error))
        if not clouds:
            raise ValueError(f"{scene}: none of its images can be used. Copy the scene again.")
        cloud = _thin(_join(scene, clouds))
        return PreparedScene(cloud, split=self.split(scene), frames=tuple(frames) if self.frames else ())

    def _rooms(self) -> dict[str, list[Path]]:
        if self._places is None:
            self._places = _find_rooms(self.raw)
        return self._places


def _find_rooms(raw: Path) -> dict[str, list[Path]]:
    """The scene folders and zip files that hold a part of each room."""
    invalid = set(read_table("structured3d")["invalid_scenes"])
    found: dict[str, list[Path]] = {}
    for folder in find_folders(raw, _SCENE):
        for room in (folder / "2D_rendering").glob("[0-9]*"):
            found.setdefault(f"{folder.name}_room_{room.name}", []).append(folder)
    for file in sorted(file for pattern in ("*.zip", "*/*.zip") for file in raw.glob(pattern)):
        for scene, room in _zip_rooms(file):
            found.setdefault(f"{scene}_room_{room}", []).append(file)
    return {name: places for name, places in found.items() if name[: len("scene_00000")] not in invalid}


def _zip_rooms(file: Path) -> list[tuple[str, str]]:
    """Scene and room of everything in an archive."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = [_MEMBER.match(name) for name in archive.namelist()]
    except zipfile.BadZipFile as error:
        raise ValueError(f"{file}: expected a zip file of Structured3D; {error}. Download it again.") from error
    return sorted({(match[1], match[2]) for match in members if match})


def _parts(scene: str, places: list[Path]) -> Iterator[tuple[str, Folder]]:
    """`panorama` and `perspective_N` of a room, in that order, with their folders."""
    name, _, room = scene.partition("_room_")
    rooms = [_room_folder(place, name, room) for place in places]
    for folder in rooms:
        if (folder / "panorama" / "camera_xyz.txt").exists():
            yield "panorama", folder / "panorama"
    for folder in rooms:
        views = folder / "perspective" / "full"
        if views.is_dir():
            yield from sorted(
                ((f"perspective_{view.name}", view) for view in views.iterdir() if view.name.isdigit()),
                key=lambda part: int(part[1].name),
            )


def _room_folder(place: Path, scene: str, room: str) -> Folder:
    if place.is_dir():
        return place / "2D_rendering" / room
    archive, prefix = _open_zip(place, os.getpid())
    return zipfile.Path(archive, f"{prefix}{scene}/2D_rendering/{room}/")


@lru_cache(maxsize=4)
def _open_zip(file: Path, process: int) -> tuple[zipfile.ZipFile, str]:
    """An archive, whose directory takes a second to read, and what its members' names have before the scene.

    Once per process: after a fork both would move the position of the same open file.
    """
    archive = zipfile.ZipFile(file)
    first = next(name for name in archive.namelist() if _MEMBER.match(name))
    return archive, first[: first.index("scene_")]


def _perspective(folder: Folder, name: str, stride: int) -> tuple[Scene, Frame]:
    """Points and frame of one perspective image."""
    color, depth, segment = _images(folder)
    intrinsics, pose = _read_camera(folder / "camera_pose.txt", depth.shape)
    views = Views(
        color=color[None],
        depth=(depth * np.float32(_DEPTH_SCALE))[None],
        intrinsics=intrinsics[None],
        cam_to_world=pose[None],
    )
    points, normal = view_points(views)[0], view_normals(views)[0]
    kept = _facing(points, normal, pose[:3, 3]) & (depth > 0) & (segment != _OUTSIDE)
    share = float(kept.mean())
    if share < MIN_VALID:
        raise ValueError(f"{share:.0%} of its pixels show a surface well; a frame needs {MIN_VALID:.0%}")
    frame = encode_frame(
        name,
        color,
        np.where(kept, depth, 0).astype(np.uint16),
        np.maximum(segment, -1),
        depth_scale=_DEPTH_SCALE,
        intrinsics=intrinsics,
        cam_to_world=pose,
        stride=stride,
    )
    return _cloud(points, normal, color, segment, kept), frame


def _panorama(folder: Folder) -> Scene:
    """Points of a panorama."""
    color, depth, segment = _images(folder / "full")
    position = _numbers(folder / "camera_xyz.txt", 3) * 1e-3
    ray, across, down = panorama_rays(*depth.shape)
    distance = depth * np.float32(_DEPTH_SCALE)
    # a plane has n . ray = 1 / distance: the normal follows from that value and how it changes along the image
    level, du, dv = (part[0, ..., None] for part in fit_inverse_depth(distance[None], radius=2, edge=0.05))
    normal = (
        level * ray + du * across / (across**2).sum(-1, keepdims=True) + dv * down / (down**2).sum(-1, keepdims=True)
    )
    length = np.linalg.norm(normal, axis=-1, keepdims=True)
    known = (length > 0) & (np.abs(ray[..., 2:]) < _POLE)
    normal = -np.divide(normal, length, out=np.zeros_like(normal), where=known)
    points = ray * distance[..., None] + position
    kept = _facing(points, normal, position) & (depth > 0) & (segment != _OUTSIDE)
    return _cloud(points, normal, color, segment, kept)


def panorama_rays(height: int, width: int) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Direction that each pixel's centre looks in, and its change per column and per row: three (H, W, 3).

    The world is that of the data set: z up; the middle of the image looks along +y.
    """
    azimuth = ((np.arange(width) + 0.5) / width - 0.5) * 2 * np.pi
    elevation = (0.5 - (np.arange(height)[:, None] + 0.5) / height) * np.pi
    sin, cos, up, flat = np.sin(azimuth), np.cos(azimuth), np.sin(elevation), np.cos(elevation)
    zero = np.zeros((height, width))
    ray = np.stack([flat * sin, flat * cos, up + zero], axis=-1)
    across = np.stack([flat * cos, -flat * sin, zero], axis=-1) * (2 * np.pi / width)
    down = np.stack([up * sin, up * cos, zero - flat], axis=-1) * (np.pi / height)
    return ray, across, down


def _images(folder: Folder) -> tuple[NDArray[np.uint8], NDArray[np.uint16], NDArray[np.int64]]:
    """Colour (H, W, 3), raw depth (H, W) with 0 = none, and class index (H, W), -1 = none of the classes."""
    depth = decode_depth(*_content(folder / "depth.png"), missing=65535)
    color = decode_color(*_content(folder / "rgb_rawlight.png"), depth.shape)
    data, where = _content(folder / "semantic.png")
    labels = read_image(data, where)
    if labels.ndim != 2 or labels.dtype != np.uint8:
        raise ValueError(f"{where}: expected 8-bit ids; got {labels.dtype} of shape {labels.shape}. Copy it again.")
    check_size(labels, where, depth.shape)
    return color, depth, _label_table()[labels]


@lru_cache(maxsize=1)
def _label_table() -> NDArray[np.int64]:
    table = np.full(256, -1)
    for index, nyu40 in enumerate(read_table("structured3d")["ids"].values()):
        table[nyu40] = index
    table[0] = _OUTSIDE
    return table


def _content(file: Folder) -> tuple[bytes, str]:
    return file.read_bytes(), str(file)


def _numbers(file: Folder, count: int) -> NDArray[np.float64]:
    """At least `count` finite numbers of a text file."""
    try:
        values = np.array(file.read_text().split(), dtype=np.float64)
    except ValueError as error:
        raise ValueError(f"{file}: expected numbers; {error}. Copy the file again.") from error
    if len(values) < count or not np.isfinite(values).all():
        raise ValueError(f"{file}: expected {count} finite numbers; got {values.tolist()}. Copy the file again.")
    return values[:count]


def _read_camera(file: Folder, size: tuple[int, int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Intrinsics (3, 3), integer pixel centres, and camera-to-world (4, 4) in metres of an image (H, W)."""
    values = _numbers(file, 11)
    forward, up, half_angles = values[3:6], values[6:9], values[9:11]
    right = np.cross(forward, up)
    if not np.linalg.norm(right) > 1e-6 or not ((half_angles > 0.01) & (half_angles < 1.55)).all():
        raise ValueError(f"{file}: expected a view direction, an up direction and two angles; got {values.tolist()}.")
    forward, right = forward / np.linalg.norm(forward), right / np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], axis=1)
    pose[:3, 3] = values[:3] * 1e-3
    width_height = np.array([size[1], size[0]])
    intrinsics = np.eye(3)
    intrinsics[[0, 1], [0, 1]] = width_height / 2 / np.tan(half_angles)
    intrinsics[:2, 2] = (width_height - 1) / 2
    return intrinsics, pose


def _facing(points: NDArray[Any], normal: NDArray[Any], position: NDArray[Any]) -> NDArray[np.bool_]:
    """Pixels that see their surface at more than a grazing angle: (H, W). Those without a normal do not."""
    sight = position - points
    return (sight * normal).sum(-1) > _GRAZING * np.linalg.norm(sight, axis=-1)


def _cloud(points: Any, normal: Any, color: Any, segment: Any, kept: NDArray[np.bool_]) -> Scene:
    cloud = Scene(
        name="view",
        coord=points[kept].astype(np.float32),
        color=color[kept].astype(np.float32),
        normal=normal[kept].astype(np.float32),
        segment=segment[kept],
    )
    return _thin(cloud) if len(cloud) else cloud


def _join(name: str, clouds: list[Scene]) -> Scene:
    def column(field: str) -> NDArray[Any]:
        return np.concatenate([getattr(cloud, field) for cloud in clouds])

    color, normal, segment = column("color"), column("normal"), column("segment")
    return Scene(name=name, coord=column("coord"), color=color, normal=normal, segment=segment)


def _thin(cloud: Scene) -> Scene:
    """The first point of each cell."""
    sampled = GridSample(_CELL, pick="first", inverse=False)(cloud, np.random.default_rng(0))  # draws nothing
    return replace(sampled, grid_coord=None)
