"""What the measured rates allow at best: arithmetic at the rate of a large matrix product, bytes at that of a copy.

A floor counts the arithmetic that the result needs and, where there is little of it, the bytes that must be read and
written once. No implementation reaches it; the distance says how much is left to win.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ponder_zoo.models.sparse_unet import SparseUNet
from ponder_zoo.sparse import coarsening
from ponder_zoo.sparse.kernel_map import submanifold_map
from ponder_zoo.sparse.voxels import Voxels, voxelize
from ponder_zoo.structures import PointBatch
from ponder_zoo.volume.unet3d import UNet3D

from .machine import Machine

KEY_BYTES = 24  # per voxel: read three int32 and write an int32 key, and the row that it came from, once sorted
TRAINING = 3  # forward, and as much again for each of the two gradients


def sparse_unet(points: PointBatch, machine: Machine, *, train: bool) -> float:
    """Seconds of the products of SparseUNet-34: pairs x input channels x output channels x 2 flop."""
    return sparse_unet_flop(points) * (TRAINING if train else 1) / machine.gemm


def sparse_unet_flop(points: PointBatch) -> float:
    """Floating-point operations of a forward pass of SparseUNet-34 with 6 input columns."""
    levels = _levels(points)
    total = 0.0
    with torch.device("meta"):  # only the shapes count
        weights = SparseUNet(6).state_dict()
    for name, weight in weights.items():  # in the published layout, whatever a backend keeps
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


def _levels(points: PointBatch) -> list[Voxels]:
    """Voxels of the five resolutions."""
    assert points.grid_coord is not None
    levels = [voxelize(points.grid_coord, points.batch, points.batch_size)[0]]
    for _ in range(4):
        levels.append(coarsening(levels[-1]).coarse)
    return levels


def kernel_maps(points: PointBatch, machine: Machine) -> float:
    """Seconds to write the int32 pairs of all maps of SparseUNet-34 once, and to read and write the keys per level."""
    levels = _levels(points)
    size = 8 * submanifold_map(levels[0], 5).num_pairs  # an input and an output row
    for level, voxels in enumerate(levels):
        size += 8 * submanifold_map(voxels, 3).num_pairs + KEY_BYTES * len(voxels)
        if level < len(levels) - 1:
            size += 8 * len(voxels)  # down; up has the same pairs
    return size / machine.copy


def kernel_list(points: PointBatch, kernel_size: int, machine: Machine) -> float:
    """Seconds to write the int32 pairs of one submanifold convolution, and to read and write the keys."""
    voxels = _levels(points)[0]
    return (8 * submanifold_map(voxels, kernel_size).num_pairs + KEY_BYTES * len(voxels)) / machine.copy


def unet3d(unet: UNet3D, shape: Sequence[int], machine: Machine, *, train: bool) -> float:
    """Seconds of the products of a dense U-Net on a volume (B, C, Z, Y, X)."""
    cells, _, Z, Y, X = shape
    cells *= Z * Y * X
    flop = 2.0 * cells * unet.head.weight.numel()
    for level, block in enumerate(unet.encoder):
        flop += 2.0 * cells / 8**level * block.conv.weight.numel()
    for level, block in enumerate(reversed(unet.decoder)):
        # A transposed convolution of stride 2 multiplies its whole kernel for each coarse cell.
        flop += 2.0 * cells / 8**level * (block.block.conv.weight.numel() + block.upsample.weight.numel() / 8)
    return flop * (TRAINING if train else 1) / machine.gemm
