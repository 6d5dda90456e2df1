"""What stands in each type of room, and how the things relate. One function per type."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from . import clutter, sanitary, seating, storage, tables
from .assets import Asset
from .classes import Draw
from .placement import Placed, Placer


def _chairs_around(placer: Placer, anchor: Placed, kind: str, share: float) -> None:
    """Chairs that face a table from its four sides, some pulled back, some missing."""
    draw = placer.draw
    low, high = anchor.asset.bounds
    along, across = anchor.asset.slots
    spots = [
        (low[0] + (k + 0.5) * (high[0] - low[0]) / along, side) for k in range(along) for side in ("front", "back")
    ]
    spots += [(0.0, side) for side in ("left", "right") for _ in range(across)]
    model_seed = draw.integer(0, 2**31 - 1)  # all chairs of one table are of one model
    for offset, side in spots:
        if not draw.chance(share):
            continue
        model = Draw(np.random.Generator(np.random.PCG64(model_seed)), held_out=draw.held_out)
        seat = seating.chair(model, kind)
        b = seat.bounds[1]
        gap = draw.uniform(-0.12, 0.12) if draw.chance(0.75) else draw.uniform(0.12, 0.5)
        x, y, turn = {
            "front": (offset, high[1] + gap + b[1], np.pi),
            "back": (offset, low[1] - gap - b[1], 0.0),
            "right": (high[0] + gap + b[1], 0.0, np.pi / 2),
            "left": (low[0] - gap - b[1], 0.0, -np.pi / 2),
        }[side]
        spot, yaw = anchor.point(x, y), anchor.yaw + turn + draw.uniform(-0.15, 0.15)
        placer.place(seat, spot[:2], yaw, margin=-0.01, under=anchor)


def _desk_with_chair(placer: Placer, draw: Draw) -> None:
    found = placer.at_wall(tables.desk(draw), jitter=0.04, clearance=0.6)
    if found is not None and draw.chance(0.9):
        kind = draw.pick(("office", "office", "dining", "stool"))
        desk = found[0]
        seat = seating.chair(draw, kind)
        b = seat.bounds[1]
        top = desk.asset.items[0].parts[0]
        spot = desk.point(draw.uniform(-0.15, 0.15), top.half[1] + draw.uniform(-0.1, 0.3) + b[1])
        placer.place(seat, spot[:2], desk.yaw + np.pi + draw.uniform(-0.6, 0.6), margin=-0.01, under=desk)


def _at_wall(placer: Placer, *things: Asset, clearance: float = 0.3) -> None:
    for thing in things:
        placer.at_wall(thing, clearance=clearance)


def _table_group(placer: Placer, draw: Draw, *, share: float = 0.8) -> None:
    thing = tables.table(draw, "dining")
    anchor = placer.anywhere(thing, wall_margin=0.45) or placer.anywhere(thing, wall_margin=0.15)
    if anchor is not None:
        _chairs_around(placer, anchor, draw.pick(("dining", "dining", "dining", "stool")), share)


def _bed_group(placer: Placer, draw: Draw) -> None:
    found = placer.at_wall(seating.bed(draw), jitter=0.03, tries=30, clearance=0.2)
    if found is None:
        return
    anchor = found[0]
    for side in (-1, 1):
        if draw.chance(0.7):
            stand = storage.cabinet(draw, "nightstand") if draw.chance(0.7) else tables.table(draw, "side")
            placer.beside(anchor, stand, side, gap=draw.uniform(0.03, 0.12))
    if draw.chance(0.5):
        low, high = anchor.asset.bounds
        spot = anchor.point(0.0, high[1] * draw.uniform(0.5, 0.9))
        rug = clutter.rug(draw, (high[0] - low[0]) + draw.uniform(0.5, 1.2), draw.uniform(1.2, 1.8))
        if placer.plan.contains(spot[None, :2], 0.9)[0]:
            placer.add(rug, np.append(spot[:2], 0.0), anchor.yaw, solid=False)


def _sofa_group(placer: Placer, draw: Draw) -> None:
    couch = seating.sofa(draw)
    found = placer.at_wall(couch, jitter=0.05, gap=0.04, tries=20, clearance=0.7)
    anchor = found[0] if found else placer.anywhere(couch)
    if anchor is None:
        return
    middle = anchor.point(0.0, anchor.asset.bounds[1][1] + 0.6)
    if draw.chance(0.6) and placer.plan.contains(middle[None, :2], 0.8)[0]:
        rug = clutter.rug(draw, draw.uniform(1.4, 2.4), draw.uniform(1.2, 1.7))
        placer.add(rug, np.append(middle[:2], 0.0), anchor.yaw + draw.uniform(-0.08, 0.08), solid=False)
    if draw.chance(0.8):
        placer.in_front(anchor, tables.table(draw, "coffee"), gap=draw.uniform(0.3, 0.5), shift=draw.uniform(-0.2, 0.2))
    if draw.chance(0.6):
        low = storage.cabinet(draw, "sideboard")
        stand = placer.in_front(anchor, low, gap=draw.uniform(1.6, 2.6)) or next(iter(placer.at_wall(low) or ()), None)
        if isinstance(stand, Placed) and draw.chance(0.8):
            spot = stand.point(draw.uniform(-0.1, 0.1), -0.02, stand.asset.bounds[1][2] + 0.0005)
            placer.place(clutter.television(draw), spot[:2], stand.yaw, z=float(spot[2]), margin=0.0)
    for side in draw.shuffled((-1, 1))[: draw.integer(0, 2)]:
        chair = seating.sofa(draw) if draw.chance(0.5) else seating.chair(draw, "dining")
        spot = anchor.point(
            side * (anchor.asset.bounds[1][0] + draw.uniform(0.2, 0.5)),
            anchor.asset.bounds[1][1] + draw.uniform(0.5, 1.0),
        )
        placer.place(chair, spot[:2], anchor.yaw + side * np.pi / 2 + draw.uniform(-0.3, 0.3))
    if draw.chance(0.5):
        placer.beside(anchor, tables.table(draw, "side"), draw.pick((-1, 1)), gap=0.06)


def _kitchen_run(placer: Placer, draw: Draw) -> None:
    longest = max(wall.length for wall in placer.plan.walls)
    run = None
    for width in (min(longest - 0.8, draw.uniform(2.0, 3.4)), 1.8, 1.3):
        run = run or placer.at_wall(tables.counter(draw, width), jitter=0.0, gap=0.005, tries=25)
    if run is not None and draw.chance(0.85):
        fridge = storage.refrigerator(draw)
        side = draw.pick((-1, 1))
        found = placer.beside(run[0], fridge, side, gap=0.02) or placer.beside(run[0], fridge, -side, gap=0.02)
        if found is None:
            placer.at_wall(fridge, jitter=0.01)


def furnish(placer: Placer, kind: str) -> None:
    """Furnish a room by its type, then add to it until a fair share of the floor is taken."""
    draw = placer.draw
    recipe, extras = RECIPES[kind]
    recipe(placer, draw)
    target = draw.uniform(0.2, 0.34)
    for _ in range(12):
        if placer.filled_share > target:
            return
        draw.pick(extras)(placer, draw)


def _another_cabinet(placer: Placer, draw: Draw) -> None:
    _at_wall(placer, storage.cabinet(draw, draw.pick(("sideboard", "chest", "wardrobe"))))


def _another_shelf(placer: Placer, draw: Draw) -> None:
    _at_wall(placer, storage.bookshelf(draw))


def _another_seat(placer: Placer, draw: Draw) -> None:
    placer.at_wall(
        seating.sofa(draw) if draw.chance(0.4) else seating.chair(draw, draw.pick(("dining", "stool"))), jitter=0.3
    )


def _another_basin(placer: Placer, draw: Draw) -> None:
    placer.at_wall(sanitary.wash_basin(draw), jitter=0.0, gap=0.005, clearance=0.4)


def furnish_bedroom(placer: Placer, draw: Draw) -> None:
    """Bed with night stands, wardrobe, perhaps a desk, chest, shelf, armchair."""
    _bed_group(placer, draw)
    _at_wall(placer, storage.cabinet(draw, "wardrobe"), clearance=0.5)
    if draw.chance(0.6):
        _desk_with_chair(placer, draw)
    if draw.chance(0.5):
        _at_wall(placer, storage.cabinet(draw, "chest"))
    if draw.chance(0.45):
        _at_wall(placer, storage.bookshelf(draw))
    if draw.chance(0.3):
        placer.anywhere(seating.sofa(draw))
    if draw.chance(0.3):
        placer.anywhere(seating.chair(draw, draw.pick(("dining", "stool"))))


def furnish_living_room(placer: Placer, draw: Draw) -> None:
    """Sofa group around a low table, a sideboard with a screen, shelves, perhaps a dining table."""
    _sofa_group(placer, draw)
    if draw.chance(0.55 if placer.plan.area < 16 else 0.9):
        _table_group(placer, draw)
    for _ in range(draw.integer(1, 3)):
        _at_wall(placer, storage.bookshelf(draw) if draw.chance(0.65) else storage.cabinet(draw, "sideboard"))
    if draw.chance(0.25):
        _desk_with_chair(placer, draw)


def furnish_office(placer: Placer, draw: Draw) -> None:
    """Desks with swivel chairs, shelves, filing cabinets, perhaps a meeting table or a sofa."""
    for _ in range(draw.integer(1, 4)):
        _desk_with_chair(placer, draw)
    for _ in range(draw.integer(1, 3)):
        _at_wall(
            placer,
            storage.bookshelf(draw)
            if draw.chance(0.6)
            else storage.cabinet(draw, draw.pick(("filing", "filing", "wardrobe", "sideboard"))),
        )
    if draw.chance(0.55):
        _table_group(placer, draw, share=0.7)
    if draw.chance(0.25):
        placer.at_wall(seating.sofa(draw), clearance=0.4)


def furnish_kitchen(placer: Placer, draw: Draw) -> None:
    """A run of units with worktop and sink, a fridge, a table with chairs, perhaps more cabinets."""
    _kitchen_run(placer, draw)
    _table_group(placer, draw)
    if draw.chance(0.6):
        _at_wall(placer, storage.cabinet(draw, draw.pick(("sideboard", "wardrobe", "chest"))))
    if draw.chance(0.25):
        _at_wall(placer, storage.bookshelf(draw))


def furnish_bathroom(placer: Placer, draw: Draw) -> None:
    """Bathtub (most often), toilet, one or two basins, a cabinet, a stool."""
    if draw.chance(0.85):
        placer.at_wall(sanitary.bathtub(draw), jitter=0.0, gap=0.005, tries=30)
    placer.at_wall(sanitary.toilet(draw), jitter=0.0, gap=0.005, tries=30, clearance=0.4)
    for _ in range(draw.pick((1, 1, 1, 2))):
        placer.at_wall(sanitary.wash_basin(draw), jitter=0.0, gap=0.005, tries=30, clearance=0.4)
    if draw.chance(0.6):
        _at_wall(placer, storage.cabinet(draw, draw.pick(("chest", "wardrobe", "nightstand"))))
    if draw.chance(0.3):
        placer.anywhere(seating.chair(draw, "stool"))


def furnish_studio(placer: Placer, draw: Draw) -> None:
    """A one-room flat: bed, kitchen run, sofa or table, desk, storage."""
    _kitchen_run(placer, draw)
    _bed_group(placer, draw)
    if draw.chance(0.7):
        _sofa_group(placer, draw)
    if draw.chance(0.6):
        _table_group(placer, draw)
    if draw.chance(0.6):
        _desk_with_chair(placer, draw)
    _at_wall(placer, storage.cabinet(draw, "wardrobe"), storage.bookshelf(draw))


Step = Callable[[Placer, Draw], None]
# The recipe of each type of room, and what more a large one may hold.
RECIPES: dict[str, tuple[Step, tuple[Step, ...]]] = {
    "bedroom": (furnish_bedroom, (_another_cabinet, _another_shelf, _desk_with_chair, _another_seat, _bed_group)),
    "living room": (furnish_living_room, (_another_cabinet, _another_shelf, _another_seat, _table_group, _sofa_group)),
    "office": (furnish_office, (_desk_with_chair, _desk_with_chair, _another_shelf, _another_cabinet, _table_group)),
    "kitchen": (furnish_kitchen, (_another_cabinet, _table_group, _another_seat)),
    "bathroom": (furnish_bathroom, (_another_cabinet, _another_basin)),
    "studio": (furnish_studio, (_another_cabinet, _another_shelf, _another_seat, _table_group, _desk_with_chair)),
}
