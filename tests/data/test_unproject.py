"""Unprojection against the analytic room."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from ponder_zoo.data.scene import Views
from ponder_zoo.data.unproject import select_views, unproject, view_normals, view_points
from ponder_zoo.ops.rays import pixel_rays, project_points


@pytest.mark.parametrize("fy_sign", [1.0, -1.0])
def test_points_lie_on_the_walls(make_views: Callable[..., Views], fy_sign: float) -> None:
    points = unproject(make_views(fy_sign=fy_sign)).coord
    distance = np.abs(np.stack([points, points - [4.0, 3.0, 2.5]], axis=-1)).min((1, 2))
    assert len(points) == 3 * 24 * 32 and distance.max() < 1e-5
    assert points.dtype == np.float32


def test_points_are_where_rays_and_depth_say(make_views: Callable[..., Views]) -> None:
    views = make_views()
    v, u = np.mgrid[:24, :32]
    pixels = torch.from_numpy(np.stack([u, v], -1)).float()
    k, pose = torch.from_numpy(views.intrinsics), torch.from_numpy(views.cam_to_world)
    origins, directions, z_to_ray = pixel_rays(pixels, k[:, None, None], pose[:, None, None])
    expected = origins + (torch.from_numpy(views.depth) * z_to_ray)[..., None] * directions
    torch.testing.assert_close(torch.from_numpy(view_points(views)), expected, atol=1e-5, rtol=1e-5)
    back, z = project_points(expected, k[:, None, None], pose[:, None, None])
    torch.testing.assert_close(back, pixels.expand_as(back), atol=1e-3, rtol=0)
    torch.testing.assert_close(z, torch.from_numpy(views.depth), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("fy_sign", [1.0, -1.0])
def test_normals_of_planes_are_exact_and_face_the_camera(make_views: Callable[..., Views], fy_sign: float) -> None:
    views = make_views(num_views=4, height=60, width=80, fy_sign=fy_sign)
    estimated = view_normals(views)
    cosine = (estimated * views.normal).sum(-1)
    assert np.allclose(np.linalg.norm(estimated, axis=-1), 1, atol=1e-4)
    wall = views.segment
    inner = np.ones(wall.shape, dtype=bool)  # windows that see one wall only
    for dv in range(-2, 3):
        for du in range(-2, 3):
            inner &= np.roll(wall, (dv, du), (1, 2)) == wall
    inner[:, :2] = inner[:, -2:] = inner[:, :, :2] = inner[:, :, -2:] = False
    assert inner.mean() > 0.6 and cosine[inner].min() > 0.9999


def test_normals_do_not_mix_surfaces_across_an_edge() -> None:
    depth = np.full((1, 21, 40), 1.0, dtype=np.float32)
    depth[:, :, 20:] = 2.0  # a step: both sides face the camera
    k = np.array([[[50.0, 0, 19.5], [0, 50.0, 10], [0, 0, 1]]], dtype=np.float32)
    color = np.zeros((1, 21, 40, 3), np.uint8)
    normal = view_normals(Views(color, depth, k, np.eye(4, dtype=np.float32)[None]))
    np.testing.assert_allclose(normal, np.broadcast_to([0, 0, -1.0], normal.shape), atol=1e-5)


def test_lonely_pixels_have_no_normal_and_holes_no_point(make_views: Callable[..., Views]) -> None:
    views = make_views(num_views=1)
    depth = np.zeros_like(views.depth)
    depth[0, 5, 5] = depth[0, 5, 6] = 1.0  # two pixels fix no plane
    scene = unproject(replace(views, depth=depth, normal=None))
    assert len(scene) == 2 and not scene.normal.any()
    assert np.isfinite(scene.coord).all()


def test_rows_carry_the_colour_and_label_of_their_pixel(make_views: Callable[..., Views]) -> None:
    views = make_views()
    depth = views.depth.copy()
    depth[0, :10] = 0
    scene = unproject(replace(views, depth=depth))
    keep = depth > 0
    assert np.array_equal(scene.color, views.color[keep].astype(np.float32))
    assert np.array_equal(scene.segment, views.segment[keep])
    assert np.array_equal(scene.normal, views.normal[keep])
    assert len(unproject(views, max_points=100)) == 100


def test_views_without_depth_are_an_error(make_views: Callable[..., Views]) -> None:
    views = make_views()
    with pytest.raises(ValueError, match=r"'kitchen'.*depth scale"):
        unproject(replace(views, depth=np.zeros_like(views.depth)), name="kitchen")


def test_selecting_views_keeps_their_order(make_views: Callable[..., Views]) -> None:
    views = make_views(num_views=4)
    chosen = select_views(views, np.array([3, 1]))
    assert len(chosen) == 2 and np.array_equal(chosen.depth, views.depth[[3, 1]]) and chosen.instance is None
