"""What the measured rates allow at best: arithmetic at the rate of a large matrix product, bytes at that of a copy.

A floor counts the arithmetic that the result needs and, where there is little of it, the bytes that must be read and
written once. No implementation reaches it; the distance says how much is left to win.
"""

from __future__ import annotations

from ponder_zoo.models.sparse_unet import SparseUNet
from ponder_zoo.sparse import SparseTensor, coarsening
from ponder_zoo.sparse.kernel_map import submanifold_map
from ponder_zoo.structures import PointBatch

from .machine import Machine

TRAINING = 3  # forward, and as much again for each of the two gradients


def sparse_unet(points: PointBatch, machine: Machine, *, train: bool) -> float:
    """Seconds of the products of SparseUNet-34: pairs x input channels x output channels x 2 flop."""
    return sparse_unet_flop(points) * (TRAINING if train else 1) / machine.gemm


def sparse_unet_flop(points: PointBatch) -> float:
    """Floating-point operations of a forward pass of SparseUNet-34 with 6 input columns."""
    assert points.grid_coord is not None
    x, _ = SparseTensor.from_points(points.feat, points.grid_coord, points.batch, points.batch_size)
    levels = [x.voxels]
    for _ in range(4):
        levels.append(coarsening(levels[-1]).coarse)
    total = 0.0
    for name, weight in SparseUNet(6).state_dict().items():  # in the published layout, whatever a backend keeps
        stage, number = name.split(".")[:2]
        level = 0 if stage == "stem" else int(number) + 1 if stage == "enc" else 3 - int(number)
        if weight.ndim == 5 and weight.shape[1] > 2:
            pairs = submanifold_map(levels[level], weight.shape[1]).num_pairs
            total += 2.0 * pairs * weight.shape[0] * weight.shape[-1]
        elif weight.ndim == 5:  # down and up: one pair per voxel of the finer level
            pairs = len(levels[level - 1 if stage == "enc" else level])
            total += 2.0 * pairs * weight.shape[0] * weight.shape[-1]
        elif weight.ndim == 2:  # a shortcut
            total += 2.0 * len(levels[level]) * weight.numel()
    return total
