"""A miniature of ScanNet v2 in the genuine format, from the built-in generator."""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ponder_zoo.data.synthetic import CLASSES, Room, SyntheticRooms, triangulate
from ponder_zoo.data.synthetic.rendering import Recording

OPTIONS = {"frame_start": 0, "frame_end": 0, "frame_step": 1}  # the recordings have a few frames only
# Name in the official lists, number of the generator's room
SCENES = {
    "scans/scene0191_00": 0,
    "scans/scene0191_01": 1,
    "scans/scene0568_00": 2,
    "scans_test/scene0707_00": 3,
}
# Raw category -> id and nyu40 id in scannetv2-labels.combined.tsv
CATEGORIES = {
    **{"wall": (1, 1), "floor": (3, 2), "cabinet": (7, 3), "bed": (11, 4), "chair": (2, 5), "couch": (6, 6)},
    **{"table": (4, 7), "door": (5, 8), "window": (16, 9), "bookshelf": (18, 10), "picture": (15, 11)},
    **{"counter": (35, 12), "desk": (9, 14), "curtain": (21, 16), "refrigerator": (27, 24), "toilet": (17, 33)},
    **{"shower curtain": (55, 28), "sink": (14, 34), "bathtub": (42, 36), "trash can": (56, 39)},
    **{"ceiling": (41, 22), "object": (1163, 40)},
}
RAW_NAME = {"sofa": "couch", "otherfurniture": "trash can"}  # of the generator's classes that have another raw name
COLUMNS = (
    "id raw_category category count nyu40id eigen13id nyuClass nyu40class eigen13class ModelNet40 ModelNet10 "
    "ShapeNetCore55 synsetoffset wnsynsetid wnsynsetkey mpcat40 mpcat40index"
)


def write_scannet(root: Path, *, views: int = 4, image_size: tuple[int, int] = (24, 32)) -> Path:
    """Two training scenes of one room, a validation scene, and a test scene without labels."""
    root.mkdir(parents=True, exist_ok=True)
    write_label_table(root / "scannetv2-labels.combined.tsv")
    rooms = SyntheticRooms(num_scenes=len(SCENES), num_views=views, image_size=image_size, sensor="off")
    for path, number in SCENES.items():
        folder = root / path
        folder.mkdir(parents=True)
        room, recording = rooms.room(number), rooms.recording(number)
        labels = raw_categories(room)
        write_mesh_and_labels(folder, room, labels, labelled="scans_test" not in path)
        color, depth, pose = recording.color, recording.depth, recording.cam_to_world
        write_sens(folder / f"{folder.name}.sens", color, depth, recording.intrinsics[0], pose)
        if "scans_test" not in path:
            write_label_images(folder / f"{folder.name}_2d-label-filt.zip", recording, labels)
    return root


def raw_categories(room: Room) -> list[str]:
    """Raw category of each instance of a room; a category that ScanNet-20 lacks stands for all it ignores."""
    names = []
    for instance in room.instances:
        name = CLASSES[instance.segment] if instance.segment >= 0 else "object"
        names.append("ceiling" if instance.name == "ceiling" else RAW_NAME.get(name, name))
    return names


def write_label_table(file: Path) -> None:
    columns = COLUMNS.split()
    lines = ["\t".join(columns)]
    for name, (number, nyu40) in CATEGORIES.items():
        row = {"id": str(number), "raw_category": name, "category": name, "nyu40id": str(nyu40), "count": "10"}
        lines.append("\t".join(row.get(column, "") for column in columns))
    file.write_text("\n".join(lines) + "\n")


def write_mesh_and_labels(folder: Path, room: Room, labels: Sequence[str], *, labelled: bool) -> None:
    """Vertices with alpha as in the download; segments are halves of primitives, with numbers far apart."""
    vertex, face, primitive = triangulate(room.primitives, room.plan, edge=0.2)
    owner = np.zeros(len(vertex), dtype=np.int64)  # primitive of each vertex; no two share one
    owner[face] = primitive[:, None]
    instance = np.asarray(room.primitives.instance)[owner]
    color = np.random.default_rng(0).integers(0, 256, (len(labels), 3))[instance]
    write_ply(folder / f"{folder.name}_vh_clean_2.ply", vertex, color, face)
    if not labelled:
        return
    segment = 14 * owner + 7 * (vertex[:, 2] > 1.0) + 5
    content = {"params": {"kThresh": "0.01"}, "sceneId": folder.name, "segIndices": segment.tolist()}
    (folder / f"{folder.name}_vh_clean_2.0.010000.segs.json").write_text(json.dumps(content))
    groups = [
        {"id": i, "objectId": i, "segments": np.unique(segment[instance == i]).tolist(), "label": label}
        for i, label in enumerate(labels)
    ]
    content = {"sceneId": folder.name, "appId": "Aggregator.v2", "segGroups": groups, "segmentsFile": "segs.json"}
    (folder / f"{folder.name}.aggregation.json").write_text(json.dumps(content))


def write_ply(file: Path, vertex: NDArray[Any], color: NDArray[Any], face: NDArray[Any]) -> None:
    head = f"ply\nformat binary_little_endian 1.0\ncomment VCGLIB generated\nelement vertex {len(vertex)}\n"
    head += "".join(f"property float {axis}\n" for axis in "xyz")
    head += "".join(f"property uchar {channel}\n" for channel in ("red", "green", "blue", "alpha"))
    head += f"element face {len(face)}\nproperty list uchar int vertex_indices\nend_header\n"
    rows = np.zeros(len(vertex), dtype=[("xyz", "<f4", 3), ("rgba", "u1", 4)])
    rows["xyz"], rows["rgba"][:, :3], rows["rgba"][:, 3] = vertex, color, 255
    corners = np.zeros(len(face), dtype=[("n", "u1"), ("i", "<i4", 3)])
    corners["n"], corners["i"] = 3, face
    file.write_bytes(head.encode() + rows.tobytes() + corners.tobytes())


def write_sens(
    file: Path,
    color: NDArray[np.uint8],
    depth: NDArray[np.floating],
    intrinsics: NDArray[Any],
    cam_to_world: NDArray[Any],
    *,
    depth_compression: int = 1,
    quality: int = 95,
) -> list[int]:
    """A recording of V frames; colours get twice the size, as ScanNet's have. Returns the offset of each frame.

    Args:
        file: to write.
        color: (V, H, W, 3).
        depth: (V, H, W) metres.
        intrinsics: (3, 3) of the depth images.
        cam_to_world: (V, 4, 4).
        depth_compression: 0 raw, 1 zlib.
        quality: of the JPEG images.
    """
    H, W = depth.shape[1:]
    k_depth, k_color = np.eye(4), np.eye(4)
    k_depth[:3, :3] = intrinsics
    k_color[:3, :3] = [[2, 0, 0.5], [0, 2, 0.5], [0, 0, 1]] @ intrinsics
    out = struct.pack("<IQ", 4, 12) + b"StructureSen"
    for matrix in (k_color, np.eye(4), k_depth, np.eye(4)):
        out += matrix.astype("<f4").tobytes()
    out += struct.pack("<2i4IfQ", 2, depth_compression, 2 * W, 2 * H, W, H, 1000.0, len(color))
    starts = []
    for v in range(len(color)):
        image, units = io.BytesIO(), np.rint(depth[v] * 1000).astype("<u2").tobytes()
        Image.fromarray(np.kron(color[v], np.ones((2, 2, 1), np.uint8))).save(image, "JPEG", quality=quality)
        units = zlib.compress(units) if depth_compression == 1 else units
        starts.append(len(out))
        out += cam_to_world[v].astype("<f4").tobytes()
        out += struct.pack("<4Q", 1000 * v, 1000 * v, len(image.getvalue()), len(units)) + image.getvalue() + units
    file.write_bytes(out + struct.pack("<Q", 0))  # no IMU data
    return starts


def write_label_images(file: Path, recording: Recording, labels: Sequence[str]) -> None:
    """Raw ids at the size of the colour images, 16-bit."""
    ids = np.array([CATEGORIES[label][0] for label in labels] + [0], dtype=np.uint16)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("label-filt/", "")
        for v, primitive in enumerate(recording.primitive):
            instance = np.where(primitive >= 0, recording.instance_of[primitive], -1)
            image = io.BytesIO()
            Image.fromarray(np.kron(ids[instance], np.ones((2, 2), np.uint16))).save(image, "PNG")
            archive.writestr(f"label-filt/{v}.png", image.getvalue())
