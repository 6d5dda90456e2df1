"""Peak memory of a call above what was in use before it."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from .machine import device, synchronize

STATUS = Path("/proc/self/status")


def peak_above_setup(function: Callable[[], object]) -> int:
    """Bytes of resident memory (of device memory on a GPU) that one call needs beyond what is in use before it.

    Meant for a fresh process: the first call also pays for buffers that later calls reuse.
    """
    _trim()
    if device().type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        synchronize()
        return torch.cuda.max_memory_allocated() - before
    before = _resident("VmRSS")
    if _reset_peak():
        function()
        return _resident("VmHWM") - before
    with _sampled_peak() as peak:
        function()
    return peak[0] - before


def _trim() -> None:
    """Give freed memory back, so that a call cannot reuse what its set-up left behind."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _resident(field: str) -> int:
    for line in STATUS.read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"Expected {field} in {STATUS}, found none. Memory can be measured on Linux only.")


def _reset_peak() -> bool:
    """Make the kernel forget the highest resident size so far; False where that is not allowed."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return _resident("VmHWM") <= _resident("VmRSS") + 2**22  # containers may ignore the request


@contextlib.contextmanager
def _sampled_peak(interval: float = 0.002) -> Iterator[list[int]]:
    """Highest resident size seen by a thread that looks every `interval` seconds; in the list after the block."""
    peak, done = [_resident("VmRSS")], threading.Event()

    def watch() -> None:
        while not done.is_set():
            peak[0] = max(peak[0], _resident("VmRSS"))
            time.sleep(interval)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()
        peak[0] = max(peak[0], _resident("VmRSS"))
