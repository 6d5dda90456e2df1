"""Inputs for tests of the Triton backend: on a GPU where there is one, else small ones for the interpreter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ponder_zoo.sparse import KernelMap, Voxels, coarsening, submanifold_map, voxelize

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
EXTENT = 8  # cells; coordinates run from -4 to 3
KINDS = {"5": 5, "3": 3, "down": 2, "up": 2}  # of maps, with the kernel size


def random_voxels(count: int, seed: int = 0, extent: int = EXTENT) -> Voxels:
    """Distinct random voxels in two scenes."""
    generator = torch.Generator().manual_seed(seed)
    flat = torch.randperm(2 * extent**3, generator=generator)[:count]
    batch, cell = flat // extent**3, flat % extent**3
    coord = torch.stack([cell // extent**2, cell // extent % extent, cell % extent], 1) - extent // 2
    return voxelize(coord.to(DEVICE), batch.to(DEVICE), 2)[0]


def map_of(kind: str, voxels: Voxels) -> KernelMap:
    step = coarsening(voxels)
    return {"down": step.down, "up": step.up}[kind] if kind in ("down", "up") else submanifold_map(voxels, int(kind))


def random_operands(
    kmap: KernelMap, kernel_size: int, in_chans: int, out_chans: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Features and a weight of unit-size results, as leaves."""
    feat = torch.randn(kmap.num_in, in_chans).to(DEVICE, dtype).requires_grad_()
    weight = torch.randn(out_chans, *[kernel_size] * 3, in_chans) / (2 * in_chans) ** 0.5
    return feat, weight.to(DEVICE, dtype).requires_grad_()


def use_large_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """One block per launch where it fits: the interpreter's time is one per step of a program, whatever its size.

    For tests of whole networks; those of the kernels have blocks as on a GPU.
    """
    if DEVICE.type == "cuda":
        return
    from ponder_zoo.sparse.backends import triton as backend
    from ponder_zoo.sparse.backends.triton_tuning import Config, Problem

    def choose(problem: Problem, *_: object) -> Config:
        rows, ins, outs = (max(16, 1 << (size - 1).bit_length()) for size in _sizes(problem))
        return Config(rows=min(rows, 1024), ins=ins, outs=outs, splits=1, warps=4, stages=1)

    monkeypatch.setattr(backend, "_choose", choose)


def _sizes(problem: Any) -> tuple[int, int, int]:
    return 2 * problem.rows, problem.chans_in, problem.chans_out  # `rows` is rounded down
