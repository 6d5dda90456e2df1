from __future__ import annotations

import builtins
import math
from typing import Any

import numpy as np
import pytest
import torch

from ponder_zoo.ops.marching_cubes import Mesh, marching_cubes

CENTRE, RADIUS = np.array([1.0, -2.0, 0.5]), 0.7
BOUNDS = torch.tensor([[0.0, -3.0, -0.5], [2.0, -1.0, 1.5]])


def positions(shape: tuple[int, int, int], *, at_corners: bool = False) -> torch.Tensor:
    """(Z, Y, X, 3) metres, of the values of a grid with `shape` (X, Y, Z) cells."""
    axes = []
    for k, cells in enumerate(shape):
        low, high = BOUNDS[:, k].double()
        t = torch.arange(cells, dtype=torch.float64)
        axes.append(low + (high - low) * (t / (cells - 1) if at_corners else (t + 0.5) / cells))
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).permute(2, 1, 0, 3)


def sphere(shape: tuple[int, int, int], *, at_corners: bool = False) -> torch.Tensor:
    return (positions(shape, at_corners=at_corners) - torch.from_numpy(CENTRE)).norm(dim=-1) - RADIUS


def volume(mesh: Mesh) -> float:
    corners = mesh.vertices[mesh.faces].astype(np.float64)
    return float(np.einsum("fi,fi->", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])) / 6)


@pytest.mark.parametrize("at_corners", [False, True])
@pytest.mark.parametrize("shape", [(40, 40, 40), (50, 40, 30)])
def test_a_sphere_has_its_radius_volume_and_normals(shape: tuple[int, int, int], at_corners: bool) -> None:
    mesh = marching_cubes(sphere(shape, at_corners=at_corners), BOUNDS, at_corners=at_corners)
    cell = 2.0 / (min(shape) - at_corners)
    outward = mesh.vertices - CENTRE
    radius = np.linalg.norm(outward, axis=-1)
    # Linear interpolation along an edge of length h errs by at most h^2 / 8 times the curvature of the distance, 1/r.
    assert np.abs(radius - RADIUS).max() < cell**2 / 8 / (RADIUS - cell)
    assert volume(mesh) == pytest.approx(4 / 3 * math.pi * RADIUS**3, rel=2 * cell**2 / RADIUS**2)
    assert ((outward / radius[:, None]) * mesh.normals).sum(-1).min() > 0.99
    np.testing.assert_allclose(np.linalg.norm(mesh.normals, axis=-1), 1.0, atol=1e-5)


def test_a_closed_surface_is_watertight_and_has_euler_number_two() -> None:
    mesh = marching_cubes(sphere((24, 24, 24)), BOUNDS)
    edges = np.sort(mesh.faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), axis=1)
    unique, counts = np.unique(edges, axis=0, return_counts=True)
    assert (counts == 2).all()
    assert len(mesh.vertices) - len(unique) + len(mesh.faces) == 2


def test_a_level_is_an_offset_surface() -> None:
    mesh = marching_cubes(sphere((40, 40, 40)), BOUNDS, level=0.2)
    np.testing.assert_allclose(np.linalg.norm(mesh.vertices - CENTRE, axis=-1), RADIUS + 0.2, atol=1e-3)


def test_axes_are_not_mixed_up() -> None:
    for axis, height in enumerate((1.3, -1.2, 0.4)):
        mesh = marching_cubes(positions((20, 24, 28))[..., axis] - height, BOUNDS)
        np.testing.assert_allclose(mesh.vertices[:, axis], height, atol=1e-6)
        np.testing.assert_allclose(mesh.normals, np.eye(3)[[axis]].repeat(len(mesh.normals), 0), atol=1e-5)


@pytest.mark.parametrize("region", ["left", "right", "shell", "nowhere near"])
def test_nothing_is_drawn_where_nothing_is_known(region: str) -> None:
    sdf, place = sphere((30, 30, 30)), positions((30, 30, 30))
    known = {
        "left": place[..., 0] < 1.0,
        "right": place[..., 0] > 1.0,
        "shell": sdf.abs() < 0.2,
        "nowhere near": sdf.abs() > 0.3,
    }[region]
    sdf[~known] = float("nan")
    mesh = marching_cubes(sdf, BOUNDS, known=known)
    assert (len(mesh.faces) == 0) if region == "nowhere near" else (len(mesh.faces) > 100)
    assert region != "left" or mesh.vertices[:, 0].max() <= 1.0
    assert region != "right" or mesh.vertices[:, 0].min() >= 1.0
    np.testing.assert_allclose(np.linalg.norm(mesh.vertices - CENTRE, axis=-1), RADIUS, atol=2e-3)


@pytest.mark.parametrize("value", [1.0, -1.0, 0.0])
def test_no_crossing_is_an_empty_mesh(value: float) -> None:
    mesh = marching_cubes(torch.full((4, 4, 4), value), BOUNDS)
    assert mesh.vertices.shape == (0, 3) and mesh.faces.shape == (0, 3) and mesh.normals.shape == (0, 3)


def test_bad_input_is_refused_with_the_way_out() -> None:
    with pytest.raises(ValueError, match=r"sdf\[b\]"):
        marching_cubes(torch.zeros(1, 4, 4, 4), BOUNDS)
    with pytest.raises(ValueError, match="lower < upper"):
        marching_cubes(torch.zeros(4, 4, 4), BOUNDS.flip(0))
    with pytest.raises(ValueError, match=r"64 of 64 values are NaN.*known="):
        marching_cubes(torch.full((4, 4, 4), float("nan")), BOUNDS)
    with pytest.raises(ValueError, match="same grid"):
        marching_cubes(torch.zeros(4, 4, 4), BOUNDS, known=torch.ones(3, 4, 4, dtype=torch.bool))


def test_a_missing_package_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name.startswith("skimage"):
            raise ImportError(name)
        return original(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match="pip install scikit-image"):
        marching_cubes(torch.zeros(4, 4, 4), BOUNDS)
