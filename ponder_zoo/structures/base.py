"""What all structures share: moving to a device and pinning, recursively, without mutation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor


def _map(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, TensorStruct):
        return value.map(function)
    if isinstance(value, tuple):
        return tuple(_map(item, function) for item in value)
    return value


@dataclasses.dataclass(frozen=True, eq=False)
class TensorStruct:
    """Base of the frozen dataclasses of tensors that flow through the package.

    `to` and `pin_memory` are all that a DataLoader and Accelerate need. Change a field with `dataclasses.replace`.
    """

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """Return a copy with `function` applied to every tensor, nested structures and tuples included."""
        fields = {f.name: _map(getattr(self, f.name), function) for f in dataclasses.fields(self) if f.init}
        return dataclasses.replace(self, **fields)

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> Self:
        """Return a copy on `device`."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """Return a copy in page-locked memory."""
        return self.map(Tensor.pin_memory)
