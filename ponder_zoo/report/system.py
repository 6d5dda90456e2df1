"""What a run was made with: machine, versions, commit; for configs, reports and model cards."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ..version import __version__

# Those whose version can change a result. Read from metadata: importing them would cost seconds.
PACKAGES = ("torch", "numpy", "timm", "accelerate", "safetensors", "huggingface_hub", "spconv", "triton")
PACKAGES += ("scipy", "scikit-image", "open3d")


def system_info(checkout: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """Machine, versions and commit as a JSON-ready dictionary; what cannot be found out is None. Never raises.

    Args:
        checkout: folder whose git commit to name; None = where this package lies, if that is a checkout.
    """
    commit, modified = git_commit(Path(__file__).parent if checkout is None else checkout)
    return {
        "ponder_zoo": __version__,
        "commit": commit,
        "uncommitted_changes": modified,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cpu_count": os.cpu_count(),
        "cpu_threads": torch.get_num_threads(),
        "memory_gib": memory_gib(),
        "gpus": gpu_names(),
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "packages": package_versions(),
    }


def package_versions() -> dict[str, str]:
    """Installed versions of `PACKAGES`; torch with its local part (`+cu130`), which its metadata may lack."""
    found = {name: version for name in PACKAGES if (version := distribution_version(name)) is not None}
    return found | {"torch": str(torch.__version__)}


def distribution_version(name: str) -> str | None:
    """Version of an installed distribution without importing it; spconv under whichever name it was installed."""
    names = spconv_distributions() if name == "spconv" else [name]
    try:
        return (
            ", ".join(importlib.metadata.version(one) + (f" ({one})" if name != one else "") for one in names) or None
        )
    except importlib.metadata.PackageNotFoundError:
        return None


@cache
def spconv_distributions() -> list[str]:
    """Names of the installed distributions that provide the package `spconv`: `spconv`, `spconv-cu120`, ..."""
    names = {str(dist.metadata["Name"]) for dist in importlib.metadata.distributions() if dist.metadata["Name"]}
    return sorted(name for name in names if name == "spconv" or name.startswith("spconv-cu"))


def git_commit(folder: str | os.PathLike[str]) -> tuple[str | None, bool | None]:
    """Commit hash of a checkout and whether tracked files differ from it; (None, None) outside a checkout."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", os.fspath(folder), *arguments], capture_output=True, text=True, timeout=10, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # An installed package may lie inside somebody else's repository (a .venv in a project): that commit says nothing.
    if git("ls-files", "--error-unmatch", ".") is None:
        return None, None
    status = git("status", "--porcelain", "--untracked-files=no")
    return git("rev-parse", "HEAD"), None if status is None else bool(status)


def cpu_name() -> str | None:
    """Marketing name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine() or None
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine() or None


def memory_gib() -> float | None:
    """Main memory of the machine."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, OSError, ValueError):
        return None


def gpu_names() -> list[str]:
    """CUDA devices with their memory."""
    if not torch.cuda.is_available():
        return []
    properties = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [f"{item.name}, {item.total_memory / 2**30:.0f} GiB" for item in properties]
