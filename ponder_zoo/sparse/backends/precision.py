"""Sums of products in a precision that holds them."""

from __future__ import annotations

import torch
from torch import Tensor


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """Type in which products of `dtype` are summed: float32 for lower precisions."""
    return torch.promote_types(dtype, torch.float32)


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add a matrix product to `total`, which may have a higher precision."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += torch.mm(left, right)
