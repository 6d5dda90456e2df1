from __future__ import annotations

import math

import pytest
import torch

from ponder_zoo import Cameras


def project(camera: Cameras, point: tuple[float, ...]) -> torch.Tensor:
    """Pixel (u, v) and depth of a point."""
    pose, intrinsics = camera.cam_to_world[0, 0], camera.intrinsics[0, 0]
    local = torch.linalg.inv(pose) @ torch.tensor([*point, 1.0])
    u, v, z = intrinsics @ local[:3]
    return torch.stack([u / z, v / z, z])


def test_a_camera_that_looks_at_a_point_has_it_in_the_middle() -> None:
    camera = Cameras.look_at((1.0, -2.0, 1.5), (0.5, 1.0, 0.8), (30, 40))
    pose = camera.cam_to_world[0, 0]
    torch.testing.assert_close(pose[:3, :3] @ pose[:3, :3].T, torch.eye(3), atol=1e-6, rtol=0)
    assert torch.linalg.det(pose[:3, :3]) > 0 and camera.image_size == (30, 40)
    distance = math.dist((1.0, -2.0, 1.5), (0.5, 1.0, 0.8))
    torch.testing.assert_close(project(camera, (0.5, 1.0, 0.8)), torch.tensor([19.5, 14.5, distance]))
    above, right = project(camera, (0.5, 1.0, 0.9)), project(camera, (0.6, 1.0, 0.8))
    assert above[1] < 14.5 and right[0] > 19.5  # looking along +y, x is to the right and z is up


def test_the_field_of_view_reaches_the_edges_of_the_image() -> None:
    camera = Cameras.look_at((0.0, 0.0, 0.0), (0.0, 1.0, 0.0), (10, 20), field_of_view=math.radians(90))
    torch.testing.assert_close(project(camera, (1.0, 1.0, 0.0))[0], torch.tensor(19.5))  # the last pixel's outer edge


def test_a_camera_cannot_look_along_its_up() -> None:
    with pytest.raises(ValueError, match="off the line"):
        Cameras.look_at((0.0, 0.0, 0.0), (0.0, 0.0, -2.0), (10, 20))
    assert Cameras.look_at((0, 0, 0), (0, 0, -2), (10, 20), up=(0, 1, 0)).cam_to_world[0, 0, 2, 2] == -1.0
