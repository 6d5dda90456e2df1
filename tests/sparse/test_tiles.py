"""Tiles change the order of the work, never the result."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ponder_zoo.sparse import Voxels, coarsening, submanifold_map, voxelize
from ponder_zoo.sparse.backends import tiles, workspace
from ponder_zoo.sparse.backends import torch as torch_backend
from ponder_zoo.sparse.kernel_map import KernelMap


def random_voxels(count: int, extent: int, seed: int, scenes: int = 3) -> Voxels:
    generator = torch.Generator().manual_seed(seed)
    cells = torch.randint(-extent, extent, (count, 3), generator=generator)
    return voxelize(cells, torch.randint(0, scenes, (count,), generator=generator), scenes)[0]


def map_of(voxels: Voxels, kind: str) -> KernelMap:
    if kind in ("3", "5"):
        return submanifold_map(voxels, int(kind))
    return coarsening(voxels).down if kind == "down" else coarsening(voxels).up


def result(kmap: KernelMap, in_chans: int, out_chans: int, *, reference: bool = False) -> tuple[Tensor, ...]:
    """Output and both gradients, float64."""
    generator = torch.Generator().manual_seed(0)
    size = round(kmap.kernel_volume ** (1 / 3))
    feat = torch.randn(kmap.num_in, in_chans, dtype=torch.float64, generator=generator).requires_grad_()
    weight = torch.randn(out_chans, size, size, size, in_chans, dtype=torch.float64, generator=generator)
    conv = torch_backend.conv_reference if reference else torch_backend.conv
    out = conv(feat, weight.requires_grad_(), kmap)
    cotangent = torch.randn(out.shape, dtype=torch.float64, generator=generator)
    return (out.detach(), *torch.autograd.grad(out, (feat, weight), cotangent))


@pytest.mark.parametrize("kind", ["3", "5", "down", "up"])
@settings(max_examples=10, deadline=None)
@given(
    count=st.sampled_from([1, 2, 30, 150]),
    extent=st.sampled_from([2, 4, 50]),  # from full neighbourhoods to empty ones
    tile=st.sampled_from([8, 100, 16_384]),
    chans=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    seed=st.integers(0, 99),
)
def test_output_and_gradients_are_the_references(
    kind: str, count: int, extent: int, tile: int, chans: tuple[int, int], seed: int
) -> None:
    kmap = map_of(random_voxels(count, extent, seed), kind)
    with patch.object(tiles, "TILE_PAIRS", tile):
        ours = result(kmap, *chans)
    torch.testing.assert_close(ours, result(kmap, *chans, reference=True))


def test_a_result_can_be_changed_in_place() -> None:
    kmap = submanifold_map(random_voxels(200, 6, 0), 3)
    feat, weight = torch.randn(kmap.num_in, 9), torch.randn(9, 3, 3, 3, 9, requires_grad=True)
    expected = torch.autograd.grad(torch_backend.conv(feat, weight, kmap).relu().sum(), weight)
    torch.testing.assert_close(
        torch.autograd.grad(torch_backend.conv(feat, weight, kmap).relu_().sum(), weight), expected
    )


def test_a_result_leaves_room_for_another_of_its_size() -> None:
    kmap = submanifold_map(random_voxels(200, 6, 0), 3)
    out = torch_backend.conv(torch.randn(kmap.num_in, 9), torch.randn(9, 3, 3, 3, 9), kmap)
    assert out.is_contiguous()
    assert out.untyped_storage().nbytes() >= out.nbytes + 96


def test_tiles_cover_every_row_once() -> None:
    kmap = submanifold_map(random_voxels(3000, 6, 0), 3)
    with patch.object(tiles, "TILE_PAIRS", 1000):
        parts = tiles.tiles(kmap)
    assert len(parts) > 5
    assert [part.rows.start for part in parts[1:]] == [part.rows.stop for part in parts[:-1]]
    assert (parts[0].rows.start, parts[-1].rows.stop) == (0, kmap.num_out)
    assert sum(part.num_pairs for part in parts) == kmap.num_pairs


def test_scratch_is_released() -> None:
    kmap = submanifold_map(random_voxels(200, 6, 0), 3)
    result(kmap, 16, 16)
    assert any(space.buffers for space in workspace._WORKSPACES)
    workspace.release_scratch()
    assert not any(space.buffers for space in workspace._WORKSPACES)
