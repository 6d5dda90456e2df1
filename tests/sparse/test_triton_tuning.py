"""The choice of block sizes and its file, with a stop watch made up here: neither triton nor a GPU is needed."""

from __future__ import annotations

import itertools
import json
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import pytest

from ponder_zoo.sparse.backends import triton_tuning as tuning
from ponder_zoo.sparse.backends.triton_tuning import Config, Problem, TuningCache, candidates, choose

GPU = "NVIDIA H100 80GB HBM3"
PROBLEM = Problem.of("forward", 100_000, 96, 96, 27, "bfloat16")


@pytest.fixture
def known(tmp_path: Path) -> TuningCache:
    return TuningCache(GPU, "3.6.0", tmp_path / "new")


@pytest.mark.parametrize("op", ["forward", "input_gradient", "weight_gradient"])
def test_candidates_are_few_and_possible(op: tuning.Op) -> None:
    sizes = itertools.product((1, 400, 7000, 100_000, 2_000_000), (1, 6, 32, 96, 256, 384), (1, 20, 32, 96, 256))
    for rows, chans_in, chans_out in sizes:
        for volume, dtype in itertools.product((8, 27, 125), ("float16", "bfloat16", "tf32", "float32", "float64")):
            problem = Problem.of(op, rows, chans_in, chans_out, volume, dtype)
            found = candidates(problem, 132)
            assert 1 <= len(found) == len(set(found)) <= tuning.MAX_CANDIDATES
            for config in found:
                assert tuning._checked(asdict(config)) == config
                width = 4 if dtype in ("float32", "tf32") else 8 if dtype == "float64" else 2
                depth, across = (config.rows, config.ins) if op == "weight_gradient" else (config.ins, config.rows)
                assert config.stages * width * depth * (across + config.outs) <= 227 * 1024  # shared memory, H100


def test_small_levels_share_out_the_sum_and_large_ones_do_not() -> None:
    assert candidates(Problem.of("forward", 400, 256, 256, 27, "bfloat16"), 132)[0].splits > 1
    assert candidates(PROBLEM, 132)[0].splits == 1
    assert candidates(Problem.of("weight_gradient", 100_000, 96, 96, 27, "float16"), 132)[0].splits > 8
    large = Problem.of("weight_gradient", 2_000_000, 256, 256, 125, "float16")
    assert candidates(large, 132)[0].splits * 4 * 256 * 256 * 125 <= max(tuning.PARTIAL_BYTES, 4 * 256 * 256 * 125)


def test_row_counts_between_powers_of_two_share_a_choice() -> None:
    assert Problem.of("forward", 65_536, 96, 96, 27, "bfloat16") == PROBLEM
    assert Problem.of("forward", 131_072, 96, 96, 27, "bfloat16").key != PROBLEM.key
    assert PROBLEM.key == "forward n16 i96 o96 k27 bfloat16"


def test_without_measuring_the_default_is_taken_and_nothing_written(known: TuningCache) -> None:
    assert choose(PROBLEM, 132, known) == candidates(PROBLEM, 132)[0]
    assert not known.path.parent.exists()


def test_the_fastest_is_kept_and_found_again(known: TuningCache) -> None:
    measured: list[Config] = []

    def seconds(config: Config) -> float:
        measured.append(config)
        return 0.5 if config == candidates(PROBLEM, 132)[2] else 1.0

    best = choose(PROBLEM, 132, known, seconds)
    assert best == candidates(PROBLEM, 132)[2] and measured == list(candidates(PROBLEM, 132))
    assert choose(PROBLEM, 132, known, lambda _: pytest.fail("measured again")) == best
    again = TuningCache(known.gpu, known.triton_version, known.path.parent)
    assert choose(PROBLEM, 132, again) == best and len(again) == 1
    for other in (
        TuningCache("NVIDIA H200", "3.6.0", known.path.parent),
        TuningCache(known.gpu, "3.7.0", known.path.parent),
    ):
        assert choose(PROBLEM, 132, other) == candidates(PROBLEM, 132)[0]


def test_what_another_process_measured_meanwhile_is_kept(known: TuningCache) -> None:
    other = TuningCache(known.gpu, known.triton_version, known.path.parent)
    second = Problem.of("input_gradient", 500, 32, 32, 8, "float16")
    known.put(PROBLEM, candidates(PROBLEM, 132)[1])
    other.put(second, candidates(second, 132)[0])
    assert set(json.loads(known.path.read_text())["entries"]) == {PROBLEM.key, second.key}


def test_measuring_reaches_the_threads_of_autograd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PONDER_ZOO_TUNE", raising=False)
    with ThreadPoolExecutor(1) as pool, tuning.measuring():
        assert pool.submit(tuning.is_measuring).result()
        with tuning.measuring(False):
            assert not pool.submit(tuning.is_measuring).result()
    assert not tuning.is_measuring()


def test_if_nothing_can_be_launched_the_default_is_taken_and_not_kept(known: TuningCache) -> None:
    assert choose(PROBLEM, 132, known, lambda _: float("inf")) == candidates(PROBLEM, 132)[0]
    assert len(known) == 0


def file_with(entry: dict[str, int]) -> str:
    return json.dumps({"format": 1, "gpu": GPU, "triton": "3.6.0", "entries": {"x": entry}})


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "[]", "null", '{"format": 1}', b"\xff\xfe\x00"),
        file_with({"rows": 64}),
        file_with({"rows": 63, "ins": 64, "outs": 64, "splits": 1, "warps": 4, "stages": 3}),
    ],
)
def test_a_corrupt_file_is_named_ignored_and_replaced(known: TuningCache, content: str | bytes) -> None:
    known.path.parent.mkdir()
    known.path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.warns(UserWarning, match="is not a file of measured kernel choices"):
        fresh = TuningCache(known.gpu, known.triton_version, known.path.parent)
    assert choose(PROBLEM, 132, fresh) == candidates(PROBLEM, 132)[0]
    with pytest.warns(UserWarning, match="is not a file of measured kernel choices"):
        fresh.put(PROBLEM, candidates(PROBLEM, 132)[1])
    again = TuningCache(known.gpu, known.triton_version, known.path.parent)
    assert choose(PROBLEM, 132, again) == candidates(PROBLEM, 132)[1]


def test_a_file_of_another_format_is_left_unread_without_a_word(known: TuningCache) -> None:
    known.path.parent.mkdir()
    known.path.write_text('{"format": 2, "entries": 5}')
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(TuningCache(known.gpu, known.triton_version, known.path.parent)) == 0


def test_a_folder_that_cannot_be_written_costs_a_warning_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="is not a file|cannot be kept"):
        known = TuningCache("GPU", "3", tmp_path / "file")
        known.put(PROBLEM, candidates(PROBLEM, 132)[1])
    assert known.get(PROBLEM) == candidates(PROBLEM, 132)[1]


def test_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PONDER_ZOO_CACHE", str(tmp_path))
    assert tuning.cache_folder() == tmp_path
    assert tuning.tuning_cache("NVIDIA H100 80GB", "3.6.0").path == tmp_path / (
        "triton_tuning.NVIDIA-H100-80GB-triton-3.6.0.json"
    )
    monkeypatch.delenv("PONDER_ZOO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert tuning.cache_folder() == tmp_path / "xdg" / "ponder_zoo"


def test_measuring_is_off_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PONDER_ZOO_TUNE", raising=False)
    assert not tuning.is_measuring()
    with tuning.measuring():
        assert tuning.is_measuring()
    monkeypatch.setenv("PONDER_ZOO_TUNE", "1")
    assert tuning.is_measuring()
    with tuning.measuring(False):
        assert not tuning.is_measuring()
