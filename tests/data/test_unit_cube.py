from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ponder_zoo.data.official import official_rays
from ponder_zoo.data.scene import Scene, Views
from ponder_zoo.data.unit_cube import UnitCube, fit_unit_cube, to_unit_cube
from ponder_zoo.data.unproject import view_points

CASES = ["e_unitcube_dense_pool", "e_unitcube_dense_upsample"]


def official_scenes(data: dict[str, Tensor]) -> list[Scene]:
    """The inputs of a parity case as scenes in metres."""
    ends = data["in.offset"].tolist()
    scenes = []
    for b, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        views = Views(
            color=(data["in.rgb"][b] * 255.0).numpy(),
            depth=(data["in.depth"][b] * data["in.depth_scale"][b]).numpy(),
            intrinsics=data["in.intrinsic"][b].numpy(),
            cam_to_world=torch.linalg.inv(data["in.extrinsic"][b].double()).numpy(),
            segment=data["in.semantic"][b].numpy(),
        )
        scenes.append(Scene(f"scene{b}", data["in.coord"][start:end].numpy(), views=views))
    return scenes


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, shared_dir: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    file = shared_dir / "parity" / request.param
    return load_file(file.with_suffix(".safetensors")), json.loads(file.with_suffix(".json").read_text())


def test_points_cameras_and_depth_match_the_official_unit_cube(case: tuple[dict, dict]) -> None:
    data, _ = case
    start = 0
    for b, scene in enumerate(official_scenes(data)):
        moved, cube = to_unit_cube(scene)
        size = cube.metres_per_unit
        assert size == pytest.approx(data["unit.pc_scale"][b].item(), rel=1e-6)
        in_metres = (moved.coord + 0.5) * size  # the official code goes on in metres from the cube's corner
        np.testing.assert_allclose(in_metres, data["unit.coord"][start : start + len(scene)], rtol=0, atol=1e-6)
        start += len(scene)
        assert moved.views is not None
        # The official extrinsic E maps cube units to metres in the camera; ours is rigid: the same up to the scale.
        ours = np.linalg.inv(moved.views.cam_to_world.astype(np.float64))
        np.testing.assert_allclose(ours[:, :3] * size, data["unit.extrinsic"][b][:, :3], rtol=0, atol=1e-5)
        np.testing.assert_allclose(moved.views.cam_to_world[:, :3, :3], scene.views.cam_to_world[:, :3, :3])
        official_depth = data["in.depth"][b] * data["unit.depth_scale"][b]
        np.testing.assert_allclose(moved.views.depth, official_depth, rtol=1e-5)


def test_rays_and_their_targets_match_the_official_ones(case: tuple[dict, dict]) -> None:
    data, info = case
    pairs = [official_rays(to_unit_cube(s)[0].views, rays_per_view=info["ray_nsample"]) for s in official_scenes(data)]
    table = data["class_embedding"][info["valid_index"][info["condition"]]]
    for b, (rays, targets) in enumerate(pairs):
        size = len(pairs[0][1].depth[0])
        torch.testing.assert_close(rays.origins[0], data["ray.ray_o"][b], rtol=0, atol=1e-5)
        torch.testing.assert_close(rays.directions[0], data["ray.ray_d"][b], rtol=0, atol=1e-5)
        rows = slice(b * size, (b + 1) * size)
        torch.testing.assert_close(targets.depth[0], data["ray.depth"][rows, 0], rtol=0, atol=1e-5)
        torch.testing.assert_close(targets.rgb[0], data["ray.rgb"][rows], rtol=0, atol=1e-5)
        label = targets.segment[0]
        semantic = torch.where(label[:, None] >= 0, table[label.clamp(min=0)], 0.0)
        torch.testing.assert_close(semantic, data["ray.semantic"][rows], rtol=0, atol=0)


def random_scene(rng: np.random.Generator) -> Scene:
    rotation, _ = np.linalg.qr(rng.normal(size=(2, 3, 3)))
    pose = np.tile(np.eye(4), (2, 1, 1))
    pose[:, :3, :3], pose[:, :3, 3] = rotation, rng.normal(size=(2, 3))
    views = Views(
        color=rng.integers(0, 256, (2, 6, 8, 3)).astype(np.uint8),
        depth=rng.uniform(0.5, 3.0, (2, 6, 8)).astype(np.float32),
        intrinsics=np.tile([[10.0, 0.0, 3.5], [0.0, 11.0, 2.5], [0.0, 0.0, 1.0]], (2, 1, 1)).astype(np.float32),
        cam_to_world=pose.astype(np.float32),
    )
    return Scene("random", rng.normal(size=(50, 3)).astype(np.float32) * [3, 2, 1] + [5, -4, 1], views=views)


def test_what_the_images_show_moves_with_the_points() -> None:
    scene = random_scene(np.random.default_rng(0))
    moved, cube = to_unit_cube(scene)
    np.testing.assert_allclose(cube.to_metres(view_points(moved.views)), view_points(scene.views), atol=2e-5)
    np.testing.assert_allclose(cube.to_metres(moved.coord), scene.coord, atol=2e-4)  # the clip moves by up to 1e-5 L
    assert np.ptp(moved.coord, axis=0).max() == pytest.approx(1.0, abs=1e-4)
    assert moved.coord[:, 2].min() == pytest.approx(-0.5, abs=2e-5)
    assert scene.coord.max() > 1.0  # the input is as it was


def test_the_origin_is_the_centre_above_the_lowest_point() -> None:
    cube = fit_unit_cube(np.array([[0.0, 0.0, 2.0], [4.0, 2.0, 3.0]]), margin=0.0)
    assert cube == UnitCube((2.0, 1.0, 4.0), 4.0)


def test_rays_that_miss_the_cube_are_black_and_have_no_depth() -> None:
    moved, _ = to_unit_cube(random_scene(np.random.default_rng(0)))
    away = moved.views.cam_to_world.copy()
    away[0, :3, 3] = [5.0, 5.0, 5.0]
    away[0, :3, :3] = np.eye(3)  # looks along +z, past the cube
    views = replace(moved.views, cam_to_world=away, segment=np.ones((2, 6, 8), np.int16))
    rays, targets = official_rays(views, rays_per_view=5)
    assert (targets.depth[0, :5] == -0.001).all() and (targets.rgb[0, :5] == 0).all()
    assert (targets.segment[0, :5] == -1).all()
    assert (rays.near[0, :5] == 0).all() and (rays.far[0, :5] == 0).all()
    assert rays.valid.all()


def test_pixels_are_drawn_from_those_with_depth_by_the_given_generator() -> None:
    moved, _ = to_unit_cube(random_scene(np.random.default_rng(0)))
    depth = moved.views.depth.copy()
    depth[:, :3] = 0.0
    views = replace(moved.views, depth=depth)
    first, again, other = (
        official_rays(views, rays_per_view=8, rng=np.random.default_rng(s))[0].directions for s in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    with pytest.raises(ValueError, match="View 0 has 24 pixels with depth"):
        official_rays(views, rays_per_view=25)


def test_a_scene_without_usable_points_is_explained() -> None:
    with pytest.raises(ValueError, match="at least one point"):
        fit_unit_cube(np.zeros((0, 3)))
    with pytest.raises(ValueError, match="1 values that are NaN"):
        fit_unit_cube(np.array([[0.0, np.nan, 1.0]]))
