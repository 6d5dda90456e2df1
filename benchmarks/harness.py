"""Compare two callables fairly on a machine that is not quiet: interleaved, as paired ratios, every repetition kept.

A benchmark module has `cases()`. A case is set up once per side; then both sides are called in turn, in one process.
Pairs of repetitions that other processes disturbed are repeated, and what is compared is the ratio within each pair:
absolute seconds drift by 30 % on shared machines, ratios by a few percent.
"""

from __future__ import annotations

import datetime
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import torch

from .machine import ROOT, Machine, OtherLoad, commit, describe, device, load_average, python_path, synchronize

Call = Callable[[], object]
Side = Literal["ours", "theirs"]

DISTURBED = 0.1  # share of the machine that other processes may take during a repetition
MIN_SECONDS = 0.2  # of a repetition: shorter calls are made several times
MAX_CALLS = 1000
LONG = 3.0  # seconds of a first call after which one is warm-up enough
GPU_WARM_UP = 10  # calls


@dataclass(frozen=True)
class Case:
    """One measurement of ours, and of a peer where there is one.

    `ours` and `theirs` set up (model, inputs; not measured) and return what is measured, which is called without
    arguments. A call that returns `Seconds` has measured itself. A peer that is not installed raises ImportError in its
    set-up; the result then says so. `done` and `aim` are ratios: theirs / ours for time, ours / theirs for memory, or
    seconds of ours where `target_seconds`.
    """

    name: str  # "sparse_unet/forward/thin"
    peer: str  # what the peer is, in words: "spconv 2.3.6, Native"
    ours: Callable[[], Call]
    theirs: Callable[[], Call] | None = None  # None: nothing to compare with
    done: float | None = None
    aim: float | None = None
    floor: Callable[[Machine], float] | None = None  # seconds: what the measured rates allow at best
    metric: Literal["time", "memory"] = "time"  # memory: peak resident bytes of one call above those after set-up
    repeats: int = 7
    target_seconds: bool = False
    items: float = 1  # how many scenes, points, ... a call processes: for "items per second" and curves
    unit: str = ""  # of the items: "voxels"


class Seconds(float):
    """Returned by a call that measured itself, for example in a child process."""


@dataclass(frozen=True)
class Repetition:
    """One timing of one side."""

    seconds: float  # per call
    calls: int
    others: float | None  # share of the machine that other processes took; None: unknown

    @property
    def disturbed(self) -> bool:
        return self.others is not None and self.others > DISTURBED


@dataclass(frozen=True)
class Pair:
    """A repetition of ours followed by one of theirs."""

    ours: Repetition
    theirs: Repetition | None

    @property
    def disturbance(self) -> float:
        return max(self.ours.others or 0.0, self.theirs.others or 0.0 if self.theirs else 0.0)

    @property
    def disturbed(self) -> bool:
        return self.disturbance > DISTURBED

    @property
    def ratio(self) -> float | None:
        return None if self.theirs is None else self.theirs.seconds / self.ours.seconds


# Choosing -------------------------------------------------------------------------------------------------------------


def select(cases: Iterable[Case], patterns: Sequence[str]) -> list[Case]:
    """Cases whose name is one of the patterns, or else has it as a part or matches its wildcards; all without patterns.

    Raises:
        ValueError: for a pattern that no name matches, and for a name that two cases have.
    """
    cases = list(cases)
    names = [case.name for case in cases]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"Expected one case per name, got several named {', '.join(twice)}. Rename all but one.")
    matches = {pattern: _matches(names, pattern) for pattern in patterns}
    unknown = [pattern for pattern, found in matches.items() if not found]
    if unknown:
        raise ValueError(
            f"Expected parts of names of benchmarks, got {', '.join(map(repr, unknown))}, which no name has. "
            f"`python -m benchmarks --list` shows them: {', '.join(names)}."
        )
    return [case for case in cases if not patterns or any(case.name in found for found in matches.values())]


def _matches(names: Sequence[str], pattern: str) -> set[str]:
    if pattern in names:  # scaling/voxels/10000 is also a part of scaling/voxels/1000000
        return {pattern}
    return {name for name in names if pattern in name or fnmatchcase(name, pattern)}


# Timing ---------------------------------------------------------------------------------------------------------------


def repetition(call: Call, calls: int) -> Repetition:
    """Time `calls` calls in a row."""
    gc.collect()
    load = OtherLoad()
    seconds = timed(call, calls)
    return Repetition(seconds / calls, calls, load.share())


def timed(call: Call, calls: int) -> float:
    """Seconds of `calls` calls; on a GPU those between two events on its stream."""
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if device().type == "cuda" else []
    measured: list[Seconds] = []
    for event in events[:1]:
        event.record()
    start = time.perf_counter()
    for _ in range(calls):
        result = call()
        if isinstance(result, Seconds):
            measured.append(result)
    seconds = time.perf_counter() - start
    for event in events[1:]:
        event.record()
        event.synchronize()
        seconds = events[0].elapsed_time(event) / 1000
    return sum(measured) if measured else seconds


def warm_up(call: Call) -> int:
    """Call a few times, fewer where that takes long, and say how many calls make a repetition."""
    seconds, cuda = 0.0, device().type == "cuda"
    for _ in range(GPU_WARM_UP if cuda else 2):
        synchronize()
        start = time.perf_counter()
        call()
        synchronize()
        seconds = time.perf_counter() - start
        if seconds > LONG and not cuda:  # the first calls on a GPU compile kernels and measure their choices
            return 1
    return max(1, min(MAX_CALLS, int(MIN_SECONDS / max(seconds, 1e-9)) + 1)) if seconds < MIN_SECONDS else 1


def measure_pairs(
    ours: Call, theirs: Call | None, *, repeats: int, extra: int | None = None, time_it: Any = repetition
) -> list[Pair]:
    """Interleaved repetitions: `repeats` undisturbed pairs, or as many as at most `extra` more attempts give.

    Args:
        ours: what is measured.
        theirs: what it is compared with.
        repeats: pairs wanted.
        extra: attempts beyond `repeats`, to replace disturbed ones; None: as many as `repeats`.
        time_it: (call, number of calls) -> Repetition.
    """
    calls = warm_up(ours), warm_up(theirs) if theirs is not None else 0
    pairs: list[Pair] = []
    attempts = repeats + (repeats if extra is None else extra)
    while len(pairs) < attempts and sum(not pair.disturbed for pair in pairs) < repeats:
        first = time_it(ours, calls[0])
        pairs.append(Pair(first, None if theirs is None else time_it(theirs, calls[1])))
    return pairs


def chosen_pairs(pairs: Sequence[Pair], repeats: int) -> list[Pair]:
    """The undisturbed pairs; where they are too few, the least disturbed ones as well."""
    return sorted(pairs, key=lambda pair: pair.disturbance if pair.disturbed else 0.0)[:repeats]


# Running a case -------------------------------------------------------------------------------------------------------


def run_case(case: Case, machine: Machine, *, repeats: int | None = None) -> dict[str, Any]:
    """Measure a case; the result has only JSON types."""
    if repeats is not None:
        case = replace(case, repeats=repeats)
    result: dict[str, Any] = {
        "name": case.name,
        "metric": case.metric,
        "peer": case.peer,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "threads": torch.get_num_threads(),
        "device": device().type,
        "load_average": load_average(),
        "rates": asdict(machine),
        "target": {"done": case.done, "aim": case.aim, "in_seconds": case.target_seconds},
        "items": case.items,
        "unit": case.unit,
    }
    result |= _memory(case) if case.metric == "memory" else _time(case)
    if case.metric == "time":
        result["per_second"] = case.items / result["ours"]
    if case.metric == "time" and case.floor is not None:
        result["floor"] = case.floor(machine)
        result["times_floor"] = result["ours"] / result["floor"]
    result["holds"] = holds(result)
    return result


def _time(case: Case) -> dict[str, Any]:
    theirs, missing = _peer(case)
    ours = case.ours()
    pairs = measure_pairs(ours, theirs, repeats=case.repeats)
    return {**summarize(pairs, case.repeats), **missing}


def _peer(case: Case) -> tuple[Call | None, dict[str, str]]:
    """The peer's call, or a note why there is none."""
    if case.theirs is None:
        return None, {}
    try:
        return case.theirs(), {}
    except ImportError as error:
        return None, {"not_measured": f"not measured: {error}"}


def summarize(pairs: Sequence[Pair], repeats: int) -> dict[str, Any]:
    """Medians, the ratio of the medians, and the spread of the paired ratios; and every repetition."""
    chosen = chosen_pairs(pairs, repeats)
    result: dict[str, Any] = {
        "ours": statistics.median(pair.ours.seconds for pair in chosen),
        "repetitions": {
            "ours": [asdict(pair.ours) for pair in pairs],
            "theirs": [asdict(pair.theirs) for pair in pairs if pair.theirs is not None],
            "used": [any(pair is other for other in chosen) for pair in pairs],
        },
        "disturbed": sum(pair.disturbed for pair in chosen),  # of the pairs that count
        "repeated": len(pairs) - len(chosen),
    }
    ratios = [pair.ratio for pair in chosen if pair.ratio is not None]
    if ratios:
        result["theirs"] = statistics.median(pair.theirs.seconds for pair in chosen if pair.theirs is not None)
        result["ratio"] = result["theirs"] / result["ours"]
        result["ratio_p10"], result["ratio_p90"] = quantile(ratios, 0.1), quantile(ratios, 0.9)
    return result


def quantile(values: Sequence[float], share: float) -> float:
    """Linear interpolation between the sorted values."""
    values = sorted(values)
    place = share * (len(values) - 1)
    below = int(place)
    above = min(below + 1, len(values) - 1)
    return values[below] + (place - below) * (values[above] - values[below])


def holds(result: dict[str, Any]) -> bool | None:
    """Whether the "done" target is met; None where there is no target or it was not measured."""
    done = result["target"]["done"]
    if done is None:
        return None
    if result["target"]["in_seconds"]:
        return result["ours"] <= done
    if "ratio" not in result:
        return None
    return result["ratio"] <= done if result["metric"] == "memory" else result["ratio"] >= done


# Memory: a fresh process for each side --------------------------------------------------------------------------------


def _memory(case: Case) -> dict[str, Any]:
    repeats = min(case.repeats, 3)  # a peak hardly varies
    found: dict[str, list[int]] = {"ours": [], "theirs": []}
    note: dict[str, str] = {}
    for _ in range(repeats):
        found["ours"].append(_peak_of_child(case.name, "ours"))
        if case.theirs is not None and not note:
            try:
                found["theirs"].append(_peak_of_child(case.name, "theirs"))
            except ImportError as error:
                note = {"not_measured": f"not measured: {error}"}
    result: dict[str, Any] = {"ours": statistics.median(found["ours"]), "repetitions": found} | note
    if found["theirs"]:
        result["theirs"] = statistics.median(found["theirs"])
        result["ratio"] = result["ours"] / max(result["theirs"], 1)
        ratios = [a / max(b, 1) for a, b in zip(found["ours"], found["theirs"], strict=True)]
        result["ratio_p10"], result["ratio_p90"] = quantile(ratios, 0.1), quantile(ratios, 0.9)
    return result


def _peak_of_child(name: str, side: Side) -> int:
    command = [sys.executable, "-m", "benchmarks", "--child", name, side]
    command += ["--threads", str(torch.get_num_threads()), "--device", device().type]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": python_path()}
    )
    if done.returncode != 0:
        raise RuntimeError(f"{name}, {side}: the child process failed.\n{done.stderr.strip()[-2000:]}")
    answer = json.loads(done.stdout.splitlines()[-1])
    if "missing" in answer:
        raise ImportError(answer["missing"])
    return answer["peak"]


def child(case: Case, side: Side) -> dict[str, Any]:
    """What a child process prints: the peak of one call of one side, or what is missing."""
    from .memory import peak_above_setup

    try:
        setup = case.ours if side == "ours" else case.theirs
        assert setup is not None
        call = setup()
    except ImportError as error:
        return {"missing": str(error)}
    return {"peak": peak_above_setup(call)}


# Results --------------------------------------------------------------------------------------------------------------


class Results:
    """A JSON file that is complete after every case, so that a run can be killed and others can add to it.

    Cases that the file already has are replaced when they are measured again; each carries its own commit and date.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data: dict[str, Any] = {"format": 1, "cases": {}}
        if path.is_file():
            self.data = json.loads(path.read_text(encoding="utf-8"))
            if self.data.get("format") != 1:
                raise ValueError(f"Expected {path} to hold benchmark results of format 1. Give another --output.")

    def best_rates(self, machine: Machine) -> Machine:
        """The best rates that this file has seen with the same processor and threads: floors are what is possible."""
        if self.data.get("machine", {}).get("cpu") != describe()["cpu"]:
            return machine
        threads = torch.get_num_threads()
        seen = [found["rates"] for found in self.data["cases"].values() if found["threads"] == threads]
        return Machine(**{name: max([rate, *(r[name] for r in seen)]) for name, rate in asdict(machine).items()})

    def add(self, result: dict[str, Any]) -> None:
        """Store a case's result, on disk before this returns."""
        self.data["machine"] = describe()
        self.data["cases"][result["name"]] = result | {"versions": self.data["machine"]["versions"]}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        aside = self.path.with_name(self.path.name + ".partial")
        aside.write_text(json.dumps(self.data, indent=1) + "\n", encoding="utf-8")
        aside.replace(self.path)


# Showing --------------------------------------------------------------------------------------------------------------

HEADER = (
    f"{'case':<44} {'ours':>9} {'peer':>9} {'ratio':>7} {'p10-p90':>12} {'done':>6} {'aim':>6} {'x floor':>7}  note"
)


def line(result: dict[str, Any]) -> str:
    """One line of the table that a run prints."""
    target = result["target"]
    unit = "s" if target["in_seconds"] else ""
    spread = f"{result['ratio_p10']:.2f}-{result['ratio_p90']:.2f}" if "ratio" in result else "-"
    times_floor = f"{result['times_floor']:.1f}" if "times_floor" in result else "-"
    return (
        f"{result['name']:<44} {amount(result, 'ours'):>9} {amount(result, 'theirs'):>9} "
        f"{format_number(result.get('ratio')):>7} {spread:>12} {format_number(target['done'], unit):>6} "
        f"{format_number(target['aim'], unit):>6} {times_floor:>7}  {note(result)}"
    )


def note(result: dict[str, Any]) -> str:
    """Whether the target holds, and what to know about the measurement."""
    parts = [] if result["holds"] is None else ["holds" if result["holds"] else "MISSED"]
    if "not_measured" in result:
        parts.append(result["not_measured"])
    if result.get("disturbed"):
        parts.append(f"{result['disturbed']} repetitions disturbed by other processes")
    if result["items"] != 1 and result["metric"] == "time":
        parts.append(f"{result['per_second']:.3g} {result['unit']}/s")
    return ", ".join(parts)


def amount(result: dict[str, Any], side: Side) -> str:
    """Seconds or bytes of one side in a readable unit."""
    if side not in result:
        return "-"
    value = result[side]
    if result["metric"] == "memory":
        return f"{value / 2**20:.0f} MiB"
    return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.1f} ms"


def format_number(value: float | None, unit: str = "") -> str:
    return "-" if value is None else f"{value:.2f}{unit}"
