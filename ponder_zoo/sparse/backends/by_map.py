"""What backends have in common that are one function of features, weight and kernel map."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from .. import kernel_map
from ..epilogue import Epilogue
from ..kernel_map import Coarsening, KernelMap
from ..voxels import Voxels


class Conv(Protocol):
    """(N_in, C_in), (C_out, kx, ky, kz, C_in), map -> (N_out, C_out); without gradients where an epilogue is given."""

    def __call__(self, feat: Tensor, weight: Tensor, kmap: KernelMap, epilogue: Epilogue | None = None) -> Tensor: ...


class OnVoxels(Protocol):
    def __call__(self, feat: Tensor, weight: Tensor, voxels: Voxels, epilogue: Epilogue | None = None) -> Tensor: ...


class OnStep(Protocol):
    def __call__(self, feat: Tensor, weight: Tensor, step: Coarsening, epilogue: Epilogue | None = None) -> Tensor: ...


def by_map(
    conv: Conv, submanifold_map: Callable[[Voxels, int], KernelMap] = kernel_map.submanifold_map
) -> tuple[OnVoxels, OnStep, OnStep]:
    """The functions `submanifold_conv`, `down_conv` and `up_conv` of a backend that fuses epilogues (see `Backend`)."""

    def submanifold_conv(feat: Tensor, weight: Tensor, voxels: Voxels, epilogue: Epilogue | None = None) -> Tensor:
        return conv(feat, weight, submanifold_map(voxels, weight.shape[1]), epilogue)

    def down_conv(feat: Tensor, weight: Tensor, step: Coarsening, epilogue: Epilogue | None = None) -> Tensor:
        return conv(feat, weight, step.down, epilogue)

    def up_conv(feat: Tensor, weight: Tensor, step: Coarsening, epilogue: Epilogue | None = None) -> Tensor:
        return conv(feat, weight, step.up, epilogue)

    return submanifold_conv, down_conv, up_conv
