"""Training steps of several processes that share their gradients, each with its share of the cores and of the batch."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist

from .harness import Call, Seconds
from .machine import ROOT, device, free_port, python_path

STEPS = 2  # timed, after one that is not


def steps_of_processes(processes: int, *, scenes: int, voxels: int) -> Call:
    """Seconds per training step of SparseUNet-34 on `scenes` scenes, spread over processes that each call starts."""
    if scenes % processes:
        raise ValueError(f"Expected a number of scenes that {processes} processes can share, got {scenes}.")
    threads = max(1, torch.get_num_threads() // processes)
    kind = device().type

    def call() -> Seconds:
        port = str(free_port())
        arguments = [str(x) for x in (processes, scenes // processes, voxels, threads, port, kind)]
        command = [sys.executable, "-m", "benchmarks.processes", *arguments]
        environment = os.environ | {"PYTHONPATH": python_path(), "OMP_NUM_THREADS": str(threads)}
        running = [
            subprocess.Popen([*command, str(rank)], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
            for rank in range(processes)
        ]
        answers = [process.communicate()[0] for process in running]
        if any(process.returncode for process in running):
            raise RuntimeError(f"A training process failed; its messages are above. Command: {' '.join(command)} RANK")
        return Seconds(answers[0].split()[-1])

    return call


def main(arguments: list[str]) -> None:
    """One process: processes, scenes of each, voxels of a scene, threads, port, device, rank."""
    from .machine import use_device
    from .scenes import dense_scene, repeat_scene
    from .sparse_unet import make_model, model_call

    processes, scenes, voxels, threads, port, kind, rank = arguments
    torch.set_num_threads(int(threads))
    use_device(kind)
    if kind == "cuda":
        torch.cuda.set_device(int(rank) % torch.cuda.device_count())
    dist.init_process_group(
        "nccl" if kind == "cuda" else "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        world_size=int(processes),
        rank=int(rank),
        timeout=timedelta(minutes=5),
    )
    points = repeat_scene(dense_scene(int(voxels)), int(scenes)).to(device())
    model = torch.nn.parallel.DistributedDataParallel(_Features(make_model().train()))
    step = model_call(model, lambda: model(points), train=True)
    step()
    dist.barrier()
    start = time.perf_counter()
    for _ in range(STEPS):
        step()
    dist.barrier()
    print((time.perf_counter() - start) / STEPS)
    dist.destroy_process_group()


class _Features(torch.nn.Module):
    """Features as a tensor, which DistributedDataParallel can look into."""

    def __init__(self, encoder: torch.nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, points: object) -> torch.Tensor:
        return self.encoder.forward_features(points).feat  # type: ignore[operator]


if __name__ == "__main__":
    main(sys.argv[1:])
