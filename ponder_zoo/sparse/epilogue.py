"""What follows a convolution in inference: a folded norm, a sum, a ReLU; in the same pass where a backend can."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm


@dataclass(frozen=True, eq=False)
class Epilogue:
    """y = relu(x * scale + shift + residual) of a convolution's result x (N, C), each part optional.

    Layers take one (`SubMConv3d(...)(x, epilogue=...)`). The Triton and torch backends compute it while the result is
    still near the processor, which saves reading and writing (N, C) once per part; spconv, and training, afterwards.
    """

    scale: Tensor | None = None  # (C,)
    shift: Tensor | None = None  # (C,)
    residual: Tensor | None = None  # (N, C)
    relu: bool = False

    @classmethod
    def of_norm(cls, norm: _BatchNorm, *, residual: Tensor | None = None, relu: bool = False) -> Epilogue:
        """A BatchNorm with its running statistics, as in eval mode; a sum and a ReLU after it where given."""
        if norm.running_mean is None or norm.running_var is None:
            raise ValueError(
                f"Expected a norm with running statistics, got {norm}. Fold norms made with track_running_stats=True, "
                "after training."
            )
        scale, shift = fold_norm(norm, norm.weight, norm.bias)
        return cls(scale, shift, residual, relu)

    def check(self, shape: tuple[int, int]) -> None:
        """Raise ValueError unless the residual has the result's shape."""
        if self.residual is not None and self.residual.shape != shape:
            raise ValueError(
                f"Expected `residual` of the output's shape {shape}, got {tuple(self.residual.shape)}. "
                "Take the features of the same voxels."
            )

    def apply(self, out: Tensor) -> Tensor:
        """Of a result (N, C), in its precision; computed in float32 or better. Differentiable."""
        value = out.to(torch.promote_types(out.dtype, torch.float32))
        if self.scale is not None and self.shift is not None:
            value = torch.addcmul(self.shift, value, self.scale)  # one pass over (N, C)
        elif self.scale is not None:
            value = value * self.scale
        elif self.shift is not None:
            value = value + self.shift
        if self.residual is not None:
            value = value + self.residual
        return (value.relu() if self.relu else value).to(out.dtype)

    @torch.no_grad()
    def write(self, out: Tensor, rows: slice, value: Tensor) -> None:
        """`out[rows] = apply(value)` for some rows of the result, (T, C) in the precision of `out`."""
        target = out[rows]
        if target.dtype not in (torch.float32, torch.float64):
            residual = None if self.residual is None else self.residual[rows]
            target.copy_(replace(self, residual=residual).apply(value))
            return
        if self.scale is not None and self.shift is not None:
            torch.addcmul(self.shift.to(value), value, self.scale.to(value), out=target)
        else:
            target.copy_(replace(self, residual=None, relu=False).apply(value))
        if self.residual is not None:
            target.add_(self.residual[rows])
        if self.relu:
            target.relu_()


def fold_norm(norm: _BatchNorm, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """What normalizing with running statistics and the given scale and shift (C,) multiplies with and adds."""
    assert norm.running_mean is not None and norm.running_var is not None
    dtype = torch.promote_types(norm.running_var.dtype, torch.float32)
    scale = (norm.running_var.to(dtype) + norm.eps).rsqrt()
    if weight is not None:
        scale = scale * weight
    shift = -norm.running_mean * scale
    return scale, shift if bias is None else shift + bias
