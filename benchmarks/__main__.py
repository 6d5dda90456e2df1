"""Measure ponder_zoo and its peers, and store every repetition.

    python -m benchmarks                          everything
    python -m benchmarks sparse_unet kernel_maps  what has one of these in its name
    python -m benchmarks --list
    python -m benchmarks --device cuda            what runs on a GPU, there

Results go to benchmarks/results/cpu.json (cuda.json) after every case; `python -m benchmarks.report` makes the tables
of docs/performance.md from them.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from . import gpu
from .harness import HEADER, Case, Results, child, line, run_case, select
from .machine import ROOT, device, load_average, measure_machine, use_device

MODULES = (
    "sparse_unet",
    "gpu",
    "kernel_maps",
    "data",
    "render",
    "unet3d",
    "step",
    "pipeline",
    "imports",
    "scaling",
    "cluster",
)
ON_CPU = ("data", "pipeline", "imports")  # what they measure is the same on every device


def collect() -> Iterator[Case]:
    """Cases of the benchmark modules, in the order of MODULES; those of a GPU where one is measured."""
    for name in MODULES:
        if name in ON_CPU and device().type != "cpu":
            continue
        if importlib.util.find_spec(f"benchmarks.{name}") is not None:
            yield from importlib.import_module(f"benchmarks.{name}").cases()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("patterns", nargs="*", metavar="PATTERN", help="part of a case's name, or a wildcard for it")
    parser.add_argument("--list", action="store_true", help="show the names and stop")
    parser.add_argument("--repeats", type=int, help="repetitions of each side (default: the case's)")
    parser.add_argument("--output", type=Path, help="JSON file that is made or added to")
    parser.add_argument("--budget", type=float, help="seconds after which no case is begun")
    parser.add_argument("--threads", type=int, help="of torch (default: all cores)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--child", nargs=2, metavar=("NAME", "SIDE"), help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    try:
        use_device(args.device)
        cases = select(collect(), args.child[:1] if args.child else args.patterns)
        if args.child:
            (case,) = (case for case in cases if case.name == args.child[0])
            print(json.dumps(child(case, args.child[1])))
        elif args.list:
            print("\n".join(f"{case.name:<44} {case.peer}" for case in cases))
        else:
            output = args.output or ROOT / f"benchmarks/results/{args.device}.json"
            run(cases, output.resolve(), args.repeats, args.budget)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def run(cases: list[Case], output: Path, repeats: int | None, budget: float | None = None) -> None:
    """Measure the cases one after the other and store each result at once."""
    end = time.monotonic() + (float("inf") if budget is None else budget)
    results = Results(output)
    if device().type == "cuda":
        gpu.use_measured_choices(cases, output)
    load = load_average()
    if load is not None and load > 0.5:
        print(f"Load average {load:.1f}: other processes run here. Repetitions that they disturb are repeated.")
    machine = results.best_rates(measure_machine())
    print(
        f"{torch.get_num_threads()} threads, best GEMM {machine.gemm / 1e9:.0f} Gflop/s, copy {machine.copy / 1e9:.1f} "
        f"GB/s, gather {machine.gather / 1e9:.1f} GB/s\n{HEADER}"
    )
    for number, case in enumerate(cases):
        if time.monotonic() > end:
            print(f"Out of time: not measured {', '.join(case.name for case in cases[number:])}.")
            break
        result = run_case(case, machine, repeats=repeats)
        results.add(result)
        print(line(result), flush=True)
    print(f"Stored in {output}.")


if __name__ == "__main__":
    sys.exit(main())
