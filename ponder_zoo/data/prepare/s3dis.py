"""S3DIS from the raw download: rooms as annotated clouds, with the rendered RGB-D images of 2D-3D-S.

Clouds (Stanford3dDataset_v1.2 or its aligned version):

    Area_1/office_1/Annotations/chair_3.txt    rows `x y z r g b` in metres and 0-255; one file per instance
    Area_1/Area_1_alignmentAngle.txt           lines `office_1 90` below two lines of comment

Images and meshes (2D-3D-S): see `s3dis_frames`. Both may lie up to two folders deep.

Facts: formats and the turn by minus the angle as in drprojects/superpoint_transformer (MIT), src/datasets/s3dis.py;
damaged numbers in github.com/zeliu98/CloserLook3D/issues/15, loicland/superpoint_graph/issues/230,
HuguesTHOMAS/KPConv/issues/82.
"""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..motion import bounding_box
from ..normals import estimate_normals, room_viewpoint
from ..scene import Scene
from .folders import find_folders
from .mesh_normals import nearest_normals, read_obj
from .record import PreparedScene, Skip
from .s3dis_frames import MESH_TO_AREA, area_folders, area_pose, read_frames
from .table_files import read_table

logger = logging.getLogger(__name__)

Mesh = tuple[NDArray[np.float64], NDArray[np.int64]]

_AREA = re.compile(r"Area_[1-6]")
_COPY = re.compile(r" \(\d+\)$")  # Area_5/office_36 holds "wall_3 (1).txt" beside wall_3.txt
_OTHER_CLASS = "clutter"  # of names that are no class (stairs), as everywhere


class S3DIS:
    """The rooms of S3DIS. `split` is the area, Area_1 to Area_6.

    The raw folder holds, here or up to two folders deep,

    - Area_1 to Area_6 of Stanford3dDataset_v1.2 (or its aligned version), for the clouds and their labels;
    - area_1 to area_6 of 2D-3D-S without XYZ images (`data`, and `3d` for normals), if images are wanted.

    Args:
        raw: folder that holds the areas of the clouds and, if images or mesh normals are wanted, those of 2D-3D-S.
        aligned: turn each room about its middle by the angle that the download gives, so that its walls follow the axes
            (images turn with it). False: the building's own frame.
        frames: read the images, too.
        image_stride: keep every so many-th row and column of the images, which have 1080 x 1080 pixels.
        mesh_normals: take normals from the meshes of 2D-3D-S where they are; else estimate them from the points.
    """

    name = "s3dis"

    def __init__(
        self,
        raw: str | Path,
        *,
        aligned: bool = True,
        frames: bool = True,
        image_stride: int = 2,
        mesh_normals: bool = True,
    ) -> None:
        self.raw = Path(raw)
        self.aligned = aligned
        self.frames = frames
        self.image_stride = image_stride
        self.mesh_normals = mesh_normals
        self.classes = {"segment": tuple(read_table("classes")["S3DIS"])}

    def scenes(self) -> list[str]:
        """Names such as Area_1_office_1, sorted."""
        rooms = _rooms(self.raw)
        if not rooms:
            raise ValueError(
                f"{self.raw}: expected folders Area_1 to Area_6 of Stanford3dDataset_v1.2, here or up to two folders "
                "deep; found none. Unpack the download, and pass the folder that holds it."
            )
        return sorted(rooms)

    def split(self, scene: str) -> str:
        """The area of a scene."""
        return scene[: len("Area_1")]

    def read(self, scene: str, skip: Skip) -> PreparedScene:
        """One room with its images."""
        room = _rooms(self.raw).get(scene)
        if room is None:
            raise ValueError(f"{self.raw}: there is no scene {scene!r}. `scenes()` lists them.")
        coord, color, segment, instance = self._points(room, skip)
        to_scene = self._alignment(room, coord, skip)
        frames = ()
        if self.frames:
            frames = read_frames(
                self.raw, room, coord, skip, classes=self.classes["segment"], stride=self.image_stride, move=to_scene
            )
        normal = self._normals(room, coord, skip)
        turn = to_scene[:3, :3]
        cloud = Scene(
            name=scene,
            coord=(coord @ turn.T + to_scene[:3, 3]).astype(np.float32),
            color=color.astype(np.float32),
            normal=(normal @ turn.T).astype(np.float32),
            segment=segment,
            instance=instance,
        )
        return PreparedScene(cloud, split=self.split(scene), frames=frames)

    def _points(self, room: Path, skip: Skip) -> tuple[NDArray[Any], ...]:
        """Coordinates (N, 3) float64 and colours, class and instance of each point, from all files of a room."""
        files = sorted(file for file in room.glob("Annotations/*.txt") if not _COPY.search(file.stem))
        tables = []
        for number, file in enumerate(files):
            table = _read_instance(file, skip)
            if len(table):
                tables.append((table, self._label(file), number))
        if not tables:
            raise ValueError(
                f"{room}: expected points in Annotations/*.txt; got none of {len(files)} files. Unpack again."
            )
        count = [len(table) for table, _, _ in tables]
        rows = np.concatenate([table for table, _, _ in tables])
        segment = np.repeat(np.array([label for _, label, _ in tables], np.int64), count)
        instance = np.repeat(np.array([number for _, _, number in tables], np.int64), count)
        return rows[:, :3], rows[:, 3:], segment, instance

    def _label(self, file: Path) -> int:
        names = self.classes["segment"]
        name = file.stem.partition("_")[0]
        return names.index(name if name in names else _OTHER_CLASS)

    def _alignment(self, room: Path, coord: NDArray[Any], skip: Skip) -> NDArray[np.float64]:
        """What aligns a room: (4, 4), a turn by minus its angle about the middle of its box."""
        if not self.aligned:
            return np.eye(4)
        file = room.parent / f"{room.parent.name}_alignmentAngle.txt"
        angle = _angles(file).get(room.name)
        if angle is None:
            skip(f"{file.name}:{room.name}", "there is no angle for this room; it is taken to be aligned already")
            return np.eye(4)
        return rotation_about(bounding_box(coord).mean(0), -np.radians(angle))

    def _normals(self, room: Path, coord: NDArray[Any], skip: Skip) -> NDArray[np.float32]:
        folders = area_folders(self.raw, room.parent.name) if self.mesh_normals else []
        files = [folder / "3d" / "rgb.obj" for folder in folders if (folder / "3d" / "rgb.obj").is_file()]
        try:
            if files:
                return nearest_normals(coord, *_joined([_area_mesh(file) for file in files]))
        except (OSError, ValueError) as error:
            skip(f"{room.parent.name}/{room.name}: mesh", f"{error} Normals are estimated from the points")
        return estimate_normals(coord, viewpoint=room_viewpoint(coord))


def rotation_about(middle: NDArray[Any], angle: float) -> NDArray[np.float64]:
    """A turn by `angle` radians about the vertical through `middle`: (4, 4)."""
    c, s = np.cos(angle), np.sin(angle)
    matrix = np.eye(4)
    matrix[:2, :2] = [[c, -s], [s, c]]
    matrix[:3, 3] = middle - matrix[:3, :3] @ middle
    return matrix


def _rooms(raw: Path) -> dict[str, Path]:
    """Folder of each room by the name of its scene."""
    areas = find_folders(raw, _AREA)
    return {f"{area.name}_{room.name}": room for area in areas for room in area.iterdir() if room.is_dir()}


@lru_cache(maxsize=8)
def _angles(file: Path) -> dict[str, float]:
    """Degrees by name of the room; empty without a file."""
    if not file.is_file():
        return {}
    rows = [line.split() for line in file.read_text().splitlines() if line.strip() and not line.startswith("#")]
    try:
        return {room: float(angle) for room, angle in rows}
    except ValueError as error:
        raise ValueError(f"{file}: expected lines `room angle`; {error}. Copy the file again.") from error


@lru_cache(maxsize=2)  # of area 5a and 5b; rooms come sorted by area
def _area_mesh(file: Path) -> Mesh:
    """Vertices (V, 3) in the frame of the clouds and triangles (F, 3)."""
    vertices, faces = read_obj(file)
    move = area_pose(file.parent.parent.name) @ MESH_TO_AREA
    return vertices @ move[:3, :3].T + move[:3, 3], faces


def _joined(meshes: Sequence[Mesh]) -> Mesh:
    first = np.cumsum([0, *(len(vertices) for vertices, _ in meshes[:-1])])
    faces = [faces + start for (_, faces), start in zip(meshes, first, strict=True)]
    return np.concatenate([vertices for vertices, _ in meshes]), np.concatenate(faces)


def _read_instance(file: Path, skip: Skip) -> NDArray[np.float64]:
    """Rows `x y z r g b` of an annotation file: (N, 6). Rows that cannot be read are skipped."""
    data = file.read_bytes()
    try:
        table = np.loadtxt(io.BytesIO(data), ndmin=2)
        if table.shape[1] == 6 and np.isfinite(table).all():
            return table
    except ValueError:
        pass
    rows = list(_readable_rows(data, file, skip))
    return np.array(rows).reshape(-1, 6)


def _readable_rows(data: bytes, file: Path, skip: Skip) -> Iterator[list[float]]:
    """Row by row. A few bytes of the release lost one bit, 0x20 ("0" became 0x10, a blank 0x00): it is put back."""
    for number, line in enumerate(data.split(b"\n"), start=1):
        mended = bytes(byte | 0x20 if byte < 0x20 and byte not in b"\t\r" else byte for byte in line)
        if not mended.strip():
            continue
        where = f"{file.parent.parent.parent.name}/{file.parent.parent.name}/{file.name}:{number}"
        try:
            row = [float(word) for word in mended.split()]
        except ValueError as error:
            skip(where, f"expected six numbers; {error}")
            continue
        if len(row) != 6 or not np.isfinite(row).all():
            skip(where, f"expected six finite numbers; got {mended.decode(errors='replace').strip()!r}")
            continue
        if mended != line:
            logger.warning("%s holds a damaged byte; read as %r", where, mended.decode(errors="replace").strip())
        yield row
