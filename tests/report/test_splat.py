from __future__ import annotations

import numpy as np

from ponder_zoo.report.colors import INVALID
from ponder_zoo.report.splat import Camera, orbit_cameras, splat_points

INTRINSICS = np.array([[100.0, 0, 20.0], [0, 100.0, 15.0], [0, 0, 1]])
RED, BLUE = [255, 0, 0], [0, 0, 255]


def test_a_point_is_drawn_where_the_camera_sees_it_and_hides_what_is_behind() -> None:
    camera = Camera(INTRINSICS, np.eye(4), (30, 40))
    coord = np.array([[0.1, 0.05, 1.0], [0.2, 0.1, 2.0], [0, 0, -1.0], [np.nan, 0, 1]])  # the first two share a pixel
    for order in ([0, 1, 2, 3], [1, 0, 3, 2]):
        image, depth = splat_points(coord[order], np.array([RED, BLUE, BLUE, BLUE])[order], camera, point_size=0.0)
        assert image[20, 30].tolist() == RED and depth[20, 30] == 1.0
        assert (depth > 0).sum() == 1
        assert image[0, 0].tolist() == list(INVALID)


def test_points_are_as_large_as_they_are() -> None:
    camera = Camera(INTRINSICS, np.eye(4), (30, 40))
    image, _ = splat_points(np.array([[0, 0, 1.0]]), np.array([RED]), camera, point_size=0.07)
    rows, columns = np.nonzero((image == RED).all(-1))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (12, 18, 17, 23)  # 7 pixels around (15, 20)


def test_a_pose_moves_the_camera_and_not_the_world() -> None:
    pose = np.eye(4)
    pose[:3, 3] = [1.0, 2.0, -3.0]
    _, depth = splat_points(np.array([[1.0, 2.0, 1.0]]), np.array([RED]), Camera(INTRINSICS, pose, (30, 40)))
    assert depth[15, 20] == 4.0


def test_resizing_keeps_image_edges() -> None:
    camera = Camera(INTRINSICS, np.eye(4), (30, 40)).resized((60, 80))
    np.testing.assert_allclose(camera.intrinsics, [[200, 0, 40.5], [0, 200, 30.5], [0, 0, 1]])


def test_an_empty_cloud_is_an_empty_picture() -> None:
    image, depth = splat_points(np.zeros((0, 3)), np.zeros((0, 3)), Camera(INTRINSICS, np.eye(4), (30, 40)))
    assert (image == INVALID).all() and (depth == 0).all()


def test_orbit_cameras_are_proper_upright_and_see_the_whole_box() -> None:
    coord = np.random.default_rng(0).uniform([-3, 0, 0], [4, 2, 2.5], (2000, 3))
    for camera in orbit_cameras(coord, count=3, image_size=(60, 90)):
        rotation, position = camera.cam_to_world[:3, :3], camera.cam_to_world[:3, 3]
        np.testing.assert_allclose(rotation.T @ rotation, np.eye(3), atol=1e-12)
        assert np.linalg.det(rotation) > 0 and rotation[2, 1] < 0 and position[2] > 2.5
        local = (coord - position) @ rotation
        uv = (local / local[:, 2:]) @ camera.intrinsics.T
        inside = (local[:, 2] > 0) & (uv[:, :2] > -0.5).all(-1) & (uv[:, 0] < 89.5) & (uv[:, 1] < 59.5)
        assert inside.mean() > 0.98
        assert np.ptp(uv[:, 0]) > 45 or np.ptp(uv[:, 1]) > 30  # and fills it
