"""Small things and fittings: lamps, plants, boxes, books, bags, screens, radiators, rugs, pictures."""

from __future__ import annotations

from .assets import Asset, Support, asset
from .classes import Draw
from .primitives import Part, box, cylinder, ellipsoid, rotation_x, rotation_z

OTHER = "otherfurniture"


def small_object(draw: Draw) -> Asset:
    """Something that stands on a table, shelf or counter."""
    kind = draw.pick(("books", "vase", "box", "lamp", "mug", "plant", "laptop", "bowl", "bottle"))
    parts: list[Part] = []
    if kind == "books":
        z = 0.0
        for k in range(draw.integer(2, 4)):
            w, d, t = draw.uniform(0.14, 0.24), draw.uniform(0.12, 0.18), draw.uniform(0.02, 0.05)
            parts.append(
                box(
                    (-w / 2, -d / 2, z),
                    (w / 2, d / 2, z + t),
                    f"books{k % 3}",
                    rotation=rotation_z(draw.uniform(-0.2, 0.2)),
                )
            )
            z += t
    elif kind == "vase":
        h = draw.uniform(0.16, 0.3)
        parts = [
            ellipsoid((0, 0, h * 0.4), (h * 0.35, h * 0.35, h * 0.4), "body"),
            cylinder((0, 0, h * 0.75), h * 0.14, h * 0.5, "body"),
        ]
    elif kind == "box":
        w, d, h = draw.uniform(0.12, 0.35), draw.uniform(0.1, 0.28), draw.uniform(0.08, 0.28)
        parts = [
            box((-w / 2, -d / 2, 0), (w / 2, d / 2, h), "body"),
            box((-w / 2 - 0.006, -d / 2 - 0.006, h - 0.05), (w / 2 + 0.006, d / 2 + 0.006, h), "accent"),
        ]
    elif kind == "lamp":
        parts = _lamp(draw, draw.uniform(0.3, 0.5), 0.08)
    elif kind == "mug":
        parts = [cylinder((0, 0, 0.05), 0.04, 0.1, "body"), box((0.035, -0.008, 0.025), (0.065, 0.008, 0.075), "body")]
    elif kind == "plant":
        parts = _plant(draw, draw.uniform(0.1, 0.16), draw.uniform(0.3, 0.5))
    elif kind == "laptop":
        turn = rotation_x(-0.3)
        parts = [
            box((-0.16, -0.11, 0), (0.16, 0.11, 0.018), "screen"),
            box((-0.16, -0.14, 0.01), (0.16, -0.125, 0.22), "display", rotation=turn),
        ]
    elif kind == "bowl":
        r = draw.uniform(0.09, 0.15)
        parts = [cylinder((0, 0, 0.035), r, 0.07, "body"), ellipsoid((0, 0, 0.07), (0.8 * r, 0.8 * r, 0.05), "accent")]
    else:
        h = draw.uniform(0.2, 0.3)
        parts = [
            cylinder((0, 0, h * 0.32), 0.035, h * 0.64, "body"),
            cylinder((0, 0, h * 0.8), 0.014, h * 0.4, "accent"),
        ]
    return asset(kind, OTHER, parts)


def _lamp(draw: Draw, h: float, base: float) -> list[Part]:
    shade, r = draw.uniform(0.16, 0.26) * (0.7 if h < 1 else 1.0), draw.uniform(0.1, 0.16) * (0.8 if h < 1 else 1.3)
    top = draw.style(("drum", "drum", "ball"), ("box",))
    parts = [cylinder((0, 0, 0.01), base, 0.02, "metal"), cylinder((0, 0, h / 2), 0.012, h, "metal")]
    if top == "drum":
        parts.append(cylinder((0, 0, h - shade / 2), r, shade, "shade"))
    elif top == "ball":
        parts.append(ellipsoid((0, 0, h), (r, r, r), "shade"))
    else:
        parts.append(box((-r, -r, h - shade), (r, r, h), "shade"))
    return parts


def _plant(draw: Draw, pot: float, h: float) -> list[Part]:
    parts = [
        cylinder((0, 0, pot / 2), pot * 0.6, pot, "pot"),
        cylinder((0, 0, (pot + h) / 2), 0.012, h - pot * 0.8, "stem"),
    ]
    for _ in range(draw.integer(3, 6)):
        reach, angle = draw.uniform(0.0, 0.2) * h, draw.uniform(0, 6.28)
        size = draw.uniform(0.1, 0.22) * h
        center = rotation_z(angle) @ [reach, 0, draw.uniform(0.6, 1.0) * h]
        turn = rotation_z(angle) @ rotation_x(draw.uniform(-0.6, 0.6))
        parts.append(ellipsoid(center, (size, size * 0.7, size * draw.uniform(0.4, 0.9)), "leaves", rotation=turn))
    return parts


def floor_object(draw: Draw) -> Asset:
    """Something that stands free on the floor."""
    kind = draw.pick(("plant", "lamp", "boxes", "bin", "bag", "basket"))
    if kind == "plant":
        parts = _plant(draw, draw.uniform(0.25, 0.4), draw.uniform(0.8, 1.5))
    elif kind == "lamp":
        parts = _lamp(draw, draw.uniform(1.3, 1.7), 0.15)
    elif kind == "boxes":
        parts, z = [], 0.0
        for k in range(draw.integer(1, 3)):
            w, d, h = draw.uniform(0.3, 0.5), draw.uniform(0.25, 0.4), draw.uniform(0.2, 0.35)
            parts.append(
                box(
                    (-w / 2, -d / 2, z),
                    (w / 2, d / 2, z + h),
                    f"books{k}",
                    rotation=rotation_z(draw.uniform(-0.2, 0.2)),
                )
            )
            z += h
    elif kind == "bag":
        parts = [
            ellipsoid((0, 0, 0.2), (0.2, 0.14, 0.22), "body"),
            ellipsoid((0, 0.11, 0.15), (0.14, 0.07, 0.12), "accent"),
        ]
    else:
        h, r = draw.uniform(0.28, 0.6), draw.uniform(0.13, 0.2)
        parts = [cylinder((0, 0, h / 2), r, h, "body"), cylinder((0, 0, h - 0.02), r + 0.012, 0.05, "accent")]
    return asset(kind, OTHER, parts)


def television(draw: Draw) -> Asset:
    """A television on its foot, to stand on a low cabinet."""
    w, h = draw.uniform(0.7, 1.2), draw.uniform(0.42, 0.66)
    parts = [
        box((-0.2, -0.1, 0), (0.2, 0.1, 0.02), "screen"),
        box((-0.04, -0.03, 0.01), (0.04, 0.0, 0.12), "screen"),
        box((-w / 2, -0.02, 0.08), (w / 2, 0.025, 0.08 + h), "screen"),
        box((-w / 2 + 0.02, 0.01, 0.1), (w / 2 - 0.02, 0.028, 0.06 + h), "display"),
    ]
    return asset("television", OTHER, parts)


def radiator(draw: Draw) -> Asset:
    """A ribbed radiator; its back is at -y."""
    w, h = draw.uniform(0.5, 1.2), draw.uniform(0.45, 0.6)
    ribs = max(4, round(w / 0.13))
    parts = [box((-w / 2, -0.035, 0.14), (w / 2, 0.015, 0.12 + h), "body")]
    for k in range(ribs):
        x = -w / 2 + (k + 0.5) * w / ribs
        parts.append(box((x - 0.035, -0.05, 0.12), (x + 0.035, 0.05, 0.15 + h), "body"))
    parts.append(cylinder((w / 2 - 0.03, 0, 0.08), 0.012, 0.16, "metal"))
    return asset("radiator", OTHER, parts)


def rug(draw: Draw, width: float, depth: float) -> Asset:
    """A rug: 1 cm of cloth, labelled floor (at the resolution of depth cameras it is the floor)."""
    if draw.chance(0.25):
        return asset("rug", "floor", [cylinder((0, 0, 0.005), min(width, depth) / 2, 0.012, "rug")])
    return asset("rug", "floor", [box((-width / 2, -depth / 2, -0.002), (width / 2, depth / 2, 0.011), "rug")])


def picture(draw: Draw) -> Asset:
    """A framed picture; its back is at y = 0, z = 0 is its middle."""
    w, h = draw.uniform(0.25, 1.1), draw.uniform(0.25, 0.8)
    t, rim = draw.uniform(0.015, 0.03), draw.uniform(0.015, 0.04)
    parts = [
        box((-w / 2, 0.0, -h / 2), (w / 2, t * 0.6, h / 2), "poster"),
        box((-w / 2, 0.0, -h / 2 - rim), (w / 2, t, -h / 2), "frame"),
        box((-w / 2, 0.0, h / 2), (w / 2, t, h / 2 + rim), "frame"),
        box((-w / 2 - rim, 0.0, -h / 2 - rim), (-w / 2, t, h / 2 + rim), "frame"),
        box((w / 2, 0.0, -h / 2 - rim), (w / 2 + rim, t, h / 2 + rim), "frame"),
    ]
    return asset("picture", "picture", parts)


def shelf_board(draw: Draw) -> Asset:
    """A single board on the wall with a few things on it; its back is at y = 0, z = 0 its top."""
    w, d = draw.uniform(0.5, 1.1), draw.uniform(0.16, 0.25)
    parts = [box((-w / 2, 0, -0.025), (w / 2, d, 0), "shelf")]
    parts += [box((s * w * 0.35 - 0.01, 0, -0.14), (s * w * 0.35 + 0.01, d * 0.8, -0.02), "legs") for s in (-1, 1)]
    x = -w / 2 + 0.03
    for k in range(draw.integer(1, 4)):
        width, height = draw.uniform(0.05, 0.2), draw.uniform(0.1, 0.26)
        x += draw.uniform(0, 0.1)
        if x + width < w / 2:
            parts.append(box((x, 0.02, 0), (x + width, d * 0.85, height), f"books{k % 3}"))
        x += width
    return asset("wall shelf", "bookshelf", parts, [Support((-w / 2, 0.02), (w / 2, d), 0.0)])


def ceiling_lamp(shade: str, r: float, drop: float) -> list[Part]:
    """The shade of a lamp that hangs `drop` metres below z = 0; the light source is under it."""
    if shade == "ball":
        return [ellipsoid((0, 0, -drop - r * 0.7), (r, r, r * 0.7), "shade")]
    return [cylinder((0, 0, -drop - 0.03), r * 1.3, 0.06, "shade")]
