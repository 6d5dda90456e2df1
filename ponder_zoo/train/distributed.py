"""What makes P processes with a share of the batch each compute the same step as one process with all of it."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def num_processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_index() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def wait_for_all() -> None:
    if num_processes() > 1:
        dist.barrier()


def mean_over_processes(value: Tensor) -> Tensor:
    """Mean of a tensor that no gradient flows through, such as the number of rays that a loss term averages over.

    DistributedDataParallel takes the mean of the gradients of P processes. A term that is a sum divided by *this* mean
    of the counts therefore gets the gradient of the sum over all processes divided by the count over all of them.
    """
    if num_processes() == 1:
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / num_processes()


def gather_rows(rows: Tensor) -> Tensor:
    """The rows of all processes, in order of process: (N_p, ...) -> (sum N_p, ...). Sizes may differ; one host sync.

    For losses that no sum over processes gives, such as Lovasz-softmax: computed on the gathered rows, the loss is that
    of the whole batch on every process. The gradient reaches this process' own rows, multiplied by the number of
    processes, for DistributedDataParallel divides by it.
    """
    count = num_processes()
    if count == 1:
        return rows
    sizes = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(count)]
    dist.all_gather(sizes, torch.tensor([len(rows)], device=rows.device))
    lengths = torch.cat(sizes).tolist()
    padded = rows.new_zeros(max(lengths), *rows.shape[1:])
    padded[: len(rows)] = rows.detach()
    parts = [torch.empty_like(padded) for _ in range(count)]
    dist.all_gather(parts, padded)
    parts = [part[:length] for part, length in zip(parts, lengths, strict=True)]
    if rows.requires_grad:
        own = rows * count
        parts[process_index()] = own + (rows - own).detach()  # the value of rows, the gradient of own
    return torch.cat(parts)


class _SumOverProcesses(torch.autograd.Function):
    """All-reduce with the gradient of a sum: what one process' output received, all inputs get."""

    @staticmethod
    def forward(ctx, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return _SumOverProcesses.apply(gradient.contiguous())  # type: ignore[return-value]


class SyncBatchNorm(_BatchNorm):
    """Batch normalization with the statistics of the batch of all processes, on any device.

    `torch.nn.SyncBatchNorm` refuses CPU tensors. Outside training and in a single process this is plain batch
    normalization. Parameters, buffers and their names are those of the layer that it replaces.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or num_processes() == 1:
            return super().forward(input)
        shape = [1, -1, *[1] * (input.ndim - 2)]
        axes = [axis for axis in range(input.ndim) if axis != 1]
        feat = input.float()  # (N, C, ...)
        rows = feat.new_full((1,), feat.numel() // feat.shape[1])
        sums = _sum_over_processes(torch.cat([feat.sum(axes), rows]))  # (C + 1,)
        total = sums[-1].detach()
        mean = sums[:-1] / total
        centred = feat - mean.view(shape)
        # Two passes: the mean of squares minus the square of the mean loses the digits that parity needs.
        variance = _sum_over_processes(centred.square().sum(axes)) / total
        self._track(mean.detach(), variance.detach(), total)
        output = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            output = output * self.weight.view(shape) + self.bias.view(shape)
        return output.to(input.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, total: Tensor) -> None:
        if not self.track_running_stats or self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        weight = 1.0 / self.num_batches_tracked if self.momentum is None else torch.as_tensor(self.momentum)
        weight = weight.to(mean)
        self.running_mean.lerp_(mean.to(self.running_mean), weight)
        unbiased = variance * (total / (total - 1.0).clamp(min=1.0))
        self.running_var.lerp_(unbiased.to(self.running_var), weight)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"Expected (N, C, ...), got {tuple(input.shape)}. Give the features a channel axis.")


def _sum_over_processes(value: Tensor) -> Tensor:
    return _SumOverProcesses.apply(value)  # type: ignore[return-value]


def synchronize_batch_norm(model: nn.Module) -> nn.Module:
    """Give a model's batch norms the statistics of all processes, in place.

    torch's layers are replaced by `SyncBatchNorm` with the same parameters and buffers; a layer that synchronizes on its
    own has a switch, `synchronized` (`layers.norms.BatchNorm`). Does nothing in a single process.
    """
    if num_processes() == 1:
        return model
    return _convert(model)


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
