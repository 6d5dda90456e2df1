"""Toilets, wash basins, bathtubs, and curtains of cloth. Sizes in metres; +y is the front."""

from __future__ import annotations

from .assets import Asset, Item, Support, asset
from .classes import Draw
from .primitives import Part, box, cylinder, ellipsoid
from .storage import base_units


def toilet(draw: Draw) -> Asset:
    """Bowl, seat, lid and cistern; in the test split also wall-hung ones."""
    w, d, h = draw.uniform(0.34, 0.4), draw.uniform(0.6, 0.7), draw.uniform(0.38, 0.44)
    style = draw.style(("cistern", "tall_cistern"), ("wall_hung",))
    tank = {"cistern": 0.18, "tall_cistern": 0.2, "wall_hung": 0.1}[style]
    bowl = (d - tank) / 2
    y = -d / 2 + tank + bowl
    if style == "wall_hung":
        parts = [ellipsoid((0, y - 0.04, h - 0.13), (w / 2, bowl + 0.02, 0.16), "ceramic")]
        parts.append(box((-0.3, -d / 2, 0), (0.3, -d / 2 + tank, 1.05), "panel"))
        parts.append(box((-0.1, -d / 2 + tank, 0.85), (0.1, -d / 2 + tank + 0.012, 0.97), "metal"))
    else:
        top = h + (0.36 if style == "cistern" else 0.48)
        parts = [box((-w * 0.32, -d / 2 + 0.04, 0), (w * 0.32, y + bowl * 0.4, h - 0.12), "ceramic")]
        parts.append(ellipsoid((0, y, h - 0.1), (w / 2, bowl, 0.15), "ceramic"))
        parts.append(box((-w / 2, -d / 2, h - 0.05), (w / 2, -d / 2 + tank, top), "ceramic"))
        parts.append(box((-w / 2 - 0.01, -d / 2, top), (w / 2 + 0.01, -d / 2 + tank + 0.01, top + 0.025), "ceramic"))
        parts.append(cylinder((0, -d / 2 + tank / 2, top + 0.03), 0.025, 0.03, "metal"))
    seat = [ellipsoid((0, y, h), (w / 2 + 0.01, bowl + 0.01, 0.022), "seat")]
    if draw.chance(0.4):  # lid up
        seat.append(
            box((-w / 2 + 0.02, -d / 2 + tank + 0.005, h), (w / 2 - 0.02, -d / 2 + tank + 0.03, h + bowl * 1.7), "seat")
        )
    else:
        seat.append(ellipsoid((0, y, h + 0.022), (w / 2 - 0.005, bowl - 0.005, 0.015), "seat"))
    return asset("toilet", "toilet", parts + seat)


def wash_basin(draw: Draw) -> Asset:
    """A basin on a pedestal, or set on a vanity unit (a cabinet)."""
    style = draw.style(("pedestal", "vanity", "vanity"), ("bowl",))
    w, d, h = draw.uniform(0.5, 0.65), draw.uniform(0.42, 0.52), draw.uniform(0.8, 0.88)
    items = []
    if style == "pedestal":
        parts = [cylinder((0, -d / 2 + 0.16, (h - 0.1) / 2), 0.085, h - 0.1, "ceramic")]
        parts += _basin(w, d, h, 0.14)
    elif style == "vanity":
        items.append(
            Item("vanity unit", "cabinet", base_units(draw, max(w, draw.uniform(0.5, 1.0)), d - 0.02, h - 0.09))
        )
        parts = _basin(w, d, h, 0.1)
    else:
        unit = draw.uniform(0.6, 0.9)
        items.append(Item("vanity unit", "cabinet", base_units(draw, unit, d - 0.02, h - 0.12)))
        parts = [
            cylinder((0, 0, h - 0.05), 0.19, 0.14, "ceramic"),
            ellipsoid((0, 0, h + 0.02), (0.17, 0.17, 0.008), "basin"),
        ]
    parts.append(cylinder((0, -d / 2 + 0.05, h + 0.06), 0.015, 0.14, "metal"))
    parts.append(box((-0.012, -d / 2 + 0.05, h + 0.11), (0.012, -d / 2 + 0.17, h + 0.13), "metal"))
    items.append(Item("wash basin", "sink", parts))
    return Asset(items)


def _basin(w: float, d: float, h: float, depth: float) -> list[Part]:
    rim = 0.05
    return [
        box((-w / 2, -d / 2, h - depth), (w / 2, -d / 2 + 2 * rim, h), "ceramic"),
        box((-w / 2, d / 2 - rim, h - depth), (w / 2, d / 2, h), "ceramic"),
        box((-w / 2 + 0.001, -d / 2 + 0.002, h - depth + 0.001), (-w / 2 + rim, d / 2 - 0.002, h - 0.001), "ceramic"),
        box((w / 2 - rim, -d / 2 + 0.002, h - depth + 0.001), (w / 2 - 0.001, d / 2 - 0.002, h - 0.001), "ceramic"),
        box((-w / 2 + 0.01, -d / 2 + 0.01, h - depth + 0.002), (w / 2 - 0.01, d / 2 - 0.01, h - depth + 0.03), "basin"),
    ]


def bathtub(draw: Draw) -> Asset:
    """A tub along a wall, often with water, and (three in five) a shower curtain along its open side."""
    w, d, h = draw.uniform(1.4, 1.75), draw.uniform(0.68, 0.82), draw.uniform(0.48, 0.62)
    style = draw.style(("panel", "panel"), ("freestanding",))
    rim, z = draw.uniform(0.05, 0.08), 0.0 if style == "panel" else 0.08
    parts = [
        box((-w / 2, -d / 2, z), (w / 2, -d / 2 + rim, h), "ceramic"),
        box((-w / 2, d / 2 - rim, z), (w / 2, d / 2, h), "ceramic"),
        box((-w / 2 + 0.001, -d / 2 + 0.002, z), (-w / 2 + rim, d / 2 - 0.002, h - 0.001), "ceramic"),
        box((w / 2 - rim, -d / 2 + 0.002, z), (w / 2 - 0.001, d / 2 - 0.002, h - 0.001), "ceramic"),
        box(
            (-w / 2 + 0.01, -d / 2 + 0.01, z + 0.01), (w / 2 - 0.01, d / 2 - 0.01, z + draw.uniform(0.08, 0.3)), "basin"
        ),
        cylinder((-w / 2 + 0.04, 0, h + 0.05), 0.015, 0.12, "metal"),
        box((-w / 2 + 0.03, -0.015, h + 0.09), (-w / 2 + 0.17, 0.015, h + 0.115), "metal"),
    ]
    if style == "freestanding":
        parts += [cylinder((s * w / 2, 0, (z + h) / 2), d / 2 - 0.02, h - z - 0.01, "ceramic") for s in (-1, 1)]
        parts += [
            ellipsoid((sx * w * 0.4, sy * d * 0.35, 0.05), (0.05, 0.05, 0.06), "metal")
            for sx in (-1, 1)
            for sy in (-1, 1)
        ]
    items = [Item("bathtub", "bathtub", parts)]
    if draw.chance(0.65):
        span = draw.uniform(0.35, 0.95) * w
        x0 = draw.pick((-w / 2, w / 2 - span))
        rod = draw.uniform(1.95, 2.1)
        cloth = folds(draw, x0, x0 + span, d / 2 + 0.05, draw.uniform(0.12, 0.3), rod)
        cloth.append(cylinder((0, d / 2 + 0.05, rod + 0.02), 0.012, w + 0.05, "metal", axis="x"))
        items.append(Item("shower curtain", "shower curtain", cloth))
    return Asset(items, [Support((-w / 2, -d / 2), (-w / 2 + 0.12, d / 2), h, 0.2)] if style == "panel" else [])


def folds(draw: Draw, x0: float, x1: float, y: float, low: float, high: float) -> list[Part]:
    """Hanging cloth: a row of upright cylinders that overlap, alternately forward and back."""
    pitch = draw.uniform(0.07, 0.12)
    count = max(2, round((x1 - x0) / pitch))
    depth = draw.uniform(0.012, 0.03)
    return [
        cylinder(
            (x0 + (k + 0.5) * (x1 - x0) / count, y + (depth if k % 2 else -depth), (low + high) / 2),
            0.56 * (x1 - x0) / count,
            high - low,
            "cloth",
        )
        for k in range(count)
    ]


def curtains(draw: Draw, width: float, bottom: float, top: float) -> Asset:
    """One or two drapes in front of a window of `width`, hanging from a rod; the back is at y = 0."""
    to_floor = draw.chance(0.6)
    low = draw.uniform(0.01, 0.06) if to_floor else bottom - draw.uniform(0.05, 0.2)
    rod = top + draw.uniform(0.08, 0.18)
    span = draw.uniform(0.18, 0.4) * (width + 0.3)
    sides = draw.style(((-1, 1), (-1, 1), (-1,), (1,)), ((0,),))
    parts: list[Part] = []
    for side in sides:
        x = side * ((width + 0.3) / 2 - span / 2)
        parts += folds(draw, x - span / 2, x + span / 2, 0.1, low, rod)
    parts.append(cylinder((0, 0.1, rod + 0.015), 0.014, width + 0.45, "metal", axis="x"))
    return asset("curtain", "curtain", parts)
