"""Where things lie in a folder of prepared data. Paths are relative, with slashes: they also name files of a server."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from zlib import crc32

from ...files import write_atomic

PREPARE = "prepare.json"  # what the folder is made with
MANIFEST = "manifest.json"  # what it holds, when it is complete
RECORDS = "records"  # what is done, scene by scene
LOCK = ".lock"  # while a process prepares it


def scene_paths(split: str, scene: str) -> tuple[str, str]:
    """Files of a scene's points and of its images, in one of 16 folders: the Hub takes 10,000 files in each."""
    place = f"{split}/{crc32(scene.encode()) % 16:x}/{scene}.parquet"
    return f"scenes/{place}", f"frames/{place}"


def record_path(out: Path, scene: str) -> Path:
    return out / RECORDS / f"{scene}.json"


def write_readme(out: Path, manifest: dict[str, Any]) -> None:
    """The card by which `datasets.load_dataset` and the Hub know the tables and their splits."""
    lines = ["---", "configs:"]
    for table, default in (("scenes", True), ("frames", False)):
        splits = [split for split, count in manifest["counts"].items() if table == "scenes" or count["frames"]]
        if not splits:
            continue
        lines += [f"- config_name: {table}", *(["  default: true"] if default else []), "  data_files:"]
        for split in splits:
            lines += [f"  - split: {split}", f"    path: {table}/{split}/**"]
    lines += ["---", f"# {manifest['dataset']}, prepared by ponder_zoo {manifest['versions']['ponder_zoo']}", ""]
    lines += ["| split | scenes | points | images |", "| --- | --- | --- | --- |"]
    for split, count in manifest["counts"].items():
        lines.append(f"| {split} | {count['scenes']} | {count['points']} | {count['frames']} |")
    lines += ["", "The terms of the original data set hold for this copy of it too.", ""]
    write_atomic(out / "README.md", "\n".join(lines))
