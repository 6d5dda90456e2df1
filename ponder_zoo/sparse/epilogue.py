"""What follows a convolution in inference: a folded norm, a sum, a ReLU; in the same pass where a backend can."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm


@dataclass(frozen=True, eq=False)
class Epilogue:
    """y = relu(x * scale + shift + residual) of a convolution's result x (N, C), each part optional.

    Layers take one (`SubMConv3d(...)(x, epilogue=...)`). The Triton backend computes it before the result is written,
    which saves reading and writing (N, C) once per part; every other backend, and training, computes it afterwards.
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
        scale = (norm.running_var.float() + norm.eps).rsqrt()
        if norm.weight is not None:
            scale = scale * norm.weight.float()
        shift = -norm.running_mean.float() * scale
        return cls(scale, shift if norm.bias is None else shift + norm.bias.float(), residual, relu)

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
