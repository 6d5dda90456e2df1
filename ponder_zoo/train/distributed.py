"""What makes P processes with a share of the batch each compute the same step as one process with all of it."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


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
