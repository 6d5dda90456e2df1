"""A miniature of Structured3D in the genuine format, from the built-in generator."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from data.raw_rooms import RawRoom, png
from numpy.typing import NDArray
from PIL import Image

# NYU40 ids of the generator's classes, some of which are none of the 25
NYU40 = {
    **{"wall": 1, "floor": 2, "cabinet": 3, "bed": 4, "chair": 5, "sofa": 6, "table": 7, "door": 8, "window": 9},
    **{"bookshelf": 10, "picture": 11, "counter": 12, "desk": 14, "curtain": 16, "ceiling": 22, "refrigerator": 24},
    **{"shower curtain": 28, "toilet": 33, "sink": 34, "bathtub": 36, "beam": 38, "column": 38, "otherfurniture": 39},
    "otherprop": 40,
}
ROOMS = (("scene_00000", "485142", 0), ("scene_03100", "17", 1), ("scene_03400", "2053", 2))  # train, val, test


def write_structured3d(root: Path, *, views: int = 3, size: tuple[int, int] = (54, 96)) -> Path:
    """Three rooms of three scenes, one of each split, with a panorama and perspective images."""
    for scene, room, number in ROOMS:
        raw = RawRoom.draw(number, num_views=views, image_size=size)
        folder = root / "Structured3D" / scene / "2D_rendering" / room
        for v in range(views):
            _write_perspective(folder / "perspective" / "full" / str(v), raw, v)
        _write_panorama(folder / "panorama", raw, height=2 * size[0])
    return root


def zip_structured3d(folder: Path, root: Path) -> Path:
    """The same as archives: panoramas in one, perspective images in another."""
    root.mkdir(parents=True)
    for kind, name in (
        ("panorama", "Structured3D_panorama_00.zip"),
        ("perspective", "Structured3D_perspective_full_00.zip"),
    ):
        with zipfile.ZipFile(root / name, "w") as archive:
            for file in sorted(folder.rglob("*")):
                if file.is_file() and kind in file.parts:
                    archive.write(file, file.relative_to(folder).as_posix())
    return root


def _write_perspective(folder: Path, raw: RawRoom, view: int) -> None:
    images = raw.images
    H, W = images.depth.shape[1:]
    pose, k = images.cam_to_world[view].astype(float), images.intrinsics[view].astype(float)
    half = np.arctan([W / 2 / k[0, 0], H / 2 / k[1, 1]])
    camera = [*(1000 * pose[:3, 3]), *pose[:3, 2], *-pose[:3, 1], *half, 1]
    depth = np.round(1000 * images.depth[view]).astype(np.uint16)
    _write(folder, images.color[view], depth, _ids(raw, images.primitive[view]))
    (folder / "camera_pose.txt").write_text(" ".join(f"{value:.6f}" for value in camera))


def _write_panorama(folder: Path, raw: RawRoom, *, height: int) -> None:
    position = np.median(raw.images.cam_to_world[:, :3, 3].astype(float), axis=0)
    v, u = np.mgrid[:height, : 2 * height] + 0.5
    u, v = (u / (2 * height) - 0.5) * 2 * np.pi, (0.5 - v / height) * np.pi
    ray = np.stack(
        [np.cos(v) * np.sin(u), np.cos(v) * np.cos(u), np.sin(v)], axis=-1
    )  # +y in the middle, x to the right
    distance, hit = raw.trace(position, ray)
    depth = np.round(1000 * np.where(np.isfinite(distance), distance, 0)).astype(np.uint16)
    color = raw.color[raw.room.primitives.instance[hit]]
    rgba = np.concatenate([color, np.full((*color.shape[:2], 1), 255, np.uint8)], axis=-1)
    _write(folder / "full", rgba, depth, _ids(raw, hit))
    (folder / "camera_xyz.txt").write_text(" ".join(f"{value:.3f}" for value in 1000 * position))


def _write(folder: Path, color: NDArray[Any], depth: NDArray[Any], ids: NDArray[Any]) -> None:
    folder.mkdir(parents=True)
    (folder / "rgb_rawlight.png").write_bytes(png(color))
    (folder / "depth.png").write_bytes(png(depth))
    labels = Image.fromarray(ids)
    labels.putpalette(np.random.default_rng(0).integers(0, 256, 768).astype(np.uint8).tobytes())  # pixels stay the ids
    labels.save(folder / "semantic.png")


def _ids(raw: RawRoom, primitive: NDArray[Any]) -> NDArray[np.uint8]:
    return np.array([*(NYU40[name] for name in raw.class_names), 0], np.uint8)[primitive]
