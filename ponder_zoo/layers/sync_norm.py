"""Batch normalization with the statistics of the batch of all processes, on any device.

`torch.nn.SyncBatchNorm` refuses CPU tensors. Sums are accumulated in float64, so that statistics, and with them the
whole forward pass, hardly depend on how the rows are shared out: torch's own norm of a mostly empty volume is good to
4e-5 only (a (2, 8, 8, 16, 16) volume, CPU, 2026-11-24), which training amplifies within a few steps.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm


def several_processes() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _add_up(value: Tensor) -> None:
    """Sum over processes, in place."""
    if several_processes():
        dist.all_reduce(value)


def synchronized_norm(
    feat: Tensor, weight: Tensor | None, bias: Tensor | None, *, eps: float
) -> tuple[Tensor, BatchStatistics]:
    """Normalize with statistics over the rows of all processes; every process must take part, rows or not.

    In a single process this is batch normalization with float64 sums.

    Args:
        feat: (N, C, ...) float32 or float64; N may be 0.
        weight: (C,) scale, or None.
        bias: (C,) shift, or None.
        eps: added to the variance.
    """
    output, *statistics = _SynchronizedNorm.apply(feat, weight, bias, eps)  # type: ignore[misc]
    return output, BatchStatistics(*statistics)


# Three functions need these two halves: the norm, the norm with a ReLU (`norm_relu`) and the norm of a volume that is
# given by its occupied cells (`volume.occupied`). They exchange the same sums in the same order, so that a process may
# take the sparse way through a layer while another one takes the dense way.


class BatchStatistics(NamedTuple):
    """Of the rows of all processes, in float64 and without gradient."""

    mean: Tensor  # (C,)
    variance: Tensor  # (C,), biased
    count: Tensor  # (1,), values per channel; may be 0

    def scale(self, eps: float, dtype: torch.dtype) -> Tensor:
        """(C,) what normalizing multiplies with."""
        return (self.variance + eps).rsqrt().to(dtype)


@torch.no_grad()
def batch_statistics(feat: Tensor, *, zeros: int = 0, synchronize: bool = True) -> BatchStatistics:
    """Statistics of (N, C, ...) and of `zeros` further values per channel that are zero."""
    return _centre(feat, zeros, synchronize)[0]


def norm_sums_gradient(own: Tensor, scale: Tensor, count: Tensor, synchronize: bool = True) -> tuple[Tensor, Tensor]:
    """How the loss of all processes depends on a value through the statistics: `-(shift + slope * (value - mean))`.

    Args:
        own: (2, C) float64; sums over this process of the output's gradient, and of its product with (value - mean).
        scale: (C,) of `BatchStatistics.scale`.
        count: (1,) of the statistics.
        synchronize: whether the statistics are those of all processes.

    Returns:
        `shift` and `slope` (C,), to be multiplied with the norm's factor.
    """
    every = own.clone()
    if synchronize:
        _add_up(every)
    shift, slope = (every / count.clamp(min=1.0)).to(scale.dtype)
    return shift, slope * scale.square()


def norm_gradients(
    gradient: Tensor, feat: Tensor, weight: Tensor | None, mean: Tensor, scale: Tensor, count: Tensor
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Gradients of the norm's (N, C, ...) input, of its scale and of its shift (C,); the last two of this process."""
    shape = _shape(feat)
    centred = feat - mean.view(shape)
    own = torch.stack([_sums(gradient), _sums(gradient * centred)])
    shift, slope = norm_sums_gradient(own, scale, count)
    factor = (scale if weight is None else scale * weight).view(shape)
    inside = torch.addcmul(gradient - shift.view(shape), centred, slope.view(shape), value=-1.0)
    weight_gradient = None if weight is None else (own[1] * scale).to(weight.dtype)
    return inside.mul_(factor), weight_gradient, own[0].to(feat.dtype)


def _centre(feat: Tensor, zeros: int, synchronize: bool) -> tuple[BatchStatistics, Tensor, Tensor]:
    """The statistics, the mean in the precision of `feat`, and `feat` less that."""
    add_up = _add_up if synchronize else lambda value: None
    rows = torch.full((1,), float(feat.numel() // feat.shape[1] + zeros), dtype=torch.float64, device=feat.device)
    sums = torch.cat([_sums(feat), rows])
    add_up(sums)
    count = sums[-1].clamp(min=1.0)
    mean = sums[:-1] / count
    rounded = mean.to(feat.dtype)
    centred = feat - rounded.view(_shape(feat))
    # Two passes: the mean of squares less the square of the mean loses digits.
    squares = _sums(centred.square()) + zeros * rounded.double().square()
    add_up(squares)
    variance = (squares / count - (mean - rounded).square()).clamp(min=0.0)
    return BatchStatistics(mean, variance, sums[-1:]), rounded, centred


def _shape(feat: Tensor) -> list[int]:
    """The shape that lines (C,) up with (N, C, ...)."""
    return [1, -1, *[1] * (feat.ndim - 2)]


def _sums(value: Tensor) -> Tensor:
    """Sum over all but the channels, (N, C, ...) -> (C,) float64.

    Within a volume in float32, where torch adds in a tree that keeps its digits and is some 20 times as fast
    (2026-11-27, 2 CPU cores, (2, 128, 32, 64, 64)).
    """
    value = value if value.ndim == 2 else value.flatten(2).sum(-1)
    return value.sum(0, dtype=torch.float64)


class _SynchronizedNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, feat: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, ...]:
        shape = _shape(feat)
        statistics, mean, centred = _centre(feat, 0, True)
        scale = statistics.scale(eps, feat.dtype)
        ctx.save_for_backward(feat, weight, mean, scale, statistics.count)
        ctx.has_bias = bias is not None
        factor = (scale if weight is None else scale * weight).view(shape)
        output = centred * factor if bias is None else torch.addcmul(bias.view(shape), centred, factor)
        ctx.mark_non_differentiable(*statistics)
        return output, *statistics

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        inside, of_weight, of_bias = norm_gradients(gradient, *ctx.saved_tensors)
        return inside, of_weight, of_bias if ctx.has_bias else None, None


class SyncBatchNorm(_BatchNorm):
    """What `synchronize_batch_norm` puts in the place of torch's layers.

    Plain batch normalization in eval mode, and on a GPU that no other process shares the batch with.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or not (several_processes() or input.device.type == "cpu"):
            return super().forward(input)
        feat = input.to(torch.promote_types(input.dtype, torch.float32))
        output, statistics = synchronized_norm(feat, self.weight, self.bias, eps=self.eps)
        track_batch(self, statistics)
        return output.to(input.dtype)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"Expected (N, C, ...), got {tuple(input.shape)}. Give the features a channel axis.")


@torch.no_grad()
def track_batch(norm: _BatchNorm, statistics: BatchStatistics) -> None:
    """Count a batch, and move the running statistics of a torch norm as torch would."""
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        return
    norm.num_batches_tracked.add_(1)
    rate = 1.0 / norm.num_batches_tracked if norm.momentum is None else norm.momentum
    update_statistics(norm.running_mean, norm.running_var, statistics, rate)


@torch.no_grad()
def update_statistics(
    running_mean: Tensor, running_var: Tensor, statistics: BatchStatistics, rate: float | Tensor
) -> None:
    """Move running statistics towards those of a batch by `rate`, in place; a batch of one value has no variance."""
    mean, variance, count = statistics
    share = (count[0] > 1).to(mean) * rate
    unbiased = variance * (count / (count - 1.0).clamp(min=1.0))
    running_mean.lerp_(mean.to(running_mean), share.to(running_mean))
    running_var.lerp_(unbiased.to(running_var), share.to(running_var))


def synchronize_batch_norm(model: nn.Module) -> nn.Module:
    """Give a model's batch norms the statistics of all processes, in place.

    torch's layers are replaced by `SyncBatchNorm` with the same parameters and buffers; a layer that synchronizes on
    its own has a switch, `synchronized` (`norms.BatchNorm`). In a single process on a CPU this leaves float64 sums,
    with which the losses of one process and of several agree.
    """
    if type(model) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
        norm = SyncBatchNorm.__new__(SyncBatchNorm)
        norm.__dict__ = model.__dict__  # the same tensors: an optimizer or a parent may hold them already
        return norm
    if getattr(model, "synchronized", None) is False:
        model.synchronized = True  # type: ignore[assignment]
    for name, child in model.named_children():
        setattr(model, name, synchronize_batch_norm(child))
    return model


def freeze_norms(model: nn.Module, frozen: bool) -> None:
    """Let the batch norms of a model in train mode use their running statistics, or those of the batch again.

    The statistics of a batch of two rooms remove what the rooms have in common, such as the colour of their floors,
    which is then missing in evaluation. Training the end of a run with the statistics of evaluation repairs that.
    """
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.train(model.training and not frozen)


def set_norm_momentum(model: nn.Module, momentum: float | None) -> nn.Module:
    """How fast running statistics follow the batches, of all batch norms of a model; None leaves them as they are."""
    for module in model.modules():
        if momentum is not None and isinstance(module, _BatchNorm):
            module.momentum = momentum
    return model
