"""The fast form must stay faster than the reference: a ratio of interleaved CPU times, never a number of seconds."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch

from ponder_zoo.sparse import submanifold_map, voxelize
from ponder_zoo.sparse.backends import torch as torch_backend


def cpu_seconds(run: Callable[[], object]) -> float:
    begin = time.process_time()
    run()
    return time.process_time() - begin


@pytest.mark.slow
def test_fast_form_beats_the_reference_on_a_dense_surface() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    plane = torch.randint(0, 120, (60_000, 2), generator=generator)
    cells = torch.cat([plane, torch.randint(0, 3, (60_000, 1), generator=generator)], 1)  # some 15 neighbours each
    voxels, _ = voxelize(cells, torch.zeros(len(cells), dtype=torch.int64), 1)
    kmap = submanifold_map(voxels, 3)
    feat = torch.randn(len(voxels), 32, requires_grad=True)
    weight = torch.randn(32, 3, 3, 3, 32, requires_grad=True)

    def run(conv: Callable[..., torch.Tensor]) -> None:
        conv(feat, weight, kmap).sum().backward()

    times = [
        [cpu_seconds(lambda c=c: run(c)) for c in (torch_backend.conv, torch_backend.conv_reference)] for _ in range(6)
    ]
    torch.set_num_threads(threads)
    fast, reference = torch.tensor(times[1:]).amin(0).tolist()
    assert reference > 1.3 * fast
