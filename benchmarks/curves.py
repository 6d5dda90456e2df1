"""The picture of the scaling curves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ponder_zoo.report.chart import Curve, Panel, Point, write_chart


def write_curves(results: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draw the cases named scaling/CURVE/X that are there, each beside exact proportionality through its last point."""

    def panel(title: str, x: str, y: str, curve: str, value: Callable[[Mapping[str, Any]], float]) -> Panel:
        found = {name: result for name, result in results.items() if name.startswith(f"scaling/{curve}/")}
        points = sorted(Point(float(name.rsplit("/", 1)[1]), value(result)) for name, result in found.items())
        slope = points[-1].y / points[-1].x if points else 0.0
        guide = [Point(point.x, slope * point.x) for point in points]
        curves = [Curve("measured", points), Curve("proportional", guide, guide=True)]
        return Panel(title, x, y, curves if len(points) > 1 else [], log_y=True)

    seconds = lambda result: result["ours"]  # noqa: E731
    panels = [
        panel("Feature extraction: time", "voxels", "s", "voxels", seconds),
        panel("Feature extraction: peak memory", "voxels", "GiB", "memory", lambda r: r["ours"] / 2**30),
        panel("Rendering, forward + backward", "rays", "s", "rays", seconds),
        panel("Training step of the encoder", "scenes in a batch", "s", "batch", seconds),
    ]
    write_chart(path, panels, label="Scaling curves")
