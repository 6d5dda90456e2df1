"""Processes and threads on a CPU machine, where `accelerate launch` starts fewer than it was asked for or has."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

logger = logging.getLogger(__name__)


def ensure_processes() -> None:
    """Start the processes that `accelerate launch --cpu --num_processes N` was asked for.

    Accelerate (1.15) starts one process for this command unless it is given an MPI host file, and says nothing: a run
    with N-th parts of a batch would silently train on one part. Call it first in a script; where the case applies it
    replaces this process by torch's launcher, and else it does nothing.
    """
    count = missing_processes(os.environ, _parent_command())
    if count == 0:
        return
    logger.info("accelerate started 1 of %d processes; starting all of them with torchrun.", count)
    environment = {key: value for key, value in os.environ.items() if key not in ("MASTER_ADDR", "MASTER_PORT")}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [*launcher, *sys.argv], environment)


def missing_processes(environment: Mapping[str, str], launcher: Sequence[str]) -> int:
    """How many processes a launcher was asked for if it started only this one, else 0.

    Args:
        environment: of this process.
        launcher: command line of the process that started this one.
    """
    asked_for_cpu = environment.get("ACCELERATE_USE_CPU", "").lower() == "true"
    several = "MASTER_ADDR" in environment  # accelerate's single-process launcher sets it for N > 1 only
    if not asked_for_cpu or not several or "WORLD_SIZE" in environment or "PMI_SIZE" in environment:
        return 0
    options = [word.replace("-", "_") for word in launcher]
    for position, word in enumerate(options):
        name, equals, value = word.partition("=")
        if name == "__num_processes":
            value = value if equals else (options[position + 1] if position + 1 < len(options) else "")
            return int(value) if value.isdigit() and int(value) > 1 else 0
    return 0


def use_idle_cores() -> None:
    """Let torch use this process's share of the cores where `accelerate launch` held it to one thread unasked."""
    if unasked_thread_limit(_parent_command(), _parent_environment()):
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def unasked_thread_limit(launcher: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Whether a launcher is `accelerate launch` and neither its options nor its environment say how many threads.

    Args:
        launcher: command line of the process that started this one.
        environment: of that process.
    """
    words = [word.replace("-", "_") for word in launcher]
    if "launch" not in words or not any(Path(word).name.startswith("accelerate") for word in launcher):
        return False
    return "OMP_NUM_THREADS" not in environment and not any("__num_cpu_threads_per_process" in word for word in words)


def _parent_command() -> list[str]:
    return _ask_parent("cmdline") or []


def _parent_environment() -> dict[str, str]:
    return _ask_parent("environ") or {}


def _ask_parent(question: str) -> Any:
    try:
        import psutil  # comes with accelerate

        return getattr(psutil.Process(os.getppid()), question)()
    except Exception:  # not installed, or the system does not tell
        return None
