"""Batch normalization with the statistics of the batch of all processes, on any device.

`torch.nn.SyncBatchNorm` refuses CPU tensors. Sums are accumulated in float64, as torch's own batch norm does on a CPU:
the statistics, and with them the whole forward pass, then hardly depend on how the rows are shared out.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm


def several_processes() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def synchronized_norm(
    feat: Tensor, weight: Tensor | None, bias: Tensor | None, *, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Normalize with statistics over the rows of all processes; every process must take part, rows or not.

    Args:
        feat: (N, C, ...) float32 or float64; N may be 0.
        weight: (C,) scale, or None.
        bias: (C,) shift, or None.
        eps: added to the variance.

    Returns:
        The normalized features, and without gradient: mean (C,), variance (C,) (biased) and the number of values per
        channel, all over all processes and in float64.
    """
    return _SynchronizedNorm.apply(feat, weight, bias, eps)  # type: ignore[return-value]


def _layout(feat: Tensor) -> tuple[list[int], list[int]]:
    """Axes to reduce over, and the shape that lines (C,) up with (N, C, ...)."""
    return [axis for axis in range(feat.ndim) if axis != 1], [1, -1, *[1] * (feat.ndim - 2)]


class _SynchronizedNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, feat: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, ...]:
        axes, shape = _layout(feat)
        rows = torch.full((1,), float(feat.numel() // feat.shape[1]), dtype=torch.float64, device=feat.device)
        sums = torch.cat([feat.sum(axes, dtype=torch.float64), rows])
        dist.all_reduce(sums)
        count = sums[-1].clamp(min=1.0)
        mean = sums[:-1] / count
        rounded = mean.to(feat.dtype)
        centred = feat - rounded.view(shape)
        # Two passes: the mean of squares less the square of the mean loses digits.
        squares = centred.square().sum(axes, dtype=torch.float64)
        dist.all_reduce(squares)
        variance = (squares / count - (mean - rounded).square()).clamp(min=0.0)
        scale = (variance + eps).rsqrt().to(feat.dtype)
        ctx.save_for_backward(feat, weight, rounded, scale, count)
        ctx.has_bias = bias is not None
        output = centred * (scale if weight is None else scale * weight).view(shape)
        output = output if bias is None else output + bias.view(shape)
        ctx.mark_non_differentiable(mean, variance, sums[-1:])
        return output, mean, variance, sums[-1:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        feat, weight, mean, scale, count = ctx.saved_tensors
        axes, shape = _layout(feat)
        centred = feat - mean.view(shape)
        own = torch.stack(
            [gradient.sum(axes, dtype=torch.float64), (gradient * centred).sum(axes, dtype=torch.float64)]
        )
        every = own.clone()
        dist.all_reduce(every)
        shift, slope = (every / count).to(feat.dtype)
        factor = (scale if weight is None else scale * weight).view(shape)
        inside = gradient - shift.view(shape) - centred * (slope * scale.square()).view(shape)
        weight_gradient = None if weight is None else (own[1] * scale).to(weight.dtype)
        return factor * inside, weight_gradient, own[0].to(feat.dtype) if ctx.has_bias else None, None


class SyncBatchNorm(_BatchNorm):
    """What `synchronize_batch_norm` puts in the place of torch's layers.

    Outside training and in a single process this is plain batch normalization.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or not several_processes():
            return super().forward(input)
        feat = input.to(torch.promote_types(input.dtype, torch.float32))
        output, mean, variance, count = synchronized_norm(feat, self.weight, self.bias, eps=self.eps)
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
            rate = 1.0 / self.num_batches_tracked if self.momentum is None else torch.tensor(self.momentum)
            update_statistics(self.running_mean, self.running_var, mean, variance, count, rate.to(mean))
        return output.to(input.dtype)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"Expected (N, C, ...), got {tuple(input.shape)}. Give the features a channel axis.")


@torch.no_grad()
def update_statistics(
    running_mean: Tensor, running_var: Tensor, mean: Tensor, variance: Tensor, count: Tensor, rate: Tensor
) -> None:
    """Move running statistics towards those of a batch by `rate`, in place; a batch of one value has no variance."""
    rate = rate * (count[0] > 1)
    unbiased = variance * (count / (count - 1.0).clamp(min=1.0))
    running_mean.lerp_(mean.to(running_mean), rate.to(running_mean))
    running_var.lerp_(unbiased.to(running_var), rate.to(running_var))


def synchronize_batch_norm(model: nn.Module) -> nn.Module:
    """Give a model's batch norms the statistics of all processes, in place.

    torch's layers are replaced by `SyncBatchNorm` with the same parameters and buffers; a layer that synchronizes on its
    own has a switch, `synchronized` (`norms.BatchNorm`). Does nothing in a single process.
    """
    return _convert(model) if several_processes() else model


def _convert(module: nn.Module) -> nn.Module:
    if type(module) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
        norm = SyncBatchNorm.__new__(SyncBatchNorm)
        norm.__dict__ = module.__dict__  # the same tensors: an optimizer or a parent may hold them already
        return norm
    if getattr(module, "synchronized", None) is False:
        module.synchronized = True  # type: ignore[assignment]
    for name, child in module.named_children():
        setattr(module, name, _convert(child))
    return module
