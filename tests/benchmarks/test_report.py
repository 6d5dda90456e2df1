"""The tables and the picture that results are turned into."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from benchmarks import report
from benchmarks.curves import write_curves
from benchmarks.harness import Case

CASE = Case(
    "part/one", "a peer", ours=lambda: print, theirs=lambda: print, done=1.5, aim=2.0, floor=lambda machine: 0.1
)


def result(ratio: float = 2.0, date: str = "2026-11-01T10:00:00+00:00", **more: Any) -> dict[str, Any]:
    found = {
        "name": "part/one",
        "metric": "time",
        "ours": 0.5,
        "theirs": 0.5 * ratio,
        "ratio": ratio,
        "ratio_p10": ratio - 0.1,
        "ratio_p90": ratio + 0.1,
        "holds": ratio >= 1.5,
        "date": date,
        "commit": "abc",
        "rates": {"gemm": 2e11, "copy": 2e10, "gather": 1e10},
        "items": 1,
    }
    return found | more


def stored(*results: dict[str, Any], device: str = "cpu") -> dict[str, Any]:
    machine = {
        "device": device,
        "cpu": "A CPU",
        "cores": 2,
        "threads": 2,
        "memory_gib": 8,
        "versions": {"torch": "2.9"},
    }
    return {"machine": machine, "cases": {found["name"]: found for found in results}}


def cells(table: str, row: int = 0) -> list[str]:
    return [cell.strip() for cell in table.splitlines()[2 + row].split("|")[1:-1]]


def test_a_row_has_the_ratio_beside_its_target() -> None:
    table = report.targets_table([CASE], report.runs([stored(result())]))
    row = ["`part/one`", "a peer", "500.0 ms", "1.00 s", "**2.00** (1.90 to 2.10)", "", "≥ 1.5", "≥ 2", "holds"]
    assert cells(table) == row


def test_a_target_holds_only_if_it_does_in_every_run() -> None:
    files = [stored(result(1.4)), stored(result(2.0, "2026-11-02T10:00:00+00:00"))]
    row = cells(report.targets_table([CASE], report.runs(files)))
    assert row[4].startswith("**2.00**")  # the latest
    assert row[5] == "1.40"
    assert row[-1] == "missed"


def test_what_was_not_measured_says_so() -> None:
    assert cells(report.targets_table([CASE], {}))[2:5] == ["not measured"] * 3
    missing = result(not_measured="not measured: spconv is not installed", holds=None)
    del missing["ratio"]
    row = cells(report.targets_table([CASE], report.runs([stored(missing)])))
    assert row[3] == "not measured: spconv is not installed"
    assert row[-1] == ""


def test_memory_without_a_peer_has_no_rate() -> None:
    case = Case("part/one", "none", ours=lambda: print, metric="memory", unit="points")
    found = report.latest([stored(result(metric="memory", ours=2.0 * 2**20))])
    assert cells(report.alone_table([case], found)) == ["`part/one`", "2 MiB", ""]


def test_the_floor_is_beside_ours_and_the_peer() -> None:
    found = report.latest([stored(result(floor=0.1))])
    assert cells(report.floors_table([CASE], found)) == ["`part/one`", "100 ms", "500.0 ms", "5.0 x", "10.0 x"]


def test_only_the_text_between_markers_changes() -> None:
    text = "a\n<!-- x: made by benchmarks.report -->\nold\n<!-- x: end -->\nb"
    once = report.replace_section(text, "x", "new")
    assert once == text.replace("old", "new")
    assert report.replace_section(once, "x", "new") == once
    with pytest.raises(ValueError, match="to have the lines"):
        report.replace_section(text, "y", "new")


def test_the_page_has_a_place_for_every_section() -> None:
    text = report.PAGE.read_text(encoding="utf-8")
    assert set(re.findall(r"<!-- (\w+): made by", text)) == set(report.sections([], [], [], []))


def test_the_picture_has_a_panel_for_each_curve_that_was_measured(tmp_path: Path) -> None:
    results = {
        f"scaling/{curve}/{x}": {"ours": 1e-4 * x, "items": x}
        for curve in ("voxels", "rays")
        for x in (10_000, 100_000, 1_000_000)
    }
    write_curves(results, tmp_path / "curves.svg")
    root = ET.parse(tmp_path / "curves.svg").getroot()
    space = {"svg": "http://www.w3.org/2000/svg"}
    assert len(root.findall("svg:g", space)) == 2
    panel = root.find("svg:g", space)
    assert panel is not None
    dots = [(float(dot.attrib["cx"]), float(dot.attrib["cy"])) for dot in panel.findall("svg:circle", space)]
    (x0, y0), (x1, y1), (x2, y2) = dots
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)  # logarithmic axes: equal steps
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2) and y0 > y1
