"""What backends have in common that are one function of features, weight and kernel map."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..kernel_map import Coarsening, KernelMap, submanifold_map
from ..voxels import Voxels

Conv = Callable[[Tensor, Tensor, KernelMap], Tensor]  # (N_in, C_in), (C_out, kx, ky, kz, C_in), map -> (N_out, C_out)
OnVoxels = Callable[[Tensor, Tensor, Voxels], Tensor]
OnStep = Callable[[Tensor, Tensor, Coarsening], Tensor]


def by_map(conv: Conv) -> tuple[OnVoxels, OnStep, OnStep]:
    """The functions `submanifold_conv`, `down_conv` and `up_conv` of a backend (see `Backend`)."""

    def submanifold_conv(feat: Tensor, weight: Tensor, voxels: Voxels) -> Tensor:
        return conv(feat, weight, submanifold_map(voxels, weight.shape[1]))

    def down_conv(feat: Tensor, weight: Tensor, step: Coarsening) -> Tensor:
        return conv(feat, weight, step.down)

    def up_conv(feat: Tensor, weight: Tensor, step: Coarsening) -> Tensor:
        return conv(feat, weight, step.up)

    return submanifold_conv, down_conv, up_conv
