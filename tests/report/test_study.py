"""Intervals, the table and the picture of a study."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from ponder_zoo.report.study import arms_table, interval, study_table, write_study_chart


def rows(kind: str, amount: float, **arms: list[float]) -> list[dict]:
    return [
        {"kind": kind, "amount": amount, "arm": arm, "seed": seed, "mIoU": value}
        for arm, values in arms.items()
        for seed, value in enumerate(values)
    ]


def test_interval_is_students() -> None:
    mean, half = interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert half == pytest.approx(4.302653 * 1.0 / 3**0.5, rel=1e-6)  # t of two degrees of freedom, from a table
    assert interval([5.0]) == (5.0, None)


def test_gains_are_paired_by_seed() -> None:
    scores = rows("points", 20, scratch=[0.1, 0.3], rendering=[0.2, 0.4])  # 10 points in each seed, whatever the seed
    table = study_table(scores, {"height": 0.05}, reference="scratch").splitlines()
    assert table[0] == "| labels | scratch | rendering | rendering - scratch |"
    assert table[3].startswith("| 20 | 20.0 ± 127.1 | 30.0 ± 127.1 | +10.0 ± 0.0")
    assert table[4].startswith("| nearest neighbours by height | 5.0 |")
    assert len({line.count("|") for line in table}) == 1


def test_a_loss_that_rounds_to_nothing_has_no_minus() -> None:
    scores = rows("points", 20, scratch=[0.3], rendering=[0.2999])
    assert "| 30.0 | 30.0 | +0.0 |" in study_table(scores, {}, reference="scratch")


def test_a_study_that_goes_on_has_gaps(tmp_path) -> None:
    scores = rows("points", 20, scratch=[0.1, 0.3], rendering=[0.2])  # its second seed is not there yet
    scores += rows("points", 50, scratch=[0.2])
    table = study_table(scores, {}, reference="scratch").splitlines()
    assert table[3] == "| 20 | 20.0 ± 127.1 | 20.0 | +10.0 |"  # the gain is that of the first seed
    assert table[4] == "| 50 | 20.0 |  |  |"
    assert write_study_chart(tmp_path / "study.svg", scores).is_file()


def test_many_arms_are_rows_with_what_they_render() -> None:
    scores = rows("linear", 1.0, scratch=[0.1, 0.1], clusters=[0.2, 0.4], volsdf=[0.3])
    rendered = [("clusters", 1.0, 0.1), ("clusters", 2.0, 0.1), ("volsdf", 3.0, 0.25)]
    pretraining = [
        {"arm": arm, "validation": {"psnr_gain": psnr, "depth_ratio": depth}} for arm, psnr, depth in rendered
    ]
    table = arms_table(scores, {"height": 0.05}, reference="clusters", pretraining=pretraining).splitlines()
    assert table[0].startswith("| Linear head on the frozen encoder, share of the scenes: 100 % | mIoU | - clusters |")
    assert table[2] == "| scratch | 10.0 ± 0.0 | -20.0 ± 127.1 |  |  |"
    assert table[3] == "| clusters | 30.0 ± 127.1 |  | 1.5 ± 6.4 | 0.100 ± 0.000 |"
    assert table[4] == "| volsdf | 30.0 | +10.0 | 3.0 | 0.250 |"
    assert table[5] == "| nearest neighbours by height | 5.0 |  |  |  |"


def test_chart_has_a_curve_per_arm_and_panels_for_several_amounts(tmp_path) -> None:
    scores = rows("scenes", 0.01, scratch=[0.1, 0.2], rendering=[0.2, 0.3])
    scores += rows("scenes", 1.0, scratch=[0.4, 0.5], rendering=[0.4, 0.6])
    scores += rows("linear", 1.0, scratch=[0.4, 0.5], rendering=[0.4, 0.6])
    root = ET.parse(write_study_chart(tmp_path / "study.svg", scores)).getroot()
    space = "{http://www.w3.org/2000/svg}"
    assert len(root.findall(f"{space}g")) == 1
    assert len(root.findall(f".//{space}polyline")) == 2
    assert {"scratch", "rendering", "1 %", "100 %"} <= {text.text for text in root.iter(f"{space}text")}
