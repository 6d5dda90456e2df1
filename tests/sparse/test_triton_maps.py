"""What is derived from voxels and tables without a host synchronisation, against plain Python."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from triton_inputs import DEVICE, KINDS, map_of, random_voxels

from ponder_zoo.sparse import SparseTensor, SubMConv3d, Voxels, submanifold_map, voxelize
from ponder_zoo.sparse.backends import triton_maps
from ponder_zoo.sparse.backends import triton_plan as plan
from ponder_zoo.sparse.backends.triton_maps import search_neighbours

CELL = st.tuples(st.integers(0, 2), *[st.integers(-4, 4)] * 3)


@pytest.mark.parametrize(("reach", "examples"), [(1, 10), (2, 3)])
def test_searched_table_is_the_one_of_the_host(reach: int, examples: int) -> None:
    @settings(max_examples=examples, deadline=None)
    @given(cells=st.lists(CELL, min_size=1, max_size=150))
    def check(cells: list[tuple[int, ...]]) -> None:
        table = torch.tensor(cells, device=DEVICE)
        voxels, _ = voxelize(table[:, 1:], table[:, 0], 3)
        assert search_neighbours(voxels, reach).equal(submanifold_map(voxels, 2 * reach + 1).table)

    check()


def test_64_bit_keys_are_searched_too() -> None:
    cells = torch.tensor([[0, 0, 0], [0, 1, 1], [1, 1, 1], [0, 0, 1], [3000, 3000, 3000]], device=DEVICE)
    voxels, _ = voxelize(cells, torch.zeros(5, dtype=torch.int64, device=DEVICE), 1)
    assert voxels.key.dtype == torch.int64
    assert search_neighbours(voxels, 1).equal(submanifold_map(voxels, 3).table)


def test_the_backend_searches_on_a_gpu_and_leaves_a_cpu_to_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    searched: list[int] = []
    search = triton_maps.search_neighbours
    monkeypatch.setattr(
        triton_maps, "search_neighbours", lambda voxels, reach: (searched.append(reach), search(voxels, reach))[1]
    )

    def run(voxels: Voxels, backend: str) -> torch.Tensor:
        torch.manual_seed(0)
        layers = [SubMConv3d(3, 4, kernel_size=size, backend=backend).to(DEVICE) for size in (5, 3)]
        x = SparseTensor(torch.ones(len(voxels), 3, device=DEVICE), voxels)
        return torch.cat([layer(x).feat for layer in layers], 1)

    expected = run(random_voxels(60), "torch")
    monkeypatch.setattr(triton_maps, "SEARCHED_ON", ())
    torch.testing.assert_close(run(random_voxels(60), "triton"), expected)
    assert searched == []
    monkeypatch.setattr(triton_maps, "SEARCHED_ON", (DEVICE.type,))
    torch.testing.assert_close(run(random_voxels(60), "triton"), expected)
    assert searched == [2]  # the rows of size 3 are among those of size 5


@pytest.mark.parametrize("kind", list(KINDS))
def test_rows_are_reordered_and_blocks_list_their_offsets(kind: str) -> None:
    kmap = map_of(kind, random_voxels(150))
    blocks = plan.row_blocks(kmap, 32)
    table, order = blocks.sorted.table, blocks.sorted.order
    assert order.sort().values.tolist() == list(range(kmap.num_out))
    assert table.equal(kmap.table[:, order.long()])
    for block, (listed, count) in enumerate(zip(blocks.offsets.tolist(), blocks.counts.tolist(), strict=True)):
        rows = table[:, 32 * block : 32 * block + 32]
        assert listed[:count] == (rows >= 0).any(1).nonzero()[:, 0].tolist()
    assert plan.row_blocks(kmap, 32) is blocks


def test_rows_with_the_same_offsets_are_together() -> None:
    kmap = map_of("up", random_voxels(200))  # each row has one of eight offsets
    offset = (plan.sorted_table(kmap).table >= 0).int().argmax(0)
    assert (offset[1:] != offset[:-1]).sum() == 7
    kmap = map_of("3", random_voxels(200))
    sorted_blocks, plain = (
        plan.row_blocks(kmap, 16),
        plan._list_offsets(plan.SortedTable(kmap.table, torch.arange(200, dtype=torch.int32, device=DEVICE)), 16),
    )
    assert sorted_blocks.counts.sum() < 0.95 * plain.counts.sum()


@pytest.mark.parametrize("kind", ["3", "down"])
def test_pairs_are_the_rows_that_have_an_offset(kind: str) -> None:
    kmap = map_of(kind, random_voxels(300))
    pairs = plan.pairs(kmap)
    for row, listed, count in zip(kmap.table, pairs.rows.tolist(), pairs.counts.tolist(), strict=True):
        assert listed[:count] == (row >= 0).nonzero()[:, 0].tolist()
