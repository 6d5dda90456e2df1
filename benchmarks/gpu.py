"""Everything worth knowing from one lent GPU within ten minutes: correctness, tuning, times against spconv, a profile.

    python -m benchmarks.gpu --output gpu.json          on a machine with a GPU
    python -m benchmarks.gpu --dry-run --output x.json  tiny, on a CPU in Triton's interpreter: tests this script

The file is written after every stage, so that a time-out loses one stage. Times are of CUDA events, cold kernels
excluded: 10 warm-up calls and 50 timed ones. Kernel maps are reported apart, and inside the "whole" times: spconv keeps
its pairs in the tensor, and a tensor that is used twice hides what they cost.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ponder_zoo.files import write_atomic
from ponder_zoo.models.sparse_unet import SIZES, SparseUNet
from ponder_zoo.sparse import KernelMap, SparseTensor, coarsening, submanifold_map, voxelize
from ponder_zoo.structures import PointBatch

from .machine import ROOT, commit, describe

PRECISIONS = ("float16", "bfloat16", "tf32")
SPCONV_PRECISIONS = ("float16", "tf32")
# Of the norm: one rounding of the result for half precisions, of the operands for TF32.
TOLERANCE = {"float32": 1e-6, "tf32": 1e-3, "float16": 5e-4, "bfloat16": 8e-3}
NARROW = {"channels": (4,) * 8, "depths": (1,) * 8, "stem_channels": 4}


@dataclass(frozen=True)
class Plan:
    """How much to do, and where."""

    device: torch.device
    dry: bool
    deadline: float  # of time.monotonic()
    folder: Path

    @property
    def repeats(self) -> tuple[int, int]:
        """Warm-up calls and timed calls."""
        return (0, 1) if self.dry else (10, 50)

    def left(self) -> float:
        return self.deadline - time.monotonic()


def main() -> None:
    """Run the stages; exit status 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("gpu.json"))
    parser.add_argument("--budget", type=float, default=570.0, help="seconds after which no stage is begun")
    parser.add_argument("--dry-run", action="store_true", help="tiny, on a CPU")
    parser.add_argument("--only", default="", help="stages, separated by commas")
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)  # a task, with its arguments after colons
    options = parser.parse_args()
    if options.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"  # read when triton is first imported, which is later
    elif not torch.cuda.is_available():
        parser.error("Expected a CUDA device, found none. Use --dry-run to test this script on a CPU.")
    device = torch.device("cpu" if options.dry_run else "cuda:0")
    folder = options.output.resolve().parent
    plan = Plan(device, options.dry_run, time.monotonic() + options.budget, folder)
    if options.child:
        task, *arguments = options.child.split(":")
        print(json.dumps(CHILD_TASKS[task](plan, *arguments)))
        return
    if not options.dry_run:  # the choices measured here are a result, too
        os.environ.setdefault("PONDER_ZOO_CACHE", str(folder / "ponder_zoo_cache"))
    wanted = options.only.split(",") if options.only else list(STAGES)
    sys.exit(run_stages(plan, wanted, options.output))


def run_stages(plan: Plan, wanted: Iterable[str], output: Path) -> int:
    """Run stages in their order, writing after each; a stage that fails is recorded and the next one runs."""
    report: dict[str, Any] = {"machine": describe_machine(plan), "stages": {}}
    failed = False
    for name in wanted:
        if plan.left() <= 0:
            report["stages"][name] = {"skipped": "out of time"}
            continue
        begin = time.monotonic()
        try:
            result: dict[str, Any] = STAGES[name](plan)
        except Exception:
            failed = True
            result = {"error": traceback.format_exc(limit=6)}
        result["stage_seconds"] = round(time.monotonic() - begin, 1)
        report["stages"][name] = result
        write_atomic(output, json.dumps(report, indent=1) + "\n")
        print(f"{name}: {json.dumps(result)[:2000]}", flush=True)
    write_atomic(output, json.dumps(report, indent=1) + "\n")
    return int(failed)


def describe_machine(plan: Plan) -> dict[str, Any]:
    device = "cpu (interpreter)" if plan.dry else torch.cuda.get_device_name(plan.device)
    found = {"device": device, "cuda": torch.version.cuda, "commit": commit(), "date": time.strftime("%Y-%m-%d")}
    return describe() | found


# Inputs ---------------------------------------------------------------------------------------------------------------


def scene(plan: Plan, name: str) -> PointBatch:
    """`thin` (40 000 voxels), `dense` (100 000), or eight of the latter; a few dozen voxels in a dry run."""
    if plan.dry:
        cells = torch.unique(torch.randint(0, 6, (30, 3), generator=torch.Generator().manual_seed(0)), dim=0).int()
        count = len(cells)
        return PointBatch(cells * 0.02, torch.randn(count, 6), torch.tensor([count]), grid_coord=cells)
    from .scenes import dense_scene, repeat_scene, thin_scene

    points = thin_scene() if name == "thin" else dense_scene()
    return (repeat_scene(points, 8) if name == "dense8" else points).to(plan.device)


def make_model(plan: Plan, backend: str = "triton") -> SparseUNet:
    torch.manual_seed(0)
    return SparseUNet(6, **(NARROW if plan.dry else SIZES["base"]), backend=backend).to(plan.device)  # type: ignore[arg-type]


@contextmanager
def precision(plan: Plan, name: str) -> Iterator[None]:
    """Inside, convolutions and linear layers compute in this precision."""
    half = name in ("float16", "bfloat16")
    dtype = getattr(torch, name) if half else torch.float16
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
    try:
        # Without the cache of cast weights, which a captured graph could not own.
        with torch.autocast(plan.device.type, dtype, enabled=half, cache_enabled=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def seconds(plan: Plan, call: Callable[[], object]) -> dict[str, float]:
    """Median, p10 and p90 of the calls, in milliseconds, and the largest allocation during one in MiB."""
    warm_up, repeats = plan.repeats
    for _ in range(warm_up):
        call()
    if plan.dry:
        begin = time.perf_counter()
        call()
        return {"median_ms": 1e3 * (time.perf_counter() - begin)}
    torch.cuda.reset_peak_memory_stats()
    base = torch.cuda.memory_allocated()
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    begin = time.perf_counter()
    for number, (start, end) in enumerate(events):
        start.record()
        call()
        end.record()
        if time.perf_counter() - begin > 15:  # a slow case must not eat the budget
            events = events[: number + 1]
            break
    torch.cuda.synchronize()
    times = sorted(start.elapsed_time(end) for start, end in events)
    return {
        "median_ms": statistics.median(times),
        "p10_ms": times[len(times) // 10],
        "p90_ms": times[9 * len(times) // 10],
        "calls": len(times),
        "peak_mib": (torch.cuda.max_memory_allocated() - base) / 2**20,
    }


# Stages ---------------------------------------------------------------------------------------------------------------


def try_peer(plan: Plan) -> dict[str, Any]:
    """Whether spconv works here, found out in a child process: its libraries may not live beside this torch."""
    return call_peer(plan, "probe", timeout=60)


def measure_ceilings(plan: Plan) -> dict[str, Any]:
    """The largest rates of this machine: bfloat16 products and copies."""
    if plan.dry:
        return {"skipped": "dry run"}
    side = 8192
    a, b = (torch.randn(side, side, device=plan.device, dtype=torch.bfloat16) for _ in range(2))
    source = torch.empty(2**30, device=plan.device)  # 4 GiB
    target = torch.empty_like(source)
    gemm = seconds(plan, lambda: torch.mm(a, b))["median_ms"]
    copy = seconds(plan, lambda: target.copy_(source))["median_ms"]
    return {"gemm_tflops": 2 * side**3 / gemm / 1e9, "copy_tb_per_s": 2 * 4 * source.numel() / copy / 1e9}


def check_correctness(plan: Plan) -> dict[str, Any]:
    """Every operation in every precision against float64, each twice for determinism.

    In processes side by side: compiling takes longer than running, and each process compiles on one core.
    """
    widths = ("6x5",) if plan.dry else ("6x32", "32x32", "96x96", "256x256")
    tasks = [f"correctness:{name}:{width}" for name in (["float32"] if plan.dry else TOLERANCE) for width in widths]
    found = (
        [check_precision(plan, *task.split(":")[1:]) for task in tasks] if plan.dry else run_children(plan, tasks, 150)
    )
    wrong = [line for one in found for line in one.get("wrong", [str(one)])]
    worst = {task.partition(":")[2]: one.get("worst_relative_error") for task, one in zip(tasks, found, strict=True)}
    return {"worst_relative_error": worst, "wrong": wrong[:20], "number_wrong": len(wrong), "tables": check_maps(plan)}


def check_precision(plan: Plan, name: str, width: str) -> dict[str, Any]:
    """All kinds of maps and numbers of rows, in one precision and one width."""
    chans_in, chans_out = map(int, width.split("x"))
    worst: dict[str, float] = {}
    wrong: list[str] = []
    for count in (1, 9) if plan.dry else (1, 63, 64, 65, 5000):
        for kind, kmap, size in maps_of_all_kinds(plan, count):
            errors, same = conv_errors(plan, kmap, size, chans_in, chans_out, name)
            worst = {what: max(worst.get(what, 0.0), error) for what, error in errors.items()}
            if not same or not max(errors.values()) <= TOLERANCE[name]:
                wrong.append(f"{kind} N={count} {width} {name}: {errors} same={same}")
    return {"worst_relative_error": worst, "wrong": wrong}


def check_maps(plan: Plan) -> str:
    from ponder_zoo.sparse.backends.triton_maps import search_neighbours

    points = scene(plan, "thin")
    assert points.grid_coord is not None
    for reach in (1,) if plan.dry else (1, 2):
        voxels, _ = voxelize(points.grid_coord, points.batch, points.batch_size)
        if not search_neighbours(voxels, reach).equal(submanifold_map(voxels, 2 * reach + 1).table):
            return f"the searched table of reach {reach} differs from kernel_map's"
    return "equal to kernel_map's"


def maps_of_all_kinds(plan: Plan, count: int) -> Iterable[tuple[str, KernelMap, int]]:
    cells = torch.randperm(20**3, generator=torch.Generator().manual_seed(count))[:count]
    coord = torch.stack([cells // 400, cells // 20 % 20, cells % 20], 1).to(plan.device)
    voxels, _ = voxelize(coord, torch.zeros(count, dtype=torch.int64, device=plan.device), 1)
    step = coarsening(voxels)
    yield from (("down", step.down, 2), ("up", step.up, 2), ("3", submanifold_map(voxels, 3), 3))
    if not plan.dry:
        yield "5", submanifold_map(voxels, 5), 5


def conv_errors(
    plan: Plan, kmap: KernelMap, size: int, chans_in: int, chans_out: int, name: str
) -> tuple[dict[str, float], bool]:
    """Relative errors of the output and both gradients, and whether two runs gave the same bits."""
    from ponder_zoo.sparse.backends import torch as reference
    from ponder_zoo.sparse.backends import triton as ours

    dtype = torch.float32 if name in ("float32", "tf32") else getattr(torch, name)
    random = torch.Generator().manual_seed(0)
    feat = torch.randn(kmap.num_in, chans_in, generator=random).to(plan.device, dtype).requires_grad_()
    weight = torch.randn(chans_out, size, size, size, chans_in, generator=random) / chans_in**0.5
    weight = weight.to(plan.device, dtype).requires_grad_()
    cotangent = torch.randn(kmap.num_out, chans_out, generator=random).to(plan.device, dtype)

    def run(conv: Callable[..., Tensor], leaves: list[Tensor], gradient: Tensor) -> list[Tensor]:
        out = conv(leaves[0], leaves[1], kmap)
        return [out.detach(), *torch.autograd.grad(out, leaves, gradient)]

    with precision(plan, "tf32" if name == "tf32" else "float32"):
        first, second = run(ours.conv, [feat, weight], cotangent), run(ours.conv, [feat, weight], cotangent)
        exact = [x.detach().double().requires_grad_() for x in (feat, weight)]
        expected = run(reference.conv_reference, exact, cotangent.double())
    names = ("out", "grad_feat", "grad_weight")
    errors = {n: float((a - b).norm() / b.norm()) for n, a, b in zip(names, first, expected, strict=True)}
    return errors, all(a.equal(b) for a, b in zip(first, second, strict=True))


def compile_kernels(plan: Plan) -> dict[str, Any]:
    """Let processes side by side compile every candidate of the network's layers; what they measure is thrown away."""
    if plan.dry:
        return {"skipped": "nothing to compile in the interpreter"}
    tasks = [f"compile:{name}:{dtype}" for name in ("dense", "thin") for dtype in PRECISIONS]
    with tempfile.TemporaryDirectory() as folder:
        found = run_children(plan, tasks, 120, environment={"PONDER_ZOO_CACHE": folder})
    return dict(zip(tasks, found, strict=True))


def tune_network(plan: Plan, name: str, dtype: str) -> dict[str, Any]:
    """One training step with measuring on."""
    from ponder_zoo.sparse.backends import triton as ours

    model, points = make_model(plan), scene(plan, name)
    with precision(plan, dtype):
        return {"choices": ours.tune(lambda: train_step(model, lambda: model.forward_features(points).feat))}


def tune_kernels(plan: Plan) -> dict[str, Any]:
    """Measure the candidates for the layers of the network, and leave the choices beside the report."""
    if plan.dry:
        return {"skipped": "nothing to measure in the interpreter"}
    end = time.monotonic() + min(100.0, plan.left() - 220)
    choices: dict[str, Any] = {}
    for name, dtype in (
        *[("dense", dtype) for dtype in PRECISIONS],
        *[("thin", dtype) for dtype in PRECISIONS],
        *[("dense8", dtype) for dtype in PRECISIONS[:2]],
    ):
        if time.monotonic() < end:
            choices[f"{name} {dtype}"] = tune_network(plan, name, dtype)["choices"]
    return {"choices": choices, "folder": os.environ["PONDER_ZOO_CACHE"]}


def measure_network(plan: Plan) -> dict[str, Any]:
    """Maps, forward and training step of SparseUNet-34, ours in between two runs of spconv in a process of its own."""
    result: dict[str, Any] = {}
    for name in ("dense",) if plan.dry else ("dense", "thin", "dense8"):
        rows: dict[str, Any] = {}
        rows["spconv, before"] = call_peer(plan, f"network:{name}", timeout=45)
        rows["ours"] = measure_ours(plan, name)
        rows["spconv, after"] = call_peer(plan, f"network:{name}", timeout=45)
        result[name] = rows
        if plan.left() < 60:
            break
    return result


def measure_ours(plan: Plan, name: str) -> dict[str, Any]:
    points, model = scene(plan, name), make_model(plan)
    rows: dict[str, Any] = {"voxels": len(points), "maps": seconds(plan, lambda: build_maps(points, searched=False))}
    rows["maps, searched tables"] = seconds(plan, lambda: build_maps(points, searched=True))
    x = build_maps(points, searched=True)
    for dtype in PRECISIONS[:1] if plan.dry else PRECISIONS:
        with precision(plan, dtype):
            model.eval()
            with torch.inference_mode():
                rows[f"forward {dtype}"] = seconds(plan, lambda: last_stage(model, x))
                rows[f"whole forward {dtype}"] = seconds(plan, lambda: model.forward_features(points))
            with torch.no_grad():
                rows[f"graph forward {dtype}"] = graph_row(plan, model, x)
            model.train()
            rows[f"forward+backward {dtype}"] = seconds(plan, lambda: train_step(model, lambda: last_stage(model, x)))
            whole = lambda: train_step(model, lambda: model.forward_features(points).feat)  # noqa: E731
            rows[f"whole forward+backward {dtype}"] = seconds(plan, whole)
    return rows


def last_stage(model: SparseUNet, x: SparseTensor) -> Tensor:
    *_, last = model._stages(x, None)
    return last.feat


def train_step(model: SparseUNet, forward: Callable[[], Tensor]) -> None:
    model.zero_grad(set_to_none=True)
    forward().float().square().mean().backward()


def graph_row(plan: Plan, model: SparseUNet, x: SparseTensor) -> dict[str, Any]:
    """A replayed graph: `replay` alone, and `call` with the copies of tables and features."""
    from ponder_zoo.sparse.cuda_graph import CapturedForward

    expected = last_stage(model, x)
    captured = CapturedForward(lambda some: last_stage(model, some))
    captured(x)
    found = captured(x)
    error = float((found.float() - expected.float()).norm() / expected.float().norm())
    graph = captured._graphs[-1]
    return {"error": error, "replay": seconds(plan, graph._replay), "call": seconds(plan, lambda: captured(x))}


def build_maps(points: PointBatch, *, searched: bool) -> SparseTensor:
    """Sort and merge the points, and all tables of the network; `searched` without waiting for the host in between."""
    from ponder_zoo.sparse.backends.triton_maps import search_neighbours

    assert points.grid_coord is not None
    x, _ = SparseTensor.from_points(points.feat, points.grid_coord, points.batch, points.batch_size)
    voxels = x.voxels
    for level in range(5):
        for size in (5, 3) if level == 0 else (3,):
            if searched and (size, level) != (3, 0):  # the stem's 125 rows contain those 27
                voxels.cache["submanifold", size] = KernelMap(search_neighbours(voxels, size // 2), len(voxels))
            submanifold_map(voxels, size)
        if level < 4:
            voxels = coarsening(voxels).coarse
    return x


def measure_other_parts(plan: Plan) -> dict[str, Any]:
    """The renderer and the dense U-Net by the other benchmarks, where those are there."""
    if plan.dry:
        return {"skipped": "dry run"}
    path = plan.folder / "other_parts.json"
    command = [
        sys.executable,
        "-m",
        "benchmarks",
        "--device",
        "cuda",
        "render",
        "unet3d",
        "step",
        "--output",
        str(path),
    ]
    limit = max(10.0, min(90.0, plan.left() - 60))
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit, check=False)
        text = (done.stdout + done.stderr)[-3000:]
    except subprocess.TimeoutExpired:
        text = f"stopped after {limit:.0f} s"
    return {"output": text, "results": json.loads(path.read_text()) if path.is_file() else None}


def profile_step(plan: Plan) -> dict[str, Any]:
    """The kernels of one training step, by time."""
    from torch.profiler import ProfilerActivity, profile

    points, model = scene(plan, "dense"), make_model(plan).train()
    with precision(plan, "float16" if plan.dry else "bfloat16"):
        step = lambda: train_step(model, lambda: model.forward_features(points).feat)  # noqa: E731
        for _ in range(plan.repeats[0]):
            step()
        if plan.dry:
            return {"skipped": "no kernels in the interpreter"}
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as trace:
            step()
            torch.cuda.synchronize()
    return {"table": trace.key_averages().table(sort_by="cuda_time_total", row_limit=30, max_name_column_width=60)}


# Child processes, and the peer in one ---------------------------------------------------------------------------------


def call_peer(plan: Plan, task: str, *, timeout: float) -> dict[str, Any]:
    """What one child process of this script found."""
    return run_children(plan, [task], timeout)[0]


def run_children(
    plan: Plan, tasks: Sequence[str], timeout: float, environment: dict[str, str] | None = None
) -> list[dict[str, Any]]:
    """What child processes of this script found, all running at once; a crash or a hang of one is a finding."""
    command = [sys.executable, "-m", "benchmarks.gpu", *(["--dry-run"] if plan.dry else []), "--child"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    children = [
        subprocess.Popen([*command, task], cwd=ROOT, env=os.environ | (environment or {}), **pipes) for task in tasks
    ]
    end = time.monotonic() + max(5.0, min(timeout, plan.left()))
    return [_collect(child, end - time.monotonic()) for child in children]


def _collect(child: subprocess.Popen[str], limit: float) -> dict[str, Any]:
    with child:
        try:
            out, errors = child.communicate(timeout=max(0.1, limit))
        except subprocess.TimeoutExpired:
            child.kill()
            child.communicate()
            return {"unusable": "no answer in time"}
    lines = out.strip().splitlines()
    if child.returncode != 0 or not lines:
        return {"unusable": f"status {child.returncode}: {errors.strip()[-600:]}"}
    return json.loads(lines[-1])


def probe_spconv(plan: Plan) -> dict[str, Any]:
    from .peers.spconv_unet import conv_options, import_spconv, spconv_version

    spconv = import_spconv()
    dtype = torch.float32 if plan.dry else torch.float16
    options = conv_options() if plan.dry else {}
    layer = spconv.SubMConv3d(16, 16, 3, bias=False, indice_key="a", **options).to(plan.device, dtype)
    cells = torch.unique(torch.randint(0, 20, (1000, 3)), dim=0).int()
    index = torch.cat([torch.zeros(len(cells), 1, dtype=torch.int32), cells], 1).to(plan.device)
    feat = torch.randn(len(cells), 16, device=plan.device, dtype=dtype)
    out = layer(spconv.SparseConvTensor(feat, index, [64] * 3, 1)).features
    return {"version": spconv_version(), "finite": bool(out.isfinite().all())}


def measure_spconv(plan: Plan, name: str) -> dict[str, Any]:
    from .machine import use_device
    from .peers.spconv_unet import SpconvUNet, sites

    use_device(plan.device.type)
    points = scene(plan, name)
    model = SpconvUNet(6, **(NARROW if plan.dry else SIZES["base"])).to(plan.device)  # type: ignore[arg-type]
    index, shape = sites(points)
    forward = lambda: model(points.feat, index, shape, points.batch_size)  # noqa: E731
    rows: dict[str, Any] = {}
    for dtype in ("float32",) if plan.dry else SPCONV_PRECISIONS:
        if dtype == "tf32":
            import spconv as library

            library.constants.SPCONV_ALLOW_TF32 = True
        with precision(plan, dtype):
            model.eval()
            with torch.inference_mode():
                rows[f"whole forward {dtype}"] = seconds(plan, forward)
            model.train()
            rows[f"whole forward+backward {dtype}"] = seconds(plan, lambda: _train_peer(model, forward))
    return rows


def _train_peer(model: torch.nn.Module, forward: Callable[[], Tensor]) -> None:
    model.zero_grad(set_to_none=True)
    forward().float().square().mean().backward()


STAGES: dict[str, Callable[[Plan], dict[str, Any]]] = {
    "peer": try_peer,
    "ceilings": measure_ceilings,
    "correctness": check_correctness,
    "compile": compile_kernels,
    "tuning": tune_kernels,
    "network": measure_network,
    "other_parts": measure_other_parts,
    "profile": profile_step,
}
CHILD_TASKS: dict[str, Callable[..., dict[str, Any]]] = {
    "probe": probe_spconv,
    "network": measure_spconv,
    "correctness": check_precision,
    "compile": tune_network,
}

if __name__ == "__main__":
    main()
