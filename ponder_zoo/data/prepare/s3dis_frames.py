"""The posed RGB-D images of 2D-3D-S that show a room of S3DIS.

    area_1/data/{rgb,depth,semantic}/camera_<uuid>_<room>_frame_<n>_domain_<rgb|depth|semantic>.png
    area_1/data/pose/..._pose.json    camera_k_matrix (3, 3), camera_rt_matrix (3, 4) world to camera, camera_location
    area_1/3d/rgb.obj                 the mesh, with y up
    assets/semantic_labels.json       names such as chair_3_office_1_1; pixels of `semantic` are indices into it

Facts: README.md and assets/utils.py of github.com/alexsax/2D-3D-Semantics (Apache-2.0): depth in 1/512 m along the
optical axis, 65535 = missing; labels as 24-bit numbers R G B, 0x0D0D0D = missing. The README calls the pose 4x3; the
files hold 3x4, and `R @ camera_location + t = 0` (checked on reading). The principal point of the images of 1080
pixels is at 540, so the corner of the first pixel is at 0, and integer pixel centres are half a pixel lower. Area 5
was released in two parts, each in a frame of its own; Pointcept (MIT) gives the transform that takes the mesh of the
second to the clouds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..files import read_image
from ..unproject import pixel_directions
from .folders import find_folders
from .images import MIN_VALID, check_principal_point, check_size, decode_color, decode_depth, encode_frame
from .record import Frame, Skip
from .table_files import read_table

MESH_TO_AREA = np.array([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])  # y up to z up
_5B_TO_AREA = np.array([[0.0, 1, 0, -4.09703582], [-1, 0, 0, 6.22617759], [0, 0, 1, 0], [0, 0, 0, 1]])
_DEPTH_SCALE = 1 / 512  # metres per unit
_NO_DEPTH = 65535
_REACH = 0.1  # metres from the cloud within which a pixel shows the room
_NAME = re.compile(r"(camera_[0-9a-f]+_+(?P<room>[A-Za-z]+_\d+)_frame_(?P<number>\d+))_domain_+pose\.json")


def area_folders(raw: Path, area: str) -> list[Path]:
    """The folders of 2D-3D-S that belong to an area of S3DIS: area_1 to Area_1, area_5a and area_5b to Area_5."""
    return list(find_folders(raw, re.compile(area.lower() + "[ab]?")))


def area_pose(folder: str) -> NDArray[np.float64]:
    """What takes the frame of a folder of 2D-3D-S to that of the clouds: (4, 4)."""
    return _5B_TO_AREA if folder == "area_5b" else np.eye(4)


def read_frames(
    raw: Path,
    room: Path,
    coord: NDArray[Any],
    skip: Skip,
    *,
    classes: Sequence[str],
    stride: int,
    move: NDArray[np.float64],
) -> tuple[Frame, ...]:
    """The images of a room. Pixels that show what lies outside of its cloud lose their depth.

    Args:
        raw: where the areas are.
        room: folder of the cloud, Area_1/office_1.
        coord: (N, 3) metres, the cloud in the frame of the area.
        skip: called for frames and label images that are left out.
        classes: names in label order.
        stride: keep every so many-th row and column.
        move: (4, 4) applied to the poses at last.
    """
    frames: list[Frame] = []
    cloud = _Cells(coord, _REACH)
    for area in area_folders(raw, room.parent.name):
        table = _label_table(raw, area, tuple(classes))
        for name, pose_file in _pose_files(area, room.name):
            try:
                frames.append(_read_frame(area, name, pose_file, cloud, table, skip, stride=stride, move=move))
            except (OSError, ValueError) as error:
                skip(name, str(error))
    return tuple(frames)


def _pose_files(area: Path, room: str) -> list[tuple[str, Path]]:
    """Names and pose files of the images taken in a room, by camera and number."""
    found = []
    for file in (area / "data" / "pose").glob(f"camera_*_{room}_frame_*.json"):
        match = _NAME.fullmatch(file.name)
        if match and match["room"] == room:
            found.append((match[1].rpartition("_frame_")[0], int(match["number"]), match[1], file))
    return [(name, file) for _, _, name, file in sorted(found)]


def _read_frame(
    area: Path,
    name: str,
    pose_file: Path,
    cloud: _Cells,
    table: NDArray[np.int64],
    skip: Skip,
    *,
    stride: int,
    move: NDArray[np.float64],
) -> Frame:
    intrinsics, pose = _read_pose(pose_file)
    pose = area_pose(area.name) @ pose
    depth = decode_depth(*_file(area, pose_file, "depth"), missing=_NO_DEPTH)
    color = decode_color(*_file(area, pose_file, "rgb"), depth.shape)
    check_principal_point(intrinsics, str(pose_file), depth.shape)
    depth = np.where(cloud.near(_world_points(depth, intrinsics, pose)), depth, 0).astype(np.uint16)
    share = float((depth > 0).mean())
    if share < MIN_VALID:
        raise ValueError(f"{share:.0%} of its pixels show the room; a frame needs {MIN_VALID:.0%}")
    segment = None
    try:
        segment = _read_labels(*_file(area, pose_file, "semantic"), depth.shape, table)
    except (OSError, ValueError) as error:
        skip(f"{name}_domain_semantic", str(error))
    options: dict[str, Any] = {"depth_scale": _DEPTH_SCALE, "intrinsics": intrinsics, "stride": stride}
    return encode_frame(name, color, depth, segment, cam_to_world=move @ pose, **options)


def _file(area: Path, pose_file: Path, kind: str) -> tuple[bytes, str]:
    """Content and name of the image beside a pose file."""
    path = area / "data" / kind / pose_file.name.replace("pose.json", f"{kind}.png")
    return path.read_bytes(), str(path)


def _read_pose(file: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Intrinsics (3, 3) with integer pixel centres, and camera-to-world (4, 4) in the frame of the folder."""
    try:
        content = json.loads(file.read_text())
        intrinsics = np.array(content["camera_k_matrix"], dtype=np.float64)
        matrix = np.array(content["camera_rt_matrix"], dtype=np.float64)
        location = np.array(content["camera_location"], dtype=np.float64)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file}: expected JSON with the camera's matrices; {error!r}. Copy the file again."
        ) from error
    rotation = matrix[:3, :3]
    shapes = intrinsics.shape, matrix.shape, location.shape
    if shapes not in (((3, 3), (3, 4), (3,)), ((3, 3), (4, 4), (3,))) or not np.isfinite(intrinsics).all():
        raise ValueError(f"{file}: expected matrices (3, 3) and (3, 4), and a location of 3 numbers. Copy it again.")
    if not np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-3) or np.linalg.det(rotation) < 0:  # NaN too
        raise ValueError(f"{file}: expected a rotation in camera_rt_matrix; got {rotation.tolist()}. Copy it again.")
    if not np.allclose(rotation @ location, -matrix[:3, 3], atol=0.01):
        raise ValueError(f"{file}: camera_rt_matrix does not take camera_location to the origin. Copy the file again.")
    intrinsics[:2, 2] -= 0.5
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation.T, location
    return intrinsics, pose


def _world_points(depth: NDArray[Any], intrinsics: NDArray[Any], pose: NDArray[Any]) -> NDArray[np.float32]:
    """What each pixel shows: (H, W, 3) metres. Pixels without depth give the camera's position."""
    points = pixel_directions(intrinsics[None], *depth.shape)[0] * (depth[..., None] * np.float32(_DEPTH_SCALE))
    return points @ pose[:3, :3].T.astype(np.float32) + pose[:3, 3].astype(np.float32)


def _read_labels(data: bytes, where: str, size: tuple[int, int], table: NDArray[np.int64]) -> NDArray[np.int64]:
    """Class of each pixel: (H, W), -1 = unlabelled."""
    image = read_image(data, where)
    if image.ndim != 3:
        raise ValueError(f"{where}: expected labels as RGB; got an image of shape {image.shape}. Copy the file again.")
    check_size(image, where, size)
    index = image[..., :3].astype(np.int64) @ [65536, 256, 1]
    return table[np.minimum(index, len(table) - 1)]


def _label_table(raw: Path, area: Path, classes: tuple[str, ...]) -> NDArray[np.int64]:
    """Class of each index that the label images hold; the last entry is that of all larger ones: -1."""
    file = next((f for f in (area.parent, raw) if (f / "assets/semantic_labels.json").is_file()), None)
    if file is None:
        return _released_table(classes)
    names = json.loads((file / "assets/semantic_labels.json").read_text())
    order = {name: number for number, name in enumerate(classes)}
    return np.array([*(order.get(name.partition("_")[0], -1) for name in names), -1])


@lru_cache(maxsize=1)
def _released_table(classes: tuple[str, ...]) -> NDArray[np.int64]:
    ranges: dict[str, list[int]] = read_table("stanford_2d3ds")["ranges"]
    table = np.full(max(end for _, end in ranges.values()) + 1, -1)
    for name, (first, end) in ranges.items():
        table[first:end] = classes.index(name)
    return table


class _Cells:
    """Which points lie near a cloud: in one of its cells of edge `reach`, or beside one.

    All within `reach` do, and some up to 3.5 times that; a k-d tree, which is exact, takes a minute per image.
    """

    def __init__(self, coord: NDArray[Any], reach: float) -> None:
        self.reach = reach
        self.low = coord.min(0) - 2 * reach
        shape = np.floor((coord.max(0) - self.low) / reach).astype(np.int64) + 3
        taken = np.zeros(shape, dtype=bool)
        taken[tuple(self._index(coord).T)] = True
        for axis in range(3):
            taken = taken | np.roll(taken, 1, axis) | np.roll(taken, -1, axis)  # the margin keeps the ends apart
        self.taken = taken

    def near(self, points: NDArray[Any]) -> NDArray[np.bool_]:
        """(..., 3) -> (...)."""
        index = self._index(points)
        inside = np.asarray(((index >= 0) & (index < self.taken.shape)).all(-1))
        index = np.where(inside[..., None], index, 0)
        return inside & self.taken[index[..., 0], index[..., 1], index[..., 2]]

    def _index(self, points: NDArray[Any]) -> NDArray[np.int64]:
        return np.floor((points - self.low) / self.reach).astype(np.int64)
