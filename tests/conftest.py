"""Fixtures and the one place where markers are turned into skips with a reason."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

SHARED = Path(__file__).resolve().parents[2] / "shared"


# The tensors of tests are small: a second thread costs more than it gives, most of all on a busy machine.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder with parity vectors and small real samples, beside the repository."""
    if not SHARED.is_dir():
        pytest.skip(f"the shared parity vectors and samples are not at {SHARED}")
    return SHARED


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = {
        "cuda": None if torch.cuda.is_available() else "no CUDA device",
        "spconv": None if importlib.util.find_spec("spconv") else "spconv is not installed: pip install '.[spconv]'",
        "triton": None if importlib.util.find_spec("triton") else "triton is not installed",
    }
    for item in items:
        for marker, reason in missing.items():
            if reason is not None and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
