from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ponder_zoo.train.checkpoint import (
    CheckpointError,
    find_checkpoint,
    list_checkpoints,
    load_checkpoint,
    open_run_folder,
    random_state,
    save_checkpoint,
    set_random_state,
)
from ponder_zoo.train.sampler import StepSampler


class Value:
    """The smallest thing with a state."""

    def __init__(self, value: float) -> None:
        self.tensor = torch.full((100,), float(value))

    def state_dict(self):
        return {"tensor": self.tensor}

    def load_state_dict(self, state):
        self.tensor = state["tensor"]


def save(run, step, keep=2):
    return save_checkpoint(run, step, {"model": Value(step), "other": Value(-step)}, keep=keep)


def load(path):
    objects = {"model": Value(0), "other": Value(0)}
    step = load_checkpoint(path, objects)
    assert (objects["model"].tensor == step).all() and (objects["other"].tensor == -step).all()
    return step


def test_the_newest_k_are_kept_and_the_newest_is_found(tmp_path):
    assert find_checkpoint(tmp_path, "auto") is None and find_checkpoint(tmp_path, "none") is None
    for step in (1, 2, 9, 10, 100):
        save(tmp_path, step)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_00000010", "step_00000100"]
    newest = find_checkpoint(tmp_path, "auto")
    assert load(newest) == 100
    assert find_checkpoint(tmp_path, str(newest)) == newest
    assert find_checkpoint(Path("/nowhere"), str(tmp_path)) == newest, "a run folder stands for its newest checkpoint"
    with pytest.raises(CheckpointError, match="resume=auto"):
        find_checkpoint(tmp_path, "none")
    with pytest.raises(CheckpointError, match="there is none"):
        find_checkpoint(tmp_path, str(tmp_path / "checkpoints" / "step_00000007"))


def test_a_step_saved_again_replaces_the_first(tmp_path):
    save_checkpoint(tmp_path, 3, {"model": Value(1), "other": Value(1)})
    assert load(save(tmp_path, 3)) == 3
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000003"]


def test_all_generators_go_back_to_where_they_were():
    state = random_state()
    first = (random.random(), np.random.rand(), torch.rand(3))
    set_random_state(state)
    assert random.random() == first[0] and np.random.rand() == first[1] and torch.equal(torch.rand(3), first[2])


def test_generators_are_saved_and_restored(tmp_path):
    path = save(tmp_path, 1)
    expected = (random.random(), np.random.rand(), torch.rand(2))
    load(path)
    assert (random.random(), np.random.rand()) == expected[:2] and torch.equal(torch.rand(2), expected[2])


@pytest.mark.parametrize("damage", ["short", "missing", "no manifest"])
def test_auto_passes_over_a_damaged_checkpoint_and_says_so(tmp_path, damage, caplog):
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    file = newest / ("meta.json" if damage == "no manifest" else "model.pt")
    file.write_bytes(file.read_bytes()[:-5]) if damage == "short" else file.unlink()
    assert load(find_checkpoint(tmp_path, "auto")) == 1
    assert "Passing over the damaged checkpoint" in caplog.text


def test_a_damaged_file_is_named(tmp_path):
    path = save(tmp_path, 1)
    (path / "other.pt").write_bytes(b"x" * (path / "other.pt").stat().st_size)
    with pytest.raises(CheckpointError, match=r"Cannot read .*other\.pt.*step_00000001"):
        load(path)


def test_a_state_that_does_not_fit_is_named(tmp_path):
    path = save_checkpoint(tmp_path, 1, {"model": nn.Linear(2, 2)})
    with pytest.raises(CheckpointError, match=r"`model` of .* does not fit"):
        load_checkpoint(path, {"model": nn.Linear(3, 2)})


def test_other_data_or_batch_size_is_an_error_that_names_the_key(tmp_path):
    path = save_checkpoint(tmp_path, 1, {}, info=StepSampler([10], 2, stop=5).describe())
    assert load_checkpoint(path, {}, info=StepSampler([10], 2, stop=9).describe()) == 1
    with pytest.raises(CheckpointError, match=r"other values of \['lengths'\]"):
        load_checkpoint(path, {}, info=StepSampler([11], 2, stop=5).describe())


def test_broken_weights_are_not_saved(tmp_path):
    save(tmp_path, 1)
    model = nn.Linear(2, 2)
    nn.init.constant_(model.weight, float("nan"))
    with pytest.raises(CheckpointError, match=r"Refusing to save step 2.*model\.weight"):
        save_checkpoint(tmp_path, 2, {"model": model})
    assert load(find_checkpoint(tmp_path, "auto")) == 1


def test_a_run_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(CheckpointError, match=r"run folder that can be written.*output=PATH"),
        open_run_folder(tmp_path / "file" / "run"),
    ):
        pass


HOLDER = """
import sys, time
from pathlib import Path
from ponder_zoo.train.checkpoint import open_run_folder
with open_run_folder(Path(sys.argv[1])):
    print("opened", flush=True)
    time.sleep(600)
"""


def test_a_run_folder_has_one_run_at_a_time_and_a_killed_one_leaves_it_free(tmp_path):
    unfinished = tmp_path / "checkpoints" / ".writing-step_00000005"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    ) as holder:
        try:
            assert holder.stdout.readline() == b"opened\n"
            unfinished.mkdir()
            with (
                pytest.raises(CheckpointError, match="no other process trains in"),
                open_run_folder(tmp_path, patience=0.1),
            ):
                pass
            assert unfinished.is_dir(), "the other run is writing it"
        finally:
            holder.kill()
    with open_run_folder(tmp_path, patience=0.1):
        assert not unfinished.exists()
    with pytest.raises(RuntimeError, match="own"), open_run_folder(tmp_path):
        raise RuntimeError("own")
    with open_run_folder(tmp_path, patience=0.1):
        save(tmp_path, 1)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full, the device that is always full")
def test_a_full_disk_leaves_the_earlier_checkpoint_and_an_explanation(tmp_path, monkeypatch):
    save(tmp_path, 1)
    original = Path.open
    monkeypatch.setattr(
        Path, "open", lambda self, *args: original(Path("/dev/full") if self.suffix == ".pt" else self, *args)
    )
    with pytest.raises(CheckpointError, match="Earlier checkpoints are untouched"):
        save(tmp_path, 2)
    monkeypatch.undo()
    assert load(find_checkpoint(tmp_path, "auto")) == 1
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000001"]


KILLER = """
import os, random, shutil, signal, sys, time
from pathlib import Path
import torch
from ponder_zoo.train.checkpoint import find_checkpoint, list_checkpoints, load_checkpoint
from ponder_zoo.train.checkpoint import open_run_folder, save_checkpoint
torch.set_num_threads(1)

class Value:
    def __init__(self, value): self.tensor = torch.full((20_000,), float(value))
    def state_dict(self): return {"tensor": self.tensor}
    def load_state_dict(self, state): self.tensor = state["tensor"]

def save(run, step): save_checkpoint(run, step, {"model": Value(step), "other": Value(-step)}, keep=2)

def newest(run):
    with open_run_folder(run): pass
    objects = {"model": Value(0), "other": Value(0)}
    step = load_checkpoint(find_checkpoint(run, "auto"), objects)
    assert (objects["model"].tensor == step).all() and (objects["other"].tensor == -step).all()
    assert not [path for path in (run / "checkpoints").iterdir() if path.name.startswith(".")], "leftovers"
    assert len(list_checkpoints(run)) <= 3
    return step

def calls_then_kill(count):
    # Die at the count-th change of the file system, before it happens.
    def counted(function):
        def call(*args, **kwargs):
            nonlocal count
            count -= 1
            if count < 0: os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)
        return call
    for owner, name in ((os, "fsync"), (os, "rename"), (os, "mkdir"), (os, "unlink"), (os, "rmdir"), (torch, "save")):
        setattr(owner, name, counted(getattr(owner, name)))

def fork(task):
    child = os.fork()
    if child == 0:
        task()
        os._exit(0)
    return child

run = Path(sys.argv[1])
for step in (1, 2): save(run, step)
survived = 0
for count in range(200):  # every point of saving step 3, once new, once over an existing step 3
    for again in (False, True):
        copy = Path(f"{run}-{count}-{again}")
        shutil.copytree(run, copy)
        if again: save(copy, 3)
        _, status = os.waitpid(fork(lambda: (calls_then_kill(count), save(copy, 3))), 0)
        step = newest(copy)
        assert step in ((2, 3) if not again else (3,)), (count, again, step)
        survived += os.WIFEXITED(status)
        shutil.rmtree(copy)
    if survived == 2: break
assert survived == 2 and count > 8, (survived, count)
randomness = random.Random(0)
def forever(step):
    while True:
        step += 1
        save(run, step)
reached = [newest(run)]
for _ in range(15):  # any moment
    child = fork(lambda: forever(reached[-1]))
    time.sleep(randomness.uniform(0.0, 0.05))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    reached.append(newest(run))
    assert reached[-1] >= reached[-2]
print("points", count, "reached", reached[-1])
"""


def test_a_kill_at_any_point_of_saving_leaves_the_newest_checkpoint_readable(tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", KILLER, str(tmp_path / "run")],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert int(result.stdout.split()[-1]) > 2, result.stdout


LOOP = """
import os, signal, sys
from pathlib import Path
import torch
from torch import nn
from ponder_zoo.train.checkpoint import find_checkpoint, load_checkpoint, open_run_folder, save_checkpoint
from ponder_zoo.train.optim import make_ema, make_optimizer, make_schedule
from ponder_zoo.train.sampler import StepSampler

def train(run, kill_at=None, steps=12):
    with open_run_folder(run): pass
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 1))
    optimizer = make_optimizer(model, "adamw", lr=1e-2, weight_decay=0.1)
    schedule, ema = make_schedule(optimizer, "onecycle", total_steps=steps), make_ema(model, 0.99)
    objects = {"model": model, "optimizer": optimizer, "schedule": schedule, "ema": ema}
    found, start = find_checkpoint(run, "auto"), 0
    if found: start = load_checkpoint(found, objects)
    data = torch.randn(10, 3, generator=torch.Generator().manual_seed(1))
    sampler = StepSampler([10], 4, start=start, stop=steps)
    for step, keys in enumerate(sampler, start + 1):
        model(data[[key.index for key in keys]]).square().mean().backward()
        optimizer.step(); schedule.step(); optimizer.zero_grad(); ema.update(model, step)
        if step % 3 == 0: save_checkpoint(run, step, objects)
        if step == kill_at: os.kill(os.getpid(), signal.SIGKILL)
    return objects
"""


def test_a_killed_and_resumed_loop_ends_bit_equal(tmp_path):
    code = textwrap.dedent(LOOP)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    killed = subprocess.run(
        [sys.executable, "-c", code + f"train(Path({str(tmp_path / 'a')!r}), kill_at=8)"], env=environment, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    scope: dict = {}
    exec(code, scope)
    resumed, whole = scope["train"](tmp_path / "a"), scope["train"](tmp_path / "b")
    for name in ("model", "ema"):
        for key, value in whole[name].state_dict().items():
            assert torch.equal(resumed[name].state_dict()[key], value), (name, key)
    assert json.dumps(resumed["schedule"].state_dict(), default=str) == json.dumps(
        whole["schedule"].state_dict(), default=str
    )
