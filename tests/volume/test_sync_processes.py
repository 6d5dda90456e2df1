"""What saves memory and arithmetic in training keeps the gradients of the whole batch when two processes share it."""

from __future__ import annotations

import copy
import socket
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from ponder_zoo.layers.norms import BatchNorm
from ponder_zoo.layers.sync_norm import synchronize_batch_norm
from ponder_zoo.volume import UNet3D
from ponder_zoo.volume.occupied import OccupiedCells

ROWS = (0, 12, 13)  # of the first process from 0 to 12; the other one has a single row
VOLUMES = (0, 1, 3)  # process 0 has one volume and takes it by its occupied cells, process 1 two as a whole
SHAPE = (2, 4, 8)  # Z, Y, X


def make_parts() -> dict[str, nn.Module]:
    torch.manual_seed(1)
    parts = nn.ModuleDict({"unet": UNet3D(5, 3, channels=(4, 6)), "norm": BatchNorm(4)}).double()
    for parameter in parts.parameters():
        nn.init.normal_(parameter)
    return dict(parts.items())


def make_case() -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(2)
    cells = torch.randn(VOLUMES[-1], *SHAPE, 5, generator=random, dtype=torch.float64)
    cells *= torch.rand(VOLUMES[-1], *SHAPE, 1, generator=random) < 0.1
    return {"volume": cells, "feat": torch.randn(ROWS[-1], 4, generator=random, dtype=torch.float64) + 3}


def as_occupied(volume: Tensor) -> OccupiedCells:
    rows = volume.flatten(0, 3)
    index = rows.detach().abs().sum(1).nonzero()[:, 0]
    return OccupiedCells(rows[index], index, (len(volume), *SHAPE))


def step(parts: dict[str, Any], volume: Tensor, feat: Tensor, first: tuple[int, int], sparse: bool) -> dict[str, Any]:
    """Outputs, gradients and buffers; `first` is where this volume and these rows are in the whole batch."""
    leaves = volume.requires_grad_(), feat.requires_grad_()
    cells = as_occupied(volume) if sparse else volume.movedim(-1, 1)
    if sparse:
        assert parts["unet"].takes_occupied(cells)
    outputs = parts["unet"](cells), parts["norm"](feat, relu=True)
    assert type(outputs[1].grad_fn).__name__ == "_NormReLUBackward"
    loss = torch.zeros((), dtype=torch.float64)
    for out, begin in zip(outputs, first, strict=True):
        place = torch.arange(out.numel(), dtype=torch.float64).view(out.shape) + begin * out[:1].numel()
        loss = loss + (out * place.cos()).sum()
    loss.backward()
    return {
        "rows": {"unet": outputs[0].detach(), "norm": outputs[1].detach(), "feat": leaves[1].grad},
        "cells": volume.grad * (volume.detach() != 0).any(-1, keepdim=True),  # empty cells are no input
        "sums": {f"{k}.{n}": p.grad for k, part in parts.items() for n, p in part.named_parameters()},
        "buffers": {f"{k}.{n}": b for k, part in parts.items() for n, b in part.named_buffers()},
    }


def process(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    parts = {name: synchronize_batch_norm(part) for name, part in make_parts().items()}
    case, first = make_case(), (VOLUMES[rank], ROWS[rank])
    volume, feat = (case["volume"][slice(*VOLUMES[rank : rank + 2])], case["feat"][slice(*ROWS[rank : rank + 2])])
    torch.save(step(parts, volume.clone(), feat.clone(), first, sparse=rank == 0), Path(folder) / f"{rank}.pt")
    dist.barrier()  # gloo aborts a process whose peer has left
    dist.destroy_process_group()


def test_gradients_are_those_of_plain_norms_on_the_whole_batch(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(process, args=(port, str(tmp_path)), nprocs=2)
    one, two = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    case = make_case()
    expected = step(make_parts(), copy.copy(case["volume"]), case["feat"], (0, 0), sparse=False)
    for name, value in expected["rows"].items():
        torch.testing.assert_close(torch.cat([one["rows"][name], two["rows"][name]]), value, msg=name)
    torch.testing.assert_close(torch.cat([one["cells"], two["cells"]]), expected["cells"])
    for name, value in expected["sums"].items():
        torch.testing.assert_close(one["sums"][name] + two["sums"][name], value, msg=name)
    for found in (one, two):
        torch.testing.assert_close(found["buffers"], expected["buffers"])
