"""Tables, desks and counters. Sizes in metres; +y is the front."""

from __future__ import annotations

from .assets import Asset, Item, Support
from .classes import Draw
from .primitives import Part, box, cylinder, ellipsoid, moved, rotation_z
from .storage import base_units


def table(draw: Draw, kind: str = "dining") -> Asset:
    """A `dining` table, a low `coffee` table, or a small `side` table."""
    w, d, h = {
        "dining": (draw.uniform(0.8, 1.9), draw.uniform(0.7, 1.0), draw.uniform(0.7, 0.78)),
        "coffee": (draw.uniform(0.6, 1.2), draw.uniform(0.45, 0.7), draw.uniform(0.32, 0.5)),
        "side": (draw.uniform(0.38, 0.6), draw.uniform(0.35, 0.5), draw.uniform(0.45, 0.65)),
    }[kind]
    thickness = draw.uniform(0.02, 0.05)
    is_round = draw.chance(0.3)
    if is_round:
        w = d = min(w, d * 1.25)
        parts = [cylinder((0, 0, h - thickness / 2), w / 2, thickness, "top")]
    else:
        parts = [box((-w / 2, -d / 2, h - thickness), (w / 2, d / 2, h), "top")]
    parts += _frame(draw, w, d, h - thickness, is_round=is_round)
    r = 0.32 if is_round else 0.45
    seats = (max(1, int(w / 0.62)), 1 if d > 0.75 else 0)
    return Asset([Item(f"{kind} table", "table", parts)], [Support((-r * w, -r * d), (r * w, r * d), h)], seats)


def _frame(draw: Draw, w: float, d: float, top: float, *, is_round: bool) -> list[Part]:
    style = draw.style(("legs", "legs", "round_legs", "pedestal"), ("trestle", "cross"))
    if style == "pedestal" or (is_round and style == "trestle"):
        return [cylinder((0, 0, top / 2), 0.045, top, "legs"), cylinder((0, 0, 0.02), 0.35 * min(w, d), 0.04, "legs")]
    reach = 0.34 if is_round else 0.5
    x, y = reach * w - 0.05, reach * d - 0.05
    if style == "trestle":
        parts = [box((s * x * 0.85 - 0.03, -y, 0), (s * x * 0.85 + 0.03, y, top), "legs") for s in (-1, 1)]
        return [*parts, box((-x * 0.85, -0.02, 0.12), (x * 0.85, 0.02, 0.18), "legs")]
    if style == "cross":
        length = 2 * (x**2 + y**2) ** 0.5
        foot = [box((-length / 2, -0.03, 0), (length / 2, 0.03, 0.05), rotation=rotation_z(s * 0.7)) for s in (-1, 1)]
        feet = [Part(p.kind, p.center, p.half, "legs", p.rotation) for p in foot]
        return [*feet, cylinder((0, 0, top / 2), 0.05, top, "legs")]
    r = draw.uniform(0.02, 0.04)
    corners = [(sx * x, sy * y) for sx in (-1, 1) for sy in (-1, 1)]
    if style == "legs":
        parts = [box((cx - r, cy - r, 0), (cx + r, cy + r, top), "legs") for cx, cy in corners]
    else:
        parts = [cylinder((cx, cy, top / 2), r, top, "legs") for cx, cy in corners]
    if draw.chance(0.5):  # an apron under the top
        parts += [box((-x, s * y - 0.01, top - 0.08), (x, s * y + 0.01, top), "legs") for s in (-1, 1)]
    return parts


def desk(draw: Draw) -> Asset:
    """A desk at a wall: top, modesty panel, drawers or panels for legs; monitor, keyboard and the like on it."""
    w, d, h = draw.uniform(1.0, 1.8), draw.uniform(0.55, 0.8), draw.uniform(0.7, 0.78)
    thickness = draw.uniform(0.02, 0.04)
    parts = [box((-w / 2, -d / 2, h - thickness), (w / 2, d / 2, h), "top")]
    top = h - thickness
    style = draw.style(("panels", "drawers", "legs"), ("double", "sawhorse"))
    for side in (-1, 1):
        x0, x1 = sorted((side * (w / 2 - 0.01), side * (w / 2 - 0.4)))
        if style == "double" or (style == "drawers" and side == 1):
            parts += _drawers(draw, x0, x1, d, top)
        elif style in ("panels", "drawers"):
            parts.append(
                box(
                    (side * (w / 2 - 0.02) - 0.015, -d / 2 + 0.02, 0),
                    (side * (w / 2 - 0.02) + 0.015, d / 2 - 0.03, top),
                    "body",
                )
            )
        elif style == "sawhorse":
            parts += [
                box((side * w * 0.36 - 0.2, y - 0.02, 0.0), (side * w * 0.36 + 0.2, y + 0.02, top), "legs")
                for y in (-d * 0.35, d * 0.35)
            ]
        else:
            parts += [
                box(
                    (side * (w / 2 - 0.05) - 0.025, y - 0.025, 0),
                    (side * (w / 2 - 0.05) + 0.025, y + 0.025, top),
                    "legs",
                )
                for y in (-d / 2 + 0.05, d / 2 - 0.05)
            ]
    if style in ("panels", "drawers", "legs") and draw.chance(0.6):
        parts.append(box((-w / 2 + 0.03, -d / 2 + 0.04, 0.35), (w / 2 - 0.03, -d / 2 + 0.06, top), "body"))
    if draw.chance(0.25):  # a shelf above the desk top
        z = h + draw.uniform(0.3, 0.4)
        parts.append(box((-w / 2, -d / 2, z), (w / 2, -d / 2 + 0.22, z + 0.02), "top"))
        parts += [
            box((s * w / 2 - 0.02 * (s > 0), -d / 2, h), (s * w / 2 + 0.02 * (s < 0), -d / 2 + 0.22, z), "body")
            for s in (-1, 1)
        ]
    items = [Item("desk", "desk", parts)]
    if draw.chance(0.85):
        items.append(Item("monitor", "otherfurniture", _monitor(draw, draw.uniform(-w / 4, w / 4), -d / 2 + 0.27, h)))
    if draw.chance(0.6):
        items.append(Item("keyboard", "otherfurniture", [box((-0.2, 0.02, h), (0.2, 0.16, h + 0.025), "screen")]))
    return Asset(items, [Support((-w / 2 + 0.05, -d / 2 + 0.25), (w / 2 - 0.05, d / 2 - 0.05), h)])


def _drawers(draw: Draw, x0: float, x1: float, d: float, top: float) -> list[Part]:
    parts = [box((x0, -d / 2 + 0.03, 0.02), (x1, d / 2 - 0.04, top), "body")]
    count = draw.integer(2, 4)
    for k in range(count):
        z0, z1 = 0.05 + (top - 0.06) * k / count, 0.03 + (top - 0.06) * (k + 1) / count
        parts.append(box((x0 + 0.01, d / 2 - 0.05, z0), (x1 - 0.01, d / 2 - 0.025, z1), "front"))
        parts.append(
            box(
                ((x0 + x1) / 2 - 0.05, d / 2 - 0.03, (z0 + z1) / 2),
                ((x0 + x1) / 2 + 0.05, d / 2 - 0.005, (z0 + z1) / 2 + 0.015),
                "metal",
            )
        )
    return parts


def _monitor(draw: Draw, x: float, y: float, z: float) -> list[Part]:
    w, h = draw.uniform(0.4, 0.65), draw.uniform(0.27, 0.38)
    return [
        cylinder((x, y, z + 0.01), 0.11, 0.02, "screen"),
        box((x - 0.03, y - 0.03, z + 0.01), (x + 0.03, y, z + 0.25), "screen"),
        box((x - w / 2, y - 0.005, z + 0.1), (x + w / 2, y + 0.03, z + 0.1 + h), "screen"),
        box((x - w / 2 + 0.015, y + 0.02, z + 0.115), (x + w / 2 - 0.015, y + 0.033, z + 0.085 + h), "display"),
    ]


def counter(draw: Draw, width: float) -> Asset:
    """A kitchen run at a wall: base units (cabinet), worktop (counter), a sink sunk into it, wall units above."""
    d, h, thickness = draw.uniform(0.58, 0.65), draw.uniform(0.86, 0.93), draw.uniform(0.03, 0.05)
    w = width
    items = [Item("base units", "cabinet", base_units(draw, w, d - 0.03, h - thickness))]
    sink_w, sink_d = draw.uniform(0.4, 0.6), draw.uniform(0.34, 0.42)
    x = draw.uniform(-w / 2 + 0.35, w / 2 - 0.35) if w > 1.0 else 0.0
    x0, x1, y0, y1 = x - sink_w / 2, x + sink_w / 2, -sink_d / 2 + 0.02, sink_d / 2 + 0.02
    z0 = h - thickness
    top = [
        box((-w / 2, -d / 2, z0), (x0, d / 2, h), "top"),
        box((x1, -d / 2, z0), (w / 2, d / 2, h), "top"),
        box((x0 - 0.001, -d / 2, z0), (x1 + 0.001, y0, h), "top"),
        box((x0 - 0.001, y1, z0), (x1 + 0.001, d / 2, h), "top"),
    ]
    top = [Part(p.kind, p.center, p.half, p.slot, p.rotation, box((0, 0, z0), (0, 0, z0)).center) for p in top]
    if draw.chance(0.6):  # splashback
        top.append(box((-w / 2, -d / 2, h - 0.005), (w / 2, -d / 2 + 0.02, h + draw.uniform(0.05, 0.5)), "splash"))
    items.append(Item("worktop", "counter", top))
    rim = 0.02
    basin = [
        # Rims stand a little proud of the worktop; the bottom of the basin is shallow, above the base units' top.
        box((x0 - rim, y0 - rim, h - 0.01), (x0 + rim, y1 + rim, h + 0.012), "basin"),
        box((x1 - rim, y0 - rim, h - 0.01), (x1 + rim, y1 + rim, h + 0.012), "basin"),
        box((x0, y0 - rim, h - 0.01), (x1, y0 + rim, h + 0.011), "basin"),
        box((x0, y1 - rim, h - 0.01), (x1, y1 + rim, h + 0.011), "basin"),
        box((x0, y0, z0 - 0.005), (x1, y1, z0 + 0.006), "basin"),
        cylinder((x, y0 - 0.045, h + 0.12), 0.014, 0.24, "metal"),
        box((x - 0.012, y0 - 0.045, h + 0.215), (x + 0.012, y0 + 0.13, h + 0.24), "metal"),
    ]
    items.append(Item("kitchen sink", "sink", basin))
    if draw.chance(0.6):
        low, high, depth = draw.uniform(1.35, 1.5), draw.uniform(1.95, 2.15), draw.uniform(0.3, 0.38)
        wall = base_units(draw, w, depth, high - low)
        items.append(Item("wall units", "cabinet", moved(wall, (0.0, (depth - d) / 2, low))))
    if w > 1.6 and draw.chance(0.7):
        side = -1 if x > 0 else 1
        hob = side * draw.uniform(0.25, 0.4) * w
        rings = [cylinder((hob + a, b, h + 0.012), 0.07, 0.012, "screen") for a in (-0.11, 0.11) for b in (-0.1, 0.12)]
        items.append(
            Item("hob", "otherfurniture", [box((hob - 0.27, -0.22, h), (hob + 0.27, 0.24, h + 0.01), "screen"), *rings])
        )
    return Asset(items, [Support((-w / 2 + 0.1, -d / 2 + 0.08), (w / 2 - 0.1, d / 2 - 0.1), h, 0.4)])


def bowl(x: float, y: float, z: float, r: float) -> list[Part]:
    """A shallow bowl of fruit."""
    return [
        cylinder((x, y, z + 0.03), r, 0.06, "body"),
        ellipsoid((x, y, z + 0.07), (0.8 * r, 0.8 * r, 0.05), "accent"),
    ]
