"""The gradient of a batch does not depend on how many processes share it: exactly, as far as float64 goes."""

from __future__ import annotations

import importlib
import socket
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from ponder_zoo.data.collate import PretrainCollate
from ponder_zoo.losses.render import render_loss
from ponder_zoo.train.config import load_config
from ponder_zoo.train.distributed import mean_over_processes, num_processes, process_index
from ponder_zoo.train.sampler import StepSampler

RECIPES = str(Path(__file__).resolve().parents[2] / "recipes")


def one_step(settings: list[str]) -> dict[str, dict[str, torch.Tensor]]:
    sys.path.insert(0, RECIPES)
    pretrain = importlib.import_module("pretrain")
    cfg = load_config(pretrain.Config, settings)
    torch.manual_seed(0)
    model = pretrain.build_model(cfg).double()
    sets = pretrain.training_sets(cfg, model.encoder, pretrain.open_views(cfg.data, "train"))
    sampler = StepSampler([len(sets[0])], 2, stop=1, processes=num_processes(), process=process_index())
    keys = next(iter(sampler))
    batch = PretrainCollate()([sets[0][key.epoch, key.index] for key in keys])
    batch = batch.map(lambda value: value.double() if value.is_floating_point() else value)
    parallel = model
    if num_processes() > 1:
        parallel = DistributedDataParallel(model, find_unused_parameters=True)
    torch.manual_seed(1)  # of the samples along the rays
    output = parallel(batch.scene, batch.rays)
    losses = render_loss(output, batch.targets, batch.rays, cfg.loss, average_count=mean_over_processes)
    sum(losses.values()).backward()
    return {
        "loss": {name: mean_over_processes(loss.detach()) for name, loss in losses.items()},
        "gradient": {name: p.grad for name, p in model.named_parameters() if p.grad is not None},
        "buffer": dict(model.named_buffers()),
    }


def process(index: int, port: int, settings: list[str], file: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=index, world_size=2)
    result = one_step(settings)
    if index == 1:
        torch.save(result, file)
    dist.barrier()  # gloo aborts a process whose peer has left
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_two_processes_take_the_step_of_one(pretrain_settings, tmp_path):
    # Half of the scenes' points hidden, so that the numbers of valid rays and of points differ between the processes.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    one = one_step(pretrain_settings)
    mp.start_processes(
        process, args=(port, pretrain_settings, str(tmp_path / "two.pt")), nprocs=2, start_method="spawn"
    )
    two = torch.load(tmp_path / "two.pt", weights_only=True)
    for kind, values in one.items():
        assert values.keys() == two[kind].keys()
        for name, value in values.items():
            scale = value.abs().max().item() if value.is_floating_point() else 0
            torch.testing.assert_close(two[kind][name], value, rtol=0, atol=1e-9 * scale + 1e-12, msg=f"{kind} {name}")
