"""What a scene must satisfy to enter the pipeline: checked once, with errors that name the scene and the fix."""

from __future__ import annotations

import numpy as np

from .motion import bounding_box
from .scene import Scene, Views


def check_scene(scene: Scene, *, max_extent: float = 100.0) -> None:
    """Raise ValueError where a scene cannot be right.

    Args:
        scene: what a reader returned.
        max_extent: metres; a cloud or a depth beyond this is taken to be in millimetres. Raise it for outdoor data.
    """
    coord = scene.coord
    if coord.ndim != 2 or coord.shape[1] != 3:
        raise ValueError(
            f"Scene {scene.name!r}: expected coord of shape (N, 3), in metres; got {coord.shape}. "
            "Put colours, normals and labels into their own fields."
        )
    if len(coord) == 0:
        raise ValueError(f"Scene {scene.name!r} has no points. Drop it, or loosen the crop or filter that emptied it.")
    for name, width in (
        ("coord", 3),
        ("color", 3),
        ("normal", 3),
        ("intensity", 1),
        ("segment", None),
        ("instance", None),
    ):
        _check_column(scene, name, width)
    extent = float(np.diff(bounding_box(coord), axis=0).max())
    if extent > max_extent:
        raise ValueError(
            f"Scene {scene.name!r} spans {extent:.4g} m; expected at most {max_extent:g} m. If the coordinates are in "
            "millimetres, divide them by 1000; if some points are stray, drop them; if the scene is that large, pass a "
            "larger max_extent."
        )
    if scene.views is not None:
        check_views(scene.views, scene.name, max_depth=max_extent)


def check_views(views: Views, name: str, *, max_depth: float = 100.0) -> None:
    """Raise ValueError where the images, depths or cameras of a scene cannot be right."""
    V, H, W = views.depth.shape if views.depth.ndim == 3 else (-1, -1, -1)
    expected = {"color": (V, H, W, 3), "intrinsics": (V, 3, 3), "cam_to_world": (V, 4, 4)}
    expected |= {"segment": (V, H, W), "instance": (V, H, W), "normal": (V, H, W, 3)}
    for field, shape in expected.items():
        value = getattr(views, field)
        if value is not None and value.shape != shape:
            raise ValueError(
                f"Scene {name!r}: expected views.{field} of shape {shape} to go with depth {views.depth.shape}; got "
                f"{value.shape}. Images, depth, poses and intrinsics must be of the same frames and size."
            )
    for field in ("depth", "intrinsics", "cam_to_world"):
        if not np.isfinite(getattr(views, field)).all():
            raise ValueError(f"Scene {name!r}: views.{field} holds NaN or infinite values. Leave out those frames.")
    deepest = float(views.depth.max(initial=0.0))
    if deepest > max_depth or float(views.depth.min(initial=0.0)) < 0:
        raise ValueError(
            f"Scene {name!r}: expected depth in metres, 0 = none, at most {max_depth:g}; got up to {deepest:.4g}. "
            "If it is in millimetres, divide by 1000; set invalid codes (such as 65535) to 0 first."
        )
    k = views.intrinsics
    if (k[:, 0, 0] == 0).any() or (k[:, 1, 1] == 0).any() or not _inside(k, H, W):
        raise ValueError(
            f"Scene {name!r}: the intrinsics do not suit images of {W}x{H} pixels: got fx {k[0, 0, 0]:.4g}, fy "
            f"{k[0, 1, 1]:.4g}, cx {k[0, 0, 2]:.4g}, cy {k[0, 1, 2]:.4g}. Expected the principal point inside the "
            "image: scale the intrinsics when images are resized."
        )


def _inside(k: np.ndarray, height: int, width: int) -> bool:
    u, v = k[:, 0, 2], k[:, 1, 2]
    return bool(((u > -0.5) & (u < width - 0.5) & (v > -0.5) & (v < height - 0.5)).all())


def _check_column(scene: Scene, name: str, width: int | None) -> None:
    value = getattr(scene, name)
    if value is None:
        return
    shape = (len(scene),) if width is None else (len(scene), width)
    if value.shape != shape:
        raise ValueError(
            f"Scene {scene.name!r}: expected {name} of shape {shape}; got {value.shape}. "
            "Every column needs one row per point."
        )
    bad = ~np.isfinite(value)
    if bad.any():
        rows = np.flatnonzero(bad if width is None else bad.any(1))
        raise ValueError(
            f"Scene {scene.name!r}: {len(rows)} of {len(scene)} rows of {name} are NaN or infinite (first: row "
            f"{rows[0]}). Remove those points."
        )
