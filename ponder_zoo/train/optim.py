"""Optimizer, schedule and averaged weights, from timm and torch."""

from __future__ import annotations

import math
from typing import Any, Literal

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

ScheduleName = Literal["exponential", "onecycle", "cosine", "poly", "constant"]


def make_optimizer(
    model: nn.Module,
    name: str,
    *,
    lr: float,
    weight_decay: float,
    momentum: float = 0.9,
    layer_decay: float | None = None,
    decay_all: bool = False,
) -> Optimizer:
    """Build an optimizer through timm's factory, over the parameters that require gradients.

    Args:
        model: layer decay asks it for `group_matcher()` and `no_weight_decay()`.
        name: as timm spells them; "sgd" has Nesterov momentum, "momentum" has the plain one.
        lr: learning rate of the last layer.
        weight_decay: of matrices and kernels; of norms and biases too with `decay_all`, as in the official code.
        momentum: for those optimizers that have one.
        layer_decay: learning rate of each layer over that of the next (e.g. 0.75); None is one rate for all.
        decay_all: see `weight_decay`.
    """
    from timm.optim import create_optimizer_v2, param_groups_layer_decay  # pyright: ignore[reportPrivateImportUsage]

    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("Expected parameters to train; all of the model's are frozen. Choose another `mode`.")
    params: Any = model
    if layer_decay is not None:
        skip = model.no_weight_decay() if hasattr(model, "no_weight_decay") and not decay_all else ()  # type: ignore[operator]
        params = param_groups_layer_decay(
            model, weight_decay, skip, weight_decay_exclude_1d=not decay_all, layer_decay=layer_decay
        )
    elif decay_all:  # as plain parameters: of a module, timm exempts what `no_weight_decay` names
        params = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = create_optimizer_v2(params, name, lr=lr, weight_decay=weight_decay, momentum=momentum)
    for group in optimizer.param_groups:
        # timm leaves the scale to its own schedulers; torch's read `lr`.
        group["lr"] = lr * group.pop("lr_scale", 1.0)
    return optimizer


def make_schedule(
    optimizer: Optimizer,
    name: ScheduleName,
    *,
    total_steps: int,
    warmup: float = 0.05,
    final: float = 0.0,
) -> LRScheduler:
    """Learning rate of each step, relative to each group's own.

    Do not hand it to `accelerator.prepare`, which would step it once per process.

    Args:
        optimizer: its groups' `lr` are the peaks.
        name: "onecycle" is the official one (rise from a tenth, fall to 1e-5 of the peak, both as cosines; the momentum
            runs from 0.95 to 0.85 and back), "exponential" rises exponentially from a thousandth and falls as a cosine,
            "cosine" rises linearly and falls as a cosine, "constant" only rises, "poly" only falls, as (1 - share of
            the steps)^0.9: the official one of instance segmentation.
        total_steps: optimizer steps of the whole run.
        warmup: share of the steps that rise.
        final: last learning rate over the peak, of "exponential" and "cosine".
    """
    if name == "onecycle":
        peaks = [group["lr"] for group in optimizer.param_groups]
        steps = max(total_steps, 4)  # torch divides by the length of both phases less one
        rise = max(warmup, 2.0 / steps)
        return OneCycleLR(optimizer, peaks, steps, pct_start=rise, div_factor=10.0, final_div_factor=1e4)
    if name == "poly":
        return LambdaLR(optimizer, lambda step: (1.0 - min(step / (total_steps + 1), 1.0)) ** 0.9)
    rise_steps = max(round(warmup * total_steps), 1)

    def factor(step: int) -> float:
        if step < rise_steps:
            risen = (step + 1) / rise_steps
            return 1e-3 ** (1.0 - risen) if name == "exponential" else risen
        if name == "constant":
            return 1.0
        done = min((step - rise_steps) / max(total_steps - rise_steps, 1), 1.0)
        return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * done))

    return LambdaLR(optimizer, factor)


def make_ema(model: nn.Module, decay: float) -> Any | None:
    """Averages of weights and buffers in `.module`; None for `decay` 0. Call `.update(model, step)` each step.

    The average is short at first and grows with the run (timm's warm-up), so that short runs profit, too.
    """
    if not 0.0 <= decay < 1.0:
        raise ValueError(f"Expected an EMA decay in [0, 1), got {decay}. Use 0 for none, 0.999 for a usual one.")
    if decay == 0.0:
        return None
    from timm.utils import ModelEmaV3  # pyright: ignore[reportPrivateImportUsage]

    return ModelEmaV3(model, decay=decay, use_warmup=True)
