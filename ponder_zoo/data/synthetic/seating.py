"""Chairs, stools, sofas and beds as assemblies of parts. Sizes in metres; +y is the front."""

from __future__ import annotations

from .assets import Asset, Item, Support, asset
from .classes import Draw
from .primitives import Part, box, cylinder, ellipsoid, rotation_x, rotation_z


def chair(draw: Draw, kind: str = "dining") -> Asset:
    """A chair (`dining`), a swivel chair (`office`), or a `stool` without back."""
    w, d, h = draw.uniform(0.38, 0.5), draw.uniform(0.38, 0.5), draw.uniform(0.42, 0.5)
    parts = _base(draw, kind, w, d, h)
    thickness = draw.uniform(0.025, 0.08)
    if draw.chance(0.25):
        parts.append(cylinder((0, 0, h - thickness / 2), min(w, d) / 2, thickness, "seat"))
    else:
        parts.append(box((-w / 2, -d / 2, h - thickness), (w / 2, d / 2, h), "seat"))
    if kind != "stool":
        parts += _back(draw, w, d, h, gap=thickness)
    if kind == "office" or (kind == "dining" and draw.chance(0.25)):
        rest = h + draw.uniform(0.17, 0.24)
        for side in (-1, 1):
            x = side * (w / 2 + 0.01)
            parts.append(box((x - 0.02, -d / 2 + 0.05, rest - 0.03), (x + 0.02, d / 2 - 0.06, rest), "legs"))
            parts.append(box((x - 0.015, d / 2 - 0.14, h - 0.02), (x + 0.015, d / 2 - 0.11, rest - 0.03), "legs"))
    return asset("stool" if kind == "stool" else f"{kind} chair", "chair", parts)


def _base(draw: Draw, kind: str, w: float, d: float, h: float) -> list[Part]:
    if kind == "office":
        style = "star"
    else:
        style = draw.style(("legs", "legs", "round_legs", "pedestal"), ("sled", "slabs", "splayed"))
    top = h - 0.02
    if style == "star":
        parts = [cylinder((0, 0, (0.1 + top) / 2), 0.03, top - 0.1, "legs")]
        for k in range(5):
            turn = rotation_z(k * 1.2566)
            parts.append(Part(0, turn @ [0.15, 0, 0.08], box((0, 0, 0), (0.3, 0.04, 0.03)).half, "legs", turn))
            parts.append(ellipsoid(turn @ [0.28, 0, 0.03], (0.03, 0.03, 0.03), "legs"))
        return parts
    if style == "pedestal":
        return [cylinder((0, 0, top / 2), 0.03, top, "legs"), cylinder((0, 0, 0.015), 0.2, 0.03, "legs")]
    x, y = w / 2 - 0.03, d / 2 - 0.03
    if style == "sled":
        parts = [box((s * x - 0.015, -y, 0), (s * x + 0.015, y, 0.03), "legs") for s in (-1, 1)]
        return parts + [box((s * x - 0.015, y - 0.03, 0.02), (s * x + 0.015, y, top), "legs") for s in (-1, 1)]
    if style == "slabs":
        return [box((s * x - 0.015, -y, 0), (s * x + 0.015, y, top), "legs") for s in (-1, 1)]
    radius = draw.uniform(0.014, 0.024)
    if style == "legs":
        return [
            box((sx * x - radius, sy * y - radius, 0), (sx * x + radius, sy * y + radius, top), "legs")
            for sx in (-1, 1)
            for sy in (-1, 1)
        ]
    lean = 0.18 if style == "splayed" else 0.0
    return [
        cylinder((sx * x, sy * (y + lean * top / 2), top / 2), radius, top, "legs", tilt=rotation_x(sy * lean))
        for sx in (-1, 1)
        for sy in (-1, 1)
    ]


def _back(draw: Draw, w: float, d: float, h: float, *, gap: float) -> list[Part]:
    top = h + draw.uniform(0.32, 0.55)
    y, lean = -d / 2, draw.uniform(0.0, 0.2)
    style = draw.style(("panel", "slats", "pad"), ("ladder", "hoop"))
    low, thickness = h + draw.uniform(0.0, 0.15), draw.uniform(0.02, 0.05)
    if style == "panel":
        flat = [box((-w / 2, y, low), (w / 2, y + thickness, top), "seat")]
    elif style == "pad":
        flat = [ellipsoid((0, y + 0.03, (low + top) / 2), (w / 2, 0.05, (top - low) / 2), "seat")]
    elif style == "hoop":
        flat = [cylinder((0, y + 0.02, (h + top) / 2), (top - h) / 2, 0.03, "seat", axis="y")]
    else:
        bars = 3 if style == "ladder" else 4
        flat = [
            box((s * w / 2 - 0.03 * (s > 0), y, h), (s * w / 2 + 0.03 * (s < 0), y + 0.03, top), "legs")
            for s in (-1, 1)
        ]
        flat.append(box((-w / 2, y, top - 0.06), (w / 2, y + 0.03, top), "seat"))
        for k in range(1, bars):
            if style == "ladder":
                z = h + (top - h) * k / bars - 0.03
                flat.append(box((-w / 2, y + 0.005, z), (w / 2, y + 0.025, z + 0.05), "seat"))
            else:
                x = -w / 2 + w * k / bars
                flat.append(box((x - 0.015, y + 0.005, h), (x + 0.015, y + 0.025, top - 0.05), "seat"))
    # Lean the whole back about the rear edge of the seat; it starts a little inside the seat, so no gap opens.
    pivot = box((0, y, h - gap), (0, y, h - gap)).center
    turn = rotation_x(lean)
    flat.append(box((-0.05, y, h - gap + 0.01), (0.05, y + 0.025, low + 0.05), "legs"))
    return [
        Part(p.kind, pivot + turn @ (p.center - pivot), p.half, p.slot, turn @ p.rotation, p.texture_origin)
        for p in flat
    ]


def sofa(draw: Draw) -> Asset:
    """An armchair, a two- or three-seater, or (one in five) an L-shaped sofa."""
    seats = draw.pick((1, 2, 2, 3, 3))
    arm = draw.uniform(0.1, 0.22)
    w, d = seats * draw.uniform(0.56, 0.7) + 2 * arm, draw.uniform(0.78, 0.98)
    seat_height, top = draw.uniform(0.38, 0.47), draw.uniform(0.7, 0.92)
    foot, back = draw.uniform(0.02, 0.12), draw.uniform(0.15, 0.25)
    parts = [box((-w / 2, -d / 2, foot), (w / 2, d / 2 - 0.02, seat_height - 0.13), "body")]
    parts.append(box((-w / 2 + 0.01, -d / 2, seat_height - 0.2), (w / 2 - 0.01, -d / 2 + back, top), "body"))
    style = draw.style(("block", "block", "low"), ("roll", "none"))
    rest = {"block": seat_height + 0.2, "low": seat_height + 0.08, "roll": seat_height + 0.1, "none": 0.0}[style]
    for side in (-1, 1):
        if rest:
            x0, x1 = sorted((side * w / 2, side * (w / 2 - arm)))
            parts.append(box((x0, -d / 2 + 0.005, foot - 0.005), (x1, d / 2, rest), "body"))
        if style == "roll":
            parts.append(cylinder((side * (w / 2 - arm / 2), 0, rest), arm / 2 + 0.02, d - 0.02, "body", axis="y"))
    span = w - 2 * (arm if rest else 0.02)
    loose = draw.chance(0.7)
    for k in range(seats):
        x0 = -span / 2 + span * k / seats + 0.006
        x1 = x0 + span / seats - 0.012
        parts.append(box((x0, -d / 2 + back, seat_height - 0.15), (x1, d / 2 + 0.01, seat_height), "cushion"))
        if loose:
            center = ((x0 + x1) / 2, -d / 2 + back + 0.07, (seat_height + top) / 2 - 0.01)
            size = ((x1 - x0) / 2, 0.1, (top - seat_height) / 2 + 0.04)
            parts.append(ellipsoid(center, size, "cushion", rotation=rotation_x(0.15)))
    if draw.chance(0.2) and seats > 1:
        side = draw.pick((-1, 1))
        x0, x1 = sorted((side * span / 2, side * (span / 2 - span / seats)))
        parts.append(box((x0, d / 2 - 0.03, foot + 0.003), (x1, d / 2 + 0.65, seat_height - 0.13), "body"))
        parts.append(box((x0, d / 2 + 0.015, seat_height - 0.14), (x1, d / 2 + 0.65, seat_height - 0.002), "cushion"))
    if foot > 0.03:
        parts += [
            cylinder((sx * (w / 2 - 0.06), sy * (d / 2 - 0.07), foot / 2), 0.025, foot, "legs")
            for sx in (-1, 1)
            for sy in (-1, 1)
        ]
    for _ in range(draw.integer(0, 2)):
        x = draw.uniform(-span / 2 + 0.2, span / 2 - 0.2) if span > 0.5 else 0.0
        turn = rotation_z(draw.uniform(-0.3, 0.3)) @ rotation_x(0.4)
        parts.append(
            ellipsoid((x, -d / 2 + back + 0.2, seat_height + 0.17), (0.21, 0.08, 0.2), "accent", rotation=turn)
        )
    return asset("armchair" if seats == 1 else "sofa", "sofa", parts)


def bed(draw: Draw) -> Asset:
    """A single or double bed, its head at the wall (-y); pillows, a blanket, sometimes turned down."""
    double = draw.chance(0.55)
    w, d = draw.uniform(1.4, 1.8) if double else draw.uniform(0.85, 1.15), draw.uniform(1.95, 2.12)
    base, top = draw.uniform(0.2, 0.34), draw.uniform(0.42, 0.6)
    style = draw.style(("frame", "box", "legs"), ("posts", "footboard"))
    foot = 0.0 if style == "box" else draw.uniform(0.08, 0.2)
    parts = [box((-w / 2, -d / 2, foot), (w / 2, d / 2, base), "body")]
    if foot:
        high = 1.6 if style == "posts" else foot
        for sx in (-1, 1):
            for sy in (-1, 1):
                x, y = sx * (w / 2 - 0.04), sy * (d / 2 - 0.04)
                parts.append(box((x - 0.035, y - 0.035, 0), (x + 0.035, y + 0.035, high), "body"))
    parts.append(box((-w / 2 + 0.03, -d / 2 + 0.04, base - 0.01), (w / 2 - 0.03, d / 2 - 0.03, top), "sheet"))
    if draw.chance(0.8):
        parts.append(box((-w / 2, -d / 2 - 0.05, 0.0), (w / 2, -d / 2 + 0.02, top + draw.uniform(0.25, 0.6)), "body"))
    if style == "footboard":
        parts.append(box((-w / 2, d / 2 - 0.02, 0.0), (w / 2, d / 2 + 0.04, top + 0.15), "body"))
    pillows = 2 if double else 1
    for k in range(pillows):
        x = (k - (pillows - 1) / 2) * w * 0.46
        turn = rotation_z(draw.uniform(-0.15, 0.15)) @ rotation_x(0.12)
        parts.append(
            ellipsoid(
                (x, -d / 2 + 0.3, top + 0.05), (min(w / 2.3 / pillows, 0.36), 0.22, 0.09), "pillow", rotation=turn
            )
        )
    start = -d / 2 + draw.uniform(0.5, 1.1)
    over = w / 2 + draw.uniform(-0.02, 0.02)
    end = d / 2 - 0.025 if style == "footboard" else d / 2 + 0.01
    parts.append(box((-over, start, base + draw.uniform(-0.05, 0.08)), (over, end, top + 0.045), "blanket"))
    if draw.chance(0.4):
        parts.append(box((-over - 0.004, start - 0.01, top - 0.08), (over + 0.004, start + 0.3, top + 0.07), "accent"))
    return Asset([Item("bed", "bed", parts)], [Support((-w / 3, 0.0), (w / 3, d / 3), top + 0.045)])
