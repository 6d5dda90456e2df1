"""The picture of the scaling curves, as SVG without a drawing library."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WIDTH, HEIGHT, MARGIN = 430, 270, (62, 18, 46, 46)  # of a panel; left, right, top, bottom
LINE, GUIDE, INK, GRID = "#00796b", "#9e9e9e", "#263238", "#e0e0e0"

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Panel:
    """One curve on logarithmic axes, with a line for exact proportionality through its last point."""

    title: str
    x: str
    y: str
    points: Points


def write_curves(results: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draw the cases named scaling/CURVE/X that are there."""
    panels = [panel for panel in _panels(results) if len(panel.points) > 1]
    columns = min(2, len(panels))
    rows = -(-len(panels) // 2)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {columns * WIDTH} {rows * HEIGHT}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="12" role="img" aria-label="Scaling curves">',
        f'<rect width="{columns * WIDTH}" height="{rows * HEIGHT}" fill="#ffffff"/>',
    ]
    for number, panel in enumerate(panels):
        place = f"translate({number % 2 * WIDTH} {number // 2 * HEIGHT})"
        parts.append(f'<g transform="{place}">{_draw(panel, f"panel{number}")}</g>')
    path.write_text("\n".join([*parts, "</svg>", ""]), encoding="utf-8")


def _panels(results: Mapping[str, Mapping[str, Any]]) -> list[Panel]:
    def points(curve: str, value: Callable[[Mapping[str, Any]], float]) -> Points:
        found = {name: result for name, result in results.items() if name.startswith(f"scaling/{curve}/")}
        return sorted((float(name.rsplit("/", 1)[1]), value(result)) for name, result in found.items())

    seconds = lambda result: result["ours"]  # noqa: E731
    return [
        Panel("Feature extraction: time", "voxels", "s", points("voxels", seconds)),
        Panel("Feature extraction: peak memory", "voxels", "GiB", points("memory", lambda r: r["ours"] / 2**30)),
        Panel("Rendering, forward + backward", "rays", "s", points("rays", seconds)),
        Panel("Training step of the encoder", "scenes in a batch", "s", points("batch", seconds)),
    ]


def _draw(panel: Panel, name: str) -> str:
    left, right, top, bottom = MARGIN
    x_range, y_range = (_padded([point[axis] for point in panel.points]) for axis in (0, 1))

    def place(x: float, y: float) -> tuple[float, float]:
        across = (math.log(x) - math.log(x_range[0])) / math.log(x_range[1] / x_range[0])
        up = (math.log(y) - math.log(y_range[0])) / math.log(y_range[1] / y_range[0])
        return left + across * (WIDTH - left - right), HEIGHT - bottom - up * (HEIGHT - top - bottom)

    parts = [f'<text x="{left}" y="22" font-size="14" font-weight="bold" fill="{INK}">{panel.title}</text>']
    for tick in _ticks(y_range):
        _, y = place(x_range[0], tick)
        parts.append(f'<line x1="{left}" x2="{WIDTH - right}" y1="{y:.1f}" y2="{y:.1f}" stroke="{GRID}"/>')
        parts.append(_text(left - 7, y + 4, f"{tick:g}", "end"))
    for x, _ in panel.points:
        parts.append(_text(place(x, y_range[0])[0], HEIGHT - bottom + 17, _count(x), "middle"))
    parts.append(_text((left + WIDTH - right) / 2, HEIGHT - 10, panel.x, "middle"))
    parts.append(_text(left - 7, top - 8, panel.y, "end"))
    parts.append(
        f'<clipPath id="{name}"><rect x="{left}" y="{top}" width="{WIDTH - left - right}" '
        f'height="{HEIGHT - top - bottom}"/></clipPath>'
    )
    last_x, last_y = panel.points[-1]
    guide = [place(x, last_y * x / last_x) for x in x_range]
    parts.append(_polyline(guide, GUIDE, f'stroke-dasharray="4 4" clip-path="url(#{name})"'))
    curve = [place(*point) for point in panel.points]
    parts.append(_polyline(curve, LINE, 'stroke-width="2"'))
    parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{LINE}"/>' for x, y in curve]
    parts.append(
        f'<line x1="{WIDTH - right - 112}" x2="{WIDTH - right - 88}" y1="{HEIGHT - bottom - 12}" '
        f'y2="{HEIGHT - bottom - 12}" stroke="{GUIDE}" stroke-dasharray="4 4"/>'
    )
    parts.append(_text(WIDTH - right - 82, HEIGHT - bottom - 8, "proportional", "start"))
    return "\n".join(parts)


def _polyline(points: Points, color: str, style: str) -> str:
    places = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{places}" fill="none" stroke="{color}" {style}/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{INK}">{text}</text>'


def _padded(values: Sequence[float]) -> tuple[float, float]:
    """The range of positive values with a little room on a logarithmic axis."""
    low, high = min(values), max(values)
    room = max((high / low) ** 0.06, 1.05)
    return low / room, high * room


def _ticks(limits: tuple[float, float]) -> list[float]:
    """1, 2 and 5 times powers of ten; only the powers where there are many."""
    exponents = range(math.floor(math.log10(limits[0])), math.ceil(math.log10(limits[1])) + 1)
    fine = [digit * 10.0**e for e in exponents for digit in (1, 2, 5) if limits[0] <= digit * 10.0**e <= limits[1]]
    coarse = [10.0**e for e in exponents if limits[0] <= 10.0**e <= limits[1]]
    return fine if len(fine) <= 6 or len(coarse) < 2 else coarse


def _count(value: float) -> str:
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"
