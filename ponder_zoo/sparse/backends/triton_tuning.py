"""Block sizes of the Triton kernels: a default that needs no measurement, and measured ones kept on disk.

Voxel counts change with every batch, so what is measured for one count is used for all between the same powers of two.
Nothing is measured unless asked for (`tune`, or PONDER_ZOO_TUNE=1): a choice is only ever looked up or derived.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from ...files import write_atomic

FORMAT = 1  # of the file; a file of another format is ignored
MAX_CANDIDATES = 6
PARTIAL_BYTES = 64 * 2**20  # of the partial sums of one convolution, at most

Op = Literal["forward", "input_gradient", "weight_gradient"]


@dataclass(frozen=True)
class Config:
    """How one kernel is launched."""

    rows: int  # output rows per program; pairs per step of the weight gradient
    ins: int  # input channels per step; of a block of the weight gradient
    outs: int  # output channels per program
    splits: int  # shares of the reduction, added up afterwards in a fixed order
    warps: int
    stages: int


@dataclass(frozen=True)
class Problem:
    """What a choice depends on."""

    op: Op
    rows: int  # of the table, rounded down to a power of two: use `Problem.of`
    chans_in: int  # that the operation sums over; of the weight, for its gradient
    chans_out: int
    volume: int  # kernel offsets
    dtype: str  # "float16", "bfloat16", "float32" (exact products), "tf32", "float64"

    @classmethod
    def of(cls, op: Op, rows: int, chans_in: int, chans_out: int, volume: int, dtype: str) -> Problem:
        return cls(op, 1 << (max(rows, 1).bit_length() - 1), chans_in, chans_out, volume, dtype)

    @property
    def key(self) -> str:
        size = self.rows.bit_length() - 1
        return f"{self.op} n{size} i{self.chans_in} o{self.chans_out} k{self.volume} {self.dtype}"


@cache
def candidates(problem: Problem, processors: int) -> tuple[Config, ...]:
    """At most MAX_CANDIDATES configurations worth measuring; the first is the default without measurements.

    Args:
        problem: what to compute.
        processors: multiprocessors of the GPU.
    """
    if problem.op == "weight_gradient":
        found = list(_weight_gradient_candidates(problem, processors))
    else:
        found = list(_conv_candidates(problem, processors))
    return tuple(dict.fromkeys(found))[:MAX_CANDIDATES]


def _width(chans: int, largest: int) -> int:
    """Channels per block: a power of two from 16 (the least that tensor cores take) to `largest`.

    Wide blocks read the gathered rows less often, narrow ones waste less where they do not divide the channels; a
    block's rows are counted as much as 32 of its columns.
    """
    widths = [width for width in (128, 64, 32, 16) if width <= largest]
    return min(widths, key=lambda width: -(-chans // width) * (width + 32))


def _depth(chans: int, largest: int) -> int:
    """Channels per step of the reduction: many, and without a remainder where 32 or 64 leave none."""
    return next((size for size in (64, 32) if size <= largest and chans % size == 0), 32 if chans > 64 else 16)


def _conv_candidates(problem: Problem, processors: int) -> Iterator[Config]:
    half = problem.dtype in ("float16", "bfloat16")
    exact = problem.dtype in ("float32", "float64")  # no tensor cores (or slow ones): small accumulators
    outs = _width(problem.chans_out, 64 if exact else 128)
    ins = _depth(problem.chans_in, 64 if half else 32)
    stages = 2 if problem.dtype == "float64" else 3
    shapes = [(64, outs, ins, 4, stages)]
    if not exact:
        narrow = max(16, outs // 2)
        shapes += [
            (128, outs, ins, 8, stages),
            (64, outs, ins, 4, stages + 1),
            (64, narrow, ins, 4, stages + 1),
            (128, narrow, ins, 4, stages),
            (32, outs, ins, 4, stages),
        ]
    else:
        shapes += [(32, outs, ins, 4, stages), (64, max(16, outs // 2), ins, 4, stages)]
    for rows, outs_, ins_, warps, stages_ in shapes:
        splits = _conv_splits(problem, rows, outs_, ins_, processors)
        yield Config(rows, ins_, outs_, splits, warps, stages_)


def _conv_splits(problem: Problem, rows: int, outs: int, ins: int, processors: int) -> int:
    """Shares of the reduction: enough programs for two per multiprocessor, at least four steps each."""
    programs = -(-problem.rows // rows) * -(-problem.chans_out // outs)
    steps = problem.volume * -(-problem.chans_in // ins)
    return max(1, min(2 * processors // max(programs, 1), steps // 4, 8))


def _weight_gradient_candidates(problem: Problem, processors: int) -> Iterator[Config]:
    half = problem.dtype in ("float16", "bfloat16")
    exact = problem.dtype in ("float32", "float64")
    largest = 64 if exact else 128
    outs, ins = _width(problem.chans_out, largest), _width(problem.chans_in, 64)
    pairs = 64 if half else 32
    stages = 2 if problem.dtype == "float64" else 3
    shapes = [(pairs, ins, outs, 4, stages)]
    if not exact:
        shapes += [
            (pairs, ins, outs, 8, stages),
            (pairs // 2, ins, outs, 4, stages + 1),
            (pairs, min(ins, 32), min(outs, 64), 4, stages),
            (pairs, _width(problem.chans_in, 128), outs, 8, stages),
        ]
    else:
        shapes += [(pairs, min(ins, 32), min(outs, 32), 4, stages)]
    for rows, ins_, outs_, warps, stages_ in shapes:
        yield Config(rows, ins_, outs_, _weight_gradient_splits(problem, ins_, outs_, processors), warps, stages_)


def _weight_gradient_splits(problem: Problem, ins: int, outs: int, processors: int) -> int:
    """Chunks of each offset's pairs: the middle offset has one per row, so that its share must not be the longest."""
    programs = -(-problem.chans_in // ins) * -(-problem.chans_out // outs)
    wanted = -(-8 * processors // programs)  # the middle offset alone then occupies the GPU
    by_rows = problem.rows // 512
    size = 4 * problem.chans_in * problem.chans_out * problem.volume
    return max(1, min(wanted, by_rows, PARTIAL_BYTES // size, 32))


# Measured choices -----------------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """PONDER_ZOO_CACHE, or `ponder_zoo` in the user's cache directory (XDG_CACHE_HOME, ~/.cache)."""
    if os.environ.get("PONDER_ZOO_CACHE"):
        return Path(os.environ["PONDER_ZOO_CACHE"]).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "ponder_zoo"


class TuningCache:
    """Measured configurations of one kind of GPU and version of Triton: a dictionary that is also a small JSON file."""

    def __init__(self, gpu: str, triton_version: str, folder: Path) -> None:
        self.gpu = gpu
        self.triton_version = triton_version
        name = re.sub(r"[^A-Za-z0-9.]+", "-", f"{gpu} triton {triton_version}").strip("-")
        self.path = folder / f"triton_tuning.{name}.json"
        self.entries = self._read()

    def __len__(self) -> int:
        return len(self.entries)

    def get(self, problem: Problem) -> Config | None:
        return self.entries.get(problem.key)

    def put(self, problem: Problem, config: Config) -> None:
        """Remember, and write; entries that another process wrote meanwhile are kept."""
        self.entries = self._read() | self.entries | {problem.key: config}
        content = {
            "format": FORMAT,
            "gpu": self.gpu,
            "triton": self.triton_version,
            "entries": {key: asdict(value) for key, value in sorted(self.entries.items())},
        }
        try:
            write_atomic(self.path, json.dumps(content, indent=1) + "\n")
        except OSError as error:
            warnings.warn(
                f"Measured choices of kernels cannot be kept in {self.path}: {error}. They hold for this process; "
                "set PONDER_ZOO_CACHE to a folder that can be written.",
                stacklevel=2,
            )

    def _read(self) -> dict[str, Config]:
        try:
            content: Any = json.loads(self.path.read_text())
            if content["format"] != FORMAT or (content["gpu"], content["triton"]) != (self.gpu, self.triton_version):
                return {}
            return {key: _checked(value) for key, value in content["entries"].items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            warnings.warn(
                f"{self.path} is not a file of measured kernel choices ({type(error).__name__}: {error}). It is "
                "ignored, and replaced by the next measurement; delete it to silence this.",
                stacklevel=2,
            )
            return {}


def _checked(value: dict[str, Any]) -> Config:
    """A configuration from a file; a launch with impossible numbers would fail far from here."""
    config = Config(**value)
    blocks = (config.rows, config.ins, config.outs)
    powers = all(type(size) is int and 16 <= size <= 256 and size & (size - 1) == 0 for size in blocks)
    if not powers or config.warps not in (1, 2, 4, 8, 16) or config.stages not in range(1, 9):
        raise ValueError(f"impossible configuration {config}")
    if type(config.splits) is not int or not 1 <= config.splits <= 64:
        raise ValueError(f"impossible configuration {config}")
    return config


_measuring: list[bool] = []  # for all threads: autograd runs a GPU's backward pass in one of its own


@contextmanager
def measuring(enabled: bool = True) -> Iterator[None]:
    """Inside, choices that are not known yet are measured and kept (or, with False, not)."""
    _measuring.append(enabled)
    try:
        yield
    finally:
        _measuring.pop()


def is_measuring() -> bool:
    """Set by `measuring`, else by PONDER_ZOO_TUNE=1."""
    return _measuring[-1] if _measuring else os.environ.get("PONDER_ZOO_TUNE", "") not in ("", "0")


@cache
def _open(gpu: str, triton_version: str, folder: Path) -> TuningCache:
    return TuningCache(gpu, triton_version, folder)


def tuning_cache(gpu: str, triton_version: str) -> TuningCache:
    """The cache of this kind of GPU, read once per process."""
    return _open(gpu, triton_version, cache_folder())


def choose(
    problem: Problem, processors: int, known: TuningCache, measure: Callable[[Config], float] | None = None
) -> Config:
    """The configuration to use: the measured one where there is one, else the default.

    Args:
        problem: what to compute.
        processors: multiprocessors of the GPU.
        known: measured configurations.
        measure: seconds of a configuration, infinity where it cannot be launched. Where it is given, and nothing has
            been measured for this problem, every candidate is and the best one is kept.
    """
    found = known.get(problem)
    if found is not None:
        return found
    options = candidates(problem, processors)
    if measure is None:
        return options[0]
    seconds = [measure(option) for option in options]
    best = options[seconds.index(min(seconds))]
    if min(seconds) < float("inf"):
        known.put(problem, best)
    return best
