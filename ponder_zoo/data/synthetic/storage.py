"""Cabinets, wardrobes, drawer chests, bookshelves and refrigerators. Sizes in metres; +y is the front."""

from __future__ import annotations

import itertools

from .assets import Asset, Item, Support, asset
from .classes import Draw
from .primitives import Part, box, cylinder


def base_units(draw: Draw, w: float, d: float, h: float) -> list[Part]:
    """A row of closed units of total width `w` on a plinth: carcass, fronts and handles."""
    count = max(1, round(w / draw.uniform(0.45, 0.65)))
    parts = [box((-w / 2, -d / 2, 0.0), (w / 2, d / 2 - 0.05, 0.09), "plinth")]
    parts.append(box((-w / 2, -d / 2, 0.08), (w / 2, d / 2 - 0.02, h), "body"))
    drawers = draw.integer(0, count - 1)
    handle = draw.style(("bar", "knob", "none"), ("long", "cup"))
    for k in range(count):
        x0, x1 = -w / 2 + w * k / count + 0.004, -w / 2 + w * (k + 1) / count - 0.004
        rows = 3 if k == drawers else 1
        for r in range(rows):
            z0, z1 = 0.1 + (h - 0.11) * r / rows, 0.092 + (h - 0.11) * (r + 1) / rows
            parts += front(x0, x1, z0, z1, d / 2, handle, upright=rows == 1)
    return parts


def front(x0: float, x1: float, z0: float, z1: float, y: float, handle: str, *, upright: bool) -> list[Part]:
    """One door or drawer front ending at `y`, with its handle."""
    parts = [box((x0, y - 0.03, z0), (x1, y, z1), "front")]
    x, z = (x0 + x1) / 2, (z0 + z1) / 2
    if handle == "knob":
        parts.append(cylinder((x1 - 0.05 if upright else x, y + 0.01, z), 0.015, 0.03, "metal", axis="y"))
    elif handle in ("bar", "long"):
        size = 0.45 * (z1 - z0 if upright else x1 - x0) if handle == "long" else 0.06
        if upright:
            parts.append(box((x1 - 0.05, y, z - size), (x1 - 0.035, y + 0.025, z + size), "metal"))
        else:
            parts.append(box((x - size, y, z), (x + size, y + 0.025, z + 0.015), "metal"))
    elif handle == "cup":
        parts.append(box((x - 0.05, y, z1 - 0.06), (x + 0.05, y + 0.03, z1 - 0.035), "metal"))
    return parts


def cabinet(draw: Draw, kind: str = "sideboard") -> Asset:
    """A `sideboard`, `chest` of drawers, `wardrobe`, `nightstand` or `filing` cabinet."""
    w, d, h = {
        "sideboard": (draw.uniform(0.8, 1.8), draw.uniform(0.35, 0.5), draw.uniform(0.55, 0.95)),
        "chest": (draw.uniform(0.6, 1.1), draw.uniform(0.4, 0.52), draw.uniform(0.7, 1.2)),
        "wardrobe": (draw.uniform(0.9, 2.0), draw.uniform(0.5, 0.65), draw.uniform(1.8, 2.25)),
        "nightstand": (draw.uniform(0.36, 0.55), draw.uniform(0.34, 0.45), draw.uniform(0.42, 0.65)),
        "filing": (draw.uniform(0.4, 0.5), draw.uniform(0.45, 0.6), draw.uniform(0.65, 1.35)),
    }[kind]
    foot = draw.style(("plinth", "floor"), ("legs", "frame"))
    z = {"plinth": 0.07, "floor": 0.0, "legs": 0.16, "frame": 0.12}[foot]
    parts = [box((-w / 2, -d / 2, z), (w / 2, d / 2 - 0.02, h - 0.02), "body")]
    over = draw.uniform(0.0, 0.02)
    parts.append(box((-w / 2 - over, -d / 2, h - 0.025), (w / 2 + over, d / 2 + over, h), "top"))
    if foot == "plinth":
        parts.append(box((-w / 2 + 0.02, -d / 2, 0), (w / 2 - 0.02, d / 2 - 0.06, z), "plinth"))
    elif foot != "floor":
        r = 0.02
        parts += [
            box(
                (sx * (w / 2 - 0.04) - r, sy * (d / 2 - 0.04) - r, 0),
                (sx * (w / 2 - 0.04) + r, sy * (d / 2 - 0.04) + r, z),
                "legs",
            )
            for sx in (-1, 1)
            for sy in (-1, 1)
        ]
        if foot == "frame":
            parts.append(box((-w / 2 + 0.03, -0.02, z - 0.03), (w / 2 - 0.03, 0.02, z), "legs"))
    handle = draw.style(("bar", "knob", "none"), ("long", "cup"))
    columns = {"sideboard": max(2, round(w / 0.5)), "wardrobe": max(2, round(w / 0.5))}.get(kind, 1 if w < 0.9 else 2)
    rows = {"chest": draw.integer(3, 5), "filing": draw.integer(2, 4), "nightstand": draw.integer(1, 3)}.get(kind, 1)
    open_column = draw.integer(0, columns - 1) if kind == "sideboard" and draw.chance(0.4) else -1
    for c in range(columns):
        x0, x1 = -w / 2 + w * c / columns + 0.006, -w / 2 + w * (c + 1) / columns - 0.006
        if c == open_column:
            parts += [
                box((x0, d / 2 - 0.03, z), (x0 + 0.02, d / 2, h - 0.02), "front"),
                box((x0, d / 2 - 0.03, (z + h) / 2), (x1, d / 2, (z + h) / 2 + 0.02), "front"),
            ]
            continue
        for r in range(rows):
            z0 = z + 0.01 + (h - z - 0.03) * r / rows
            z1 = z + (h - z - 0.03) * (r + 1) / rows
            parts += front(x0, x1, z0, z1, d / 2, handle, upright=rows == 1)
    supports = [] if h > 1.4 else [Support((-w / 2 + 0.05, -d / 2 + 0.05), (w / 2 - 0.05, d / 2 - 0.06), h)]
    return asset(kind, "cabinet", parts, supports)


def bookshelf(draw: Draw) -> Asset:
    """Open shelves with books, some boxes, some gaps. The books belong to the shelf."""
    w, d, h = draw.uniform(0.6, 1.4), draw.uniform(0.24, 0.36), draw.uniform(0.9, 2.2)
    t = draw.uniform(0.018, 0.03)
    style = draw.style(("closed_back", "closed_back", "open_back"), ("posts", "ladder"))
    parts: list[Part] = []
    if style in ("posts", "ladder"):
        xs = (-w / 2 + 0.02, w / 2 - 0.02)
        for x in xs:
            parts += [cylinder((x, y, h / 2), 0.015, h, "legs") for y in (-d / 2 + 0.02, d / 2 - 0.02)]
            if style == "ladder":
                parts.append(box((x - 0.01, -d / 2 + 0.02, h - 0.04), (x + 0.01, d / 2 - 0.02, h - 0.02), "legs"))
    else:
        parts += [
            box((-w / 2, -d / 2, 0), (-w / 2 + t, d / 2, h), "body"),
            box((w / 2 - t, -d / 2, 0), (w / 2, d / 2, h), "body"),
        ]
    if style == "closed_back":
        parts.append(box((-w / 2 + 0.005, -d / 2 + 0.003, 0.02), (w / 2 - 0.005, -d / 2 + 0.015, h - 0.005), "body"))
    count = max(2, round(h / draw.uniform(0.3, 0.42)))
    levels = [0.04 + (h - 0.04 - t) * k / count for k in range(count + 1)]
    parts += [box((-w / 2 + 0.002, -d / 2 + 0.004, z), (w / 2 - 0.002, d / 2 - 0.004, z + t), "shelf") for z in levels]
    for low, high in itertools.pairwise(levels):
        parts += _books(draw, w - 2 * t, d, low + t, high)
    top = [Support((-w / 2 + 0.05, -d / 2 + 0.04), (w / 2 - 0.05, d / 2 - 0.04), levels[-1] + t)] if h < 1.5 else []
    return Asset([Item("bookshelf", "bookshelf", parts)], top)


def _books(draw: Draw, w: float, d: float, low: float, high: float) -> list[Part]:
    """One to four groups of books (a box each: a row of spines is a striped texture) on one board."""
    parts, x = [], -w / 2 + 0.01
    for k in range(draw.integer(1, 4)):
        x += draw.uniform(0.0, 0.15)
        width, height = draw.uniform(0.08, 0.32), draw.uniform(0.55, 0.9) * (high - low)
        if x + width > w / 2 - 0.01:
            break
        depth = draw.uniform(0.55, 0.85) * d
        parts.append(box((x, -d / 2 + 0.02, low), (x + width, -d / 2 + 0.02 + depth, low + height), f"books{k % 3}"))
        x += width
    return parts


def refrigerator(draw: Draw) -> Asset:
    """A fridge: body, two doors with a gap between them, handles."""
    w, d, h = draw.uniform(0.55, 0.75), draw.uniform(0.55, 0.7), draw.uniform(1.4, 1.95)
    parts = [box((-w / 2, -d / 2, 0.03), (w / 2, d / 2 - 0.06, h), "body")]
    parts.append(box((-w / 2 + 0.02, -d / 2 + 0.02, 0.0), (w / 2 - 0.02, d / 2 - 0.08, 0.04), "plinth"))
    style = draw.style(("freezer_below", "freezer_above", "single"), ("side_by_side",))
    if style == "side_by_side":
        doors = [(-w / 2, -0.004, 0.06, h), (0.004, w / 2, 0.06, h)]
    else:
        split = {"freezer_below": 0.38 * h, "freezer_above": 0.68 * h, "single": h + 0.01}[style]
        doors = [(-w / 2, w / 2, 0.06, split - 0.005), (-w / 2, w / 2, split + 0.005, h)]
        doors = [door for door in doors if door[3] > door[2]]
    parts += [box((x0, d / 2 - 0.055, z0), (x1, d / 2, z1), "front") for x0, x1, z0, z1 in doors]
    for k, (x0, x1, z0, z1) in enumerate(doors):
        x = (x1 - 0.06) if style != "side_by_side" or k == 0 else x0 + 0.06
        size, z = min(0.25, 0.35 * (z1 - z0)), (z0 + z1) / 2
        parts.append(box((x - 0.012, d / 2, z - size), (x + 0.012, d / 2 + 0.04, z + size), "metal"))
    return asset("refrigerator", "refrigerator", parts)
