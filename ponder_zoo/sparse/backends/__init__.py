"""Implementations of sparse convolution behind one interface; weights and results do not depend on the choice."""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Collection
from functools import cache
from typing import Literal, Protocol, cast

# Not `import torch`: in this package that name belongs to the backend.
from torch import Tensor
from torch import device as Device
from torch.cuda import get_device_capability

from ..kernel_map import Coarsening
from ..voxels import Voxels

BackendName = Literal["auto", "torch", "triton", "spconv"]
BACKENDS: tuple[str, ...] = ("auto", "torch", "triton", "spconv")

# What `auto` takes on a kind of device: the first usable one. On CPU spconv has only its Native algorithm and the torch
# backend is no slower; on a GPU its kernels win. `triton` has to be asked for until it was run and measured on a GPU
# (`python -m benchmarks --device cuda`): so far it is right in Triton's interpreter.
PREFERENCE: dict[str, tuple[str, ...]] = {"cuda": ("spconv", "torch")}
ALWAYS = ("torch",)  # on other devices
TRITON_CAPABILITY = (8, 0)  # of GPUs: the first one with TF32 and bfloat16

_logger = logging.getLogger(__name__)


class Backend(Protocol):
    """What a backend module provides. Weights are (C_out, kx, ky, kz, C_in).

    A module with FUSES_EPILOGUES takes an `Epilogue` as last argument of each function, for use without gradients.
    """

    def submanifold_conv(self, feat: Tensor, weight: Tensor, voxels: Voxels) -> Tensor:
        """(N, C_in) -> (N, C_out) on the same voxels."""
        ...

    def down_conv(self, feat: Tensor, weight: Tensor, step: Coarsening) -> Tensor:
        """(N_fine, C_in) -> (N_coarse, C_out)."""
        ...

    def up_conv(self, feat: Tensor, weight: Tensor, step: Coarsening) -> Tensor:
        """(N_coarse, C_in) -> (N_fine, C_out)."""
        ...


def check_backend(name: str) -> None:
    """Raise if `name` is no backend (ValueError) or one that is not installed (ImportError)."""
    if name not in BACKENDS:
        raise ValueError(
            f"Expected backend to be one of {BACKENDS}, got {name!r}. `auto` takes the fastest usable one."
        )
    if name == "spconv" and not has_spconv():
        raise ImportError(
            "backend='spconv' needs the spconv package, which is not installed. "
            "Run `pip install 'ponder_zoo[spconv]'`, or use backend='torch'."
        )
    if name == "triton" and not has_triton():
        raise ImportError(
            "backend='triton' needs the triton package, which is not installed. torch for CUDA on Linux comes with it: "
            "run `pip install triton`, or use backend='torch'."
        )


@cache
def has_spconv() -> bool:
    """Whether spconv is installed, without importing it (which takes seconds)."""
    return importlib.util.find_spec("spconv") is not None


@cache
def has_triton() -> bool:
    """Whether triton is installed, without importing it."""
    return importlib.util.find_spec("triton") is not None


def get_backend(name: str, device: Device) -> Backend:
    """The module that implements backend `name` for tensors on `device`."""
    if name == "auto":
        name = _fastest(device)
    return cast(Backend, importlib.import_module(f".{name}", __name__))


def usable_backends(capability: tuple[int, int]) -> set[str]:
    """Backends that work on a GPU of this compute capability with what is installed."""
    usable = {"torch"}
    if has_spconv():
        usable.add("spconv")
    if has_triton() and capability >= TRITON_CAPABILITY:
        usable.add("triton")
    return usable


def preferred(device_type: str, usable: Collection[str]) -> str:
    """What `auto` takes on a kind of device where the given backends work."""
    return next(name for name in PREFERENCE.get(device_type, ALWAYS) if name in usable)


@cache
def _fastest(device: Device) -> str:
    usable = usable_backends(get_device_capability(device)) if device.type == "cuda" else ALWAYS
    name = preferred(device.type, usable)
    _logger.info("Sparse convolutions on %s run through the %s backend.", device, name)
    return name
