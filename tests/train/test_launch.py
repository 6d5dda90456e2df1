from __future__ import annotations

import pytest

from ponder_zoo.train.launch import missing_processes

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
