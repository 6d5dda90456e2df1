from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh

from ponder_zoo.metrics.surface import sample_mesh, surface_scores
from ponder_zoo.ops.marching_cubes import Mesh, marching_cubes
from ponder_zoo.report.mesh import write_mesh
from ponder_zoo.report.pointcloud_io import write_ply


@pytest.fixture(scope="module")
def ball() -> Mesh:
    axis = torch.linspace(-1, 1, 25, dtype=torch.float64)
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    sdf = torch.sqrt(x**2 + y**2 + (z - 0.2) ** 2) - 0.6
    mesh = marching_cubes(sdf, torch.tensor([[-1.0, -1, -1], [1, 1, 1]]), at_corners=True)
    color = np.round(127.5 * (mesh.normals + 1)).astype(np.uint8)
    return Mesh(mesh.vertices, mesh.faces, mesh.normals, color)


def load(path: Path) -> Any:
    return trimesh.load(path, force="mesh", process=False)


@pytest.mark.parametrize("ending", ["ply", "obj", "glb"])
def test_meshes_come_back_watertight_with_their_volume_and_colours(tmp_path: Path, ball: Mesh, ending: str) -> None:
    loaded = load(write_mesh(ball, tmp_path / "meshes" / f"ball.{ending}"))
    assert loaded.is_watertight
    assert loaded.volume == pytest.approx(4 / 3 * math.pi * 0.6**3, rel=0.02)  # positive: faces look outwards
    up = 1 if ending == "glb" else 2
    assert loaded.vertices[:, up].mean() == pytest.approx(0.2, abs=0.01)
    top = loaded.vertices[:, up].argmax()
    np.testing.assert_allclose(loaded.visual.vertex_colors[top][:3], [128, 128, 255], atol=12)


def test_an_extracted_ball_scores_as_a_ball(ball: Mesh) -> None:
    points, normals = sample_mesh(ball.vertices, ball.faces, 4000, rng=np.random.default_rng(0))
    truth = np.random.default_rng(1).normal(size=(4000, 3))
    truth /= np.linalg.norm(truth, axis=-1, keepdims=True)
    scores = surface_scores(
        points, 0.6 * truth + [0, 0, 0.2], threshold=0.05, predicted_normal=normals, true_normal=truth
    )
    assert scores.f_score > 0.98 and scores.normal_consistency > 0.99 and scores.chamfer < 0.02


def test_other_endings_and_empty_meshes_are_refused(tmp_path: Path, ball: Mesh) -> None:
    with pytest.raises(ValueError, match=r"\.ply, \.obj, \.glb.*ball\.stl"):
        write_mesh(ball, tmp_path / "ball.stl")
    empty = Mesh(ball.vertices[:0], ball.faces[:0], ball.normals[:0])
    with pytest.raises(ValueError, match="has no faces"):
        write_mesh(empty, tmp_path / "ball.ply")


@pytest.mark.parametrize("unit", [False, True])
def test_clouds_come_back_with_coordinates_normals_and_colours(tmp_path: Path, unit: bool) -> None:
    rng = np.random.default_rng(0)
    coord, normal = rng.normal(size=(50, 3)).astype(np.float32), rng.normal(size=(50, 3)).astype(np.float32)
    color = rng.integers(0, 256, (50, 3))
    path = write_ply(tmp_path / "new" / "cloud.ply", coord, color=color / 255 if unit else color, normal=normal)
    loaded: Any = trimesh.load(path)
    np.testing.assert_array_equal(loaded.vertices.astype(np.float32), coord)
    np.testing.assert_array_equal(loaded.colors[:, :3], color)
    data = loaded.metadata["_ply_raw"]["vertex"]["data"]
    np.testing.assert_array_equal(np.stack([data["nx"], data["ny"], data["nz"]], -1), normal)


def test_a_cloud_may_be_bare_or_empty(tmp_path: Path) -> None:
    loaded: Any = trimesh.load(write_ply(tmp_path / "bare.ply", torch.ones(3, 3)))
    np.testing.assert_array_equal(loaded.vertices, np.ones((3, 3)))
    path = write_ply(tmp_path / "empty.ply", np.zeros((0, 3)), color=np.zeros((0, 3)))
    assert path.read_bytes().endswith(b"property uchar blue\nend_header\n") and b"element vertex 0" in path.read_bytes()


def test_colours_of_other_points_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"coord \(3, 3\) and \{'color': \(2, 3\)\}"):
        write_ply(tmp_path / "cloud.ply", np.zeros((3, 3)), color=np.zeros((2, 3)))
