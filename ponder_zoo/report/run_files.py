"""The files of a run folder that a report is made of: how to write them, and how to read whatever there is.

| file | written by | content |
| --- | --- | --- |
| `run.json` | `write_run_info` | title, task, model, command, status, wall time, machine, notes |
| `config.yaml` | the recipe | the resolved config |
| `metrics.jsonl` | the recipe's tracker | one JSON object per line with `step` and numbers |
| `eval.json` | `write_eval` | figures, baselines, per-class IoU |
| `previews/*.png` | `report.previews` | pictures, `step_00000100_views.png` |
| `clouds.npz` | `write_clouds` | the input cloud and colourings of it |
"""

from __future__ import annotations

import io
import json
import math
import os
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..files import write_atomic

MAX_CLOUD_POINTS = 20_000  # what a browser turns smoothly; also keeps the report small

PathLike = str | os.PathLike[str]


def write_run_info(
    run_dir: PathLike,
    *,
    task: str,
    model: str = "",
    title: str = "",
    command: str = "",
    status: str = "running",
    wall_time: float | None = None,
    device: str = "",
    notes: Sequence[str] = (),
    system: Mapping[str, Any] | None = None,
) -> Path:
    """Write `run.json`; call it at the start and again at the end.

    Args:
        run_dir: the run folder.
        task: what was done, such as "pretrain", "finetune" or "evaluate".
        model: name of the encoder.
        title: heading of the report; empty = made from task and model.
        command: what a user types to do the same again.
        status: "running", "finished" or "stopped".
        wall_time: seconds so far.
        device: what the run computed on.
        notes: remarks to show as warnings (skipped steps, a backend that was not available, ...).
        system: from `report.system.system_info`.
    """
    content = {
        "title": title,
        "task": task,
        "model": model,
        "command": command,
        "status": status,
        "wall_time": wall_time,
        "device": device,
        "notes": list(notes),
        "system": dict(system or {}),
    }
    return write_json(Path(run_dir) / "run.json", content)


def write_eval(
    run_dir: PathLike,
    metrics: Mapping[str, Any],
    *,
    baselines: Mapping[str, Mapping[str, float]] | None = None,
    iou: Mapping[str, float] | None = None,
    step: int | None = None,
    **more: Any,
) -> Path:
    """Write `eval.json`.

    Args:
        run_dir: the run folder.
        metrics: numbers by name, such as {"psnr": 21.4, "depth_median_error": 0.08} or {"mIoU": 0.61} (fractions).
        baselines: the same names for what the figures have to beat, by the baseline's name, such as
            {"best constant per image": {"psnr": 13.1, "depth_median_error": 0.6}}.
        iou: intersection over union by class name; NaN = the class does not occur.
        step: training step that was evaluated.
        more: anything else worth keeping, JSON-ready.
    """
    content: dict[str, Any] = {
        "metrics": dict(metrics),
        "baselines": {k: dict(v) for k, v in (baselines or {}).items()},
    }
    if iou is not None:
        content["iou"] = dict(iou)
    if step is not None:
        content["step"] = step
    return write_json(Path(run_dir) / "eval.json", content | more)


def write_clouds(
    run_dir: PathLike, coord: ArrayLike, *, color: ArrayLike | None = None, **colorings: ArrayLike
) -> Path:
    """Write `clouds.npz`: a cloud and further colourings of the same points, thinned evenly to `MAX_CLOUD_POINTS`.

    Args:
        run_dir: the run folder.
        coord: (N, 3) metres, z up.
        color: (N, 3) in 0-255; None = grey.
        colorings: (N, 3) in 0-255 if integer, in [0, 1] if float; names end in `_rgb`, such as `feature_rgb` (PCA
            colours of the features) and `untrained_rgb` (the same before training).
    """
    xyz = np.asarray(coord, dtype=np.float32)
    arrays = {"color": np.full(xyz.shape, 160, np.uint8) if color is None else np.asarray(color), **colorings}
    for name, value in arrays.items():
        if np.shape(value) != xyz.shape or xyz.ndim != 2 or not (name == "color" or name.endswith("_rgb")):
            raise ValueError(
                f"A cloud's `coord` and colourings are (N, 3), and colourings are called `..._rgb`; got coord "
                f"{xyz.shape} and {name} {np.shape(value)}. Rename it, or colour the points that `coord` has."
            )
    keep = np.linspace(0, len(xyz) - 1, min(len(xyz), MAX_CLOUD_POINTS)).astype(np.int64)
    content: dict[str, Any] = {
        name: _byte_colors(np.asarray(value)[keep], unit=name != "color") for name, value in arrays.items()
    }
    file = io.BytesIO()
    np.savez_compressed(file, coord=xyz[keep], **content)
    return write_atomic(Path(run_dir) / "clouds.npz", file.getvalue())


def _byte_colors(value: NDArray[Any], *, unit: bool) -> NDArray[np.uint8]:
    scale = 255.0 if unit and np.issubdtype(value.dtype, np.floating) else 1.0
    return np.round(np.nan_to_num(value.astype(np.float64)) * scale).clip(0, 255).astype(np.uint8)


def write_json(path: Path, content: Any) -> Path:
    """Write valid JSON: numbers that are not finite become null."""
    return write_atomic(path, json.dumps(json_ready(content), indent=1, allow_nan=False) + "\n")


def json_ready(value: Any) -> Any:
    """The same value of plain types: arrays and tensors become lists, numbers that are not finite become None."""
    if isinstance(value, Mapping):
        return {str(key): json_ready(item) for key, item in value.items()}
    if hasattr(value, "tolist"):  # numpy and torch, scalars included
        return json_ready(value.tolist())
    if isinstance(value, (list, tuple, set, frozenset)):
        return [json_ready(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return str(value)


# Reading


@dataclass
class RunFiles:
    """What a run folder holds; whatever is missing is empty, whatever could not be read is said in `problems`."""

    run_dir: Path
    info: dict[str, Any] = field(default_factory=dict)
    config: str = ""
    metrics: dict[str, tuple[list[float], list[float]]] = field(default_factory=dict)  # name -> steps, values
    evaluation: dict[str, Any] = field(default_factory=dict)
    previews: list[Path] = field(default_factory=list)
    clouds: dict[str, NDArray[Any]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def read_run(run_dir: PathLike) -> RunFiles:
    """Read what a run has left so far.

    Raises:
        FileNotFoundError: if there is no such folder.
    """
    folder = Path(run_dir)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"A report is made of a run folder (with config.yaml, metrics.jsonl, previews/ ...); {folder} is not a "
            "folder. Give the `output_dir` of a recipe."
        )
    run = RunFiles(folder)
    run.info = _read_json(folder / "run.json", run.problems)
    run.evaluation = _read_json(folder / "eval.json", run.problems)
    config = folder / "config.yaml"
    run.config = config.read_text(encoding="utf-8", errors="replace") if config.is_file() else ""
    run.metrics = read_metrics(folder / "metrics.jsonl", run.problems)
    run.previews = sorted(path for path in (folder / "previews").glob("*.png") if not path.name.startswith("."))
    run.clouds = _read_clouds(folder / "clouds.npz", run.problems)
    return run


def read_metrics(path: Path, problems: list[str]) -> dict[str, tuple[list[float], list[float]]]:
    """Curves of a `metrics.jsonl`: name -> (steps, values), sorted by step; of a step logged twice the last counts.

    Nested objects become `outer/inner`. Lines that are not JSON (a run killed while writing) are counted in `problems`.
    """
    if not path.is_file():
        return {}
    rows, broken = [], 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line) if line.strip() else None
        except ValueError:
            broken += 1
            continue
        if isinstance(row, dict):
            rows.append(row)
    if broken:
        problems.append(f"{path.name}: {broken} line(s) could not be read and were left out.")
    curves: dict[str, dict[float, float]] = {}
    for index, row in enumerate(rows):
        step = row.get("step", row.get("_step", index))
        step = float(step) if isinstance(step, (int, float)) else float(index)
        for name, value in _numbers(row):
            curves.setdefault(name, {})[step] = value
    return {name: (sorted(curve), [curve[step] for step in sorted(curve)]) for name, curve in curves.items()}


def _numbers(row: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    for key, value in row.items():
        name = f"{prefix}{key}"
        if name in ("step", "_step"):
            continue
        if isinstance(value, Mapping):
            found += _numbers(value, f"{name}/")
        elif value is None or (isinstance(value, str) and value.lower() in ("nan", "inf", "-inf", "infinity")):
            found.append((name, math.nan))  # other programs' ways to write a number that is not finite
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            found.append((name, float(value)))
    return found


def _read_json(path: Path, problems: list[str]) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        problems.append(f"{path.name} is not valid JSON and was left out ({error}).")
        return {}
    if not isinstance(content, dict):
        problems.append(f"{path.name} holds a {type(content).__name__} where an object was expected; it was left out.")
        return {}
    return content


def _read_clouds(path: Path, problems: list[str]) -> dict[str, NDArray[Any]]:
    if not path.is_file():
        return {}
    try:
        # Opened here, because numpy leaves the file open when it is no archive.
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        problems.append(f"{path.name} could not be read and was left out ({error}).")
        return {}
    coord = arrays.pop("coord", np.zeros((0, 3)))
    if coord.ndim != 2 or coord.shape[1] != 3 or len(coord) == 0:
        problems.append(f"{path.name} has no `coord` (N, 3) and was left out.")
        return {}
    colorings = {
        name: _byte_colors(value, unit=name != "color")
        for name, value in arrays.items()
        if value.shape == coord.shape and (name == "color" or name.endswith("_rgb"))
    }
    known = np.isfinite(coord).all(-1)
    return {"coord": coord[known], **{name: value[known] for name, value in colorings.items()}}
