"""Padding, choice and reuse of graphs, on a CPU where the recorded function is called again; and real capture."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ponder_zoo.models.sparse_unet import SparseUNet
from ponder_zoo.sparse import SparseTensor
from ponder_zoo.sparse.cuda_graph import CapturedForward, padded_size, used_kernel_sizes

SMALL: dict[str, Any] = {"channels": (8, 8, 12, 16, 16, 12, 8, 10), "depths": (1,) * 8, "stem_channels": 8}


def scene(count: int, seed: int = 0, device: str = "cpu", extent: int = 24) -> SparseTensor:
    generator = torch.Generator().manual_seed(seed)
    cells = torch.randint(-extent // 2, extent // 2, (count, 3), generator=generator)
    feat = torch.randn(count, 6, generator=generator)
    batch = torch.zeros(count, dtype=torch.int64)
    return SparseTensor.from_points(feat.to(device), cells.to(device), batch.to(device), 1)[0]


def network(backend: str = "torch") -> tuple[SparseUNet, list[int]]:
    """A model in eval mode, and a list that counts the rows of each call of its forward."""
    model = SparseUNet(6, **SMALL, backend=backend).eval()
    for name, value in model.state_dict().items():
        if "running" in name:
            value.uniform_(0.5, 1.5)
    return model, []


def forward_of(model: SparseUNet, calls: list[int]) -> Any:
    def forward(x: SparseTensor) -> Tensor:
        calls.append(len(x))
        *_, last = model._stages(x, None)
        return last.feat

    return forward


def test_scenes_of_any_size_get_their_own_results() -> None:
    model, calls = network()
    forward = forward_of(model, calls)
    captured = CapturedForward(forward)
    for count, seed in ((500, 0), (900, 1), (850, 2), (40, 3), (900, 1), (3000, 4)):
        x = scene(count, seed)
        with torch.no_grad():
            expected = forward(scene(count, seed))
        torch.testing.assert_close(captured(x), expected, atol=2e-5, rtol=1e-5)
    padded = calls[3::2]  # of the calls through `captured` after the first
    assert padded == [1024, 1024, 256, 1024, padded_size(len(scene(3000, 4)))]


def test_results_are_not_overwritten_by_the_next_scene() -> None:
    model, calls = network()
    captured = CapturedForward(forward_of(model, calls))
    captured(scene(300))
    first = captured(scene(300, 1))
    kept = first.clone()
    captured(scene(300, 2))
    assert first.equal(kept)


def test_old_graphs_are_dropped() -> None:
    model, calls = network()
    captured = CapturedForward(forward_of(model, calls), max_graphs=2)
    for count in (100, 300, 900, 2500):
        captured(scene(count))
    assert [graph.sizes[0] for graph in captured._graphs] == [1024, padded_size(len(scene(2500)))]
    captured(scene(900, 1))
    assert len(captured._graphs) == 2 and captured._graphs[-1].sizes[0] == 1024


def test_other_inputs_get_another_graph() -> None:
    captured = CapturedForward(lambda x: x.feat * 2)
    x = scene(100)
    captured(x)
    for feat in (x.feat, x.feat.double(), x.feat[:, :3]):
        assert captured(x.with_feat(feat)).equal(2 * feat)
    assert len(captured._graphs) == 3


def test_a_graph_is_used_in_the_precision_that_it_was_captured_in() -> None:
    captured = CapturedForward(lambda x: x.feat @ torch.eye(6))
    x = scene(100)
    captured(x)
    assert captured(x).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert captured(x).dtype == torch.bfloat16
    assert captured(x).dtype == torch.float32 and len(captured._graphs) == 2


def test_kernel_sizes_are_seen_in_the_first_call() -> None:
    model, calls = network()
    x = scene(200)
    forward_of(model, calls)(x)
    assert used_kernel_sizes(x.voxels) == [[5, 3], [3], [3], [3], [3]]


@pytest.mark.parametrize("count", [1, 255, 256, 257, 5000, 100_000, 2_000_001])
def test_padding_is_bounded(count: int) -> None:
    assert count <= padded_size(count) <= max(count * 1.126, count + 255)


@pytest.mark.cuda
@pytest.mark.triton
def test_a_network_is_captured_and_replayed_for_other_scenes() -> None:
    model, calls = network("triton")
    forward = forward_of(model.cuda(), calls)
    captured = CapturedForward(forward)
    for count, seed in ((5000, 0), (5000, 1), (4800, 2), (2000, 3)):
        with torch.no_grad():
            expected = forward(scene(count, seed, "cuda"))
        torch.testing.assert_close(captured(scene(count, seed, "cuda")), expected, atol=2e-5, rtol=1e-4)
    assert len(captured._graphs) <= 2
