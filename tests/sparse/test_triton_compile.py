"""All kernels through Triton's compiler for an H100, which needs no GPU: types, shared memory and tensor cores."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

CODE = """
import itertools, sys
import triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from ponder_zoo.sparse.backends import triton_kernels as kernels
from ponder_zoo.sparse.backends.triton_tuning import Problem, candidates

STEPS = ("chans_in", "chans_out", "step_offset", "step_in", "step_out")
NAMES = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32", "tf32": "fp32", "float64": "fp64"}


def build(kernel, types, constants, divisible=(), **options):
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types[name] for name in names}
    aligned = [name for name in names if name in types and (types[name][0] == "*" or name in divisible)]
    source = ASTSource(
        kernel, signature, {(names.index(name),): value for name, value in constants.items()},
        {(names.index(name),): [["tt.divisibility", 16]] for name in aligned if name not in constants},
    )
    built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    assert built.metadata.shared <= 227 * 1024 and "cubin" in built.asm, kernel.__name__
    return built.asm["ptx"]


def products(op, dtype, config, **switches):
    data, acc = "*" + NAMES[dtype], "fp64" if dtype == "float64" else "fp32"
    arithmetic = dict(
        WIDE=False, ACC=tl.float64 if acc == "fp64" else tl.float32, PRECISION="tf32" if dtype == "tf32" else "ieee",
        UPCAST=False, ROWS=config.rows, INS=config.ins, OUTS=config.outs, SPLIT=config.splits > 1, EVEN=True,
    )
    options = dict(divisible=STEPS, num_warps=config.warps, num_stages=config.stages)
    out = "*" + acc if config.splits > 1 else data
    types = dict.fromkeys((*STEPS, "num_out", "volume", "splits", "chunk", "numel"), "i32")
    types |= dict.fromkeys(("table", "order", "offsets", "counts", "pairs"), "*i32")
    types |= dict(feat=data, weight=data, grad=data, residual=data, out=out, scale="*fp32", shift="*fp32")
    if op == "weight_gradient":
        return build(kernels.weight_gradient_kernel, types, arithmetic | {"step_in": 1} | switches, **options)
    flags = dict.fromkeys(("SCALE", "SHIFT", "RESIDUAL", "RELU"), False)
    mirror = op == "input_gradient"
    fixed = {"step_out" if mirror else "step_in": 1}
    return build(kernels.conv_kernel, types, arithmetic | flags | fixed | switches, **options)


everything = sys.argv[1] == "all"
for op in ("forward", "input_gradient", "weight_gradient"):
    for dtype in ("bfloat16", "float16", "tf32", "float32", "float64") if everything else ("bfloat16",):
        for rows, chans in ((100_000, 96), (400, 256)) if everything else ((400, 96),):
            options = candidates(Problem.of(op, rows, chans, chans, 27, dtype), 132)
            for config in options if everything else options[:1]:
                ptx = products(op, dtype, config)
                if dtype in ("bfloat16", "float16", "tf32"):
                    assert "wgmma.mma_async" in ptx or "mma.sync" in ptx, (op, dtype, config)
if everything:
    config = candidates(Problem.of("forward", 100_000, 96, 96, 27, "bfloat16"), 132)[0]
    products("forward", "bfloat16", config, EVEN=False)
    products("forward", "bfloat16", config, EVEN=False, chans_in=1)
    products("forward", "bfloat16", config, EVEN=False, chans_out=1)
    products("weight_gradient", "bfloat16", config, EVEN=False, chans_in=1)
    products("forward", "bfloat16", config, WIDE=True)
    products("weight_gradient", "bfloat16", config, EVEN=False, WIDE=True)
    products("forward", "bfloat16", config, SCALE=True, SHIFT=True, RESIDUAL=True, RELU=True)
    sizes = dict.fromkeys((*STEPS, "num_out", "splits", "chunk", "numel", "num", "rounds", "size_y", "size_z"), "i32")
    types = sizes | dict.fromkeys(("table", "order", "offsets", "counts", "pairs", "rank", "bits", "keys"), "*i32")
    types |= dict(partial="*fp32", out="*bf16", residual="*bf16", scale="*fp32", shift="*fp32")
    flags = dict.fromkeys(("SCALE", "SHIFT", "RESIDUAL", "RELU"), True)
    build(kernels.sum_splits_kernel, types, flags | {"BLOCK": 1024})
    build(kernels.sum_weight_gradient_kernel, types, {"step_in": 1, "BLOCK": 1024})
    build(kernels.sort_keys_kernel, types, {"VOLUME": 27, "BLOCK": 256})
    for wide in (False, True):
        build(kernels.list_offsets_kernel, types, {"VOLUME": 125, "WIDE": wide, "ROWS": 64, "GROUP": 32})
        build(kernels.list_pairs_kernel, types, {"WIDE": wide, "BLOCK": 256})
        for key in ("*i32", "*i64"):
            build(kernels.search_kernel, types | {"key": key}, {"REACH": 2, "WIDE": wide, "BLOCK": 128})
"""


@pytest.mark.slow
@pytest.mark.parametrize("extent", ["default", "all"])
def test_kernels_compile_for_hopper(extent: str, tmp_path: object) -> None:
    """All candidates in all precisions take some minutes on one thread, the defaults in bfloat16 some ten seconds."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    file = f"{tmp_path}/kernels.py"
    with open(file, "w") as stream:
        stream.write(CODE)
    done = subprocess.run([sys.executable, file, extent], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
