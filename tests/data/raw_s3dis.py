"""A miniature of S3DIS and 2D-3D-S in the genuine format, from the built-in generator."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from data.raw_rooms import RawRoom, png
from numpy.typing import NDArray

from ponder_zoo.data.prepare.table_files import read_table
from ponder_zoo.data.synthetic import sample_surface, triangulate

# What the poses of area 5b are in terms of those of the clouds
TO_FOLDER = {"area_5b": np.array([[0, -1, 0, 6.22617759], [1, 0, 0, 4.09703582], [0, 0, 1, 0], [0, 0, 0, 1]])}
CLASS_OF = {"desk": "table", "bookshelf": "bookcase"}  # others that S3DIS does not have are clutter
# name of the room, folder of its images, turn in degrees, place in the area, number of the generator's room
ROOMS = (
    ("Area_1/office_1", "area_1", 90, (-12.3, 31.4, 0.1), 0),
    ("Area_1/hallway_2", "area_1", 0, (3.0, 20.0, 0.0), 1),
    ("Area_5/office_12", "area_5b", 180, (-2.5, 8.0, -0.2), 2),
)


def write_s3dis(root: Path, *, points: int = 8_000, views: int = 3, size: int = 54) -> Path:
    """Three rooms, the third of them in area 5b; the rooms of Area_1 have a mesh."""
    clouds, images = root / "Stanford3dDataset_v1.2", root / "2d3ds"
    meshes: dict[str, list[tuple[NDArray[Any], NDArray[Any]]]] = {}
    for name, folder, degrees, place, number in ROOMS:
        raw = RawRoom.draw(number, num_views=views, image_size=(size, size))
        to_area = _placed(degrees, place)
        _write_cloud(clouds / name, raw, to_area, points)
        _write_images(images / folder / "data", Path(name).name, raw, to_area, folder)
        if folder == "area_1":
            vertex, face, _ = triangulate(raw.room.primitives, raw.room.plan, edge=0.5)
            meshes.setdefault(folder, []).append((_moved(vertex, to_area), face))
        angles = clouds / Path(name).parent / f"{Path(name).parent.name}_alignmentAngle.txt"
        lines = (
            angles.read_text()
            if angles.exists()
            else "## Global alignment angle per disjoint space ##\n## Name Angle ##\n"
        )
        angles.write_text(f"{lines}{Path(name).name} {degrees}\n")
    for folder, parts in meshes.items():
        _write_mesh(images / folder / "3d" / "rgb.obj", parts)
    (images / "assets").mkdir()
    (images / "assets" / "semantic_labels.json").write_text(json.dumps(_label_names()))
    return root


def s3dis_class(name: str) -> str:
    """The class of S3DIS that stands for one of the generator's."""
    name = CLASS_OF.get(name, name)
    return name if name in read_table("classes")["S3DIS"] else "clutter"


def _placed(degrees: float, place: tuple[float, float, float]) -> NDArray[np.float64]:
    angle = np.radians(degrees)
    pose = np.eye(4)
    pose[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    pose[:3, 3] = place
    return pose


def _moved(points: NDArray[Any], pose: NDArray[Any]) -> NDArray[Any]:
    return points @ pose[:3, :3].T + pose[:3, 3]


def _write_cloud(folder: Path, raw: RawRoom, to_area: NDArray[Any], count: int) -> None:
    """One file per instance, `class_number.txt`; the first clutter is called stairs, which is no class."""
    (folder / "Annotations").mkdir(parents=True)
    rng = np.random.default_rng(0)
    surface = sample_surface(raw.room.primitives, raw.room.plan, count, rng)
    instance = raw.room.primitives.instance[surface.primitive]
    rows = np.column_stack([_moved(surface.coord, to_area), raw.color[instance]])
    numbers: dict[str, int] = {}
    for i in np.unique(instance):
        name = s3dis_class(raw.class_names[surface.primitive[instance == i][0]])
        name = "stairs" if name == "clutter" and "stairs" not in numbers else name
        numbers[name] = numbers.get(name, 0) + 1
        table = rows[instance == i]
        lines = [f"{x:.3f} {y:.3f} {z:.3f} {int(r)} {int(g)} {int(b)}" for x, y, z, r, g, b in table]
        (folder / "Annotations" / f"{name}_{numbers[name]}.txt").write_text("\n".join(lines) + "\n")
    np.savetxt(folder / f"{folder.name}.txt", rows, fmt="%.3f")


def _write_images(folder: Path, room: str, raw: RawRoom, to_area: NDArray[Any], area: str) -> None:
    for kind in ("rgb", "depth", "semantic", "pose"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    images = raw.images
    intrinsics = images.intrinsics[0].astype(float)
    intrinsics[:2, 2] += 0.5  # the corner of the first pixel is at 0
    for v in range(len(images.depth)):
        stem = f"camera_{'0a1b2c3d' * 4}_{room}_frame_{v}_domain_"
        depth = np.round(images.depth[v] * 512)
        depth = np.where(depth > 0, depth, 65535).astype(np.uint16)
        pose = TO_FOLDER.get(area, np.eye(4)) @ to_area @ images.cam_to_world[v]
        world_to_camera = np.linalg.inv(pose)
        index = np.array([_label_index(raw, p) for p in range(len(raw.class_names))] + [0x0D0D0D])[images.primitive[v]]
        semantic = np.stack([index >> 16, index >> 8 & 255, index & 255], axis=-1).astype(np.uint8)
        content = {
            "camera_k_matrix": intrinsics.tolist(),
            "camera_rt_matrix": world_to_camera[:3].tolist(),
            "camera_location": pose[:3, 3].tolist(),
            "room": f"{room}_{area[5]}",
            "frame_num": v,
            "camera_uuid": "0a1b2c3d" * 4,
        }
        (folder / "rgb" / f"{stem}rgb.png").write_bytes(png(images.color[v]))
        (folder / "depth" / f"{stem}depth.png").write_bytes(png(depth))
        (folder / "semantic" / f"{stem}semantic.png").write_bytes(png(semantic))
        (folder / "pose" / f"{stem}pose.json").write_text(json.dumps(content))


def _label_index(raw: RawRoom, primitive: int) -> int:
    first, end = read_table("stanford_2d3ds")["ranges"][s3dis_class(raw.class_names[primitive])]
    return first + int(raw.room.primitives.instance[primitive]) % (end - first)


def _label_names() -> list[str]:
    names = ["<UNK>_0_<UNK>_0_0"]
    for name, (first, end) in sorted(read_table("stanford_2d3ds")["ranges"].items(), key=lambda item: item[1]):
        names += [f"{name}_{number}_office_1_1" for number in range(end - first)]
    return names


def _write_mesh(file: Path, parts: list[tuple[NDArray[Any], NDArray[Any]]]) -> None:
    file.parent.mkdir(parents=True)
    lines, base = ["# a scan", "mtllib rgb.mtl", "vt 0.5 0.5"], 1
    for vertex, face in parts:
        lines += [f"v {x:.4f} {z:.4f} {-y:.4f}" for x, y, z in vertex]
        lines += ["usemtl part"] + [f"f {a + base}/1 {b + base}/1 {c + base}/1" for a, b, c in face]
        base += len(vertex)
    file.write_text("\n".join(lines) + "\n")
