"""A step whose loss or gradient is not finite is named and not taken."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .distributed import num_processes

logger = logging.getLogger(__name__)


class NonFiniteError(RuntimeError):
    """Several steps in a row were not finite; the message names the loss terms and the steps."""


class NonFiniteGuard:
    """Watches the loss terms and the gradient norm, and the buffers that a broken forward pass would poison.

    One read of a few flags per optimizer step: the price of never stepping on NaN. All processes get the same answer.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> guard = NonFiniteGuard(model, limit=3)
        >>> guard.watch({"rgb": torch.tensor(0.5)})
        >>> guard.allows(torch.tensor(1.0), step=1)
        True
    """

    def __init__(self, model: nn.Module, *, limit: int = 5) -> None:
        if limit < 1:
            raise ValueError(f"Expected a limit of at least 1 step, got {limit}. Use 1 to stop at the first.")
        self.limit = limit
        self.skipped = 0  # in the whole run
        self.in_a_row: list[tuple[int, list[str]]] = []
        self._buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        self._backup = [buffer.detach().clone() for buffer in self._buffers]
        self._finite: dict[str, Tensor] = {}

    @torch.no_grad()
    def watch(self, losses: Mapping[str, Tensor]) -> None:
        """Remember whether each term is finite; call it for each accumulated part, before `allows`. No sync."""
        for name, loss in losses.items():
            finite = torch.isfinite(loss.detach()).all()
            self._finite[name] = self._finite[name] & finite if name in self._finite else finite

    @torch.no_grad()
    def allows(self, gradient_norm: Tensor, *, step: int) -> bool:
        """Whether to take the step. If not, buffers (BatchNorm statistics) are put back as they were before it.

        Args:
            gradient_norm: what `clip_grad_norm_` returned.
            step: number of the step, for messages.

        Raises:
            NonFiniteError: at the `limit`-th refused step in a row.
        """
        flags = self._finite | {"gradient": torch.isfinite(gradient_norm.detach()).all()}
        names, self._finite = list(flags), {}
        finite = torch.stack([flag.to(gradient_norm.device) for flag in flags.values()]).to(torch.int32)
        if num_processes() > 1:
            dist.all_reduce(finite, op=dist.ReduceOp.MIN)
        broken = [name for name, flag in zip(names, finite.tolist(), strict=True) if not flag]
        if not broken:
            self.in_a_row = []
            _copy(self._backup, self._buffers)
            return True
        _copy(self._buffers, self._backup)
        self.skipped += 1
        self.in_a_row.append((step, broken))
        logger.warning("Step %d is skipped: %s not finite.", step, " and ".join(broken))
        if len(self.in_a_row) >= self.limit:
            listed = "; ".join(f"step {number}: {', '.join(terms)}" for number, terms in self.in_a_row)
            raise NonFiniteError(
                f"Expected finite losses, got {self.limit} steps in a row that are not ({listed}). The last "
                "checkpoint is sound. Resume from it with a lower `lr`, a smaller weight of the term named, or "
                "mixed_precision=no. A term that is broken from step 1 on points at the data."
            )
        return False


def _copy(targets: list[Tensor], sources: list[Tensor]) -> None:
    if targets:
        # One call: copying hundreds of small buffers singly costs milliseconds.
        torch._foreach_copy_(targets, sources)  # pyright: ignore[reportPrivateImportUsage]
