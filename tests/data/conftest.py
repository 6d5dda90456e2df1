"""An analytic room, so that tests of cameras and points have an exact oracle."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest

from ponder_zoo.data.scene import Scene, Views
from ponder_zoo.data.unproject import pixel_directions, unproject

SIZE = np.array([4.0, 3.0, 2.5])  # metres; the room is [0, 4] x [0, 3] x [0, 2.5]


def look_at(position: np.ndarray, target: np.ndarray) -> np.ndarray:
    """OpenCV camera-to-world pose with z up in the world."""
    forward = (target - position) / np.linalg.norm(target - position)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], axis=1)
    pose[:3, 3] = position
    return pose


def render_room(num_views: int = 3, height: int = 24, width: int = 32, fy_sign: float = 1.0) -> Views:
    """Depth, normals, wall index as segment, and a smooth texture of the inside of a box."""
    angles = np.linspace(0.3, 2.0, num_views)
    centre = SIZE / 2
    offsets = np.stack([0.4 * np.cos(angles), 0.4 * np.sin(angles), 0.1 * np.arange(num_views)], axis=1)
    targets = np.stack([np.cos(angles + 2), np.sin(angles + 2), np.full(num_views, -0.3)], axis=1)
    poses = np.stack([look_at(centre + o, centre + t) for o, t in zip(offsets, targets, strict=True)])
    k = np.array([[0.8 * width, 0, width / 2 - 0.5], [0, fy_sign * 0.8 * width, height / 2 - 0.5], [0, 0, 1.0]])
    if fy_sign < 0:
        poses[:, :3, 1] *= -1  # the camera's y axis points up, as in ICL-NUIM; the image is the same
    intrinsics = np.repeat(k[None], num_views, 0)
    ray = pixel_directions(intrinsics, height, width).astype(np.float64) @ poses[:, None, :3, :3].swapaxes(-1, -2)
    origin = poses[:, None, None, :3, 3]
    far = np.where(ray > 0, SIZE, 0.0)  # the face each ray leaves through, per axis
    z = (far - origin) / np.where(ray == 0, 1e-12, ray)  # the direction has z = 1 in camera axes, so t is z-depth
    axis = z.argmin(-1)
    depth = z.min(-1)
    points = origin + depth[..., None] * ray
    normal = -np.sign(ray) * np.eye(3)[axis]
    color = np.clip(127 + 100 * np.sin(2 * points + [0, 1, 2]), 0, 255).round().astype(np.uint8)
    segment = (2 * axis + (np.take_along_axis(ray, axis[..., None], -1)[..., 0] > 0)).astype(np.int16)
    return Views(
        color=color,
        depth=depth.astype(np.float32),
        intrinsics=intrinsics.astype(np.float32),
        cam_to_world=poses.astype(np.float32),
        segment=segment,
        normal=normal.astype(np.float32),
    )


@pytest.fixture(scope="session")
def make_views() -> Callable[..., Views]:
    return render_room


@pytest.fixture
def room() -> Scene:
    """Three views of the room and their points."""
    return unproject(render_room(), name="room")


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a CLIP architecture of 1.7M parameters, known to open_clip."""
    import open_clip

    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    }
    folder = tmp_path_factory.mktemp("clip")
    (folder / "tiny-clip.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    return "tiny-clip"
