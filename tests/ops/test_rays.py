"""Pixels, rays and boxes: round trips and closed forms."""

from __future__ import annotations

import pytest
import torch

from ponder_zoo.ops.rays import pixel_rays, project_points, ray_box


def rotation(generator: torch.Generator, *, reflect: bool = False) -> torch.Tensor:
    q = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64)).Q
    q = q * torch.linalg.det(q).sign()
    return q @ torch.diag(torch.tensor([-1.0 if reflect else 1.0, 1.0, 1.0], dtype=torch.float64))


def camera(seed: int, *, reflect: bool = False, fy: float = 95.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    intrinsics = torch.tensor([[100.0, 0.3, 41.0], [0.0, fy, 29.5], [0.0, 0.0, 1.0]], dtype=torch.float64)
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = rotation(generator, reflect=reflect)
    pose[:3, 3] = torch.randn(3, generator=generator, dtype=torch.float64)
    return intrinsics, pose


@pytest.mark.parametrize("reflect", [False, True])
@pytest.mark.parametrize("fy", [95.0, -95.0])
def test_pixel_to_ray_to_pixel_is_the_identity(reflect: bool, fy: float) -> None:
    intrinsics, pose = camera(0, reflect=reflect, fy=fy)
    pixels = torch.rand(50, 2, dtype=torch.float64) * 80
    depth = torch.rand(50, dtype=torch.float64) + 0.5
    origins, directions, z_to_ray = pixel_rays(pixels, intrinsics, pose)
    points = origins + (depth * z_to_ray)[:, None] * directions
    back, z = project_points(points, intrinsics, pose)
    torch.testing.assert_close(back, pixels)
    torch.testing.assert_close(z, depth)
    torch.testing.assert_close(directions.norm(dim=-1), torch.ones(50, dtype=torch.float64))


def test_rays_agree_with_the_matrix_inverse() -> None:
    intrinsics, pose = camera(1)
    pixels = torch.rand(20, 2, dtype=torch.float64) * 80
    homogeneous = torch.cat([pixels, torch.ones(20, 1, dtype=torch.float64)], dim=1)
    in_camera = homogeneous @ torch.linalg.inv(intrinsics).T
    _, directions, z_to_ray = pixel_rays(pixels, intrinsics, pose)
    torch.testing.assert_close(z_to_ray, in_camera.norm(dim=-1))
    torch.testing.assert_close(directions, torch.nn.functional.normalize(in_camera @ pose[:3, :3].T, dim=-1))


def test_leading_dimensions_broadcast() -> None:
    cameras = [camera(seed) for seed in range(3)]
    intrinsics, poses = (torch.stack(parts) for parts in zip(*cameras, strict=True))
    pixels = torch.rand(4, 5, 2, dtype=torch.float64)
    together = pixel_rays(pixels, intrinsics[:, None, None], poses[:, None, None])
    assert together[1].shape == (3, 4, 5, 3)
    for view, (one_k, one_pose) in enumerate(cameras):
        for got, expected in zip(together, pixel_rays(pixels, one_k, one_pose), strict=True):
            torch.testing.assert_close(got[view], expected)


def test_the_box_is_hit_where_it_should_be() -> None:
    bounds = torch.tensor([[[-1.0, -2.0, -3.0], [1.0, 2.0, 3.0]]])
    origins = torch.tensor([[[-5.0, 0, 0], [0, 0, 0], [-5, 0, 0], [5, 0, 0], [-5, 3, 0], [-1, 0, 0], [-5, 2, 0]]])
    directions = torch.tensor([[[1.0, 0, 0], [0, 0, -1], [-1, 0, 0], [-1, 0, 0], [1, 0, 0], [0, 1, 0], [1, 0, 0]]])
    near, far, hit = ray_box(origins, directions, bounds, near=0.05)
    # in order: through, from inside, pointing away, from the other side, parallel outside, within a face, along a face
    assert hit[0].tolist() == [True, True, False, True, False, True, True]
    torch.testing.assert_close(near[0], torch.tensor([4.0, 0.05, 0.05, 4.0, 0.05, 0.05, 4.0]))
    torch.testing.assert_close(far[0], torch.tensor([6.0, 3.0, 0.05, 6.0, 0.05, 2.0, 6.0]))


def test_points_between_near_and_far_are_inside_and_no_others() -> None:
    generator = torch.Generator().manual_seed(0)
    bounds = torch.tensor([[[-1.0, -0.5, 0.0], [0.5, 1.0, 2.0]], [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]]).double()
    origins = torch.randn(2, 300, 3, generator=generator, dtype=torch.float64) * 2
    directions = torch.nn.functional.normalize(torch.randn(2, 300, 3, generator=generator, dtype=torch.float64), dim=-1)
    near, far, hit = ray_box(origins, directions, bounds, near=0.0)
    t = torch.linspace(0.001, 10, 997, dtype=torch.float64)
    points = origins[:, :, None] + t[:, None] * directions[:, :, None]
    inside = ((points > bounds[:, None, None, 0]) & (points < bounds[:, None, None, 1])).all(-1)
    between = (t > near[..., None] + 1e-9) & (t < far[..., None] - 1e-9)
    assert hit.any() and not hit.all()
    assert torch.equal(inside, between)


def test_near_is_never_behind_the_camera() -> None:
    bounds = torch.tensor([[[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]])
    near, far, hit = ray_box(torch.tensor([[[0.5, 0.5, 0.99]]]), torch.tensor([[[0.0, 0, 1]]]), bounds, near=0.1)
    assert not hit.item() and near.item() == far.item() == pytest.approx(0.1)
