"""Two processes with half of the rows each against one process with all of them."""

from __future__ import annotations

import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ponder_zoo.layers.sync_norm import SyncBatchNorm, synchronize_batch_norm
from ponder_zoo.losses.segmentation import cross_entropy_lovasz
from ponder_zoo.train.distributed import gather_rows, mean_over_processes, num_processes
from ponder_zoo.train.guard import NonFiniteGuard


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(3, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)
    )


def make_rows():
    generator = torch.Generator().manual_seed(1)
    target = torch.randint(0, 3, (20,), generator=generator)
    target[[0, 5, 6, 7, 13]] = -1
    return torch.randn(20, 3, generator=generator) * 3 + 10, target


def train(model, rows, target, steps=5):
    """A ragged split: the first process has 14 rows (4 unlabelled), the second 6."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(steps):
        logits = model(rows)
        masked = logits.square().sum(-1)[target >= 0].sum() / mean_over_processes((target >= 0).sum().float())
        terms = cross_entropy_lovasz(gather_rows(logits), gather_rows(target))
        (sum(terms.values()) + masked).backward()
        losses.append([*(term.item() for term in terms.values()), mean_over_processes(masked).item()])
        optimizer.step()
        optimizer.zero_grad()
    return torch.tensor(losses)


def process(index, port, file):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=index, world_size=2)
    rows, target = make_rows()
    part = slice(0, 14) if index == 0 else slice(14, 20)
    model = synchronize_batch_norm(make_model())
    assert type(model[1]) is SyncBatchNorm and num_processes() == 2
    losses = train(DistributedDataParallel(model, broadcast_buffers=False), rows[part], target[part])
    guard = NonFiniteGuard(model)
    guard.watch({"a": torch.tensor(float("nan") if index == 1 else 1.0)})
    refused = not guard.allows(torch.tensor(1.0), step=1)
    torch.save({"losses": losses, "state": model.state_dict(), "refused": refused}, f"{file}{index}")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    file = str(tmp_path_factory.mktemp("two") / "result")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.start_processes(process, args=(port, file), nprocs=2, start_method="spawn")
    return [torch.load(f"{file}{index}", weights_only=True) for index in range(2)]


def test_losses_weights_and_statistics_are_those_of_one_process(two_processes):
    model = make_model()
    losses = train(model, *make_rows())
    for result in two_processes:
        torch.testing.assert_close(result["losses"], losses, rtol=1e-5, atol=1e-6)
        for key, value in model.state_dict().items():
            torch.testing.assert_close(result["state"][key], value, rtol=1e-4, atol=1e-5, msg=key)


def test_all_processes_refuse_a_step_that_is_broken_in_one(two_processes):
    assert [result["refused"] for result in two_processes] == [True, True]


def test_in_one_process_nothing_changes():
    rows = torch.randn(4, 3, requires_grad=True)
    assert gather_rows(rows) is rows and mean_over_processes(rows) is rows
