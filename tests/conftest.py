"""Fixtures and the one place where markers are turned into skips with a reason."""

from __future__ import annotations

import importlib.util
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

# Read by huggingface_hub when it is imported: no stored login, no user's cache, no transfers for the real Hub only.
_HF_HOME = tempfile.TemporaryDirectory(prefix="ponder-zoo-hf-home-")
os.environ |= {
    "HF_HOME": _HF_HOME.name,
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
for _name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_HUB_CACHE"):
    os.environ.pop(_name, None)

# Tests have small tensors, on which threads wait for each other. Processes that tests start must add in the same order.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

# Read when triton is first imported, which is lazy: without a GPU its kernels run in the interpreter, on CPU tensors.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

SHARED = Path(__file__).resolve().parents[2] / "shared"


# The tensors of tests are small: a second thread costs more than it gives, most of all on a busy machine.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder with parity vectors and small real samples, beside the repository."""
    if not SHARED.is_dir():
        pytest.skip(f"the shared parity vectors and samples are not at {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def raw_miniature(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The miniature raw data set of a name, written once; not to be changed."""
    from data.miniatures import write_raw

    return cache(lambda name: write_raw(name, tmp_path_factory.mktemp(name) / "raw"))


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


@pytest.fixture(autouse=True)
def _no_outside_network(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only loopback can be reached, unless the test is marked `network`: offline is proved, not hoped for."""
    if request.node.get_closest_marker("network"):
        return
    connect = socket.socket.connect

    def loopback_only(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise PermissionError(f"This test tried to reach {address}; mark it `network` if it must.")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", loopback_only)


@pytest.fixture(scope="session")
def _loopback_hub() -> Iterator[Any]:
    from loopback_hub import LoopbackHub

    with LoopbackHub() as hub:
        yield hub


@pytest.fixture
def hub(_loopback_hub: Any) -> Any:
    """An empty Hub on loopback; pass `endpoint=hub.endpoint`."""
    _loopback_hub.reset()
    return _loopback_hub
