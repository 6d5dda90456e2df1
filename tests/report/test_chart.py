"""Charts: places of points, error bars, names."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest

from ponder_zoo.report.chart import Curve, Panel, Point, write_chart

SVG = "{http://www.w3.org/2000/svg}"


def draw(tmp_path, *panels: Panel) -> ET.Element:
    return ET.parse(write_chart(tmp_path / "chart.svg", panels, label='a "label" & more')).getroot()


def circles(root: ET.Element) -> list[tuple[float, float]]:
    return [(float(c.get("cx", "")), float(c.get("cy", ""))) for c in root.iter(f"{SVG}circle")]


def test_logarithmic_x_and_linear_y(tmp_path) -> None:
    (x0, y0), (x1, y1), (x2, y2) = circles(
        draw(tmp_path, Panel("t", "x", "y", [Curve("c", [Point(1, 10), Point(10, 20), Point(100, 40)])]))
    )
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y1 - y2 == pytest.approx(2 * (y0 - y1), abs=0.2)  # upwards on paper is down in SVG


def test_logarithmic_y(tmp_path) -> None:
    curve = Curve("c", [Point(1, 1), Point(2, 10), Point(4, 100)])
    (_, y0), (_, y1), (_, y2) = circles(draw(tmp_path, Panel("t", "x", "y", [curve], log_y=True)))
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2)


def test_error_bars_end_where_they_should(tmp_path) -> None:
    curve = Curve("c", [Point(1, 10), Point(10, 20, 10, 20)])
    root = draw(tmp_path, Panel("t", "x", "y", [curve]))
    (_, low), (_, high) = circles(root)
    (bar,) = [path.get("d", "") for path in root.iter(f"{SVG}path") if "V" in path.get("d", "")]
    ends = [float(number) for number in re.findall(r"[\d.]+", bar)[1:]]
    assert ends == pytest.approx([low, high], abs=0.2)


def test_names_are_escaped_and_empty_panels_left_out(tmp_path) -> None:
    curves = [Curve("a<b", [Point(1, 1)]), Curve("guide", [Point(1, 1)], guide=True)]
    root = draw(tmp_path, Panel("t", "x", "y", curves), Panel("empty", "x", "y", [Curve("none", [])]))
    assert root.get("aria-label") == 'a "label" & more'
    assert len(root.findall(f"{SVG}g")) == 1
    assert "a<b" in {text.text for text in root.iter(f"{SVG}text")}
    assert len(circles(root)) == 1  # a guide has no markers


def test_the_legend_is_below_the_curves_and_inside_the_picture(tmp_path) -> None:
    names = ["scratch", "clusters", "labels of other rooms", "one more"]
    root = draw(tmp_path, Panel("t", "x axis", "y", [Curve(name, [Point(1, 1), Point(9, 2)]) for name in names]))
    texts = {text.text: (float(text.get("x", "")), float(text.get("y", ""))) for text in root.iter(f"{SVG}text")}
    lowest = max(y for _, y in circles(root))
    assert all(lowest < texts["x axis"][1] < texts[name][1] < float(root.get("height", "")) for name in names)
    assert all(texts[name][0] + 6 * len(name) < float(root.get("width", "")) for name in names)
    assert len({texts[name] for name in names}) == 4
