"""The peer of the whole step, and ours: both run, on the same scene, and train what they should."""

from __future__ import annotations

import pytest
import torch

from benchmarks import render, step
from benchmarks.peers.official_renderer import OfficialRenderer
from ponder_zoo.volume import densify_official


def test_the_peer_of_the_renderer_gets_the_weights_of_ours() -> None:
    ours = render.make_renderer()
    peer = render.make_peer("good", ours)
    assert isinstance(peer, OfficialRenderer)
    sdf = ours.field.sdf_mlp
    assert torch.equal(peer.field["sdf_decoder"].get_submodule("lin1").weight, sdf.layers[1].weight)  # type: ignore[union-attr]
    assert torch.equal(peer.field["deviation_network"]["variance"][0], ours.log_sharpness)  # type: ignore[index]


@pytest.mark.spconv
@pytest.mark.filterwarnings("ignore:.*getdefaultlocale:DeprecationWarning")
def test_both_sides_pool_the_same_cells() -> None:
    from benchmarks.peers.official_step import OfficialPonder

    scene = step.unit_cube_scene()
    points = scene.points
    feat = torch.randn(len(points), 3, generator=torch.Generator().manual_seed(0))
    peer = OfficialPonder.__new__(OfficialPonder)
    torch.nn.Module.__init__(peer)
    peer.volume_shape = (16, 16, 8)
    grid = type(scene.grid)(scene.grid.bounds, (16, 16, 8))
    theirs = peer.pool(points, feat, scene.metres_per_unit)  # type: ignore[arg-type]
    own = type(points)(points.coord, feat, points.offset)
    ours = densify_official(own, grid, scene.metres_per_unit)  # type: ignore[arg-type]
    torch.testing.assert_close(ours.feat, theirs, atol=1e-5, rtol=1e-5)
