"""From depth images to points with colours, normals and labels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .scene import Scene, Views


def pixel_directions(intrinsics: NDArray[Any], height: int, width: int) -> NDArray[np.float32]:
    """Point at z = 1 seen by each pixel, in camera axes: (V, 3, 3) -> (V, H, W, 3)."""
    k = intrinsics.astype(np.float64)[:, None, None]  # (V, 1, 1, 3, 3)
    v, u = np.ogrid[:height, :width]
    y = (v - k[..., 1, 2]) / k[..., 1, 1]  # (V, H, 1)
    out = np.ones((len(k), height, width, 3), dtype=np.float32)
    out[..., 0] = (u - k[..., 0, 2] - k[..., 0, 1] * y) / k[..., 0, 0]
    out[..., 1] = y
    return out


def view_points(views: Views) -> NDArray[np.float32]:
    """World position of every pixel: (V, H, W, 3) metres. Pixels without depth give the camera's position."""
    points = pixel_directions(views.intrinsics, *views.depth.shape[1:])
    for image, depth, pose in zip(points, views.depth, views.cam_to_world, strict=True):  # one fits the cache
        image *= depth[..., None]
        image[...] = image @ pose[:3, :3].T + pose[:3, 3]
    return points


def view_normals(views: Views, *, radius: int = 2, edge: float = 0.05) -> NDArray[np.float32]:
    """Estimate the surface normal of every pixel from the depth images, world frame, towards the camera.

    A plane is linear in inverse depth over the image: n . ray = 1 / z. So each window of (2 radius + 1)**2 pixels gets
    a least-squares fit of 1 / z, which suits sensors that measure disparity. Neighbours whose depth differs by
    more than `edge` (relative) lie on another surface and are left out.

    Args:
        views: V posed depth images.
        radius: half the window, pixels.
        edge: largest relative difference of depth within a window.

    Returns:
        (V, H, W, 3) float32 unit normals; zero where depth is missing or the window holds too few pixels to tell.
    """
    depth = views.depth.astype(np.float32)  # (V, H, W)
    level, du, dv = fit_inverse_depth(depth, radius, edge)
    k = views.intrinsics[:, None, None].astype(np.float32)  # (V, 1, 1, 3, 3)
    ray = pixel_directions(views.intrinsics, *depth.shape[1:])
    # 1 / z = n . ray; ray = K^-1 (u, v, 1) changes by (1 / fx, 0, 0) per column and (-s / (fx fy), 1 / fy, 0) per row
    nx = du * k[..., 0, 0]
    ny = dv * k[..., 1, 1] + nx * k[..., 0, 1] / k[..., 0, 0]
    nz = level - nx * ray[..., 0] - ny * ray[..., 1]
    normal = -np.stack([nx, ny, nz], axis=-1)  # n . ray > 0 points away from the camera
    length = np.linalg.norm(normal, axis=-1, keepdims=True)
    normal = np.divide(normal, length, out=np.zeros_like(normal), where=length > 0)
    return (normal @ views.cam_to_world[:, None, :3, :3].swapaxes(-1, -2)).astype(np.float32)


def fit_inverse_depth(depth: NDArray[np.float32], radius: int, edge: float) -> tuple[NDArray[Any], ...]:
    """Fit 1 / z = level + du * column + dv * row around each pixel: three (V, H, W), all zero where impossible."""
    H, W = depth.shape[1:]
    valid = depth > 0
    inverse = np.divide(1.0, depth, out=np.zeros_like(depth), where=valid)
    pad = ((0, 0), (radius, radius), (radius, radius))
    padded_depth, padded_inverse = np.pad(depth, pad), np.pad(inverse, pad)
    tolerance = edge * depth
    s = {name: np.zeros_like(depth) for name in ("1", "u", "v", "uu", "uv", "vv", "d", "ud", "vd")}
    for v in range(-radius, radius + 1):
        for u in range(-radius, radius + 1):
            window = (slice(None), slice(radius + v, radius + v + H), slice(radius + u, radius + u + W))
            near = padded_depth[window]
            weight = (valid & (near > 0) & (np.abs(near - depth) <= tolerance)).astype(np.float32)
            value = weight * (padded_inverse[window] - inverse)  # relative to the middle: no cancellation
            for name, term in (("1", weight), ("d", value)):
                s[name] += term
            for name, factor in (("u", u), ("v", v), ("uu", u * u), ("uv", u * v), ("vv", v * v)):
                if factor:
                    s[name] += factor * weight
            if u:
                s["ud"] += u * value
            if v:
                s["vd"] += v * value
    # normal equations, centred: [cuu cuv; cuv cvv] [du dv] = [cud cvd]
    count = np.maximum(s["1"], 1)
    cuu, cvv = s["uu"] - s["u"] ** 2 / count, s["vv"] - s["v"] ** 2 / count
    cuv = s["uv"] - s["u"] * s["v"] / count
    cud, cvd = s["ud"] - s["u"] * s["d"] / count, s["vd"] - s["v"] * s["d"] / count
    determinant = cuu * cvv - cuv**2
    solvable = (s["1"] >= 4) & (determinant > 0.5)  # pixel**4; fewer pixels, or all in a row, fix no plane
    scale = np.divide(1.0, determinant, out=np.zeros_like(depth), where=solvable)
    du, dv = (cud * cvv - cvd * cuv) * scale, (cvd * cuu - cud * cuv) * scale
    level = inverse + (s["d"] - du * s["u"] - dv * s["v"]) / count
    return np.where(solvable, level, 0), du, dv


def unproject(views: Views, *, name: str = "scene", max_points: int | None = None) -> Scene:
    """Turn every pixel with depth into a point, view by view, row by row.

    Points take colour, label and normal from their pixel; normals are estimated where the views have none, and point
    towards the camera. The returned Scene keeps `views`.

    Args:
        views: V posed RGB-D images.
        name: what to call the scene.
        max_points: keep this many, evenly strided, if there are more. None: keep all.

    Raises:
        ValueError: if no pixel has depth.
    """
    pixels = np.flatnonzero(views.depth.reshape(-1) > 0)
    if len(pixels) == 0:
        raise ValueError(
            f"Scene {name!r}: none of the {views.depth.size} pixels of its {len(views)} views has a valid depth. "
            "Check the depth files, the depth scale and the codes that mean 'invalid'."
        )
    if max_points is not None and len(pixels) > max_points:
        pixels = pixels[np.linspace(0, len(pixels) - 1, max_points).round().astype(np.int64)]
    normal = view_normals(views) if views.normal is None else views.normal

    def flat(image: NDArray[Any] | None, dtype: type) -> NDArray[Any] | None:
        if image is None:
            return None
        return image.reshape(-1, *image.shape[3:]).take(pixels, axis=0).astype(dtype, copy=False)  # as in take_points

    return Scene(
        name=name,
        coord=view_points(views).reshape(-1, 3).take(pixels, axis=0),
        color=flat(views.color, np.float32),
        normal=flat(normal, np.float32),
        segment=flat(views.segment, np.int64),
        instance=flat(views.instance, np.int64),
        views=views,
    )


def select_views(views: Views, index: NDArray[np.integer]) -> Views:
    """Keep the given views, in the given order; all of them in their own order are not copied."""
    if np.array_equal(index, np.arange(len(views))):
        return views
    kept: dict[str, Any] = {name: None if value is None else value[index] for name, value in vars(views).items()}
    return Views(**kept)
