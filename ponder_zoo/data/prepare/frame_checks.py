"""Which images of a scene can be used. What is wrong with the others goes into the manifest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from ..files import image_size, read_color, read_depth, read_label
from .record import Frame, Skip

ASPECT_TOLERANCE = 0.02  # ScanNet's colour images are 1296 x 968 beside depth of 640 x 480
ROTATION_TOLERANCE = 0.02


def usable_frames(frames: Sequence[Frame], skip: Skip) -> tuple[Frame, ...]:
    """Leave out images that cannot be decoded or whose camera, size or depth cannot be right.

    All images of a scene must have one size: the most frequent one.
    """
    sizes: list[tuple[int, int] | None] = []
    for frame in frames:
        try:
            sizes.append(check_frame(frame))
        except ValueError as error:
            skip(f"frame {frame.name}", str(error))
            sizes.append(None)
    counts = Counter(size for size in sizes if size is not None)
    common = max(counts, key=lambda size: (counts[size], size), default=None)
    for frame, size in zip(frames, sizes, strict=True):
        if size not in (None, common):
            skip(f"frame {frame.name}", f"depth image of {_text(size)} pixels among others of {_text(common)}")
    return tuple(frame for frame, size in zip(frames, sizes, strict=True) if size is not None and size == common)


def check_frame(frame: Frame) -> tuple[int, int]:
    """(H, W) of the depth image.

    Raises:
        ValueError: with what is wrong.
    """
    _check_camera(frame)
    depth = read_depth(frame.depth, "depth image")
    if not depth.any():
        raise ValueError("no pixel of the depth image has a depth")
    height, width = depth.shape
    _check_color(frame.color, height / width)
    if frame.segment is not None and read_label(frame.segment, "label image").shape != depth.shape:
        raise ValueError(f"the label image is not of {width}x{height} pixels as the depth image is")
    u, v = frame.intrinsics[:2, 2]
    if not (-0.5 < u < width - 0.5 and -0.5 < v < height - 0.5):
        raise ValueError(f"principal point {u:.4g}, {v:.4g} outside the depth image of {width}x{height} pixels")
    return height, width


def _check_camera(frame: Frame) -> None:
    pose, intrinsics = np.asarray(frame.cam_to_world), np.asarray(frame.intrinsics)
    if pose.shape != (4, 4) or intrinsics.shape != (3, 3):
        raise ValueError(f"pose of shape {pose.shape} and intrinsics of shape {intrinsics.shape}")
    if not np.isfinite(pose).all():
        raise ValueError("the pose holds NaN or infinite values: tracking was lost")
    stretch = np.linalg.svd(pose[:3, :3], compute_uv=False)
    if np.abs(stretch - 1).max() > ROTATION_TOLERANCE or np.linalg.det(pose[:3, :3]) < 0:
        raise ValueError(f"the pose has no rotation in its upper left: singular values {stretch.round(3).tolist()}")
    if not np.isfinite(intrinsics).all() or intrinsics[0, 0] == 0 or intrinsics[1, 1] == 0:
        raise ValueError(f"intrinsics {intrinsics.tolist()}")
    if not frame.depth_scale > 0:
        raise ValueError(f"depth scale {frame.depth_scale}")


def _check_color(content: bytes, aspect: float) -> None:
    """Decodes the image at a small size, which finds truncated data as well."""
    height, width = image_size(content, "colour image")
    if abs(height / width / aspect - 1) > ASPECT_TOLERANCE:
        raise ValueError(f"colour image of {width}x{height} pixels, of another shape than the depth image")
    read_color(content, (max(height // 8, 1), max(width // 8, 1)), "colour image")


def _text(size: tuple[int, int] | None) -> str:
    return "none" if size is None else f"{size[1]}x{size[0]}"
