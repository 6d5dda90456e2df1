"""The data side's cases run, and its peers do the same work as ours."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks import data
from benchmarks.harness import Call
from benchmarks.peers import numpy_grid
from benchmarks.peers.official_rays import official_rays
from ponder_zoo.ops.rays import project_points


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "POINTS", 5000)
    monkeypatch.setattr(data, "VIEWS", (2, 24, 32))
    monkeypatch.setattr(data, "RAYS", 16)
    data._views.cache_clear()


def test_grid_sampling_compares_the_same_voxels() -> None:
    ours, theirs = data._ours_grid(), data._their_grid()  # the set-up raises where they differ
    assert len(ours()) == len(theirs()[0])  # type: ignore[arg-type, index]


def test_fragments_of_both_sides_are_as_many_and_as_large() -> None:
    ours, theirs = data._ours_fragments()(), data._their_fragments()()
    assert [len(rows) for _, rows in ours] == [len(coord) for coord, _ in theirs]  # type: ignore[attr-defined]


def test_the_peer_hashes_cells_apart() -> None:
    cell = numpy_grid.cells_of(data.surface_points(5000), 0.05)
    assert len(np.unique(numpy_grid.fnv_hash(cell))) == len(np.unique(cell, axis=0))


def test_rays_of_the_peer_end_where_its_pixels_see_a_surface() -> None:
    views = data._views()
    assert views.segment is not None
    pose = torch.from_numpy(views.cam_to_world).clone()
    pose[:, :3, 3] /= 8  # into the peer's unit cube
    image, depth = torch.from_numpy(views.color) / 255, torch.from_numpy(views.depth) / 8
    segment, camera = torch.from_numpy(views.segment), torch.from_numpy(views.intrinsics)
    generator = torch.Generator().manual_seed(0)
    rays = official_rays(image, depth, segment, camera, torch.linalg.inv(pose), generator=generator, count=16)
    for view in range(2):
        origins, directions, along, color, _ = (column[16 * view : 16 * (view + 1)] for column in rays)
        hit = along > 0  # the others miss the peer's box
        assert hit.any()
        pixels, z = project_points(origins + along[:, None] * directions, camera[view], pose[view])
        u, v = pixels[hit].round().long().T
        torch.testing.assert_close(pixels[hit], pixels[hit].round(), atol=1e-3, rtol=0)
        torch.testing.assert_close(z[hit], depth[view, v, u])
        torch.testing.assert_close(color[hit], image[view, v, u])


@pytest.mark.parametrize("setup", [data._our_rays, data._their_rays, lambda: data._model_input(1000)])
def test_cases_can_be_called(setup: object) -> None:
    call: Call = setup()  # type: ignore[operator]
    assert call() is not None


def test_names_are_distinct() -> None:
    names = [case.name for case in data.cases()]
    assert len(names) == len(set(names)) > 20
