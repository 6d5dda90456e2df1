"""Sparse convolution as implicit matrix products in Triton, compiled at run time: no build step.

Forward and the input's gradient are one kernel over the neighbour table and its transpose; every output row is written
by one program and every sum has a fixed order, so there are no atomics and results are deterministic. Which block sizes
are used is in `triton_tuning`, what is derived from a table in `triton_plan`.

On CPU tensors it runs in Triton's interpreter only (TRITON_INTERPRET=1 before Python starts), slowly: it is for tests.
"""

# pyright does not know how triton compiles: that launches take constants, and that a loaded value is a tensor.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..epilogue import Epilogue
from ..kernel_map import KernelMap
from . import triton_kernels as kernels
from . import triton_plan as plan
from . import triton_tuning as tuning
from .by_map import by_map
from .precision import accumulator
from .triton_maps import submanifold_map
from .triton_tuning import Config, Problem

INTERPRETED = not isinstance(kernels.conv_kernel, triton.JITFunction)
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

_SUM_BLOCK = 1024  # entries per program of the kernels that add partial sums


def conv(feat: Tensor, weight: Tensor, kmap: KernelMap, epilogue: Epilogue | None = None) -> Tensor:
    """(N_in, C_in), (C_out, kx, ky, kz, C_in) -> (N_out, C_out); differentiable once, in `feat` and `weight`.

    Sums are accumulated in float32 for float16 and bfloat16. Products of float32 are exact, or rounded to TF32 where
    `torch.backends.cuda.matmul.allow_tf32` is set. With an epilogue it is `epilogue.apply(conv(...))` without
    gradients, with the convolution's result in memory once.
    """
    _check(feat, weight)
    if epilogue is None:
        return cast(Tensor, _SparseConv.apply(feat, weight, kmap))
    epilogue.check((kmap.num_out, weight.shape[0]))
    with torch.no_grad():
        return _multiply("forward", feat, _Weight.of(weight), kmap, epilogue)


submanifold_conv, down_conv, up_conv = by_map(conv, submanifold_map)
FUSES_EPILOGUES = True  # these three take an `Epilogue`


def tune(run: Callable[[], object]) -> int:
    """Call `run` with measuring on: every convolution in it finds its best configuration and keeps it on disk.

    Returns:
        How many choices are known afterwards for this GPU.

    Example:
        >>> tune(lambda: model(points).sum().backward())  # doctest: +SKIP
    """
    with tuning.measuring():
        run()
    return len(_known(torch.cuda.current_device()))


class _SparseConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, feat: Tensor, weight: Tensor, kmap: KernelMap) -> Tensor:
        ctx.save_for_backward(feat, weight)
        ctx.kmap = kmap
        return _multiply("forward", feat, _Weight.of(weight), kmap, Epilogue())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        feat, weight = ctx.saved_tensors
        wants_feat, wants_weight, _ = ctx.needs_input_grad
        grad_feat, grad_weight = None, None
        if wants_feat:
            transposed, _ = ctx.kmap.transposed()
            matrices = _Weight.of(weight).transposed()
            if transposed is ctx.kmap:
                matrices = matrices.mirrored()
            grad_feat = _multiply("input_gradient", grads[0], matrices, transposed, Epilogue())
        if wants_weight:
            grad_weight = _weight_gradient(feat, grads[0], weight, ctx.kmap)
        return grad_feat, grad_weight, None


def _check(feat: Tensor, weight: Tensor) -> None:
    if not (feat.is_cuda or INTERPRETED):
        raise RuntimeError(
            f"backend='triton' expected features on a CUDA device, got them on {feat.device}. Move model and points "
            "to the GPU, or use backend='torch'. (For tests, TRITON_INTERPRET=1 in the environment runs it on a CPU.)"
        )
    if feat.dtype != weight.dtype or feat.dtype not in DTYPES:
        raise ValueError(
            f"Expected features and weight of one precision among {[str(d)[6:] for d in DTYPES]}, got {feat.dtype} and "
            f"{weight.dtype}. Convert one of them, or use torch.autocast."
        )
    if feat.shape[1] != weight.shape[-1]:
        raise ValueError(
            f"Expected features with the weight's {weight.shape[-1]} input channels, got {tuple(feat.shape)}."
        )


# Launches -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Weight:
    """One (C_in, C_out) matrix per kernel offset, wherever it lies in memory."""

    tensor: Tensor  # where the first one starts
    chans_in: int
    chans_out: int
    steps: tuple[int, int, int]  # from one offset, input channel, output channel to the next

    @classmethod
    def of(cls, weight: Tensor) -> _Weight:
        flat = weight.flatten(1, 3).contiguous()
        out_stride, offset_stride, in_stride = flat.stride()
        return cls(flat, flat.shape[2], flat.shape[0], (offset_stride, in_stride, out_stride))

    def transposed(self) -> _Weight:
        offset, ins, outs = self.steps
        return _Weight(self.tensor, self.chans_out, self.chans_in, (offset, outs, ins))

    def mirrored(self) -> _Weight:
        """With the offsets in reverse order: steps back from the last one."""
        offset, ins, outs = self.steps
        return _Weight(self.tensor[:, -1], self.chans_in, self.chans_out, (-offset, ins, outs))


def _epilogue_arguments(epilogue: Epilogue, unused: Tensor) -> tuple[tuple[Tensor, ...], dict[str, bool]]:
    """The kernels' pointers, `unused` where there is none, and their switches."""
    parts = (epilogue.scale, epilogue.shift, epilogue.residual)
    given = [None if x is None else x.contiguous() for x in parts]
    switches = {name: x is not None for name, x in zip(("SCALE", "SHIFT", "RESIDUAL"), given, strict=True)}
    return tuple(unused if x is None else x for x in given), switches | {"RELU": epilogue.relu}


def _multiply(op: tuning.Op, feat: Tensor, weight: _Weight, kmap: KernelMap, epilogue: Epilogue) -> Tensor:
    """(N_in, C_in) -> (N_out, C_out) through the map."""
    out = feat.new_empty(kmap.num_out, weight.chans_out)
    if out.numel() == 0:
        return out
    feat = feat.contiguous()
    problem = Problem.of(
        op, kmap.num_out, weight.chans_in, weight.chans_out, kmap.kernel_volume, _precision(feat.dtype)
    )

    def launch(config: Config) -> None:
        _launch_conv(config, feat, weight, kmap, epilogue, out)

    with torch.cuda.device_of(feat):
        launch(_choose(problem, feat.device, launch))
    return out


def _launch_conv(
    config: Config, feat: Tensor, weight: _Weight, kmap: KernelMap, epilogue: Epilogue, out: Tensor
) -> None:
    blocks = plan.row_blocks(kmap, config.rows)
    table, order = blocks.sorted.table, blocks.sorted.order
    num_out, chans_out = out.shape
    total_dtype = accumulator(feat.dtype)
    partial = out
    if config.splits > 1:
        partial = out.new_empty(config.splits, num_out, chans_out, dtype=total_dtype)
    pointers, switches = _epilogue_arguments(epilogue, out)
    within = switches if config.splits == 1 else dict.fromkeys(switches, False)
    grid = (len(blocks.counts) * -(-chans_out // config.outs), config.splits)
    kernels.conv_kernel[grid](
        feat, weight.tensor, partial, table, order, blocks.offsets, blocks.counts,
        *pointers, num_out, kmap.kernel_volume, config.splits, weight.chans_in, chans_out, *weight.steps,
        SPLIT=config.splits > 1, EVEN=weight.chans_in % config.ins == 0,
        WIDE=plan.is_wide(feat.numel(), partial.numel(), table.numel()), **_arithmetic(feat.dtype), **within,
        ROWS=config.rows, INS=config.ins, OUTS=config.outs, num_warps=config.warps, num_stages=config.stages,
    )  # fmt: skip
    if config.splits > 1:
        kernels.sum_splits_kernel[(-(-out.numel() // _SUM_BLOCK),)](
            partial, out, *pointers, out.numel(), chans_out, config.splits, **switches, BLOCK=_SUM_BLOCK
        )


def _weight_gradient(feat: Tensor, grad: Tensor, weight: Tensor, kmap: KernelMap) -> Tensor:
    """Like `weight`, from (N_in, C_in) and (N_out, C_out); added up in float32 (float64) and rounded once."""
    flat = _Weight.of(weight)
    out = torch.empty_like(flat.tensor)
    if kmap.num_out == 0 or out.numel() == 0:
        return out.zero_().view_as(weight)
    feat, grad = feat.contiguous(), grad.contiguous()
    problem = Problem.of(
        "weight_gradient", kmap.num_out, flat.chans_in, flat.chans_out, kmap.kernel_volume, _precision(feat.dtype)
    )

    def launch(config: Config) -> None:
        _launch_weight_gradient(config, feat, grad, flat, kmap, out)

    with torch.cuda.device_of(feat):
        launch(_choose(problem, feat.device, launch))
    return out.view_as(weight)


def _launch_weight_gradient(
    config: Config, feat: Tensor, grad: Tensor, flat: _Weight, kmap: KernelMap, out: Tensor
) -> None:
    pairs = plan.pairs(kmap)
    volume, num_out = kmap.table.shape
    chunk = -(-num_out // config.splits)
    sizes = (chunk, flat.chans_in, flat.chans_out, *flat.steps, out.numel())
    partial = out
    if config.splits > 1:
        partial = out.new_empty(config.splits, *out.shape, dtype=accumulator(out.dtype))
    blocks = -(-flat.chans_in // config.ins) * -(-flat.chans_out // config.outs)
    kernels.weight_gradient_kernel[(blocks, volume, config.splits)](
        feat, grad, partial, kmap.table, pairs.rows, pairs.counts, num_out, *sizes,
        SPLIT=config.splits > 1, EVEN=flat.chans_in % config.ins == 0 and flat.chans_out % config.outs == 0,
        WIDE=plan.is_wide(feat.numel(), grad.numel(), kmap.table.numel()), **_arithmetic(feat.dtype),
        ROWS=config.rows, INS=config.ins, OUTS=config.outs, num_warps=config.warps, num_stages=config.stages,
    )  # fmt: skip
    if config.splits > 1:
        grid = (-(-flat.chans_in * flat.chans_out // _SUM_BLOCK), volume)
        kernels.sum_weight_gradient_kernel[grid](partial, out, pairs.counts, *sizes, BLOCK=_SUM_BLOCK)


# Precision and choice of configuration --------------------------------------------------------------------------------


def _allows_tf32() -> bool:
    return bool(torch.backends.cuda.matmul.allow_tf32)


def _precision(dtype: torch.dtype) -> str:
    return "tf32" if dtype == torch.float32 and _allows_tf32() else str(dtype).removeprefix("torch.")


def _arithmetic(dtype: torch.dtype) -> dict[str, Any]:
    """The kernels' switches that follow from the precision of their operands."""
    return {
        "ACC": tl.float64 if dtype == torch.float64 else tl.float32,
        "PRECISION": "tf32" if _precision(dtype) == "tf32" else "ieee",
        "UPCAST": INTERPRETED and dtype == torch.bfloat16,
    }


@cache
def _processors(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


@cache
def _gpu_name(index: int) -> str:
    return torch.cuda.get_device_name(index)


def _known(index: int) -> tuning.TuningCache:
    return tuning.tuning_cache(_gpu_name(index), triton.__version__)


def _choose(problem: Problem, device: torch.device, launch: Callable[[Config], None]) -> Config:
    if device.type != "cuda":  # the interpreter: nothing to measure; as on an H100
        return tuning.candidates(problem, 132)[0]
    index = torch.cuda.current_device() if device.index is None else device.index
    measures = tuning.is_measuring() and not torch.cuda.is_current_stream_capturing()
    measure = (lambda config: _seconds(config, launch)) if measures else None
    return tuning.choose(problem, _processors(index), _known(index), measure)


def _seconds(config: Config, launch: Callable[[Config], None]) -> float:
    """Median time of a launch, with a cold L2 cache as between layers; infinity where it does not fit the GPU."""
    import triton.testing

    try:
        return (
            cast(float, triton.testing.do_bench(lambda: launch(config), warmup=5, rep=20, return_mode="median")) / 1e3
        )
    except triton.OutOfResources:
        return float("inf")
