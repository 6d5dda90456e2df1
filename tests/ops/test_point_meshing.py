from __future__ import annotations

import builtins
from typing import Any

import numpy as np
import pytest

from ponder_zoo.metrics.surface import sample_mesh, surface_scores
from ponder_zoo.ops import point_meshing
from ponder_zoo.ops.marching_cubes import Mesh
from ponder_zoo.ops.point_meshing import ball_pivoting_mesh, mean_spacing, poisson_mesh, require_open3d, trim_mesh


def sphere(count: int = 2000) -> np.ndarray:
    """Points spread evenly over the unit sphere (a Fibonacci lattice); their normals are themselves."""
    k = np.arange(count) + 0.5
    z, angle = 1 - 2 * k / count, np.pi * (1 + 5**0.5) * k
    ring = np.sqrt(1 - z * z)
    return np.stack([ring * np.cos(angle), ring * np.sin(angle), z], -1)


@pytest.fixture
def open3d() -> Any:
    try:
        return require_open3d()
    except ImportError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(
    "build", [lambda p: poisson_mesh(p, p, depth=6), lambda p: ball_pivoting_mesh(p, p, radii=[0.1])]
)
def test_a_sphere_comes_back_from_its_points(open3d: Any, build: Any) -> None:
    points = sphere()
    mesh = build(points)
    coord, normal = sample_mesh(mesh.vertices, mesh.faces, 20_000, rng=np.random.default_rng(0))
    np.testing.assert_allclose(np.linalg.norm(coord, axis=1), 1.0, atol=0.02)
    # Faces are wound so that normals point outwards, as the points' do.
    assert ((mesh.normals * mesh.vertices).sum(1) > 0.9).all() and ((normal * coord).sum(1) > 0.9).all()
    scores = surface_scores(coord, points, threshold=0.05, predicted_normal=normal, true_normal=points)
    assert scores.f_score > 0.99 and scores.normal_consistency > 0.99


def test_poisson_is_deterministic_and_finer_with_depth(open3d: Any) -> None:
    points = sphere(20_000)
    first, again, finer = (poisson_mesh(points, 5.0 * points, depth=depth) for depth in (5, 5, 6))
    np.testing.assert_array_equal(first.vertices, again.vertices)
    np.testing.assert_array_equal(first.faces, again.faces)
    assert len(finer.faces) > 2 * len(first.faces)


def test_balls_too_small_to_touch_three_points_make_no_surface(open3d: Any) -> None:
    mesh = ball_pivoting_mesh(sphere(200), sphere(200), radii=[1e-3])
    assert mesh.faces.shape == (0, 3) and mesh.vertices.shape[1] == 3


def test_unfit_points_are_refused(open3d: Any) -> None:
    points = sphere(50)
    with pytest.raises(ValueError, match="estimate_normals"):
        poisson_mesh(points, np.zeros_like(points))
    with pytest.raises(ValueError, match="four or more finite points"):
        poisson_mesh(points, points[:10])
    with pytest.raises(ValueError, match="four or more finite points"):
        ball_pivoting_mesh(np.full((5, 3), np.nan), points[:5], radii=[0.1])
    with pytest.raises(ValueError, match="depth 5 or more"):
        poisson_mesh(points, points, depth=4)
    for radii in ([], [0.1, 0.0]):
        with pytest.raises(ValueError, match="radii above 0"):
            ball_pivoting_mesh(points, points, radii=radii)


def test_without_open3d_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "open3d":
            raise ImportError("libusb-1.0.so.0: cannot open shared object file")
        return original(name, *arguments, **options)

    original = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"libusb.*pip install \"ponder_zoo\[mesh\]\""):
        point_meshing.poisson_mesh(sphere(10), sphere(10))


def test_trimming_keeps_the_triangles_whose_corners_are_all_near() -> None:
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [5, 0, 0]], dtype=np.float32)
    faces = np.array([[0, 1, 2], [1, 3, 2]])
    mesh = Mesh(vertices, faces, np.tile(np.float32([0, 0, 1]), (4, 1)), np.arange(12, dtype=np.uint8).reshape(4, 3))
    kept = trim_mesh(mesh, np.zeros((1, 3)), 1.0)
    np.testing.assert_array_equal(kept.vertices, vertices[:3])
    np.testing.assert_array_equal(kept.faces, [[0, 1, 2]])
    assert kept.color is not None and mesh.color is not None
    np.testing.assert_array_equal(kept.color, mesh.color[:3])
    assert len(trim_mesh(mesh, np.zeros((1, 3)), 0.5).faces) == 0
    assert len(trim_mesh(trim_mesh(mesh, np.zeros((1, 3)), 0.5), np.zeros((1, 3)), 0.5).faces) == 0
    with pytest.raises(ValueError, match="reach above 0"):
        trim_mesh(mesh, np.zeros((1, 3)), 0.0)


def test_triangles_that_turn_their_back_to_where_the_points_were_seen_from_go() -> None:
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [5, 0, 0], [6, 0, 0], [5, 1, 0]], dtype=np.float32)
    mesh = Mesh(vertices, np.array([[0, 1, 2], [3, 5, 4]]), np.zeros((6, 3), np.float32))  # one faces up, one down
    coord = np.array([[0.3, 0.3, 0.0], [5.3, 0.3, 0.0]])
    up, down = np.array([0.0, 0, 1]), np.array([0.0, 0, -1])
    for normals, kept in (([up, up], [0]), ([up, down], [0, 1]), ([down, down], [1]), ([down, up], [])):
        trimmed = trim_mesh(mesh, coord, 9.0, normal=np.stack(normals))
        assert [int(x > 3) for x in trimmed.vertices[trimmed.faces[:, 0], 0]] == kept
    assert len(trim_mesh(mesh, coord, 9.0).faces) == 2
    tilted = np.tile([0.0, 0.8, 0.6], (2, 1))
    for facing, count in ((0.59, 1), (0.61, 0), (-0.61, 2)):
        assert len(trim_mesh(mesh, coord, 9.0, normal=tilted, facing=facing).faces) == count


def test_the_spacing_is_the_mean_distance_to_the_nearest_neighbour() -> None:
    assert mean_spacing(np.array([[0.0, 0, 0], [1, 0, 0], [4, 0, 0]])) == pytest.approx((1 + 1 + 3) / 3)
    with pytest.raises(ValueError, match="two or more"):
        mean_spacing(np.zeros((1, 3)))
