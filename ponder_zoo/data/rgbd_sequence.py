"""One folder of posed RGB-D frames: what is in it, and each frame decoded once, at the size it is used.

Layout (7-Scenes and alike): `frame-N.color.jpg|png` (8 bit), `frame-N.depth.png` (16 bit), `frame-N.pose.txt` (4x4),
`camera-intrinsics.txt` (3x3, of the depth image), and optionally `meta.json` with `depth_scale` (raw units per metre),
`invalid` (raw codes that mean "no depth"), `width`, `height`, `pose` ("camera_to_world" | "world_to_camera").
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .files import image_size, read_color, read_depth, read_matrix
from .scene import Views
from .unproject import view_normals

logger = logging.getLogger(__name__)

FRAME = re.compile(r"frame-(\d+)\.color\.(jpg|jpeg|png)$")
INTRINSICS_FILES = ("camera-intrinsics.txt", "intrinsics.txt", "intrinsic_depth.txt")
LAYOUT = (
    "frame-000000.color.jpg (or .png), frame-000000.depth.png (16 bit), frame-000000.pose.txt (4x4 camera-to-world, "
    "metres), ..., and camera-intrinsics.txt (3x3)"
)
CACHE_VERSION = 1


@dataclass(frozen=True)
class RGBDOptions:
    """How to read a sequence. None: what `meta.json` says, or else the default named here."""

    image_size: tuple[int, int] | None = (120, 160)  # (H, W) to resize to; None: as stored
    depth_scale: float | None = None  # raw units per metre; default 1000
    invalid: tuple[int, ...] | None = None  # raw codes without depth; default 0 and 65535
    max_depth: float = 10.0  # metres; deeper readings count as missing
    pose: Literal["camera_to_world", "world_to_camera"] | None = None  # default camera_to_world
    axes: Literal["opencv", "opengl"] = "opencv"  # opengl: y up and z backward in the camera
    intrinsics: tuple[float, float, float, float] | None = None  # fx, fy, cx, cy of the stored depth; default: the file
    up: Literal["estimate", "keep"] | tuple[float, float, float] = "estimate"  # direction of the world to turn to +z
    missing: Literal["error", "skip"] = "error"  # frames without depth file or pose
    min_valid: float = 0.01  # share of pixels with depth that a frame needs to be used
    cache_dir: str | None = None  # keep the reduced frames here; they are kept in memory in any case


@dataclass(frozen=True, eq=False)
class Frame:
    """A frame at its working size."""

    color: NDArray[np.uint8]  # (H, W, 3)
    depth: NDArray[np.float32]  # (H, W) z-depth in metres, 0 = none
    normal: NDArray[np.float16]  # (H, W, 3) camera axes, towards the camera; zero = unknown

    @property
    def valid_fraction(self) -> float:
        return float((self.depth > 0).mean())


class RGBDSequence:
    """The frames of one folder. Construction lists the folder; files are read when asked for.

    Example:
        sequence = RGBDSequence("7scenes_redkitchen")
        views = sequence.views([0, 4, 8])  # Views with (3, 120, 160) images, world z up
    """

    def __init__(self, path: str | Path, options: RGBDOptions | None = None) -> None:
        self.path = Path(path)
        self.options = options or RGBDOptions()
        self.frame_ids, self._color_files = self._list()
        self._frames: dict[int, Frame] = {}
        self._reported: set[int] = set()

    @property
    def name(self) -> str:
        return self.path.name

    def __len__(self) -> int:
        return len(self.frame_ids)

    # ---- what is there

    def _list(self) -> tuple[list[str], list[str]]:
        names = set(os.listdir(self.path)) if self.path.is_dir() else set()
        found = sorted((int(m[1]), m[1], name) for name in names if (m := FRAME.match(name)))
        if not found:
            raise ValueError(f"{self.path}: expected posed RGB-D frames ({LAYOUT}); found no frame-*.color.jpg|png.")
        lacking = {
            number: [kind for kind in ("depth.png", "pose.txt") if f"frame-{number}.{kind}" not in names]
            for _, number, _ in found
        }
        lacking = {number: kinds for number, kinds in lacking.items() if kinds}
        if lacking:
            number, kinds = next(iter(lacking.items()))
            text = f"{self.path}: {len(lacking)} of {len(found)} frames lack files"
            text += f" (first: frame-{number} has no {kinds[0]})."
            if self.options.missing == "error" or len(lacking) == len(found):
                raise ValueError(f"{text} Expected {LAYOUT}. Add the files, or pass missing='skip' to leave them out.")
            logger.warning("%s They are left out.", text)
        kept = [(number, name) for _, number, name in found if number not in lacking]
        return [number for number, _ in kept], [name for _, name in kept]

    @cached_property
    def meta(self) -> dict[str, Any]:
        file = self.path / "meta.json"
        if not file.is_file():
            return {}
        try:
            return json.loads(file.read_text())
        except ValueError as error:
            raise ValueError(f"{file}: expected JSON; {error}. Correct or remove the file.") from error

    @property
    def depth_scale(self) -> float:
        scale = self.options.depth_scale or self.meta.get("depth_scale", 1000.0)
        if not scale > 0:
            raise ValueError(f"{self.path}: expected a positive depth_scale (raw units per metre); got {scale!r}.")
        return float(scale)

    @property
    def invalid(self) -> tuple[int, ...]:
        codes = self.options.invalid if self.options.invalid is not None else self.meta.get("invalid", (0, 65535))
        return tuple(codes)

    @property
    def pose_convention(self) -> str:
        return self.options.pose or self.meta.get("pose", "camera_to_world")

    @cached_property
    def intrinsics(self) -> NDArray[np.float64]:
        """(3, 3) pixels, of the stored depth images."""
        if self.options.intrinsics is not None:
            fx, fy, cx, cy = self.options.intrinsics
            return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]])
        file = next((self.path / name for name in INTRINSICS_FILES if (self.path / name).is_file()), None)
        if file is None:
            raise ValueError(
                f"{self.path}: expected one of {', '.join(INTRINSICS_FILES)}; found none. "
                "Add one (3x3), or pass intrinsics=(fx, fy, cx, cy)."
            )
        matrix = read_matrix(file)
        if matrix.shape not in ((3, 3), (4, 4), (3, 4)):
            raise ValueError(f"{file}: expected a 3x3 matrix; got shape {matrix.shape}.")
        matrix = matrix[:3, :3]
        if matrix[0, 0] == 0 or matrix[1, 1] == 0 or not np.allclose(matrix[2], [0, 0, 1]) or matrix[1, 0] != 0:
            raise ValueError(
                f"{file}: expected [[fx, s, cx], [0, fy, cy], [0, 0, 1]] with focal lengths other than zero; "
                f"got {matrix.tolist()}."
            )
        return matrix

    @cached_property
    def stored_poses(self) -> NDArray[np.float64]:
        """(F, 4, 4) camera-to-world in the folder's own world, OpenCV axes, rotations made orthonormal."""
        poses: NDArray[Any] = np.stack([self._read_pose(number) for number in self.frame_ids])
        if self.pose_convention == "world_to_camera":
            poses = np.linalg.inv(poses)
        elif self.pose_convention != "camera_to_world":
            raise ValueError(
                f"{self.path}: expected pose 'camera_to_world' or 'world_to_camera'; got {self.pose_convention!r}."
            )
        u, _, vt = np.linalg.svd(poses[:, :3, :3])  # rounding to a few digits leaves errors of 4e-4 in 7-Scenes
        poses[:, :3, :3] = u @ vt
        if self.options.axes == "opengl":
            poses = poses @ np.diag([1.0, -1.0, -1.0, 1.0])
        return poses

    def _read_pose(self, number: str) -> NDArray[np.float64]:
        file = self.path / f"frame-{number}.pose.txt"
        pose = read_matrix(file)
        if pose.shape != (4, 4) or not np.isfinite(pose).all():
            raise ValueError(
                f"{file}: expected a finite 4x4 pose; got shape {pose.shape} with {int((~np.isfinite(pose)).sum())} "
                "values that are NaN or infinite (tracking was lost there?). Remove this frame's files."
            )
        stretch = np.linalg.svd(pose[:3, :3], compute_uv=False)
        if np.abs(stretch - 1).max() > 0.02 or np.linalg.det(pose[:3, :3]) < 0:
            raise ValueError(
                f"{file}: expected a rotation in the upper left 3x3; its singular values are {stretch.round(3)} and "
                f"its determinant is {np.linalg.det(pose[:3, :3]):.3f}. Convert the poses to right-handed ones in "
                "metres, without scale."
            )
        return pose

    @cached_property
    def world_rotation(self) -> NDArray[np.float64]:
        """(3, 3) rotation from the folder's world to one with z up."""
        up = self.options.up
        if up == "keep":
            return np.eye(3)
        return rotation_to_z(self.estimate_up() if up == "estimate" else np.asarray(up, dtype=np.float64))

    @cached_property
    def poses(self) -> NDArray[np.float64]:
        """(F, 4, 4) camera-to-world, world z up (see `RGBDOptions.up`)."""
        poses = self.stored_poses.copy()
        poses[:, :3] = self.world_rotation @ poses[:, :3]
        return poses

    def estimate_up(self, num_frames: int = 8) -> NDArray[np.float64]:
        """Find the vertical of the folder's world from the frames: unit vector (3,).

        People hold cameras upright, so the mean of the images' upward directions is near the vertical; floors, tables
        and ceilings, whose normals gather about the true one, then correct it. A world axis within 3 degrees is taken.
        """
        down = np.sign(self.intrinsics[1, 1])  # fy < 0: the camera's y axis points up
        mean = -down * self.stored_poses[:, :3, 1].mean(0)
        up = mean / max(float(np.linalg.norm(mean)), 1e-9)
        normals = []
        for index in np.unique(np.linspace(0, len(self) - 1, num_frames).astype(int)):
            normal = self.frame(index).normal[::2, ::2].reshape(-1, 3).astype(np.float64)
            normals.append(normal[normal.any(1)] @ self.stored_poses[index, :3, :3].T)
        normal = np.concatenate(normals)
        for degrees in (40, 30, 20, 12, 8, 5, 5):
            cosine = normal @ up
            near = np.abs(cosine) > np.cos(np.radians(degrees))
            if near.sum() < 50:
                break
            total = (normal[near] * np.sign(cosine[near])[:, None]).sum(0)
            up = total / np.linalg.norm(total)
        axis = np.eye(3)[np.abs(up).argmax()] * np.sign(up[np.abs(up).argmax()])
        return axis if axis @ up > np.cos(np.radians(3)) else up

    # ---- frames

    def frame(self, index: int) -> Frame:
        """Frame number `index` of the list, from memory, the cache folder or the files."""
        index = int(index)
        if index not in self._frames:
            self._frames[index] = self._cached(index)
        return self._frames[index]

    def is_usable(self, index: int) -> bool:
        """Whether the frame has enough depth; says so once in the log where it has not."""
        fraction = self.frame(index).valid_fraction
        if fraction >= self.options.min_valid:
            return True
        if index not in self._reported:
            self._reported.add(index)
            logger.warning(
                "%s: frame-%s is left out: %.2f %% of its pixels have a valid depth (at least %.2f %% needed).",
                self.path, self.frame_ids[index], 100 * fraction, 100 * self.options.min_valid,
            )  # fmt: skip
        return False

    def views(self, indices: list[int] | NDArray[np.integer]) -> Views:
        """Put frames together: world z up, normals in the world frame."""
        frames = [self.frame(index) for index in indices]
        poses = self.poses[np.asarray(indices, dtype=int)]
        rotation = poses[:, None, :3, :3].swapaxes(-1, -2).astype(np.float32)
        k = self.resized_intrinsics(frames[0].depth.shape).astype(np.float32)
        return Views(
            color=np.stack([frame.color for frame in frames]),
            depth=np.stack([frame.depth for frame in frames]),
            intrinsics=np.repeat(k[None], len(frames), 0),
            cam_to_world=poses.astype(np.float32),
            normal=np.stack([frame.normal for frame in frames]).astype(np.float32) @ rotation,
        )

    @cached_property
    def stored_size(self) -> tuple[int, int]:
        """(H, W) of the stored depth images, from the first of them."""
        return image_size(self.path / f"frame-{self.frame_ids[0]}.depth.png")

    def resized_intrinsics(self, size: tuple[int, ...]) -> NDArray[np.float64]:
        """Intrinsics of images resized to (H, W): pixel centres are integers, so u + 1/2 scales, not u."""
        scale_v, scale_u = size[0] / self.stored_size[0], size[1] / self.stored_size[1]
        k = self.intrinsics.copy()
        k[0] *= scale_u
        k[1] *= scale_v
        k[0, 2] += 0.5 * (scale_u - 1)
        k[1, 2] += 0.5 * (scale_v - 1)
        return k

    def _cached(self, index: int) -> Frame:
        if self.options.cache_dir is None:
            return self._decode(index)
        file = self._cache_folder / f"{self.frame_ids[index]}.npz"
        if file.is_file():
            with np.load(file) as arrays:
                return Frame(arrays["color"], arrays["depth"], arrays["normal"])
        frame = self._decode(index)
        file.parent.mkdir(parents=True, exist_ok=True)
        aside = file.with_suffix(f".{os.getpid()}.tmp")
        with open(aside, "wb") as stream:
            np.savez(stream, color=frame.color, depth=frame.depth, normal=frame.normal)
        os.replace(aside, file)  # a reader sees a whole file or none
        return frame

    @cached_property
    def _cache_folder(self) -> Path:
        stamp = [os.stat(self.path / name).st_mtime_ns for name in self._color_files]
        key = (
            CACHE_VERSION, str(self.path.resolve()), stamp, self.options.image_size, self.options.max_depth,
            self.depth_scale, self.invalid, self.intrinsics.tolist(),
        )  # fmt: skip
        assert self.options.cache_dir is not None
        return Path(self.options.cache_dir) / f"{self.name}-{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}"

    def _decode(self, index: int) -> Frame:
        raw = self.read_raw_depth(index)
        size = self.options.image_size or raw.shape
        color_file = self.path / self._color_files[index]
        height, width = image_size(color_file)
        if abs(width / height / (raw.shape[1] / raw.shape[0]) - 1) > 0.02:
            raise ValueError(
                f"{color_file}: colour is {width}x{height} and depth {raw.shape[1]}x{raw.shape[0]}: images of "
                "different shape cannot be registered by scaling. "
                "Expected colour rendered into (or cropped to) the depth image."
            )
        rows, columns = (((np.arange(n) + 0.5) * full / n).astype(int) for n, full in zip(size, raw.shape, strict=True))
        raw = raw[np.ix_(rows, columns)]  # nearest: averaging depths invents surfaces
        depth = (raw / self.depth_scale).astype(np.float32)
        depth[np.isin(raw, self.invalid) | (depth > self.options.max_depth)] = 0.0
        color = read_color(color_file, size)
        k = self.resized_intrinsics(size)[None].astype(np.float32)
        normal = view_normals(Views(color[None], depth[None], k, np.eye(4, dtype=np.float32)[None]))[0]
        return Frame(color, depth, normal.astype(np.float16))

    def read_raw_depth(self, index: int) -> NDArray[np.integer]:
        """The stored depth image, (H, W) integers."""
        file = self.path / f"frame-{self.frame_ids[index]}.depth.png"
        raw = read_depth(file)
        expected = (self.meta.get("height", self.stored_size[0]), self.meta.get("width", self.stored_size[1]))
        if raw.shape != expected:
            raise ValueError(
                f"{file}: expected {expected[1]}x{expected[0]} pixels (by meta.json or the first frame), for which the "
                f"intrinsics hold; got {raw.shape[1]}x{raw.shape[0]}. Put frames of another size in their own folder."
            )
        return raw


def rotation_to_z(up: NDArray[np.float64]) -> NDArray[np.float64]:
    """Smallest rotation that turns `up` (3,) to +z: (3, 3)."""
    up = up / np.linalg.norm(up)
    axis = np.cross(up, [0.0, 0.0, 1.0])
    if np.linalg.norm(axis) < 1e-9:
        return np.eye(3) if up[2] > 0 else np.diag([1.0, -1.0, -1.0])
    cross = np.cross(np.eye(3), axis)
    return np.eye(3) + cross + cross @ cross / (1 + up[2])
