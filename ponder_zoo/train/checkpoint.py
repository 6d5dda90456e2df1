"""Checkpoints that a kill at any moment leaves readable, and everything a run needs to go on as if it had not stopped.

The format is our own (`torch.save` files in one folder per step) and not `accelerate.save_state`: that one writes in
place, and its automatic naming starts again at 0 on resume, so that with a limit the next resume loads a stale state.
"""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from .distributed import num_processes, process_index, wait_for_all

logger = logging.getLogger(__name__)
FORMAT_VERSION = 1
LOCK = ".lock"  # while a process trains there
PATIENCE = 15.0  # seconds: loader workers of a run that was killed may hold its lock until they notice, after 5


class CheckpointError(RuntimeError):
    """A run folder or checkpoint that cannot be read or written; the message says what to do."""


class Stateful(Protocol):
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: Any, /) -> Any: ...


@contextmanager
def open_run_folder(run: Path, *, patience: float = PATIENCE) -> Iterator[None]:
    """Have a run folder to oneself: two runs in one would replace each other's checkpoints and mix their curves.

    It is created if need be, and what a killed run left half done is tidied. The lock is the system's and ends with
    the process, however that ends.

    Args:
        run: the run folder.
        patience: seconds to wait for another process to leave it.

    Raises:
        CheckpointError: if the folder cannot be created or written, or another process trains there.
    """
    from filelock import FileLock, Timeout

    probe, lock = run / ".writable", FileLock(run / LOCK)
    try:
        (run / "checkpoints").mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
        lock.acquire(timeout=patience)
    except Timeout as error:
        raise CheckpointError(
            f"Expected a run folder that no other process trains in; {run} is in use. Wait for that run or stop it, "
            "or choose another with `output=PATH`."
        ) from error
    except OSError as error:
        raise CheckpointError(
            f"Expected a run folder that can be written, got {run}: {error.strerror or error}. "
            "Choose another with `output=PATH`, or free space there."
        ) from error
    try:
        _tidy(run)
        yield
    finally:
        lock.release()


def _tidy(run: Path) -> None:
    for leftover in (run / "checkpoints").glob(".*-step_*"):
        original = leftover.with_name(leftover.name.partition("-")[2])
        if leftover.name.startswith(".replaced-") and not original.exists():
            leftover.rename(original)  # killed between the two renames of `_publish`
        else:
            shutil.rmtree(leftover, ignore_errors=True)


def save_checkpoint(
    run: Path, step: int, objects: Mapping[str, Stateful], *, keep: int = 3, info: Mapping[str, Any] | None = None
) -> Path:
    """Save the state after `step` steps as `checkpoints/step_XXXXXXXX`; all processes call it.

    The folder is written aside, flushed to the disk, and gets its name last: under that name it is complete. Then all
    but the newest `keep` are removed.

    Args:
        run: the run folder.
        step: number of optimizer steps done.
        objects: what to save, by name; unwrapped (`accelerator.unwrap_model`). The first process saves them, and every
            process its random number generators.
        keep: how many checkpoints to keep, at least 1.
        info: JSON values to store beside, compared on loading (such as `StepSampler.describe()`).

    Raises:
        CheckpointError: if a state holds NaN or infinity (nothing is written), or the disk refuses.
    """
    if keep < 1:
        raise ValueError(
            f"Expected to keep at least 1 checkpoint, got keep={keep}. Use a larger `save_every` for fewer."
        )
    folder = run / "checkpoints"
    final = folder / f"step_{step:08d}"
    temporary = folder / f".writing-{final.name}"
    first = process_index() == 0
    try:
        if first:
            states = {name: item.state_dict() for name, item in objects.items()}
            _check_finite(states, step)
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        wait_for_all()
        _write(temporary / f"rng_{process_index():05d}.pt", random_state())
        if first:
            for name, state in states.items():
                _write(temporary / f"{name}.pt", state)
        wait_for_all()
        if first:
            _write_manifest(temporary, step, info)
            _publish(temporary, final)
            _prune(folder, keep)
    except OSError as error:
        if first:
            shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(
            f"Cannot write the checkpoint {final}: {error.strerror or error}. Earlier checkpoints are untouched; "
            "free space or make the folder writable, then start again with `resume=auto`."
        ) from error
    wait_for_all()
    return final


def list_checkpoints(run: Path) -> list[Path]:
    """All checkpoints of a run folder, oldest first."""
    return sorted(path for path in (run / "checkpoints").glob("step_*") if path.is_dir())


def find_checkpoint(run: Path, resume: str) -> Path | None:
    """The checkpoint that `resume` means: "none", "auto" (the newest of the run folder, if any) or a path.

    A path may be a checkpoint or a run folder. "auto" passes over a newest checkpoint with missing or short files (a
    disk failure: a kill cannot cause it) with a warning.

    Raises:
        CheckpointError: if a path has no checkpoint, or "none" meets a run folder that has some.
    """
    found = list_checkpoints(run)
    if resume == "none":
        if found:
            raise CheckpointError(
                f"Expected an empty run folder for resume=none; {run} has {len(found)} checkpoints up to "
                f"{found[-1].name}. Continue with `resume=auto`, choose another `output=PATH`, or delete the folder."
            )
        return None
    if resume == "auto":
        return _newest_complete(found)
    path = Path(resume)
    if (path / "meta.json").is_file():
        return path
    newest = _newest_complete(list_checkpoints(path))
    if newest is None:
        raise CheckpointError(
            f"Expected a checkpoint (step_XXXXXXXX) or a run folder in resume={resume}; there is none. "
            "Give the path of one, or `resume=auto` for the newest of `output`."
        )
    return newest


def load_checkpoint(
    path: Path,
    objects: Mapping[str, Stateful],
    *,
    device: torch.device | str = "cpu",
    info: Mapping[str, Any] | None = None,
) -> int:
    """Restore objects and this process' random number generators; returns the number of steps done.

    Args:
        path: a checkpoint folder.
        objects: as saved, under the same names.
        device: where the objects live.
        info: as saved; a difference is an error, for the run would not go on but become another one.

    Raises:
        CheckpointError: if a file is missing or damaged, a state does not fit its object, or `info` differs.
    """
    meta = _read_manifest(path)
    if info is not None and meta["info"] != json.loads(json.dumps(info)):
        before, now = meta["info"], json.loads(json.dumps(info))
        differing = {key: (before.get(key), now.get(key)) for key in {*before, *now} if before.get(key) != now.get(key)}
        raise CheckpointError(
            f"{path} was saved with other values of {sorted(differing)}: (then, now) = {differing}. "
            "Use the settings and data of then, or start a new run."
        )
    for name, item in objects.items():
        state = _read(path / f"{name}.pt", device)
        try:
            item.load_state_dict(state)
        except (RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"The state `{name}` of {path} does not fit: {error}. Use the settings that the run was started with "
                "(config.yaml in its folder)."
            ) from error
    file = path / f"rng_{process_index():05d}.pt"
    if file.is_file():
        set_random_state(_read(file, "cpu"))
    if meta["num_processes"] != num_processes():
        logger.warning(
            "%s was saved by %d processes and is continued by %d: the batches stay the same, random numbers drawn "
            "outside the data do not.", path, meta["num_processes"], num_processes()
        )  # fmt: skip
    return int(meta["step"])


def random_state() -> dict[str, Any]:
    """State of the global generators of this process: python, numpy, torch, and the current CUDA device's."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    state: dict[str, Any] = {
        "python": (version, words, gauss),
        "numpy": (
            str(kind),
            torch.from_numpy(np.asarray(keys, dtype=np.int64)),
            int(position),
            int(has_gauss),
            float(cached),
        ),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: Mapping[str, Any]) -> None:
    """Undo everything drawn since `random_state`."""
    random.setstate(tuple(state["python"]))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def nonfinite_entries(state: Any, name: str = "") -> Iterator[str]:
    """Dotted names of the tensors in a nested state that hold NaN or infinity."""
    if isinstance(state, torch.Tensor):
        if state.is_floating_point() and not torch.isfinite(state).all():
            yield name
    elif isinstance(state, Mapping):
        for key, value in state.items():
            yield from nonfinite_entries(value, f"{name}.{key}" if name else str(key))
    elif isinstance(state, list | tuple):
        for index, value in enumerate(state):
            yield from nonfinite_entries(value, f"{name}.{index}")


def _check_finite(states: Mapping[str, Any], step: int) -> None:
    broken = list(nonfinite_entries(states))
    if broken:
        raise CheckpointError(
            f"Refusing to save step {step}: {len(broken)} tensors hold NaN or infinity, first {broken[:3]}. "
            "Resume from the last checkpoint with a lower learning rate, or without mixed precision."
        )


def _write(file: Path, state: Any) -> None:
    with file.open("wb") as stream:
        torch.save(state, stream)
        stream.flush()
        os.fsync(stream.fileno())


def _read(file: Path, device: torch.device | str) -> Any:
    try:
        return torch.load(file, map_location=device, weights_only=True)
    except Exception as error:  # torch raises whatever its readers do
        raise CheckpointError(
            f"Cannot read {file}: {str(error).splitlines()[0] if str(error) else type(error).__name__}. "
            f"Resume from an older checkpoint with `resume=PATH`; those here: "
            f"{[path.name for path in list_checkpoints(file.parent.parent.parent)]}."
        ) from error


def _write_manifest(folder: Path, step: int, info: Mapping[str, Any] | None) -> None:
    meta = {
        "format_version": FORMAT_VERSION,
        "step": step,
        "num_processes": num_processes(),
        "torch": torch.__version__,
        "info": dict(info or {}),
        "files": {file.name: file.stat().st_size for file in sorted(folder.glob("*.pt"))},
    }
    with (folder / "meta.json").open("w") as stream:
        json.dump(meta, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    _sync_folder(folder)


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        meta = json.loads((path / "meta.json").read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"Expected a checkpoint in {path}; its meta.json cannot be read ({error}). Give another path to `resume`."
        ) from error
    if meta.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {meta.get('format_version')}; this package reads {FORMAT_VERSION}. "
            "Resume it with the version of the package that wrote it."
        )
    return meta


def _newest_complete(found: list[Path]) -> Path | None:
    for path in reversed(found):
        try:
            files = _read_manifest(path)["files"]
            damaged = [name for name, size in files.items() if (path / name).stat().st_size != size]
        except (CheckpointError, OSError) as error:
            damaged = [str(error)]
        if not damaged:
            return path
        logger.warning("Passing over the damaged checkpoint %s: %s", path, damaged)
    return None


def _publish(temporary: Path, final: Path) -> None:
    """Give a complete folder its name. One of the same name (from a run resumed further back) gives way."""
    aside = final.with_name(f".replaced-{final.name}")
    if final.exists():
        shutil.rmtree(aside, ignore_errors=True)
        final.rename(aside)
    temporary.rename(final)
    _sync_folder(final.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _prune(folder: Path, keep: int) -> None:
    """Remove the oldest checkpoints, each losing its name first: a kill leaves none half deleted under its name."""
    for path in sorted(path for path in folder.glob("step_*") if path.is_dir())[:-keep]:
        aside = path.with_name(f".deleting-{path.name}")
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, where the system can (POSIX)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
