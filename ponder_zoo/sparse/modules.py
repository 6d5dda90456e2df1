"""Sparse convolution layers."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .backends import check_backend, get_backend
from .epilogue import Epilogue
from .kernel_map import KERNEL_SIZES, Coarsening, coarsening
from .tensor import SparseTensor
from .voxels import Voxels


def _conv_weight(in_chans: int, out_chans: int, kernel_size: int) -> nn.Parameter:
    # Kaiming-uniform with a = sqrt(5), torch's and spconv's default for convolutions.
    bound = 1.0 / math.sqrt(in_chans * kernel_size**3)
    weight = torch.empty(out_chans, kernel_size, kernel_size, kernel_size, in_chans)
    return nn.Parameter(nn.init.uniform_(weight, -bound, bound))


def _autocast(feat: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the autocast precision where autocast is on, else in the weight's."""
    device = feat.device.type
    if not torch.is_autocast_enabled(device) or feat.dtype == torch.float64:
        return feat, weight
    dtype = torch.get_autocast_dtype(device)
    return feat.to(dtype), weight.to(dtype)


def _convolve(
    backend: str, function: str, feat: Tensor, weight: Tensor, place: Voxels | Coarsening, epilogue: Epilogue | None
) -> Tensor:
    """A function of a backend, and an epilogue: in the same pass where the backend can and nobody wants gradients."""
    feat, weight = _autocast(feat, weight)
    module = get_backend(backend, feat.device)
    conv = getattr(module, function)
    if epilogue is None:
        return conv(feat, weight, place)
    if getattr(module, "FUSES_EPILOGUES", False) and not torch.is_grad_enabled():
        return conv(feat, weight, place, epilogue)
    return epilogue.apply(conv(feat, weight, place))


class SubMConv3d(nn.Module):
    """Submanifold convolution: a dense convolution's values at the occupied voxels, which stay the same.

    The weight is (out, kx, ky, kz, in). For kernel size 1 use `torch.nn.Linear`.
    """

    def __init__(self, in_chans: int, out_chans: int, *, kernel_size: int = 3, backend: str = "auto") -> None:
        super().__init__()
        if kernel_size not in KERNEL_SIZES:
            raise ValueError(f"Expected kernel_size in {KERNEL_SIZES}, got {kernel_size}. Use nn.Linear for size 1.")
        check_backend(backend)
        self.backend = backend
        self.weight = _conv_weight(in_chans, out_chans, kernel_size)

    def forward(self, x: SparseTensor, *, epilogue: Epilogue | None = None) -> SparseTensor:
        """(N, in) features -> (N, out) on the same voxels, with what follows in inference where given."""
        feat = _convolve(self.backend, "submanifold_conv", x.feat, self.weight, x.voxels, epilogue)
        return x.with_feat(feat)

    def extra_repr(self) -> str:
        out_chans, kernel_size, _, _, in_chans = self.weight.shape
        return f"{in_chans}, {out_chans}, kernel_size={kernel_size}, backend={self.backend!r}"


class DownConv3d(nn.Module):
    """Convolution of kernel size 2 and stride 2, onto the voxels of twice the size that contain the given ones."""

    def __init__(self, in_chans: int, out_chans: int, *, backend: str = "auto") -> None:
        super().__init__()
        check_backend(backend)
        self.backend = backend
        self.weight = _conv_weight(in_chans, out_chans, 2)

    def forward(self, x: SparseTensor, *, epilogue: Epilogue | None = None) -> SparseTensor:
        """(N_fine, in) features -> (N_coarse, out) on the coarser voxels."""
        step = coarsening(x.voxels)
        return SparseTensor(_convolve(self.backend, "down_conv", x.feat, self.weight, step, epilogue), step.coarse)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[-1]}, {self.weight.shape[0]}, backend={self.backend!r}"


class UpConv3d(nn.Module):
    """Inverse of a DownConv3d's resolution step: kernel size 2 back onto exactly the voxels that it started from."""

    def __init__(self, in_chans: int, out_chans: int, *, backend: str = "auto") -> None:
        super().__init__()
        check_backend(backend)
        self.backend = backend
        self.weight = _conv_weight(in_chans, out_chans, 2)

    def forward(self, x: SparseTensor, like: SparseTensor, *, epilogue: Epilogue | None = None) -> SparseTensor:
        """(N_coarse, in) features -> (N_fine, out) on the voxels of `like`, which `x` was strided from."""
        step = coarsening(like.voxels)
        if step.coarse is not x.voxels:
            raise ValueError(
                f"UpConv3d goes back to voxels that were strided with DownConv3d; `x` has {len(x)} voxels of stride "
                f"{x.voxels.stride}, `like` leads to {len(step.coarse)} of stride {step.coarse.stride}. "
                "Pass the tensor that went into the DownConv3d."
            )
        return like.with_feat(_convolve(self.backend, "up_conv", x.feat, self.weight, step, epilogue))

    def extra_repr(self) -> str:
        return f"{self.weight.shape[-1]}, {self.weight.shape[0]}, backend={self.backend!r}"
