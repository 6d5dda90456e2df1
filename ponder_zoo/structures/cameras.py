"""Posed pinhole cameras."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
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

    @classmethod
    def look_at(
        cls,
        eye: Sequence[float],
        target: Sequence[float],
        image_size: tuple[int, int],
        *,
        field_of_view: float = math.radians(80.0),
        up: Sequence[float] = (0.0, 0.0, 1.0),
    ) -> Cameras:
        """One camera (B = V = 1) with square pixels that has a point in the middle of its image.

        Args:
            eye: where it is, metres.
            target: the point.
            image_size: (H, W) pixels.
            field_of_view: horizontal, radians.
            up: the direction that is up in the image.

        Raises:
            ValueError: if the target is the eye, or straight up or down from it.

        Example:
            >>> camera = Cameras.look_at((2.0, 0.0, 1.5), (0.0, 0.0, 1.0), (120, 160))
            >>> camera.cam_to_world[0, 0, :3, 3]
            tensor([2.0000, 0.0000, 1.5000])
        """
        origin, forward = torch.tensor(eye, dtype=torch.float32), torch.tensor(target, dtype=torch.float32)
        forward = F.normalize(forward - origin, dim=0)
        right = torch.linalg.cross(forward, torch.tensor(up, dtype=torch.float32))
        if not right.norm() > 1e-6:
            raise ValueError(
                f"Expected a target off the line through the eye along `up`; got eye={tuple(eye)}, "
                f"target={tuple(target)}, up={tuple(up)}. Move one of them, or choose another `up`."
            )
        right = F.normalize(right, dim=0)
        pose = torch.eye(4)
        pose[:3] = torch.stack([right, torch.linalg.cross(forward, right), forward, origin], dim=1)
        height, width = image_size
        focal = 0.5 * width / math.tan(0.5 * field_of_view)
        intrinsics = torch.tensor([[focal, 0.0, (width - 1) / 2], [0.0, focal, (height - 1) / 2], [0.0, 0.0, 1.0]])
        return cls(intrinsics[None, None], pose[None, None], image_size)
