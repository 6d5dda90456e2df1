"""What the machine can do at best, what it is, and what else it is doing."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "numpy", "scipy", "triton", "spconv", "spconv-cu120", "spconv-cu126", "timm")

QUIET = 0.1  # share of the machine that others may take while rates are measured

_device = torch.device("cpu")


def use_device(name: str) -> None:
    """Choose where cases run; must come before their set-up."""
    global _device
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("Expected a CUDA device for --device cuda, found none. Leave --device out to measure the CPU.")
    _device = torch.device(name)


def device() -> torch.device:
    """Where cases put their models and inputs."""
    return _device


def our_backend() -> str:
    """Of sparse convolutions: what this project has for the device, not what `auto` would take from the peer."""
    return "torch" if _device.type == "cpu" else "triton"


@contextlib.contextmanager
def precision(name: str) -> Iterator[None]:
    """Inside, products are made in this precision: "float32", "tf32" (of a GPU), "float16" or "bfloat16"."""
    half = name in ("float16", "bfloat16")
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
    try:
        with torch.autocast(_device.type, getattr(torch, name) if half else None, enabled=half):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


@contextlib.contextmanager
def assumed_device(name: str) -> Iterator[None]:
    """Let cases be listed as they are on a device that this machine need not have."""
    global _device
    before, _device = _device, torch.device(name)
    try:
        yield
    finally:
        _device = before


def synchronize() -> None:
    """Wait for the device to finish; nothing to do on a CPU."""
    if _device.type == "cuda":
        torch.cuda.synchronize()


# Rates ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Machine:
    """Rates measured at the start of a run, from which floors are computed."""

    gemm: float  # flop/s, best large fp32 product (bf16 on a GPU)
    copy: float  # bytes/s, read and written bytes of a large copy
    gather: float  # bytes/s, read and written bytes of index_select with random rows of 96 channels


def measure_machine(attempts: int = 5) -> Machine:
    """The best rates of several repetitions, again where other processes disturbed them; about a second each time."""
    found = []
    for _ in range(attempts):
        load = OtherLoad()
        found.append(_rates())
        if (load.share() or 0.0) < QUIET:
            break
    return Machine(*(max(getattr(rates, name) for rates in found) for name in ("gemm", "copy", "gather")))


def _rates() -> Machine:
    cuda = _device.type == "cuda"
    side = 8192 if cuda else 2048
    a, b = (torch.randn(side, side, device=_device, dtype=torch.bfloat16 if cuda else None) for _ in range(2))
    out = torch.empty_like(a)
    gemm = 2 * side**3 / _best(lambda: torch.mm(a, b, out=out))
    rows = 2_000_000 if cuda else 300_000  # 115 MB: beyond the last-level cache
    source, target = torch.ones(rows, 96, device=_device), torch.zeros(rows, 96, device=_device)
    size = 2 * source.numel() * source.element_size()
    copy = size / _best(lambda: target.copy_(source))
    index = torch.randperm(rows, device=_device).int()
    gather = size / _best(lambda: torch.index_select(source, 0, index, out=target))
    return Machine(gemm, copy, gather)


def _best(function: Any, repeats: int = 7) -> float:
    function()
    times = []
    for _ in range(repeats):
        synchronize()
        start = time.perf_counter()
        function()
        synchronize()
        times.append(time.perf_counter() - start)
    return min(times)


# Description ----------------------------------------------------------------------------------------------------------


def describe() -> dict[str, Any]:
    """Processor, memory, threads and versions, as stored beside results."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    info: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if _device.type == "cuda" else "cpu",
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions,
    }
    if _device.type == "cuda":
        info["cuda"] = torch.version.cuda
    return info


def commit() -> str:
    """Abbreviated commit of the repository, with "+" where files differ from it; "unknown" outside one."""
    try:
        return _git("rev-parse", "--short=10", "HEAD") + ("+" if _git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


# What others use ------------------------------------------------------------------------------------------------------


class OtherLoad:
    """Share of the machine's processor time that other processes took since this was made.

    Linux only (None elsewhere). Counts time that a hypervisor gave to other machines as taken, too.
    """

    def __init__(self) -> None:
        self._start = _processor_times()

    def share(self) -> float | None:
        """0 to 1; None where it cannot be known, or where too little time has passed to tell."""
        end = _processor_times()
        if self._start is None or end is None:
            return None
        total, busy, own = (after - before for after, before in zip(end, self._start, strict=True))
        if total < 20 / os.sysconf("SC_CLK_TCK"):  # times come in steps of 10 ms
            return None
        return min(max((busy - own) / total, 0.0), 1.0)


def _processor_times() -> tuple[float, float, float] | None:
    """Seconds of all processors: passed, busy, and busy for this process and its children that have ended."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    except OSError:
        return None
    user, nice, system, idle, iowait, irq, softirq, steal = (int(x) / os.sysconf("SC_CLK_TCK") for x in fields[:8])
    busy = user + nice + system + irq + softirq + steal
    own = os.times()
    return busy + idle + iowait, busy, own.user + own.system + own.children_user + own.children_system


def python_path() -> str:
    """PYTHONPATH of child processes: this repository, and what the caller has, such as a peer that is not installed."""
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))


def free_port() -> int:
    """A port on this machine that nothing listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def load_average() -> float | None:
    """Processes that wanted to run during the last minute."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None
