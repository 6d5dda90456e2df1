"""Rooms: a floor plan furnished by type, as primitives with classes and instances."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import clutter, sanitary
from .assets import Asset, Item, Support
from .classes import Draw, Split, stream
from .furnishing import furnish
from .placement import Instance, Placed, Placer
from .plan import (
    WALL_THICKNESS,
    Plan,
    Wall,
    cut_openings,
    door_parts,
    draw_plan,
    skirting_parts,
    wall_parts,
    window_parts,
)
from .primitives import Float, Part, Primitives, box

# How often each type of room occurs, and the side lengths of its main rectangle in metres: (train and val), (test).
ROOM_KINDS: dict[str, tuple[float, tuple[float, float], tuple[float, float]]] = {
    "bedroom": (0.22, (3.0, 4.8), (4.9, 6.0)),
    "living room": (0.22, (3.6, 5.8), (6.0, 7.5)),
    "office": (0.18, (3.0, 5.6), (5.8, 7.5)),
    "kitchen": (0.16, (2.8, 4.6), (4.7, 6.0)),
    "bathroom": (0.14, (2.4, 3.5), (3.6, 4.5)),
    "studio": (0.08, (4.5, 6.2), (6.3, 8.0)),
}


@dataclass(frozen=True, eq=False)
class Room:
    """A furnished room. World frame: metres, z up, the floor at z = 0, the main rectangle centred on the origin."""

    name: str
    kind: str
    plan: Plan
    primitives: Primitives
    instances: list[Instance]
    lamps: Float  # (L, 3) positions of the lamps

    @property
    def segment(self) -> np.ndarray:
        """Class index of each primitive, -1 = unlabelled: (P,) int16."""
        return np.array([i.segment for i in self.instances], np.int16)[self.primitives.instance]


def draw_room(split: Split, scene: int, *, seed: int = 0) -> Room:
    """The room of one scene: geometry only, without materials or cameras.

    The test split has larger rooms than train and val ever show, and half of its objects have styles of their own.
    """
    draw = Draw(stream(seed, split, scene, "layout"), held_out=split == "test")
    kind = _pick_kind(draw)
    _, sides, held_out_sides = ROOM_KINDS[kind]
    wings = 0 if kind == "bathroom" else draw.pick((0, 0, 0, 0, 1, 1, 2))
    plan = draw_plan(draw, held_out_sides if split == "test" else sides, wings=wings)
    cut_openings(draw, plan, windows=draw.integer(0, 1) if kind == "bathroom" else draw.integer(1, 3))
    placer = Placer(plan, draw)
    _build_shell(placer)
    for wall in plan.walls:
        for opening in wall.openings:
            if opening.kind == "door":
                middle = wall.point((opening.start + opening.end) / 2, 0.45)
                placer.reserve(middle, (0.5, 0.45), wall.yaw, 2.0)
    furnish(placer, kind)
    _hang_curtains(placer)
    _decorate(placer, kind)
    lamps = _place_lamps(placer)
    return Room(
        name=f"{split}_{scene:06d}",
        kind=kind,
        plan=plan,
        primitives=Primitives.from_parts(placer.parts, placer.owner),
        instances=placer.instances,
        lamps=lamps,
    )


def _pick_kind(draw: Draw) -> str:
    value, total = draw.uniform(0.0, 1.0), 0.0
    for kind, (share, _, _) in ROOM_KINDS.items():
        total += share
        if value < total:
            return kind
    return "studio"


def _build_shell(placer: Placer) -> None:
    """Floor, ceiling, walls with skirting, doors and windows; sometimes a column or a beam."""
    plan, draw = placer.plan, placer.draw
    low, high = plan.rectangles[:, :2].min(0) - WALL_THICKNESS, plan.rectangles[:, 2:].max(0) + WALL_THICKNESS
    origin = (0.0, 0.0, 0.0)
    placer.add_item(Item("floor", "floor", [box((*low, -0.1), (*high, 0.0), "floor")]), origin, 0.0)
    placer.add_item(
        Item("ceiling", "ignored", [box((*low, plan.height), (*high, plan.height + 0.1), "ceiling")]), origin, 0.0
    )
    with_skirting, skirting = draw.chance(0.7), (draw.uniform(0.05, 0.12), draw.uniform(0.01, 0.018))
    for wall in plan.walls:
        # Walls are built in world coordinates; they go a little beyond the ceiling, so that no gap opens there.
        parts = wall_parts(wall, plan.height + 0.05)
        if with_skirting:
            parts += skirting_parts(wall, *skirting)
        placer.add_item(Item("wall", "wall", parts), origin, 0.0)
        for opening in wall.openings:
            middle = np.append(wall.point((opening.start + opening.end) / 2), 0.0)
            build = door_parts if opening.kind == "door" else window_parts
            placer.add_item(Item(opening.kind, opening.kind, build(draw, opening)), middle, wall.yaw)
    if draw.chance(0.12):
        size, wall = draw.uniform(0.25, 0.4), draw.pick(plan.walls)
        s = draw.uniform(0.4, max(0.4, wall.length - 0.4))
        if wall.is_free(s - size, s + size, 0.0, plan.height):
            column = box((-size / 2, -0.01, -0.01), (size / 2, size, plan.height + 0.01), "wall")
            placer.add(Asset([Item("column", "ignored", [column])]), np.append(wall.point(s), 0.0), wall.yaw)
    if draw.chance(0.12):
        x0, y0, x1, y1 = plan.rectangles[0]
        y, t = draw.uniform(y0 + 0.6, y1 - 0.6), draw.uniform(0.1, 0.2)
        beam = box((x0 - 0.01, y - t / 2, plan.height - 0.2), (x1 + 0.01, y + t / 2, plan.height + 0.01), "trim")
        placer.add(Asset([Item("beam", "ignored", [beam])]), np.zeros(3), 0.0)


def _hang_curtains(placer: Placer) -> None:
    draw = placer.draw
    for wall in placer.plan.walls:
        for opening in wall.openings:
            if opening.kind != "window" or not draw.chance(0.6):
                continue
            drapes = sanitary.curtains(
                draw, opening.end - opening.start, opening.bottom, min(opening.top, placer.plan.height - 0.2)
            )
            placer.place(drapes, wall.point((opening.start + opening.end) / 2), wall.yaw, margin=-0.03)


def _decorate(placer: Placer, kind: str) -> None:
    """Pictures and shelves on walls, radiators, free-standing things, and clutter on whatever can carry it."""
    draw = placer.draw
    for wall in draw.shuffled(placer.plan.walls):
        for _ in range(draw.integer(0, 2)):
            shelf = draw.chance(0.15)
            thing = clutter.shelf_board(draw) if shelf else clutter.picture(draw)
            _hang(placer, wall, thing, draw.uniform(1.35, 1.6))
        if draw.chance(0.15):
            placer.at_wall(clutter.radiator(draw), jitter=0.0, tries=3)
    for _ in range(draw.integer(1, 4)):
        placer.anywhere(clutter.floor_object(draw))
    for anchor in list(placer.placed):
        for support in anchor.asset.supports:
            _fill(placer, anchor, support, draw.integer(0, 4))


def _hang(placer: Placer, wall: Wall, thing: Asset, z: float) -> None:
    """Hang something with its back on a wall, where nothing tall stands."""
    low, high = thing.bounds
    span = (high[0] - low[0]) / 2 + 0.05
    if wall.length < 2 * span + 0.2:
        return
    s = placer.draw.uniform(span + 0.1, wall.length - span - 0.1)
    if wall.is_free(s - span, s + span, z + low[2], z + high[2]):
        placer.place(thing, wall.point(s, 0.001), wall.yaw, z=z, margin=0.0)


def _fill(placer: Placer, anchor: Placed, support: Support, count: int) -> None:
    draw = placer.draw
    for _ in range(count):
        thing = clutter.small_object(draw)
        low, high = thing.bounds
        reach = np.hypot(*(high - low)[:2]) / 2
        x0, x1 = support.low[0] + 0.7 * reach, support.high[0] - 0.7 * reach
        y0, y1 = support.low[1] + 0.7 * reach, support.high[1] - 0.7 * reach
        x, y, yaw = draw.uniform(x0, x1), draw.uniform(y0, y1), anchor.yaw + draw.uniform(-0.6, 0.6)
        if x0 > x1 or y0 > y1 or high[2] > support.headroom:
            continue
        spot = anchor.point(x, y, support.z)
        placer.place(thing, spot[:2], yaw, z=spot[2] + 0.0005, margin=0.01)


def _place_lamps(placer: Placer) -> Float:
    """One lamp below the ceiling of each rectangle that is large enough (at most two): positions (L, 3)."""
    plan, draw = placer.plan, placer.draw
    areas = np.prod(plan.rectangles[:, 2:] - plan.rectangles[:, :2], axis=1)
    lamps = []
    for index in np.argsort(-areas, kind="stable")[:2]:
        x0, y0, x1, y1 = plan.rectangles[index]
        xy = np.array([draw.uniform(0.4, 0.6) * (x1 - x0) + x0, draw.uniform(0.4, 0.6) * (y1 - y0) + y0])
        if index and areas[index] < 2.0:
            continue
        drop = draw.uniform(0.05, 0.5)
        r = draw.uniform(0.12, 0.25)
        parts: list[Part] = [box((-0.01, -0.01, -drop), (0.01, 0.01, 0.01), "metal")]
        shade = draw.pick(("ball", "plate"))
        parts += clutter.ceiling_lamp(shade, r, drop)
        placer.add_item(Item("ceiling lamp", "otherfurniture", parts), (*xy, plan.height), 0.0)
        lamps.append([*xy, plan.height - drop - r - 0.05])
    return np.array(lamps)


def oriented_boxes(room: Room) -> Float:
    """Oriented boxes of all instances: (I, 7) centre, full sizes, yaw."""
    return np.array([[*i.center, *i.size, i.yaw] for i in room.instances])
