"""Logic of the benchmark harness, with contenders that take a stated time."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as command
from benchmarks import harness
from benchmarks.harness import Case, Pair, Repetition, Seconds
from benchmarks.machine import ROOT, Machine, OtherLoad

MACHINE = Machine(gemm=1e12, copy=1e10, gather=1e10)


def pair(ours: float, theirs: float, others: float = 0.0) -> Pair:
    return Pair(Repetition(ours, 1, others), Repetition(theirs, 1, others))


def stated(*seconds: float) -> Callable[[], Callable[[], Seconds]]:
    """A set-up whose calls report the given times in turn; the two warm-up calls report the first."""

    def setup() -> Callable[[], Seconds]:
        times = iter([seconds[0], seconds[0], *seconds])
        return lambda: Seconds(next(times))

    return setup


def case(name: str = "group/part", **options: Any) -> Case:
    options = {"ours": stated(1.0, 2.0, 4.0), "theirs": stated(3.0, 4.0, 20.0), "repeats": 3} | options
    return Case(name=name, peer="a peer", **options)


@pytest.fixture(autouse=True)
def _quiet_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "MIN_SECONDS", 0.0)  # one call per repetition
    monkeypatch.setattr(OtherLoad, "share", lambda self: 0.0)
    monkeypatch.setattr(harness, "commit", lambda: "0123456789")  # asking git takes longer than all the rest


# Ratios


def test_the_ratio_is_that_of_the_medians_and_the_spread_that_of_the_pairs() -> None:
    result = harness.run_case(case(), MACHINE)
    assert (result["ours"], result["theirs"], result["ratio"]) == (2.0, 4.0, 2.0)
    pairs = sorted([3.0, 2.0, 5.0])
    assert result["ratio_p10"] == pytest.approx(pairs[0] + 0.2 * (pairs[1] - pairs[0]))
    assert result["ratio_p90"] == pytest.approx(pairs[1] + 0.8 * (pairs[2] - pairs[1]))


def test_every_repetition_is_kept() -> None:
    found = harness.run_case(case(), MACHINE)["repetitions"]
    assert [x["seconds"] for x in found["ours"]] == [1.0, 2.0, 4.0]
    assert [x["seconds"] for x in found["theirs"]] == [3.0, 4.0, 20.0]


def test_sides_are_called_in_turn() -> None:
    order: list[str] = []
    harness.measure_pairs(lambda: order.append("ours"), lambda: order.append("theirs"), repeats=2, extra=0)
    assert order[4:] == ["ours", "theirs"] * 2  # after two warm-up calls of each


def test_short_calls_are_made_several_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "MIN_SECONDS", 0.01)
    pairs = harness.measure_pairs(lambda: None, None, repeats=1)
    assert pairs[0].ours.calls == harness.MAX_CALLS
    assert pairs[0].ours.seconds < 1e-3


@pytest.mark.parametrize(("done", "expected"), [(1.9, True), (2.1, False), (None, None)])
def test_a_target_holds_where_the_ratio_reaches_it(done: float | None, expected: bool | None) -> None:
    assert harness.run_case(case(done=done), MACHINE)["holds"] is expected


def test_a_target_in_seconds_is_one_of_ours() -> None:
    assert harness.run_case(case(done=2.5, target_seconds=True, theirs=None), MACHINE)["holds"] is True
    assert harness.run_case(case(done=1.5, target_seconds=True, theirs=None), MACHINE)["holds"] is False


def test_a_floor_is_what_ours_is_divided_by() -> None:
    result = harness.run_case(case(floor=lambda machine: 5e11 / machine.gemm), MACHINE)
    assert (result["floor"], result["times_floor"]) == (0.5, 4.0)


# Disturbance


def test_disturbed_pairs_are_repeated() -> None:
    others = iter([0.0, 0.0, 0.5, 0.0, 0.0, 0.2, 0.0, 0.0, 0.0, 0.0])  # ours and theirs in turn: pairs 2 and 3
    seconds = iter(range(1, 100))

    def time_it(call: Any, calls: int) -> Repetition:
        return Repetition(float(next(seconds)), calls, next(others))

    pairs = harness.measure_pairs(lambda: None, lambda: None, repeats=3, time_it=time_it)
    assert [p.disturbed for p in pairs] == [False, True, True, False, False]
    assert [p.ours.seconds for p in harness.chosen_pairs(pairs, 3)] == [1.0, 7.0, 9.0]


def test_a_machine_that_is_never_quiet_is_reported() -> None:
    shares = iter([0.9, 0.3, 0.5, 0.2, 0.8, 0.7])
    pairs = harness.measure_pairs(
        lambda: None, None, repeats=2, extra=4, time_it=lambda call, calls: Repetition(1.0, calls, next(shares))
    )
    assert len(pairs) == 6
    result = harness.summarize(pairs, 2)
    assert (result["disturbed"], result["repeated"]) == (2, 4)
    assert result["repetitions"]["used"] == [False, True, False, True, False, False]
    shown = harness.line(result | {"name": "x", "metric": "time", "target": EMPTY_TARGET, "holds": None, "items": 1})
    assert "2 repetitions disturbed" in shown


EMPTY_TARGET = {"done": None, "aim": None, "in_seconds": False}


def test_own_work_does_not_count_as_that_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    clock = iter([(100.0, 50.0, 20.0), (110.0, 56.0, 24.0)])  # passed, busy, own
    monkeypatch.setattr("benchmarks.machine._processor_times", lambda: next(clock))
    assert OtherLoad().share() == pytest.approx(0.2)


# Peers that are missing


def missing() -> Any:
    raise ImportError("spconv is not installed")


def test_a_peer_that_is_not_installed_leaves_a_row_that_says_so() -> None:
    result = harness.run_case(case(theirs=missing, done=2.0), MACHINE)
    assert result["not_measured"] == "not measured: spconv is not installed"
    assert result["holds"] is None and "ratio" not in result
    assert result["not_measured"] in harness.line(result)
    assert harness.child(case(theirs=missing), "theirs") == {"missing": "spconv is not installed"}


# Choosing


def test_an_unknown_pattern_is_an_error_that_names_the_benchmarks() -> None:
    with pytest.raises(ValueError, match=r"'nonsense', which no name has.*a/b, a/c"):
        harness.select([case("a/b"), case("a/c")], ["b", "nonsense"])


@pytest.mark.parametrize(
    ("patterns", "expected"), [([], ["a/b", "a/c"]), (["c"], ["a/c"]), (["?/b"], ["a/b"]), (["a"], ["a/b", "a/c"])]
)
def test_patterns_are_parts_of_names_or_wildcards(patterns: list[str], expected: list[str]) -> None:
    assert [found.name for found in harness.select([case("a/b"), case("a/c")], patterns)] == expected


def test_a_whole_name_means_only_that_case() -> None:
    assert [found.name for found in harness.select([case("a/1"), case("a/10")], ["a/1"])] == ["a/1"]


def test_two_cases_of_one_name_are_an_error() -> None:
    with pytest.raises(ValueError, match="one case per name"):
        harness.select([case("a/b"), case("a/b")], [])


def test_the_command_reports_errors_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["nonsense", "--list"]) == 2
    assert "error: Expected parts of names" in capsys.readouterr().err


def test_every_case_can_be_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--list"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert len(names) == len(set(names))
    assert {"sparse_unet/forward/thin", "sparse_unet/memory/dense", "kernel_maps/net/dense"} <= set(names)
    for found in command.collect():
        assert found.done is None or found.aim is not None, f"{found.name} has no figure to aim for"


# Results


def test_results_are_complete_after_every_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed() -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "measure_machine", lambda: MACHINE)
    output = tmp_path / "results" / "cpu.json"
    with pytest.raises(KeyboardInterrupt):
        command.run([case("a"), case("b"), case("c", ours=killed)], output, repeats=None)
    stored = json.loads(output.read_text())
    assert list(stored["cases"]) == ["a", "b"]
    assert stored["cases"]["a"]["ratio"] == 2.0
    assert {"cpu", "cores", "threads", "versions"} <= stored["machine"].keys()
    assert {"date", "commit", "threads", "versions", "rates"} <= stored["cases"]["a"].keys()
    assert [path.name for path in output.parent.iterdir()] == ["cpu.json"]


def test_a_later_run_adds_to_the_file_and_replaces_what_it_measures_again(tmp_path: Path) -> None:
    output = tmp_path / "cpu.json"
    for ours in (1.0, 2.0):
        results = harness.Results(output)
        results.add(harness.run_case(case("a" if ours == 1.0 else "b", ours=stated(ours)), MACHINE, repeats=1))
        results.add(harness.run_case(case("c", ours=stated(ours)), MACHINE, repeats=1))
    stored = json.loads(output.read_text())["cases"]
    assert {name: found["ours"] for name, found in stored.items()} == {"a": 1.0, "b": 2.0, "c": 2.0}


def test_results_of_another_format_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"format": 99}')
    with pytest.raises(ValueError, match="Give another --output"):
        harness.Results(tmp_path / "x.json")


# Memory


@pytest.fixture
def hungry_module(tmp_path: Path) -> Iterator[str]:
    yield (
        "from benchmarks.harness import Case, child\n"
        "def setup(size):\n"
        "    held = bytearray(b'x') * 2**25\n"  # 32 MiB of set-up, which do not count
        "    return lambda: (held, bytearray(b'x') * size)\n"
        "case = Case('hungry', 'none', lambda: setup(2**26), metric='memory')\n"
        "print(child(case, 'ours')['peak'])\n"
    )


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="memory is read from Linux' /proc")
def test_memory_is_the_peak_of_one_call_above_its_setup(hungry_module: str) -> None:
    done = subprocess.run([sys.executable, "-c", hungry_module], cwd=ROOT, capture_output=True, check=True)
    assert int(done.stdout) / 2**20 == pytest.approx(64, abs=6)


def test_memory_of_two_sides_is_compared_as_ours_to_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "_peak_of_child", lambda name, side: {"ours": 60, "theirs": 80}[side])
    result = harness.run_case(case(metric="memory", done=0.8, aim=0.5), MACHINE)
    assert (result["ratio"], result["holds"]) == (0.75, True)


def test_the_peak_is_found_by_looking_where_it_cannot_be_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import memory

    monkeypatch.setattr(memory, "_reset_peak", lambda: False)

    def grow() -> None:
        import time

        held = bytearray(b"x") * 2**26
        time.sleep(0.05)
        del held

    assert memory.peak_above_setup(grow) / 2**20 == pytest.approx(64, abs=6)
