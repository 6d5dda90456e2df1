"""Batch norms over points: plain, and prompt-driven (statistics per data set, scale and shift from its context)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ..sparse.epilogue import fold_norm
from .norm_relu import batch_norm_relu, keep_activations, synchronized_norm_relu
from .sync_norm import synchronized_norm, update_statistics

_keep_statistics: ContextVar[bool] = ContextVar("keep_statistics", default=False)


@contextmanager
def keep_statistics() -> Iterator[None]:
    """Inside, norms in train mode leave their running statistics alone.

    Activation checkpointing runs a segment twice; without this the second pass would count every batch again.
    """
    token = _keep_statistics.set(True)
    try:
        with keep_activations():  # the second pass must save what the first one did
            yield
    finally:
        _keep_statistics.reset(token)


class BatchNorm(nn.BatchNorm1d):
    """Batch norm over the rows of (N, C), in float32 whatever the input's precision.

    A batch of one row has no variance: it is normalized with the running statistics and leaves them as they are.
    `eps` and `momentum` are the official sparse U-Net's. `synchronize_norms` takes the statistics over all processes.
    """

    synchronized = False

    def __init__(self, num_features: int, *, affine: bool = True, eps: float = 1e-3, momentum: float = 0.01) -> None:
        super().__init__(num_features, eps=eps, momentum=momentum, affine=affine)

    def forward(self, input: Tensor, *, relu: bool = False) -> Tensor:
        """(N, C) -> (N, C), with a ReLU after it where asked for."""
        return self.normalize(input, self.weight, self.bias, relu=relu)

    def normalize(self, feat: Tensor, weight: Tensor | None, bias: Tensor | None, *, relu: bool = False) -> Tensor:
        """Normalize with this norm's statistics and the given scale and shift (C,)."""
        if relu and self._keeps_one_tensor(feat):
            return self._normalize_relu(feat, weight, bias)
        out = self._normalize(feat, weight, bias)
        return out.relu_() if relu else out

    def folded(self, prompt: None = None) -> tuple[Tensor, Tensor]:
        """Scale and shift (C,) that the norm amounts to in eval mode."""
        return fold_norm(self, self.weight, self.bias)

    def _keeps_one_tensor(self, feat: Tensor) -> bool:
        trains = self.training and torch.is_grad_enabled() and not torch.compiler.is_compiling()
        has_statistics = len(feat) > 1 or self.reduces
        return trains and has_statistics and feat.dtype in (torch.float32, torch.float64)

    def _normalize_relu(self, feat: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        if self._adds_up(feat):
            return self._normalize_synchronized(feat, weight, bias, relu=True)
        assert self.running_mean is not None and self.running_var is not None
        statistics = {"running_mean": self.running_mean, "running_var": self.running_var}
        return batch_norm_relu(feat, weight, bias, **statistics, momentum=self._count_batch(), eps=self.eps)

    def _normalize(self, feat: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        dtype = torch.promote_types(feat.dtype, torch.float32)
        if self._adds_up(feat):
            return self._normalize_synchronized(feat.to(dtype), weight, bias).to(feat.dtype)
        training = self.training and len(feat) > 1
        momentum = self._count_batch() if training else 0.0
        out = F.batch_norm(
            feat.to(dtype), self.running_mean, self.running_var, weight, bias, training, momentum, self.eps
        )
        return out.to(feat.dtype)

    def _count_batch(self) -> float:
        """The share by which this batch moves the running statistics; counts it if it does."""
        if _keep_statistics.get():
            return 0.0
        self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        return self.momentum or 0.0

    @property
    def reduces(self) -> bool:
        """Whether the next forward pass exchanges statistics, so that all processes must take part in it."""
        return self.training and self.synchronized and dist.is_initialized() and dist.get_world_size() > 1

    def _adds_up(self, feat: Tensor) -> bool:
        """Whether statistics are float64 sums: over processes, and where the losses of one should be those of many."""
        alone = self.synchronized and self.training and len(feat) > 1 and feat.device.type == "cpu"
        return alone or self.reduces

    def _normalize_synchronized(
        self, feat: Tensor, weight: Tensor | None, bias: Tensor | None, *, relu: bool = False
    ) -> Tensor:
        """The same with statistics of the rows of all processes; this one may have none."""
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        norm = synchronized_norm_relu if relu else synchronized_norm
        output, statistics = norm(feat, weight, bias, eps=self.eps)
        if not _keep_statistics.get():
            update_statistics(self.running_mean, self.running_var, statistics, self.momentum)
            self.num_batches_tracked.add_((statistics.count[0] > 1).long())  # type: ignore[union-attr]
        return output


def synchronize_norms(model: nn.Module, enable: bool = True) -> nn.Module:
    """Make every BatchNorm of `model` use the statistics of all processes' rows while training, on any device.

    torch's SyncBatchNorm does this on GPUs only, and knows nothing of conditions that only some processes have.
    """
    for module in model.modules():
        if isinstance(module, BatchNorm):
            module.synchronized = enable
    return model


@dataclass(frozen=True, eq=False)
class Prompt:
    """The conditions (data sets) of a batch, and the context vector of each. G conditions occur in it."""

    conditions: tuple[int, ...]  # G positions in the model's list of conditions
    context: Tensor  # (G, D)
    scene_group: Tensor | None = None  # (B,) int64, position in `conditions` of each scene; None where G = 1
    _rows: dict[Tensor, list[Tensor]] = field(default_factory=dict, repr=False)

    def rows(self, batch: Tensor) -> list[Tensor] | None:
        """Rows that each condition has, given the scene of each row (N,); None where all rows have the only one."""
        if self.scene_group is None:
            return None
        if batch not in self._rows:  # tensors are compared by identity here: one entry per resolution
            group = self.scene_group[batch]
            self._rows[batch] = [(group == g).nonzero()[:, 0] for g in range(len(self.conditions))]
        return self._rows[batch]


class PromptDrivenNorm(nn.Module):
    """Norm of Point Prompt Training (arXiv:2308.09718): a BatchNorm per condition, scale and shift from a context.

    y = norm(x) * (1 + scale) + shift, where (shift, scale) = Linear(SiLU(context)); shift comes first.
    """

    def __init__(self, num_features: int, *, num_conditions: int, context_dim: int, affine: bool = True) -> None:
        super().__init__()
        self.norms = nn.ModuleList(BatchNorm(num_features, affine=affine) for _ in range(num_conditions))
        self.modulation = nn.Linear(context_dim, 2 * num_features)

    def forward(self, feat: Tensor, prompt: Prompt, batch: Tensor, *, relu: bool = False) -> Tensor:
        """(N, C) features of the scenes `batch` (N,) -> (N, C), with a ReLU after it where asked for."""
        shift, scale = self._modulation(prompt.context)  # (G, C) each
        rows = prompt.rows(batch)
        if rows is None and not self._norm(0).reduces:
            return self._apply_norm(prompt.conditions[0], feat, shift[0], scale[0], relu=relu)
        if rows is None:
            rows = [torch.arange(len(feat), device=feat.device)]
        groups = {condition: group for group, condition in enumerate(prompt.conditions)}
        out = torch.zeros_like(feat)
        for condition in range(len(self.norms)):
            group = groups.get(condition)
            index = rows[group] if group is not None else rows[0][:0]
            if len(index) == 0 and not self._norm(condition).reduces:
                continue  # otherwise another process may have rows of this condition and wait for this one
            place = 0 if group is None else group  # no row reads the context of an absent condition
            part = self._apply_norm(
                condition, feat.index_select(0, index), shift[place], scale[place], absent=group is None
            )
            out = out.index_copy(0, index, part)
        return out.relu_() if relu else out

    def _norm(self, condition: int) -> BatchNorm:
        return cast(BatchNorm, self.norms[condition])

    def _modulation(self, context: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(context.device.type, enabled=False):
            shift, scale = self.modulation(F.silu(context)).chunk(2, dim=-1)
        return shift, scale

    def _apply_norm(
        self,
        condition: int,
        feat: Tensor,
        shift: Tensor,
        scale: Tensor,
        *,
        relu: bool = False,
        absent: bool = False,
    ) -> Tensor:
        # The norm's own scale and shift are folded with the context's: two passes over (N, C) less. Those of an absent
        # condition are left out: a gradient of zero would let an optimizer's momentum move them.
        affine = (1.0 + scale, shift) if absent else self._affine(condition, shift, scale)
        return self._norm(condition).normalize(feat, *affine, relu=relu)

    def _affine(self, condition: int, shift: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and shift (C,) of a condition's norm with a context's."""
        norm, weight = self._norm(condition), 1.0 + scale
        return (norm.weight * weight, norm.bias * weight + shift) if norm.affine else (weight, shift)

    def folded(self, prompt: Prompt) -> tuple[Tensor, Tensor] | None:
        """Scale and shift (C,) that the norm amounts to in eval mode; None where scenes of a batch differ in them."""
        if prompt.scene_group is not None:
            return None
        condition, (shift, scale) = prompt.conditions[0], self._modulation(prompt.context)
        return fold_norm(self._norm(condition), *self._affine(condition, shift[0], scale[0]))
