"""Prepare all scenes of a raw data set: in parallel, and so that a kill at any moment costs one scene of work.

Of each scene, the two Parquet files are written first and `records/NAME.json` last, each aside and renamed: a scene
with a record is done. The manifest is made of the records and holds no dates: an interrupted run that is started again
leaves the same bytes as one that was not.
"""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

from ...files import write_atomic
from ...version import __version__
from ..checks import check_scene
from ..scene import Array
from .frame_checks import usable_frames
from .layout import LOCK, MANIFEST, PREPARE, RECORDS, record_path, scene_paths, write_readme
from .record import PreparedScene, RawDataset

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Failure:
    """A scene that could not be prepared."""

    scene: str
    reason: str


def prepare(
    make_reader: Callable[..., RawDataset],
    raw: Path,
    out: Path,
    *,
    options: Mapping[str, Any] | None = None,
    workers: int = 0,
    strict: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Write the prepared form of a raw data set and return its manifest.

    Args:
        make_reader: one of `READERS`; called with the raw folder and the options.
        raw: folder of the raw download, only read.
        out: folder of the prepared form; an unfinished one is completed.
        options: of the reader; the same when a run goes on.
        workers: processes; 0: this one.
        strict: raise for the first scene, image or file that would be left out.
        progress: draw a bar.

    Raises:
        ValueError: for folders that do not fit, no usable scene, or anything unusable with `strict`.
    """
    from filelock import FileLock, Timeout

    check_folders(raw, out)
    reader = make_reader(raw, **(options or {}))
    out.mkdir(parents=True, exist_ok=True)
    lock = out / LOCK
    try:
        with FileLock(lock, timeout=0):
            try:
                return _prepare(reader, out, dict(options or {}), workers, strict, progress)
            finally:
                lock.unlink(missing_ok=True)
    except Timeout as error:
        raise ValueError(
            f"{out}: another process prepares data there. Wait for it, or choose another --out."
        ) from error


def check_folders(raw: Path, out: Path) -> None:
    """Refuse to read what is not there, and to write where raw data lie."""
    if not raw.is_dir():
        raise ValueError(f"{raw}: expected the folder of the raw download; there is none. Check --raw.")
    source, target = raw.resolve(), out.resolve()
    if target == source or source in target.parents:
        raise ValueError(
            f"{out}: expected a folder outside of the raw data {raw}, which stay as they are. Change --out."
        )
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: expected a folder, or nothing yet; there is a file. Change --out.")


def _prepare(
    reader: RawDataset, out: Path, options: dict[str, Any], workers: int, strict: bool, progress: bool
) -> dict[str, Any]:
    header = _start(reader, out, options)
    scenes = reader.scenes()
    if not scenes:
        raise ValueError(f"Expected scenes in the raw folder; the reader of {reader.name!r} found none. Check --raw.")
    done = _finished(out)
    for record in done.values():
        if strict and record["skipped"]:
            item, reason = record["skipped"][0]
            raise ValueError(f"{record['scene']}: {item}: {reason}. Repair it, or leave out --strict.")
    failures: list[Failure] = []
    todo = [name for name in scenes if name not in done]
    for result in _bar(_run(reader, out, todo, workers, strict), len(todo) + len(done), len(done), progress):
        if isinstance(result, Failure):
            failures.append(result)
        else:
            done[result["scene"]] = result
    if not done:
        raise ValueError(
            f"None of {len(scenes)} scenes could be prepared. {failures[0].scene}: {failures[0].reason}. "
            "Check that --raw is the unpacked download in its original layout."
        )
    return _finish(out, header, [done[name] for name in sorted(done)], failures)


def _start(reader: RawDataset, out: Path, options: dict[str, Any]) -> dict[str, Any]:
    """What the folder is made with; the same as before if it is not new. Removes what a killed run left aside."""
    from .storage import FORMAT_VERSION

    header = {
        "format": FORMAT_VERSION,
        "dataset": reader.name,
        "options": options,
        "classes": {name: list(names) for name, names in reader.classes.items()},
    }
    header = json.loads(json.dumps(header))  # as it will be read again
    file = out / PREPARE
    if file.is_file():
        before = json.loads(file.read_text())
        for key in header:
            if before.get(key) != header[key]:
                raise ValueError(
                    f"{out} was prepared with {key} {before.get(key)!r}, now it is {header[key]!r}. "
                    "Give the same options, or another --out."
                )
    elif any(child.name != LOCK and not child.match(f".{PREPARE}.*.tmp") for child in out.iterdir()):
        raise ValueError(f"{out}: expected an empty folder or prepared data; it holds other files. Change --out.")
    for leftover in out.rglob(".*.tmp"):
        leftover.unlink()
    write_atomic(file, _json(header))
    return header


def _finished(out: Path) -> dict[str, dict[str, Any]]:
    """Records of the scenes whose files are there. Their raw data may be gone: a download can come in parts."""
    records = [json.loads(file.read_text()) for file in (out / RECORDS).rglob("*.json")]
    return {record["scene"]: record for record in records if _is_whole(out, record["files"])}


def _is_whole(out: Path, files: Mapping[str, Any]) -> bool:
    return all(
        (out / path).is_file() and (out / path).stat().st_size == entry["bytes"] for path, entry in files.items()
    )


def _run(
    reader: RawDataset, out: Path, scenes: list[str], workers: int, strict: bool
) -> Iterator[dict[str, Any] | Failure]:
    if workers == 0 or len(scenes) < 2:
        for scene in scenes:
            yield prepare_scene(reader, out, scene, strict)
        return
    pool = ProcessPoolExecutor(
        min(workers, len(scenes)),
        mp_context=multiprocessing.get_context("spawn"),  # a forked worker would hold the lock of a run that was killed
        initializer=_start_worker,
        initargs=(reader, out, strict),
    )
    try:
        futures: list[Future[Any]] = [pool.submit(_prepare_in_worker, scene) for scene in scenes]
        for future in as_completed(futures):
            yield future.result()
    except BrokenProcessPool as error:
        raise ValueError(
            "A worker was killed, perhaps for its memory. Finished scenes are kept: run again with fewer --workers."
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_work: tuple[RawDataset, Path, bool] | None = None  # what all scenes of a worker share, sent once


def _start_worker(reader: RawDataset, out: Path, strict: bool) -> None:
    """Keep the reader, and end with the parent if that is killed: the pool's queues would keep a worker forever."""
    global _work
    _work = reader, out, strict
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _prepare_in_worker(scene: str) -> dict[str, Any] | Failure:
    assert _work is not None
    reader, out, strict = _work
    return prepare_scene(reader, out, scene, strict)


def prepare_scene(reader: RawDataset, out: Path, name: str, strict: bool = False) -> dict[str, Any] | Failure:
    """Read, check and write one scene: its record."""
    skipped: list[tuple[str, str]] = []

    def skip(item: str, reason: str) -> None:
        if strict:
            raise ValueError(f"{item}: {reason}. Repair it, or leave out --strict")
        skipped.append((item, reason))

    try:
        prepared = reader.read(name, skip)
        prepared = replace(prepared, frames=usable_frames(prepared.frames, skip))
        _check(prepared, name, reader)
    except (ValueError, OSError) as error:
        if strict:
            raise ValueError(f"{name}: {error}") from error
        return Failure(name, str(error))
    return _write(out, prepared, reader, skipped)


def _check(prepared: PreparedScene, name: str, reader: RawDataset) -> None:
    """What holds for every data set; see also `check_scene`."""
    scene = prepared.scene
    if scene.name != name or not re.fullmatch(r"[\w.+-]+(/[\w.+-]+)*", name) or ".." in name:
        raise ValueError(f"Expected a scene of the name {name!r} that a file can have, got {scene.name!r}.")
    if not re.fullmatch(r"\w+", prepared.split):
        raise ValueError(f"Expected a split of letters, digits and underscores, got {prepared.split!r}.")
    check_scene(scene)
    if scene.color is not None and not 0 <= scene.color.min() <= scene.color.max() <= 255:
        raise ValueError(f"Expected colours of 0 to 255, got {scene.color.min()} to {scene.color.max()}.")
    for label_set, labels in _label_sets(prepared).items():
        if labels is None:
            continue
        count = len(reader.classes[label_set])
        if labels.shape != (len(scene),) or labels.min(initial=0) < -1 or labels.max(initial=-1) >= count:
            raise ValueError(
                f"Expected {len(scene)} labels of -1 to {count - 1} in {label_set!r}, got shape {labels.shape} with "
                f"{labels.min(initial=0)} to {labels.max(initial=0)}."
            )


def _label_sets(prepared: PreparedScene) -> dict[str, Array | None]:
    return {"segment": prepared.scene.segment} | dict(prepared.labels)


def _write(out: Path, prepared: PreparedScene, reader: RawDataset, skipped: list[tuple[str, str]]) -> dict[str, Any]:
    from .storage import frames_file, scene_file

    scene_path, frames_path = scene_paths(prepared.split, prepared.scene.name)
    contents = {scene_path: scene_file(prepared, list(reader.classes))}
    if prepared.frames:
        contents[frames_path] = frames_file(prepared.frames)
    record = {
        "scene": prepared.scene.name,
        "split": prepared.split,
        "points": len(prepared.scene),
        "frames": len(prepared.frames),
        "labels": sorted(name for name, values in _label_sets(prepared).items() if values is not None),
        "files": {
            path: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for path, content in contents.items()
        },
        "skipped": [list(entry) for entry in skipped],
    }
    for path, content in contents.items():
        write_atomic(out / path, content)
    write_atomic(record_path(out, prepared.scene.name), _json(record))
    return record


def _finish(
    out: Path, header: dict[str, Any], records: list[dict[str, Any]], failures: list[Failure]
) -> dict[str, Any]:
    from importlib.metadata import version

    splits = sorted({record["split"] for record in records})
    manifest = header | {
        "versions": {"ponder_zoo": __version__, "pyarrow": version("pyarrow"), "pillow": version("pillow")},
        "counts": {
            split: {
                "scenes": sum(record["split"] == split for record in records),
                "points": sum(record["points"] for record in records if record["split"] == split),
                "frames": sum(record["frames"] for record in records if record["split"] == split),
            }
            for split in splits
        },
        "scenes": records,
        "failed": [
            {"scene": failure.scene, "reason": failure.reason} for failure in sorted(failures, key=attrgetter("scene"))
        ],
    }
    write_readme(out, manifest)
    write_atomic(out / MANIFEST, _json(manifest))
    return manifest


def _bar(results: Iterator[Any], total: int, done: int, progress: bool) -> Iterator[Any]:
    from tqdm import tqdm

    with tqdm(total=total, initial=done, unit="scene", disable=not progress) as bar:
        failed = 0
        for result in results:
            failed += isinstance(result, Failure)
            bar.set_postfix(failed=failed)
            bar.update()
            yield result


def _json(content: Any) -> str:
    return json.dumps(content, indent=1, sort_keys=True) + "\n"
