"""Posed pinhole cameras."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .base import TensorStruct


@dataclass(frozen=True, eq=False)
class Cameras(TensorStruct):
    """B x V pinhole cameras. Camera axes are OpenCV's: x right, y down, z forward.

    Pixel (u, v) is the centre of column u, row v: the first pixel is (0, 0), as in OpenCV and the official code.
    """

    intrinsics: Tensor  # (B, V, 3, 3) pixels
    cam_to_world: Tensor  # (B, V, 4, 4), metres; the rotation part may contain a reflection (after a flip)
    image_size: tuple[int, int]  # (H, W)
