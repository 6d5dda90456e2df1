"""The paper's tables beside what runs reached: `recipes/evaluate.py --table 9`.

A configuration of a row says what the paper reports, numbers in percent:

    expected: {table: 9, row: PonderV2, column: ScanNet, mIoU: 77.0}

A run belongs to the row whose `expected` its config.yaml repeats, or, without a config.yaml (sums of other runs), whose
configuration has its name. Its numbers are those of its eval.json, in [0, 1].
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

Place = tuple[str, str, str]  # table, row, column


@dataclass
class Cell:
    """A number of the paper, and those of the runs for it."""

    metric: str
    paper: float  # percent
    ours: list[tuple[str, float | None]] = field(default_factory=list)  # name of the run, percent or None


def print_table(arguments: Sequence[str], configs: Path, runs: Path = Path("runs")) -> bool:
    """Print what `--table N` in the arguments asks for; False if they do not ask.

    Args:
        arguments: of the command line.
        configs: folder of the rows' configurations.
        runs: folder of runs.
    """
    if not arguments or not arguments[0].startswith("--table"):
        return False
    number = arguments[0].partition("=")[2] or "".join(arguments[1:2])
    known = sorted({place[0] for place, _ in _expectations(configs.glob("*.yaml"))}, key=lambda name: (len(name), name))
    if number not in known:
        raise SystemExit(f"error: expected --table with one of {', '.join(known)}; got {number or 'nothing'!r}.")
    print(table_text(number, configs, runs))
    return True


def table_text(number: str, configs: Path, runs: Path) -> str:
    """One line per number of the paper's table: Markdown."""
    lines = [
        f"Table {number}, in percent. Runs below {runs}/ that were made with these configurations:",
        "",
        "| column | row | metric | paper | ours | run |",
        "| --- | --- | --- | ---: | ---: | --- |",
    ]
    for (_, row, column), cells in compare(number, configs, runs).items():
        for cell in cells:
            ours = ", ".join("-" if value is None else f"{value:.1f}" for _, value in cell.ours) or "-"
            names = ", ".join(name for name, _ in cell.ours)
            lines.append(f"| {column} | {row} | {cell.metric} | {cell.paper:.1f} | {ours} | {names} |")
    return "\n".join(lines)


def compare(number: str, configs: Path, runs: Path) -> dict[Place, list[Cell]]:
    """The numbers of a table by place: column by column, better rows later."""
    rows = [(place, numbers) for place, numbers in _expectations(configs.glob("*.yaml")) if place[0] == number]
    rows.sort(key=lambda row: (_natural(row[0][2]), next(iter(row[1].values()))))
    found = {place: [Cell(metric, value) for metric, value in numbers.items()] for place, numbers in rows}
    for run in sorted(path for path in runs.glob("*") if path.is_dir()):
        metrics = _metrics(run / "eval.json")
        own, namesake = run / "config.yaml", configs / f"{run.name}.yaml"
        for place, _ in _expectations([file for file in (own, namesake) if file.is_file()][:1]):
            for cell in found.get(place, []):
                value = metrics.get(cell.metric)
                cell.ours.append((run.name, 100 * value if isinstance(value, int | float) else None))
    return found


def _expectations(files: Any) -> Iterator[tuple[Place, dict[str, float]]]:
    """Where each configuration belongs, and the numbers that it expects."""
    from omegaconf import OmegaConf

    for file in files:
        try:
            expected: Any = OmegaConf.to_container(OmegaConf.load(file)).get("expected")  # type: ignore[union-attr]
        except Exception as error:  # whatever YAML's parser raises
            logger.warning("%s cannot be read and is left out: %s", file, error)
            continue
        if expected:
            table, row, column = (str(expected.pop(key)) for key in ("table", "row", "column"))
            yield (table, row, column), expected


def _natural(text: str) -> list[str | int]:
    """A key that sorts "Area 5" before "Area 10"."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", text)]


def _metrics(file: Path) -> Mapping[str, Any]:
    """The metrics of an eval.json; empty while a run has none."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))["metrics"]
    except (OSError, ValueError, KeyError):
        return {}
