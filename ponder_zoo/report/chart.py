"""Line charts as SVG: a few panels with curves, error bars and a legend below, without a drawing library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape, quoteattr

from ..files import write_atomic

WIDTH, HEIGHT, MARGIN = 430, 270, (62, 18, 46, 46)  # of a panel; left, right, top, bottom
INK, GRID, GUIDE = "#263238", "#e0e0e0", "#9e9e9e"
ROW, LETTER = 18, 7  # of the legend: height of a row, width to count on for a letter
COLORS = ("#00796b", "#e65100", "#3949ab", "#8e24aa", "#6d4c41", "#607d8b")  # of curves, in their order


class Point(NamedTuple):
    x: float
    y: float
    low: float | None = None  # of the error bar
    high: float | None = None


@dataclass(frozen=True)
class Curve:
    name: str
    points: Sequence[Point]
    guide: bool = False  # dashed and without markers: not measured


@dataclass(frozen=True)
class Panel:
    """Curves over a logarithmic x axis (positive values)."""

    title: str
    x: str  # what the axes show
    y: str
    curves: Sequence[Curve]
    log_y: bool = False
    labels: Sequence[tuple[float, str]] | None = None  # of the x axis; None: the x of all points


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    log: bool

    def place(self, value: float) -> float:
        """0 at the low end, 1 at the high one."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def write_chart(path: Path, panels: Sequence[Panel], *, label: str, columns: int = 2) -> Path:
    """Draw panels with at least one point side by side.

    Args:
        path: of the SVG file.
        panels: those without a point are left out.
        label: what the picture shows, for screen readers.
        columns: panels in a row.
    """
    panels = [panel for panel in panels if any(curve.points for curve in panel.curves)]
    columns = max(min(columns, len(panels)), 1)
    rows = -(-len(panels) // columns)
    height = HEIGHT + ROW * max((len(_legend_rows(panel.curves)) for panel in panels), default=0)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{columns * WIDTH}" height="{rows * height}" '
        f'viewBox="0 0 {columns * WIDTH} {rows * height}" '
        f'font-family="Helvetica, Arial, sans-serif" font-size="12" role="img" aria-label={quoteattr(label)}>',
        f'<rect width="{columns * WIDTH}" height="{rows * height}" fill="#ffffff"/>',
    ]
    for number, panel in enumerate(panels):
        place = f"translate({number % columns * WIDTH} {number // columns * height})"
        parts.append(f'<g transform="{place}">{_draw(panel, f"panel{number}")}</g>')
    return write_atomic(path, "\n".join([*parts, "</svg>", ""]))


def _draw(panel: Panel, name: str) -> str:
    left, right, top, bottom = MARGIN
    measured = [point for curve in panel.curves if not curve.guide for point in curve.points]
    ends = [value for p in measured for value in (p.y, p.low, p.high) if value is not None]
    x_axis, y_axis = _axis([point.x for point in measured], log=True), _axis(ends, log=panel.log_y)

    def across(x: float) -> float:
        return left + x_axis.place(x) * (WIDTH - left - right)

    def down(y: float) -> float:
        return HEIGHT - bottom - y_axis.place(y) * (HEIGHT - top - bottom)

    parts = [f'<text x="{left}" y="22" font-size="14" font-weight="bold" fill="{INK}">{escape(panel.title)}</text>']
    for tick in _ticks(y_axis):
        y = down(tick)
        parts.append(f'<line x1="{left}" x2="{WIDTH - right}" y1="{y:.1f}" y2="{y:.1f}" stroke="{GRID}"/>')
        parts.append(_text(left - 7, y + 4, f"{tick:g}", "end"))
    marks = panel.labels or [(x, _count(x)) for x in sorted({point.x for point in measured})]
    parts += [_text(across(x), HEIGHT - bottom + 17, text, "middle") for x, text in marks]
    parts.append(_text((left + WIDTH - right) / 2, HEIGHT - 10, panel.x, "middle"))
    parts.append(_text(left - 7, top - 8, panel.y, "end"))
    parts.append(
        f'<clipPath id="{name}"><rect x="{left}" y="{top}" width="{WIDTH - left - right}" '
        f'height="{HEIGHT - top - bottom}"/></clipPath>'
    )
    for number, curve in enumerate(panel.curves):
        color, style = _stroke(curve, number)
        clip = f' clip-path="url(#{name})"' if curve.guide else ""
        places = [(across(point.x), down(point.y)) for point in curve.points]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{color}" {style}{clip}/>')
        if not curve.guide:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{color}"/>' for x, y in places]
        for point in curve.points:
            if point.low is not None and point.high is not None:
                x, y1, y2 = across(point.x), down(point.low), down(point.high)
                parts.append(f'<path d="M{x:.1f} {y1:.1f}V{y2:.1f}" stroke="{color}"/>')
                parts += [f'<path d="M{x - 4:.1f} {y:.1f}h8" stroke="{color}"/>' for y in (y1, y2)]
    for row, entries in enumerate(_legend_rows(panel.curves)):
        y = HEIGHT + ROW * row + 4
        for x, number in entries:
            color, style = _stroke(panel.curves[number], number)
            parts.append(f'<path d="M{x} {y}h24" stroke="{color}" {style}/>')
            parts.append(_text(x + 30, y + 4, panel.curves[number].name, "start"))
    return "\n".join(parts)


def _stroke(curve: Curve, number: int) -> tuple[str, str]:
    """Colour of a curve, and how its line is drawn."""
    return (GUIDE, 'stroke-dasharray="4 4"') if curve.guide else (COLORS[number % len(COLORS)], 'stroke-width="2"')


def _legend_rows(curves: Sequence[Curve]) -> list[list[tuple[int, int]]]:
    """Where each curve's entry begins below the panel, and its number, row by row; nothing for a single curve."""
    rows: list[list[tuple[int, int]]] = []
    x = WIDTH
    for number, curve in enumerate(curves if len(curves) > 1 else ()):
        width = 30 + LETTER * len(curve.name)
        if x + width > WIDTH - MARGIN[1]:
            rows.append([])
            x = MARGIN[0]
        rows[-1].append((x, number))
        x += width + 14
    return rows


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{INK}">{escape(text)}</text>'


def _axis(values: Sequence[float], *, log: bool) -> _Axis:
    """The range of the values with a little room."""
    low, high = min(values), max(values)
    if log:
        room = max((high / low) ** 0.06, 1.05)
        return _Axis(low / room, high * room, log)
    room = max(0.06 * (high - low), 0.01 * abs(high), 1e-9)
    return _Axis(low - room, high + room, log)


def _ticks(axis: _Axis) -> list[float]:
    """Round numbers: multiples of 1, 2 or 5 times a power of ten, or on a logarithmic axis such numbers themselves."""
    if not axis.log:
        rough = (axis.high - axis.low) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(digit * power for digit in (1, 2, 5, 10) if digit * power >= rough)
        return [step * n for n in range(math.ceil(axis.low / step), math.floor(axis.high / step) + 1)]
    exponents = range(math.floor(math.log10(axis.low)), math.ceil(math.log10(axis.high)) + 1)
    fine = [digit * 10.0**e for e in exponents for digit in (1, 2, 5) if axis.low <= digit * 10.0**e <= axis.high]
    coarse = [10.0**e for e in exponents if axis.low <= 10.0**e <= axis.high]
    return fine if len(fine) <= 6 or len(coarse) < 2 else coarse


def _count(value: float) -> str:
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= max(size, 10_000):
            return f"{value / size:g}{letter}"
    return f"{value:g}"
