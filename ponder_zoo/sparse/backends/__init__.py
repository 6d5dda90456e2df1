"""Implementations of sparse convolution behind one interface; weights and results do not depend on the choice."""

from __future__ import annotations

import importlib
import importlib.util
import logging
from functools import cache
from typing import Literal, Protocol, cast

# Not `import torch`: in this package that name belongs to the backend.
from torch import Tensor
from torch import device as Device

from ..kernel_map import Coarsening
from ..voxels import Voxels

BackendName = Literal["auto", "torch", "spconv"]
BACKENDS: tuple[str, ...] = ("auto", "torch", "spconv")

_logger = logging.getLogger(__name__)


class Backend(Protocol):
    """What a backend module provides. Weights are (C_out, kx, ky, kz, C_in)."""

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


@cache
def has_spconv() -> bool:
    """Whether spconv is installed, without importing it (which takes seconds)."""
    return importlib.util.find_spec("spconv") is not None


def get_backend(name: str, device: Device) -> Backend:
    """The module that implements backend `name` for tensors on `device`."""
    if name == "auto":
        name = _fastest(device.type)
    return cast(Backend, importlib.import_module(f".{name}", __name__))


@cache
def _fastest(device_type: str) -> str:
    # On CPU spconv has only its Native algorithm and the torch backend is no slower; on a GPU its fused kernels win.
    name = "spconv" if device_type == "cuda" and has_spconv() else "torch"
    _logger.info("Sparse convolutions on %s run through the %s backend.", device_type, name)
    return name
