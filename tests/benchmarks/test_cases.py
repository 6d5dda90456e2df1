"""Cases can be set up and called, and compare the same work on both sides; on scenes of a few hundred voxels."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks import kernel_maps, sparse_unet, unet3d
from benchmarks.harness import Seconds
from benchmarks.peers import spconv_unet
from benchmarks.scenes import dense_scene
from ponder_zoo.structures import PointBatch

SPCONV_WARNINGS = pytest.mark.filterwarnings("ignore:.*getdefaultlocale:DeprecationWarning")
SMALL: dict[str, Any] = {
    "channels": (8, 12, 16, 20, 16, 12, 10, 8),
    "depths": (1, 2, 1, 1, 1, 1, 1, 2),
    "stem_channels": 6,
}


@pytest.fixture
def points() -> PointBatch:
    return dense_scene(400)


@pytest.mark.spconv
@SPCONV_WARNINGS
def test_the_peer_computes_what_ours_does_and_trains(points: PointBatch) -> None:
    sparse_unet.theirs(points, train=True, **SMALL)()  # raises in its set-up where the outputs differ


@pytest.mark.spconv
@SPCONV_WARNINGS
def test_a_peer_that_differs_is_refused(points: PointBatch) -> None:
    model = sparse_unet.make_model(**SMALL)
    with pytest.raises(RuntimeError, match="should compute the same"):
        sparse_unet._check_agreement(model, points, lambda: torch.zeros(len(points), 8))


def test_a_missing_peer_is_an_import_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "spconv", None)
    monkeypatch.setitem(__import__("sys").modules, "spconv.pytorch", None)
    with pytest.raises(ImportError, match=r"^spconv is not installed$"):
        spconv_unet.import_spconv()


@pytest.mark.spconv
@SPCONV_WARNINGS
def test_both_sides_build_each_map_of_the_network_once(points: PointBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    import ponder_zoo.sparse.kernel_map as own

    calls = kernel_maps._ours_net(points), kernel_maps._theirs_net(points)
    from spconv.pytorch import ops

    built: list[object] = []

    def counted(build: Any) -> Any:
        return lambda *args, **options: (built.append(args), build(*args, **options))[1]

    monkeypatch.setattr(own, "coarsen", counted(own.coarsen))
    monkeypatch.setattr(ops, "get_indice_pairs", counted(ops.get_indice_pairs))
    assert isinstance(calls[0](), Seconds)
    assert len(built) == 4  # not again in the second pass
    calls[1]()
    assert len(built) == 4 + 1 + 5 + 4  # 5^3, five 3^3 and four strided ones; their inverses are the same lists


@pytest.mark.spconv
@SPCONV_WARNINGS
@pytest.mark.parametrize("size", [3, 5])
def test_lists_of_both_sides_have_the_same_pairs(points: PointBatch, size: int) -> None:
    table = kernel_maps._ours_list(points, size)()
    counts = kernel_maps._theirs_list(points, size)()[2]  # type: ignore[index]
    ours = (table >= 0).sum(1)  # type: ignore[operator]
    middle = size**3 // 2
    # Of two mirrored offsets spconv's CPU code keeps one list, and none of the middle one, which it knows.
    theirs = int(counts.sum() - counts[middle])
    assert 2 * theirs == int(ours.sum() - ours[middle])


def test_both_orders_of_the_dense_unet_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unet3d, "SHAPE", (1, 96, 16, 16, 16))
    call = unet3d._call(unet3d.ChannelFirstUNet(unet3d._model()), train=True, check=True)
    call()
