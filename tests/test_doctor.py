"""Every kind of machine, described to the functions that judge it; and this machine, for real."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from ponder_zoo.doctor import (
    Check,
    Diagnosis,
    _check_packages,
    _check_python,
    _check_spconv,
    _check_torch,
    _run_probes,
    spconv_wheel,
)
from ponder_zoo.doctor import doctor as diagnose

module = importlib.import_module("ponder_zoo.doctor")  # `ponder_zoo.doctor` itself is the function

GPU = {"build": "12.6", "available": True}
H100 = {"name": "NVIDIA H100", "gib": 80, "capability": "9.0", "works": True}


def test_this_machine_gets_a_readable_diagnosis() -> None:
    diagnosis = diagnose(probe=False)
    assert "cpu" in diagnosis.devices and "cpu" in diagnosis.backends["torch"]
    assert diagnosis.automatic["cpu"] == "torch" and "torch" in diagnosis.versions
    text = str(diagnosis)
    assert all(check.name in text and check.detail in text for check in diagnosis.checks)
    assert "backend='auto' takes torch on cpu" in text


def test_commands_are_printed_below_their_finding() -> None:
    checks = (Check("a", "ok", "fine"), Check("long name", "problem", "broken", "pip install it"))
    lines = str(Diagnosis(checks, ("cpu",), {"torch": ("cpu",)}, {"cpu": "torch"}, {})).splitlines()
    assert lines[1].startswith("PROBLEM  long name  broken") and lines[2].strip() == "> pip install it"
    assert lines[0].index("fine") == lines[1].index("broken") and "Something is broken" in lines[-1]


def test_a_probe_that_dies_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    probes = {
        "good": "print('noise'); print('{\"version\": \"1\"}')",
        "raises": "raise ImportError('libcudart.so.12 is missing')",
        "crashes": "import os; os.abort()",
        "mute": "pass",
    }
    monkeypatch.setattr(module, "_PROBES", probes)
    found = _run_probes(list(probes))
    assert found["good"] == {"version": "1"}
    assert found["raises"]["error"] == "ImportError: libcudart.so.12 is missing"
    assert "status -6" in found["crashes"]["error"] and "unexpected answer" in found["mute"]["error"]


def test_a_probe_that_hangs_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PROBES", {"hangs": "import time; time.sleep(60)"})
    assert _run_probes(["hangs"], timeout=0.2) == {"hangs": {"error": "no answer within 0.2 seconds"}}


def test_an_old_python_is_named() -> None:
    assert _check_python((3, 10), "3.10.4").status == "problem"
    assert _check_python((3, 11), "3.11.0").status == "ok"


def test_torch_without_a_gpu_is_fine() -> None:
    check, devices = _check_torch({"build": "13.0", "available": False}, None)
    assert check.status == "ok" and check.command is None and devices == []


def test_a_cpu_build_beside_a_gpu_is_a_problem_with_the_command() -> None:
    check, _ = _check_torch({"build": None, "available": False}, "NVIDIA H100 (driver 570.1)")
    assert check.status == "problem" and "NVIDIA H100 (driver 570.1)" in check.detail
    assert check.command is not None and check.command.startswith("python -m pip install --force-reinstall torch")


def test_a_driver_older_than_the_build_is_a_problem_with_the_command() -> None:
    check, _ = _check_torch({"build": "13.0", "available": False}, "NVIDIA T4 (driver 470.1)")
    assert check.status == "problem" and "cu126" in str(check.command)


def test_a_gpu_that_works_becomes_a_device() -> None:
    check, devices = _check_torch(GPU | {"devices": [H100, H100 | {"works": False}]}, "driver")
    assert check.status == "ok" and [device.status for device in devices] == ["ok", "problem"]
    assert devices[0].name == "cuda:0" and "80 GiB" in devices[0].detail


def test_two_spconv_distributions_are_a_problem_with_the_command() -> None:
    check, usable = _check_spconv(["spconv-cu120", "spconv-cu126"], {"version": "2.3.8", "cpu": True}, 11, cuda=False)
    assert check.status == "problem" and usable == ()
    assert check.command is not None
    assert "uninstall -y spconv-cu120 spconv-cu126 cumm && " in check.command


@pytest.mark.parametrize(
    ("minor", "cuda", "status", "words"),
    [
        (11, False, "ok", "not installed, and of use on CUDA devices only"),
        (11, True, "note", "pip install spconv-cu120"),
        (12, True, "note", "pip install spconv-cu126"),
        (14, True, "note", "no spconv wheel exists for Python 3.14"),
    ],
)
def test_no_spconv_matters_on_a_gpu_only(
    monkeypatch: pytest.MonkeyPatch, minor: int, cuda: bool, status: str, words: str
) -> None:
    monkeypatch.setattr(module.sys, "platform", "linux")
    monkeypatch.setattr(module.platform, "machine", lambda: "x86_64")
    check, usable = _check_spconv([], None, minor, cuda=cuda)
    assert check.status == status and usable == () and words in f"{check.detail} {check.command}"


@pytest.mark.parametrize(
    ("found", "cuda", "status", "usable"),
    [
        ({"version": "2.3.6", "cpu": True}, False, "ok", ("cpu",)),
        ({"version": "2.3.6", "cpu": True, "cuda": True}, True, "ok", ("cpu", "cuda")),
        ({"version": "2.3.6", "cpu": True, "cuda": "RuntimeError: no kernel image"}, True, "problem", ("cpu",)),
        ({"error": "ImportError: libcudart"}, True, "problem", ()),
        ({"error": "ImportError: libcudart"}, False, "note", ()),
    ],
)
def test_spconv_is_judged_by_what_it_did(
    found: dict[str, Any], cuda: bool, status: str, usable: tuple[str, ...]
) -> None:
    check, kinds = _check_spconv(["spconv-cu120"], found, 11, cuda=cuda)
    assert (check.status, kinds) == (status, usable)
    assert (check.command is None) == (status == "ok")


@pytest.mark.parametrize(
    ("minor", "system", "machine", "wheel"),
    [
        (11, "linux", "x86_64", "spconv-cu120"),
        (13, "linux", "x86_64", "spconv-cu126"),
        (14, "linux", "x86_64", None),
        (11, "darwin", "arm64", None),
        (11, "linux", "aarch64", None),
        (11, "win32", "AMD64", "spconv-cu120"),
    ],
)
def test_spconv_wheels_exist_where_the_extra_says(minor: int, system: str, machine: str, wheel: str | None) -> None:
    assert spconv_wheel(minor, system, machine) == wheel


def test_missing_packages_are_listed_with_one_command() -> None:
    (check,) = _check_packages(lambda name: name not in ("skimage", "jinja2"))
    assert check.command == "python -m pip install jinja2 scikit-image"
    assert "no report.html" in check.detail and "no extracting meshes" in check.detail
    assert _check_packages(lambda name: True)[0].status == "ok"


@pytest.mark.spconv
@pytest.mark.slow
def test_the_probes_run_on_this_machine() -> None:
    diagnosis = diagnose()
    assert "cpu" in diagnosis.backends["spconv"]
