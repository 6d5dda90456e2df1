from __future__ import annotations

import pytest

from ponder_zoo.train.launch import missing_processes, unasked_thread_limit

CPU = {"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("environment", "options", "expected"),
    [
        (CPU, ["--cpu", "--num_processes", "2"], 2),
        (CPU, ["--cpu", "--num-processes=3"], 3),
        (CPU | {"WORLD_SIZE": "2"}, ["--cpu", "--num_processes", "2"], 0),  # already one of several
        (CPU | {"PMI_SIZE": "2"}, ["--cpu", "--num_processes", "2"], 0),  # MPI
        ({}, ["--cpu", "--num_processes", "2"], 0),  # not accelerate's launcher
        ({"ACCELERATE_USE_CPU": "True"}, ["--cpu", "--num_processes", "1"], 0),
        (CPU, ["--cpu"], 0),
        (CPU, ["--num_processes"], 0),
    ],
)
def test_only_processes_that_were_asked_for_and_not_started_are_missing(environment, options, expected):
    assert missing_processes(environment, ["python", "accelerate", "launch", *options, "recipe.py"]) == expected


@pytest.mark.parametrize(
    ("options", "environment", "expected"),
    [
        ([], {}, True),
        (["--num_processes", "1"], {"PATH": "/bin"}, True),
        (["--num-cpu-threads-per-process=1"], {}, False),
        (["--num_cpu_threads_per_process", "4"], {}, False),
        ([], {"OMP_NUM_THREADS": "1"}, False),
    ],
)
def test_a_thread_limit_that_was_asked_for_stays(options, environment, expected):
    launcher = ["python", "/venv/bin/accelerate", "launch", *options, "recipe.py"]
    assert unasked_thread_limit(launcher, environment) == expected
    assert not unasked_thread_limit(["bash"], environment)  # not accelerate's launcher
