"""Floor plans: a room as the union of one to three rectangles, its walls, and the openings in them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .classes import Draw
from .primitives import BOX, Float, Part, box

WALL_THICKNESS = 0.2
_OVERLAP = 1e-3  # pieces of one wall overlap by this much, so that no ray slips between them


@dataclass(frozen=True)
class Opening:
    """A rectangle cut out of a wall, in metres along the wall and above the floor."""

    kind: str  # "door" or "window"
    start: float
    end: float
    bottom: float
    top: float


@dataclass(eq=False)
class Wall:
    """A straight wall seen from inside: it runs from `origin` along `along`; `inward` points into the room."""

    origin: Float  # (2,)
    along: Float  # (2,) unit
    inward: Float  # (2,) unit
    length: float
    convex: tuple[bool, bool]  # whether the room's corner at the start / end is an ordinary (90 degree) one
    openings: list[Opening] = field(default_factory=list)

    @property
    def yaw(self) -> float:
        """Rotation that turns an object's front (+y) away from the wall, which leaves its +x along `along`."""
        return float(np.arctan2(-self.inward[0], self.inward[1]))

    def point(self, s: float, depth: float = 0.0) -> Float:
        """Position (2,) at `s` metres along the wall and `depth` metres into the room."""
        return self.origin + s * self.along + depth * self.inward

    def is_free(self, start: float, end: float, bottom: float, top: float) -> bool:
        """Whether no opening touches this part of the wall."""
        return not any(o.start < end and start < o.end and o.bottom < top and bottom < o.top for o in self.openings)


@dataclass(frozen=True, eq=False)
class Plan:
    """A rectilinear room: rectangles (R, 4) as x0, y0, x1, y1, its height, and its walls."""

    rectangles: Float
    height: float
    walls: list[Wall]

    @property
    def area(self) -> float:
        """Floor area in square metres."""
        mask, xs, ys = _cells(self.rectangles)
        return float((mask * np.diff(xs)[:, None] * np.diff(ys)[None]).sum())

    def contains(self, points: Float, margin: float = 0.0) -> NDArray[np.bool_]:
        """Which points (N, 2) lie inside the room shrunk by `margin` (grown, if negative): (N,)."""
        # A point is inside the shrunk union iff the square of half size `margin` around it is inside the union.
        if margin <= 0:
            return _in_any(points, self.rectangles, -margin)
        steps = np.linspace(-margin, margin, 5)
        offsets = np.stack(np.meshgrid(steps, steps), -1).reshape(-1, 2)
        inside = _in_any((points[:, None] + offsets).reshape(-1, 2), self.rectangles, 0.0)
        return np.all(inside.reshape(len(points), len(offsets)), axis=1)


def _in_any(points: Float, rectangles: Float, grow: float) -> NDArray[np.bool_]:
    x, y = points[:, None, 0], points[:, None, 1]
    x0, y0, x1, y1 = rectangles.T
    return ((x >= x0 - grow) & (x <= x1 + grow) & (y >= y0 - grow) & (y <= y1 + grow)).any(1)


def _cells(rectangles: Float) -> tuple[NDArray[np.bool_], Float, Float]:
    """The union as cells between all corner coordinates: inside (X, Y), x edges (X + 1,), y edges (Y + 1,)."""
    xs, ys = np.unique(rectangles[:, [0, 2]]), np.unique(rectangles[:, [1, 3]])
    middles = np.stack(np.meshgrid((xs[1:] + xs[:-1]) / 2, (ys[1:] + ys[:-1]) / 2, indexing="ij"), -1)
    return _in_any(middles.reshape(-1, 2), rectangles, 0.0).reshape(middles.shape[:2]), xs, ys


def _trace_walls(rectangles: Float) -> list[Wall]:
    """Walls around a union of rectangles, collinear pieces joined, each running with the room on its left."""
    mask, xs, ys = _cells(rectangles)
    padded = np.pad(mask, 1)
    edges: dict[tuple[float, float], tuple[float, float]] = {}  # start -> end, the room on the left
    for i, j in np.argwhere(mask):
        x0, x1, y0, y1 = float(xs[i]), float(xs[i + 1]), float(ys[j]), float(ys[j + 1])
        corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
        outside = [not padded[i + 1, j], not padded[i + 2, j + 1], not padded[i + 1, j + 2], not padded[i, j + 1]]
        for k, is_edge in enumerate(outside):
            if is_edge:
                edges[corners[k]] = corners[(k + 1) % 4]
    first = min(edges)
    loop = [first]
    while edges[loop[-1]] != first:
        loop.append(edges[loop[-1]])
    points = np.array(loop)
    step = np.roll(points, -1, 0) - points
    turn = np.roll(step, 1, 0)[:, 0] * step[:, 1] - np.roll(step, 1, 0)[:, 1] * step[:, 0]  # at each point
    points, turn = points[np.abs(turn) > 1e-9], turn[np.abs(turn) > 1e-9]
    walls = []
    for k in range(len(points)):
        delta = points[(k + 1) % len(points)] - points[k]
        length = float(np.linalg.norm(delta))
        along = delta / length
        inward = np.array([-along[1], along[0]])
        walls.append(Wall(points[k], along, inward, length, (bool(turn[k] > 0), bool(turn[(k + 1) % len(turn)] > 0))))
    return walls


def draw_plan(draw: Draw, sides: tuple[float, float], *, wings: int) -> Plan:
    """A room whose main rectangle has sides in the range `sides`, with up to two smaller rectangles attached."""
    w, d = draw.uniform(*sides), draw.uniform(*sides)
    w, d = round(w, 2), round(d, 2)
    rectangles = [(-w / 2, -d / 2, w / 2, d / 2)]
    for wing, side in enumerate(draw.shuffled((0, 1, 2, 3))[:wings]):
        span = w if side % 2 == 0 else d  # the wing sits on the side y = -d/2, x = w/2, y = d/2 or x = -w/2
        width, depth = draw.uniform(0.4, 0.6) * span, draw.uniform(0.9, 1.8)
        # The first wing of an L ends flush with a corner; a T's sits in the middle of the side.
        start = draw.pick((-span / 2, span / 2 - width, -width / 2))
        if wing:
            start = -width / 2
        corners = {
            0: (start, -d / 2 - depth, start + width, -d / 2),
            1: (w / 2, start, w / 2 + depth, start + width),
            2: (start, d / 2, start + width, d / 2 + depth),
            3: (-w / 2 - depth, start, -w / 2, start + width),
        }
        rectangles.append(corners[side])
    height = draw.uniform(2.3, 2.75) if w * d < 12 else draw.uniform(2.4, 3.2)
    array = np.round(np.array(rectangles), 2)
    return Plan(array, height, _trace_walls(array))


def cut_openings(draw: Draw, plan: Plan, *, windows: int) -> None:
    """Give the walls one or two doors and up to `windows` windows."""
    for wall in draw.shuffled(plan.walls)[: draw.integer(1, 2)]:
        width, top = draw.uniform(0.8, 1.0), draw.uniform(1.98, 2.12)
        if wall.length > width + 0.4:
            start = draw.pick((0.15, wall.length - 0.15 - width, draw.uniform(0.15, wall.length - 0.15 - width)))
            wall.openings.append(Opening("door", start, start + width, 0.0, top))
    outer = [wall for wall in draw.shuffled(plan.walls) if wall.length > 1.8 and not wall.openings]
    for wall in outer[:windows]:
        width = min(draw.uniform(0.9, 2.2), wall.length - 0.8)
        bottom, top = draw.pick((draw.uniform(0.75, 1.0), draw.uniform(0.75, 1.0), 0.15)), draw.uniform(1.95, 2.2)
        start = draw.uniform(0.35, wall.length - 0.35 - width)
        wall.openings.append(Opening("window", start, start + width, bottom, top))


def wall_parts(wall: Wall, height: float) -> list[Part]:
    """Boxes of a wall around its openings; they share one texture frame."""
    start = -WALL_THICKNESS if wall.convex[0] else _OVERLAP
    end = wall.length + (WALL_THICKNESS if wall.convex[1] else -_OVERLAP)
    pieces = []
    cursor = start
    for opening in sorted(wall.openings, key=lambda o: o.start):
        pieces.append((cursor, opening.start, 0.0, height))
        if opening.bottom > 0:
            pieces.append((opening.start - _OVERLAP, opening.end + _OVERLAP, 0.0, opening.bottom))
        pieces.append((opening.start - _OVERLAP, opening.end + _OVERLAP, opening.top, height))
        cursor = opening.end
    pieces.append((cursor, end, 0.0, height))
    rotation = np.eye(3)
    rotation[:2, 0], rotation[:2, 1] = wall.along, wall.inward
    middle = np.append(wall.point(wall.length / 2), 0.0)
    return [_wall_box(wall, piece, -WALL_THICKNESS, 0.0, "wall", rotation, middle) for piece in pieces]


def skirting_parts(wall: Wall, height: float, depth: float) -> list[Part]:
    """A skirting board along the foot of a wall, interrupted by doors."""
    cuts = [(o.start - 0.07, o.end + 0.07) for o in sorted(wall.openings, key=lambda o: o.start) if o.kind == "door"]
    starts, ends = [0.0, *[b for _, b in cuts]], [*[a for a, _ in cuts], wall.length]
    rotation = np.eye(3)
    rotation[:2, 0], rotation[:2, 1] = wall.along, wall.inward
    return [
        _wall_box(wall, (a, b, 0.0, height), -_OVERLAP, depth, "trim", rotation, None)
        for a, b in zip(starts, ends, strict=True)
        if b - a > 0.05
    ]


def _wall_box(
    wall: Wall,
    piece: tuple[float, float, float, float],
    near: float,
    far: float,
    slot: str,
    rotation: Float,
    texture_origin: Float | None,
) -> Part:
    a, b, z0, z1 = piece
    center = np.append(wall.point((a + b) / 2, (near + far) / 2), (z0 + z1) / 2)
    half = np.array([(b - a) / 2, (far - near) / 2, (z1 - z0) / 2])
    return Part(BOX, center, half, slot, rotation, texture_origin)


def door_parts(draw: Draw, opening: Opening) -> list[Part]:
    """Leaf, frame and handle in the wall's frame: x along the wall from the opening's middle, +y into the room."""
    w, h = (opening.end - opening.start) / 2, opening.top
    leaf = draw.uniform(-0.09, -0.03)
    parts = [box((-w - 0.01, leaf - 0.04, 0.005), (w + 0.01, leaf, h + 0.01), "leaf")]
    trim, out = draw.uniform(0.04, 0.08), draw.uniform(0.01, 0.02)
    parts += [
        box((side * w - trim * (side < 0), -0.15, 0.0), (side * w + trim * (side > 0), out, h + trim), "frame")
        for side in (-1, 1)
    ]
    parts.append(box((-w - trim, -0.15, h), (w + trim, out, h + trim), "frame"))
    style = draw.style(("flat", "panels", "glazed"), ("planks", "two_panels"))
    relief = {"panels": 3, "two_panels": 2, "planks": 0, "flat": 0, "glazed": 1}[style]
    for k in range(relief):
        z0, z1 = 0.15 + k * (h - 0.2) / relief, 0.15 + (k + 1) * (h - 0.2) / relief - 0.1
        slot = "pane" if style == "glazed" else "leaf"
        parts.append(box((-w + 0.13, leaf - 0.01, z0), (w - 0.13, leaf + 0.012, z1), slot))
    if style == "planks":
        parts += [box((-w + 0.02, leaf - 0.01, z), (w - 0.02, leaf + 0.015, z + 0.12), "leaf") for z in (0.3, 1.5)]
    side = draw.pick((-1, 1))
    parts.append(box((side * (w - 0.12), leaf, 1.0), (side * (w - 0.04), leaf + 0.055, 1.03), "metal"))
    return parts


def window_parts(draw: Draw, opening: Opening) -> list[Part]:
    """Pane, frame, glazing bars and sill in the wall's frame, z from the floor."""
    w, z0, z1 = (opening.end - opening.start) / 2, opening.bottom, opening.top
    pane = draw.uniform(-0.13, -0.09)
    bar = draw.uniform(0.03, 0.06)
    parts = [box((-w - 0.01, pane - 0.02, z0 - 0.01), (w + 0.01, pane, z1 + 0.01), "pane")]
    rails = [(-w, -w + bar, z0, z1), (w - bar, w, z0, z1), (-w, w, z0, z0 + bar), (-w, w, z1 - bar, z1)]
    columns = draw.style((1, 2), (3, 4)) if w > 0.4 else 1
    for k in range(1, columns):
        x = -w + 2 * w * k / columns
        rails.append((x - bar / 2, x + bar / 2, z0, z1))
    if draw.chance(0.35):
        z = z0 + draw.uniform(0.5, 0.7) * (z1 - z0)
        rails.append((-w, w, z - bar / 2, z + bar / 2))
    parts += [box((x0, pane - 0.01, a), (x1, pane + 0.04, b), "frame") for x0, x1, a, b in rails]
    if z0 > 0.3:
        parts.append(box((-w - 0.05, -0.12, z0 - 0.03), (w + 0.05, draw.uniform(0.03, 0.12), z0 + 0.002), "frame"))
    return parts
