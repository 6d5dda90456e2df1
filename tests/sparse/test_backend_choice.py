"""Which backend `auto` takes, on machines described here; and what doctor says of triton on them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ponder_zoo.doctor import _automatic, _capability, _check_triton
from ponder_zoo.sparse import SubMConv3d, backends

FOUND = {"version": "3.6.0"}


@pytest.mark.parametrize(
    ("capability", "spconv", "triton", "expected"),
    [
        ((9, 0), True, True, "spconv"),
        ((8, 0), False, True, "torch"),
        ((7, 5), True, True, "spconv"),
        ((7, 5), False, True, "torch"),
        ((9, 0), True, False, "spconv"),
        ((9, 0), False, False, "torch"),
    ],
)
def test_auto_on_a_gpu_is_the_first_that_works(
    capability: tuple[int, int], spconv: bool, triton: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "has_spconv", lambda: spconv)
    monkeypatch.setattr(backends, "has_triton", lambda: triton)
    monkeypatch.setattr(backends, "get_device_capability", lambda device: capability)
    backends._fastest.cache_clear()
    assert backends._fastest(torch.device("cuda", 0)) == expected
    assert backends._fastest(torch.device("cpu")) == "torch"
    backends._fastest.cache_clear()


def test_doctor_chooses_by_the_same_rule() -> None:
    works = {"torch": ("cpu", "cuda"), "spconv": ("cpu", "cuda"), "triton": ("cuda",)}
    assert _automatic(("cpu", "cuda"), works) == {"cpu": "torch", "cuda": "spconv"}
    assert _automatic(("cpu", "cuda"), works | {"spconv": ()}) == {"cpu": "torch", "cuda": "torch"}
    assert _automatic(("cpu",), {"torch": ("cpu",), "spconv": (), "triton": ()}) == {"cpu": "torch"}


@pytest.mark.parametrize(
    ("found", "capability", "status", "usable", "command"),
    [
        (FOUND, (9, 0), "ok", ("cuda",), None),
        (FOUND, (7, 5), "note", (), None),
        (FOUND, None, "ok", (), None),
        (None, None, "ok", (), None),
        (None, (9, 0), "note", (), "python -m pip install triton"),
        ({"error": "ImportError: x"}, (9, 0), "problem", (), "python -m pip install --force-reinstall triton"),
        ({"error": "ImportError: x"}, None, "note", (), "python -m pip install --force-reinstall triton"),
    ],
)
def test_doctor_says_what_makes_triton_usable(
    found: dict[str, Any] | None, capability: tuple[int, int] | None, status: str, usable: tuple[str, ...], command: str
) -> None:
    check, kinds = _check_triton(found, capability)
    assert (check.status, kinds, check.command) == (status, usable, command)


def test_capability_is_that_of_the_first_gpu() -> None:
    assert _capability({"devices": [{"capability": "9.0"}, {"capability": "7.5"}]}) == (9, 0)
    assert _capability({"devices": []}) is None and _capability({"error": "x"}) is None


def test_missing_triton_is_an_error_with_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "has_triton", lambda: False)
    with pytest.raises(ImportError, match="pip install triton"):
        SubMConv3d(4, 4, backend="triton")
