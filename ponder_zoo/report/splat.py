"""Pictures of point clouds without a graphics card: points as small discs with a depth buffer, numpy only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .colors import INVALID

_MAX_RADIUS = 6  # pixels; a point nearer than that would fill the picture


@dataclass(frozen=True, eq=False)
class Camera:
    """One pinhole camera. Axes are OpenCV's (x right, y down, z forward), pixel centres are integers."""

    intrinsics: NDArray[Any]  # (3, 3) pixels
    cam_to_world: NDArray[Any]  # (4, 4) metres
    image_size: tuple[int, int]  # (H, W)

    def resized(self, image_size: tuple[int, int]) -> Camera:
        """The same view at another resolution; the edges of the image stay where they are."""
        scale = np.array([image_size[1] / self.image_size[1], image_size[0] / self.image_size[0]])
        intrinsics = np.array(self.intrinsics, dtype=np.float64)
        intrinsics[:2] *= scale[:, None]
        intrinsics[:2, 2] += 0.5 * scale - 0.5  # pixel edges, not pixel centres, keep their place
        return Camera(intrinsics, self.cam_to_world, image_size)


def splat_points(
    coord: NDArray[Any], color: NDArray[Any], camera: Camera, *, point_size: float = 0.03
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Draw points as discs that hide what is behind them.

    Args:
        coord: (N, 3) metres, in the frame that `camera.cam_to_world` maps to.
        color: (N, 3) in 0-255.
        camera: from where.
        point_size: diameter of a point in metres; at least one pixel is drawn.

    Returns:
        image (H, W, 3) uint8, `INVALID` where no point falls, and z-depth (H, W) in metres, 0 where no point falls.
    """
    height, width = camera.image_size
    image = np.empty((height, width, 3), np.uint8)
    image[:] = INVALID
    depth = np.zeros((height, width), np.float32)
    rows, columns, z, radius, index = _project(np.asarray(coord, dtype=np.float64), camera, point_size)
    patches = []
    for r in range(int(radius.max(initial=0)) + 1):  # a handful of sizes, each drawn for all of its points at once
        of_size = np.flatnonzero(radius == r)
        dy, dx = np.mgrid[-r : r + 1, -r : r + 1].reshape(2, -1)
        inside = dx**2 + dy**2 <= (r + 0.3) ** 2
        y, x = rows[of_size, None] + dy[inside], columns[of_size, None] + dx[inside]
        point = np.broadcast_to(of_size[:, None], y.shape)
        seen = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        patches.append((y[seen] * width + x[seen], point[seen]))
    pixel = np.concatenate([patch[0] for patch in patches])
    point = np.concatenate([patch[1] for patch in patches])
    # Far to near; numpy keeps the last of several writes to one place. Stable, so equal depths do not flicker.
    order = np.argsort(-z[point], kind="stable")
    pixel, point = pixel[order], point[order]
    image.reshape(-1, 3)[pixel] = np.asarray(color)[index[point]].clip(0, 255).astype(np.uint8)
    depth.reshape(-1)[pixel] = z[point]
    return image, depth


def _project(coord: NDArray[Any], camera: Camera, point_size: float) -> tuple[NDArray[Any], ...]:
    """Pixel row and column, z-depth and radius in pixels of the points in front of the camera, and which they are."""
    world_to_cam = np.linalg.inv(np.asarray(camera.cam_to_world, dtype=np.float64))
    local = coord @ world_to_cam[:3, :3].T + world_to_cam[:3, 3]
    index = np.flatnonzero(np.isfinite(local).all(-1) & (local[:, 2] > 0.05))
    z = local[index, 2]
    uv = (local[index] / z[:, None]) @ np.asarray(camera.intrinsics, dtype=np.float64)[:2].T  # (n, 2)
    radius = np.round(0.5 * (camera.intrinsics[0, 0] * point_size / z - 1.0)).clip(0, _MAX_RADIUS).astype(np.int64)
    height, width = camera.image_size
    near = ((uv > -_MAX_RADIUS) & (uv < np.array([width, height]) + _MAX_RADIUS)).all(-1)
    columns, rows = np.round(uv[near]).astype(np.int64).T
    return rows, columns, z[near], radius[near], index[near]


def orbit_cameras(
    coord: NDArray[Any], *, count: int = 2, image_size: tuple[int, int], elevation: float = 40.0, azimuth: float = 35.0
) -> list[Camera]:
    """Cameras around a cloud (N, 3), z up, that fill their image with it.

    Args:
        coord: the cloud, metres.
        count: cameras, at equal angles.
        image_size: (H, W) pixels.
        elevation: degrees above the horizon.
        azimuth: degrees of the first camera from the x axis.
    """
    points = np.asarray(coord, dtype=np.float64)
    points = points[np.isfinite(points).all(-1)][:: max(1, len(points) // 20_000)]
    if len(points) == 0:
        points = np.zeros((1, 3))
    height, width = image_size
    cameras = []
    for turn in range(count):
        around, up = np.deg2rad(azimuth + 360.0 * turn / count), np.deg2rad(elevation)
        backward = np.array([np.cos(around) * np.cos(up), np.sin(around) * np.cos(up), np.sin(up)])
        right = np.array([-np.sin(around), np.cos(around), 0.0])
        rotation = np.stack([right, np.cross(right, backward), -backward], -1)  # columns: right, down, forward
        local = points @ rotation
        low, high = np.quantile(local, [0.002, 0.998], axis=0)  # a few stray points do not make the rest small
        centre, size = 0.5 * (low + high), max(float(np.linalg.norm(high - low)), 1e-3)
        local = local - centre + [0.0, 0.0, 1.6 * size]
        seen = local[local[:, 2] > 0.1 * size, :2] / local[local[:, 2] > 0.1 * size, 2:]
        low, high = np.quantile(seen, [0.002, 0.998], axis=0)
        focal = 0.93 * float((np.array([width, height]) / np.maximum(high - low, 1e-3)).min())
        middle = np.array([(width - 1) / 2, (height - 1) / 2]) - focal * 0.5 * (low + high)
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = rotation, rotation @ (centre - [0.0, 0.0, 1.6 * size])
        intrinsics = np.array([[focal, 0.0, middle[0]], [0.0, focal, middle[1]], [0.0, 0.0, 1.0]])
        cameras.append(Camera(intrinsics, pose, image_size))
    return cameras
