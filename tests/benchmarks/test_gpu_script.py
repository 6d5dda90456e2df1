"""The benchmark of a GPU, in miniature on a CPU: it must not fail there for reasons that show here."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from benchmarks import __main__ as command
from benchmarks import gpu, harness, kernel_maps, machine, sparse_unet
from benchmarks.harness import Case, Seconds
from benchmarks.machine import Machine, assumed_device
from benchmarks.peers import spconv_unet
from ponder_zoo.structures import PointBatch

NARROW: dict[str, Any] = {"channels": (4,) * 8, "depths": (1,) * 8, "stem_channels": 4}


def tiny_scene() -> PointBatch:
    cells = torch.unique(torch.randint(0, 6, (30, 3), generator=torch.Generator().manual_seed(0)), dim=0).int()
    feat = torch.randn(len(cells), 6, generator=torch.Generator().manual_seed(1))
    return PointBatch(cells * 0.02, feat, torch.tensor([len(cells)]), grid_coord=cells)


@pytest.fixture
def cases(monkeypatch: pytest.MonkeyPatch) -> dict[str, Case]:
    """The cases of a GPU on a few dozen voxels; what they set up lands on the CPU, in Triton's interpreter."""
    monkeypatch.setattr(gpu, "SCENES", dict.fromkeys(gpu.SCENES, tiny_scene))
    for module in (sparse_unet, kernel_maps):
        monkeypatch.setattr(module, "our_backend", lambda: "triton")
    with assumed_device("cuda"):
        return {case.name: case for case in gpu.cases(**NARROW)}


def test_every_scene_and_precision_has_its_rows(cases: dict[str, Case]) -> None:
    assert {"gpu/train/bfloat16/dense8", "gpu/forward/tf32/thin", "gpu/graph/float16/dense"} <= set(cases)
    assert "gpu/forward/float16/dense" not in cases  # that is sparse_unet/forward/dense
    assert {name for name, case in cases.items() if case.target_seconds} == {"gpu/forward/bfloat16/dense"}
    assert list(gpu.cases()) == []  # on a CPU


SLOW = [pytest.param(f"gpu/train/{dtype}/dense", marks=pytest.mark.slow) for dtype in ("bfloat16", "tf32")]


@pytest.mark.triton
@pytest.mark.parametrize("name", ["gpu/forward/float16/dense8", *SLOW])
def test_ours_runs_in_every_precision(name: str, cases: dict[str, Case]) -> None:
    out = cases[name].ours()()
    assert out is None if "train" in name else out.isfinite().all() and out.dtype == torch.float16  # type: ignore[union-attr]


@pytest.mark.slow
@pytest.mark.triton
def test_a_graph_is_compared_with_the_model_and_timed(cases: dict[str, Case]) -> None:
    call, peer = cases["gpu/graph/float16/thin"].ours(), cases["gpu/graph/float16/thin"].theirs()  # type: ignore[misc]
    torch.testing.assert_close(call(), peer(), atol=5e-3, rtol=5e-3)


@pytest.mark.triton
def test_both_searches_give_the_same_table(cases: dict[str, Case]) -> None:
    case = cases["gpu/search/thin"]
    assert case.ours()().equal(case.theirs()())  # type: ignore[misc, union-attr]


@pytest.mark.triton
def test_the_maps_of_a_network_are_timed(cases: dict[str, Case]) -> None:
    assert isinstance(kernel_maps._ours_net(tiny_scene())(), Seconds)


# Events instead of a clock --------------------------------------------------------------------------------------------


class Event:
    """Of a stream on which a call takes 5 ms; stands in for torch.cuda.Event."""

    now = 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = Event.now

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, other: Event) -> float:
        return other.at - self.at


def advance() -> None:
    Event.now += 5.0


def test_a_gpu_is_timed_by_events_after_ten_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(harness, "LONG", -1.0)  # every call counts as a long one
    monkeypatch.setattr(harness, "MIN_SECONDS", 0.0)
    calls: list[int] = []
    with assumed_device("cuda"):
        assert harness.warm_up(lambda: calls.append(0)) == 1
        assert harness.repetition(advance, 8).seconds == pytest.approx(0.005)
    assert len(calls) == 10


# The command ----------------------------------------------------------------------------------------------------------


def run_as_gpu(monkeypatch: pytest.MonkeyPatch, output: Path, cases: list[Case], budget: float | None) -> None:
    monkeypatch.setattr(command, "measure_machine", lambda: Machine(1.0, 1.0, 1.0))
    monkeypatch.setattr(command, "run_case", lambda case, machine, repeats: {"name": case.name})
    monkeypatch.setattr(command, "line", lambda result: result["name"])
    monkeypatch.setattr(command.Results, "best_rates", lambda self, machine: machine)
    monkeypatch.setattr(command.Results, "add", lambda self, result: None)
    with assumed_device("cuda"):
        command.run(cases, output, None, budget)


def test_the_command_measures_choices_first_and_keeps_its_budget(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ahead: list[str] = []
    monkeypatch.setattr(gpu, "compile_ahead", ahead.extend)
    environment: dict[str, str] = {}
    monkeypatch.setattr(gpu.os, "environ", environment)
    names = ["sparse_unet/train/thin", "gpu/train/tf32/dense", "gpu/graph/float16/thin", "step/train"]
    some: list[Case] = [Case(name, "a peer", ours=lambda: print) for name in names]
    run_as_gpu(monkeypatch, tmp_path / "cuda.json", some, None)
    assert ahead == names[:2]
    assert environment == {"PONDER_ZOO_TUNE": "1", "PONDER_ZOO_CACHE": str(tmp_path / "triton_choices")}
    assert "Out of time" not in capsys.readouterr().out
    run_as_gpu(monkeypatch, tmp_path / "cuda.json", some, -1.0)
    assert f"Out of time: not measured {', '.join(names)}." in capsys.readouterr().out


def test_what_runs_on_a_cpu_anyway_is_not_measured_on_a_gpu() -> None:
    with assumed_device("cuda"):
        parts = {case.name.split("/")[0] for case in command.collect()}
    assert parts == {"sparse_unet", "gpu", "kernel_maps", "render", "unet3d", "step", "scaling"}


def test_processes_compile_ahead_and_one_that_fails_or_hangs_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    popen = subprocess.Popen

    def start(command: list[str], **options: Any) -> Any:
        started.append(command[1:])
        assert options["env"]["PONDER_ZOO_CACHE"] != machine.os.environ.get("PONDER_ZOO_CACHE")
        code = {"slow": "import time; time.sleep(60)", "bad": "raise SystemExit(3)"}[command[-2]]
        return popen([sys.executable, "-c", code], **options)

    monkeypatch.setattr(gpu.subprocess, "Popen", start)
    monkeypatch.setattr(gpu, "COMPILE_SECONDS", 0.2)
    gpu.compile_ahead(["slow", "bad"])
    assert [arguments[-3:] for arguments in started] == [["--child", name, "ours"] for name in ("slow", "bad")]


# The peer -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "reason"),
    [("pass", ""), ("raise OSError('no kernel')", "OSError: no kernel"), ("import os; os.abort()", "exit status -6")],
)
def test_a_peer_that_fails_on_a_gpu_is_a_missing_one(code: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spconv_unet, "PROBE", code)
    spconv_unet.failure_on_gpu.cache_clear()
    check: Callable[[], str] = spconv_unet.failure_on_gpu
    assert check() == reason
    if reason:
        with assumed_device("cuda"), pytest.raises(ImportError, match=f"spconv fails on this GPU: {reason}"):
            spconv_unet.import_spconv()
    spconv_unet.failure_on_gpu.cache_clear()
