"""Images of raw data sets: decoded as stored, and encoded as the prepared form holds them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..files import read_depth, read_image
from .record import Frame

MIN_VALID = 0.25  # share of a frame's pixels that must have depth for it to be kept, as in the official loaders
_QUALITY = 95  # of JPEG colours; errors of 1 to 2 levels, a fifth of the bytes of PNG


def decode_depth(data: bytes, where: str, *, missing: int) -> NDArray[np.uint16]:
    """A 16-bit depth image in raw units: (H, W), 0 where the code `missing` stands."""
    raw = read_depth(data, where)
    return np.where(raw == missing, 0, raw).astype(np.uint16)


def decode_color(data: bytes, where: str, size: tuple[int, int]) -> NDArray[np.uint8]:
    """A colour image (H, W, 3), which must have the size (H, W); an alpha channel is dropped."""
    raw = read_image(data, where)
    if raw.ndim != 3 or raw.shape[2] < 3 or raw.dtype != np.uint8:
        raise ValueError(f"{where}: expected 8-bit RGB; got {raw.dtype} of shape {raw.shape}. Copy the file again.")
    check_size(raw, where, size)
    return raw[..., :3]


def check_size(image: NDArray[Any], where: str, size: tuple[int, int]) -> None:
    """Images of one frame must be of one size (H, W)."""
    if image.shape[:2] != size:
        raise ValueError(
            f"{where}: expected {size[1]}x{size[0]} pixels, as its depth image; got {image.shape[1]}x{image.shape[0]}. "
            "Copy the frame's files again."
        )


def check_principal_point(intrinsics: NDArray[np.float64], where: str, size: tuple[int, int]) -> None:
    """The optical axis must meet the image (H, W) in its middle third, or both are not of the same camera."""
    share = intrinsics[[1, 0], 2] / size
    if not ((share > 1 / 3) & (share < 2 / 3)).all():
        raise ValueError(
            f"{where}: the principal point {intrinsics[:2, 2].tolist()} does not suit images of {size[1]}x{size[0]} "
            "pixels. Copy the frame's files again."
        )


def encode_frame(
    name: str,
    color: NDArray[np.uint8],
    depth: NDArray[np.uint16],
    segment: NDArray[np.integer] | None,
    *,
    depth_scale: float,
    intrinsics: NDArray[np.float64],
    cam_to_world: NDArray[np.float64],
    stride: int = 1,
) -> Frame:
    """A frame of every `stride`-th row and column.

    Depths and labels are picked, never mixed: a mean of two surfaces' depths lies on neither. Colours are averaged over
    the pixels that fall together.

    Args:
        name: of the frame.
        color: (H, W, 3).
        depth: (H, W) raw units, 0 = none.
        segment: (H, W) class index, -1 = unlabelled; None: the image has no labels.
        depth_scale: metres per raw unit.
        intrinsics: (3, 3) of the full images; pixel centres are integers.
        cam_to_world: (4, 4) metres, OpenCV axes.
        stride: pixels of the full images per pixel kept.
    """
    picked = slice(stride // 2, None, stride)
    depth = depth[picked, picked]
    scaled = intrinsics.copy()
    scaled[:2, 2] -= stride // 2
    scaled[:2] /= stride
    return Frame(
        name=name,
        color=_encode_color(color, depth.shape),
        depth=encode_png(depth),
        depth_scale=depth_scale,
        intrinsics=scaled,
        cam_to_world=cam_to_world,
        segment=None if segment is None else encode_png((segment[picked, picked] + 1).astype(np.uint8)),
    )


def encode_png(image: NDArray[Any]) -> bytes:
    """PNG of an 8-bit or 16-bit grey image (H, W)."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(file, format="PNG")
    return file.getvalue()


def _encode_color(color: NDArray[np.uint8], size: tuple[int, ...]) -> bytes:
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(color))
    if image.size != (size[1], size[0]):
        image = image.resize((size[1], size[0]), resample=4)  # PIL.Image.Resampling.BOX
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=_QUALITY, subsampling=0)
    return file.getvalue()
