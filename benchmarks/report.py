"""Turn stored results into the tables of docs/performance.md and its picture.

python -m benchmarks.report                      benchmarks/results/*.json
python -m benchmarks.report cpu.json cuda.json
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .__main__ import collect
from .curves import write_curves
from .harness import Case, amount, format_number
from .machine import ROOT, assumed_device

PAGE = ROOT / "docs/performance.md"
PICTURE = ROOT / "docs/images/scaling.svg"
RESULTS = ROOT / "benchmarks/results"
NOT_MEASURED = "not measured"

Result = dict[str, Any]


def main(arguments: Sequence[str]) -> None:
    files = [Path(argument) for argument in arguments] or sorted(RESULTS.glob("*.json"))
    stored = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    cpu = [data for data in stored if data["machine"]["device"] == "cpu"]
    cuda = [data for data in stored if data["machine"]["device"] != "cpu"]
    cases = list(collect())
    with assumed_device("cuda"):
        gpu_cases = list(collect())
    text = PAGE.read_text(encoding="utf-8")
    for name, body in sections(cases, gpu_cases, cpu, cuda).items():
        text = replace_section(text, name, body)
    PAGE.write_text(text, encoding="utf-8")
    found = latest(cpu)
    if any(name.startswith("scaling/") for name in found):
        PICTURE.parent.mkdir(exist_ok=True)
        write_curves(found, PICTURE)


def sections(
    cases: Sequence[Case], gpu_cases: Sequence[Case], cpu: Sequence[Any], cuda: Sequence[Any]
) -> dict[str, str]:
    """Markdown by the name of the place where it goes."""
    return {
        "machine": "\n".join(describe(data) for data in [*cpu, *cuda]),
        "targets": targets_table(cases, runs(cpu)),
        "floors": floors_table(cases, latest(cpu)),
        "alone": alone_table(cases, latest(cpu)),
        "scaling": scaling_table(latest(cpu)),
        "curves": curves_table(latest(cpu)),
        "gpu": targets_table(gpu_cases, runs(cuda)) + "\n\n" + alone_table(gpu_cases, latest(cuda)),
    }


def replace_section(text: str, name: str, body: str) -> str:
    """Put `body` between the markers of a section.

    Raises:
        ValueError: if the page does not have them.
    """
    start, end = f"<!-- {name}: made by benchmarks.report -->", f"<!-- {name}: end -->"
    if start not in text or end not in text:
        raise ValueError(f"Expected {PAGE.name} to have the lines {start} and {end}. Put them where the table goes.")
    before, rest = text.split(start, 1)
    return f"{before}{start}\n{body}\n{end}{rest.split(end, 1)[1]}"


def runs(stored: Iterable[Any]) -> dict[str, list[Result]]:
    """All results of each case, the latest first."""
    found: dict[str, list[Result]] = {}
    for data in stored:
        for name, result in data["cases"].items():
            found.setdefault(name, []).append(result)
    return {name: sorted(results, key=lambda result: result["date"], reverse=True) for name, results in found.items()}


def latest(stored: Iterable[Any]) -> dict[str, Result]:
    return {name: results[0] for name, results in runs(stored).items()}


# Tables ---------------------------------------------------------------------------------------------------------------


def describe(data: Any) -> str:
    """Machine, versions, commits and dates of a file of results."""
    machine, results = data["machine"], list(data["cases"].values())
    commits, dates = sorted({r["commit"] for r in results}), sorted(r["date"][:10] for r in results)
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    gemm, copy = (max(r["rates"][name] for r in results) / 1e9 for name in ("gemm", "copy"))
    device = machine["cpu"] if machine["device"] == "cpu" else f"{machine['device']}, {machine['cpu']}"
    when = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    return (
        f"- {device}, {machine['cores']} cores, {machine['memory_gib']} GiB; {machine['threads']} threads; best "
        f"matrix product {gemm:.0f} Gflop/s, copy {copy:.1f} GB/s; {versions}; commit {', '.join(commits)}; {when}."
    )


def targets_table(cases: Iterable[Case], found: dict[str, list[Result]]) -> str:
    """Every case with a peer or a target: the ratio beside what counts as done."""
    rows = []
    for case in cases:
        if case.theirs is None and case.done is None:
            continue
        results = found.get(case.name, [])
        rows.append([f"`{case.name}`", case.peer, *_ratio_cells(case, results), *_target_cells(case, results)])
    head = ["case", "peer", "ours", "peer's", "ratio (p10 to p90)", "other runs", "done", "aim", ""]
    return table(head, rows)


def _ratio_cells(case: Case, results: Sequence[Result]) -> list[str]:
    if not results:
        return [NOT_MEASURED, NOT_MEASURED, NOT_MEASURED, ""]
    first = results[0]
    if "ratio" not in first:
        missing = first.get("not_measured", "-")
        return [amount(first, "ours"), missing, "-", ", ".join(amount(other, "ours") for other in results[1:])]
    ratio = f"**{first['ratio']:.2f}** ({first['ratio_p10']:.2f} to {first['ratio_p90']:.2f})"
    others = ", ".join(format_number(other.get("ratio")) for other in results[1:])
    return [amount(first, "ours"), amount(first, "theirs"), ratio, others]


def _target_cells(case: Case, results: Sequence[Result]) -> list[str]:
    unit, sign = ("s", "≤ ") if case.target_seconds else ("", "≤ " if case.metric == "memory" else "≥ ")
    cells = ["-" if value is None else f"{sign}{value:g} {unit}".strip() for value in (case.done, case.aim)]
    verdicts = {result["holds"] for result in results} - {None}
    return [*cells, "" if not verdicts else "holds" if verdicts == {True} else "missed"]


def floors_table(cases: Iterable[Case], found: dict[str, Result]) -> str:
    """How far each part is from what the machine's rates allow."""
    rows = []
    for case in cases:
        result = found.get(case.name, {})
        if case.floor is None or "floor" not in result:
            continue
        floor, peer = result["floor"], result.get("theirs")
        away = f"{result['ours'] / floor:.1f} x"
        seconds = f"{floor:.2f} s" if floor >= 1 else f"{1000 * floor:.3g} ms"
        rows.append([f"`{case.name}`", seconds, amount(result, "ours"), away, f"{peer / floor:.1f} x" if peer else "-"])
    return table(["case", "floor", "ours", "ours / floor", "peer / floor"], rows)


def alone_table(cases: Iterable[Case], found: dict[str, Result]) -> str:
    """Cases without a peer, a target or a curve."""
    rows = []
    for case in cases:
        if case.theirs is not None or case.done is not None or case.name.startswith("scaling/"):
            continue
        result = found.get(case.name)
        rate = ""
        if result is not None and case.unit and "per_second" in result:  # memory has none
            rate = f"{result['per_second']:.3g} {case.unit}/s"
        rows.append([f"`{case.name}`", NOT_MEASURED if result is None else amount(result, "ours"), rate])
    return table(["case", "per call", "rate"], rows)


def scaling_table(found: dict[str, Result]) -> str:
    """Cost and peak memory of feature extraction against voxels."""
    rows = []
    for name, result in found.items():
        if name.startswith("scaling/voxels/"):
            memory = found.get(name.replace("/voxels/", "/memory/"))
            cost = 1e6 * result["ours"] / result["items"]
            peak = [NOT_MEASURED] * 2
            if memory is not None:
                peak = [f"{memory['ours'] / 2**30:.2f} GiB", f"{memory['ours'] / memory['items'] / 1024:.1f} KiB"]
            rows.append([f"{result['items']:,.0f}", amount(result, "ours"), f"{cost:.1f} µs", *peak])
    return table(["voxels", "time", "per voxel", "peak above set-up", "per voxel"], rows)


def curves_table(found: dict[str, Result]) -> str:
    """Cost against rays, scenes per batch and processes."""
    rows = []
    for name, result in found.items():
        if re.match("scaling/(rays|batch|processes)/", name):
            rows.append([f"`{name}`", amount(result, "ours"), f"{result['per_second']:.3g} {result['unit']}/s"])
    return table(["case", "per call", "rate"], rows)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; a sentence where it would have no rows."""
    if not rows:
        return NOT_MEASURED.capitalize() + "."
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


if __name__ == "__main__":
    main(sys.argv[1:])
