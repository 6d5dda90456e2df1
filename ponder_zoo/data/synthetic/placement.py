"""Putting objects into a room by relation (at a wall, beside, in front of, on top of), without overlaps."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .assets import Asset, Item
from .classes import CLASS_INDEX, IGNORED, Draw
from .plan import Plan, Wall
from .primitives import Float, Part, Vector, bounds, moved, rotation_z


@dataclass(frozen=True, eq=False)
class Instance:
    """A labelled object with its oriented box."""

    name: str  # finer than the class, e.g. "office chair"
    segment: int  # index into CLASSES, -1 = unlabelled
    center: Float  # (3,) metres
    size: Float  # (3,) full extents along the object's own axes
    yaw: float  # radians about z


@dataclass(frozen=True, eq=False)
class Placed:
    """An asset with its pose."""

    asset: Asset
    position: Float  # (3,) metres
    yaw: float

    def point(self, x: float, y: float, z: float = 0.0) -> Float:
        """A point of the asset's frame in the world: (3,)."""
        return self.position + rotation_z(self.yaw) @ np.array([x, y, z])


@dataclass(frozen=True, eq=False)
class Obstacle:
    """A rectangle of floor that is taken between two heights."""

    corners: Float  # (4, 2)
    bottom: float
    top: float
    owner: Placed | None = None

    def blocks(self, corners: Float, bottom: float, top: float) -> bool:
        """Whether a box with this footprint and height range would overlap."""
        return self.bottom < top and bottom < self.top and _overlap(corners, self.corners)


@dataclass(eq=False)
class Placer:
    """A room being furnished. Placements that would overlap or leave the room are refused (None)."""

    plan: Plan
    draw: Draw
    parts: list[Part] = field(default_factory=list)
    owner: list[int] = field(default_factory=list)  # instance of each part
    instances: list[Instance] = field(default_factory=list)
    obstacles: list[Obstacle] = field(default_factory=list)
    placed: list[Placed] = field(default_factory=list)

    def add_item(self, item: Item, position: Vector, yaw: float) -> None:
        """Record an item (in its asset's frame) at a pose, unchecked."""
        low, high = bounds(item.parts)
        turn = rotation_z(yaw)
        center = np.asarray(position, float) + turn @ ((low + high) / 2)
        segment = CLASS_INDEX.get(item.segment, IGNORED)
        self.owner += [len(self.instances)] * len(item.parts)
        self.parts += moved(item.parts, position, turn)
        self.instances.append(Instance(item.name, segment, center, high - low, yaw))

    def add(self, asset: Asset, position: Float, yaw: float, *, solid: bool = True) -> Placed:
        """Record an asset at a pose, unchecked; `solid` ones block later placements."""
        result = Placed(asset, np.asarray(position, float), yaw)
        for item in asset.items:
            self.add_item(item, position, yaw)
            if solid:
                low, high = bounds(item.parts)
                corners = _corners(low[:2], high[:2], position[:2], yaw)
                self.obstacles.append(Obstacle(corners, position[2] + low[2], position[2] + high[2], result))
        self.placed.append(result)
        return result

    def place(
        self, asset: Asset, xy: Float, yaw: float, *, z: float = 0.0, margin: float = 0.02, under: Placed | None = None
    ) -> Placed | None:
        """Place where it fits inside the room and at least `margin` metres from everything at its height.

        It may reach under the object `under` (a chair under its table).
        """
        low, high = asset.bounds
        corners = _corners(low[:2] - margin, high[:2] + margin, xy, yaw)
        edges = np.concatenate([corners + f * (np.roll(corners, -1, 0) - corners) for f in (0.0, 0.25, 0.5, 0.75)])
        inset = corners.mean(0) + 0.97 * (edges - corners.mean(0))
        if not self.plan.contains(inset).all():
            return None
        others = [o for o in self.obstacles if under is None or o.owner is not under]
        if any(o.blocks(corners, z + low[2], z + high[2]) for o in others):
            return None
        return self.add(asset, np.append(xy, z), yaw)

    def at_wall(
        self,
        asset: Asset,
        *,
        jitter: float = 0.03,
        gap: float = 0.02,
        tries: int = 12,
        clearance: float = 0.0,
        z: float = 0.0,
    ) -> tuple[Placed, Wall] | None:
        """Place with the back to a wall, turned by up to `jitter` radians, with free floor in front if asked."""
        low, high = asset.bounds
        width, depth = high[0] - low[0], high[1] - low[1]
        for _ in range(tries):
            wall = self.draw.pick(self.plan.walls)
            turn = self.draw.uniform(-jitter, jitter)
            reach = abs(np.cos(turn)) * depth / 2 + abs(np.sin(turn)) * width / 2  # of the turned box, off the wall
            span = abs(np.cos(turn)) * width / 2 + abs(np.sin(turn)) * depth / 2
            if wall.length < 2 * span + 0.04:
                continue
            s = self._along(wall, span)
            if not wall.is_free(s - span, s + span, z + max(low[2], 0.0), z + high[2]):
                continue
            middle = wall.point(s, reach + gap)
            yaw = wall.yaw + turn
            xy = middle - rotation_z(yaw)[:2, :2] @ ((low + high)[:2] / 2)
            if clearance and not self._is_clear(asset, xy, yaw, clearance):
                continue
            result = self.place(asset, xy, yaw, z=z, margin=0.0)
            if result is not None:
                return result, wall
        return None

    def _along(self, wall: Wall, span: float) -> float:
        """Position along a wall: in a corner, or anywhere."""
        low, high = span + 0.02, wall.length - span - 0.02
        return self.draw.pick((low, high, self.draw.uniform(low, high), self.draw.uniform(low, high)))

    def _is_clear(self, asset: Asset, xy: Float, yaw: float, clearance: float) -> bool:
        low, high = asset.bounds
        corners = _corners(np.array([low[0], high[1]]), np.array([high[0], high[1] + clearance]), xy, yaw)
        return not any(o.blocks(corners, 0.05, 1.0) for o in self.obstacles)

    def anywhere(self, asset: Asset, *, tries: int = 12, wall_margin: float = 0.1) -> Placed | None:
        """Place free on the floor at a random spot and angle."""
        for _ in range(tries):
            x0, y0, x1, y1 = self.draw.pick([tuple(r) for r in self.plan.rectangles])
            xy = np.array([self.draw.uniform(x0 + 0.2, x1 - 0.2), self.draw.uniform(y0 + 0.2, y1 - 0.2)])
            yaw = (
                self.draw.uniform(-np.pi, np.pi)
                if self.draw.chance(0.4)
                else self.draw.pick((0.0, np.pi / 2)) + self.draw.uniform(-0.1, 0.1)
            )
            result = self.place(asset, xy, yaw, margin=wall_margin)
            if result is not None:
                return result
        return None

    def beside(self, anchor: Placed, asset: Asset, side: int, *, gap: float) -> Placed | None:
        """Place next to an anchor on its +x (side = 1) or -x (side = -1) side, backs aligned."""
        low, high = anchor.asset.bounds
        a, b = asset.bounds
        x = (high[0] + gap - a[0]) if side > 0 else (low[0] - gap - b[0])
        spot = anchor.point(x, low[1] - a[1])
        return self.place(asset, spot[:2], anchor.yaw, margin=0.0)

    def in_front(
        self, anchor: Placed, asset: Asset, *, gap: float, shift: float = 0.0, turn: float = np.pi
    ) -> Placed | None:
        """Place in front (+y) of an anchor at `gap` metres, facing it (turn = pi) or along with it (turn = 0)."""
        a, b = asset.bounds
        reach = b[1] if abs(turn) > 1.6 else -a[1]
        spot = anchor.point(shift, anchor.asset.bounds[1][1] + gap + reach)
        return self.place(asset, spot[:2], anchor.yaw + turn, margin=0.0)

    @property
    def filled_share(self) -> float:
        """Share of the floor under objects that stand on it."""
        standing = [o.corners for o in self.obstacles if o.bottom < 0.3 and o.owner is not None]
        sides = [(np.linalg.norm(c[1] - c[0]), np.linalg.norm(c[2] - c[1])) for c in standing]
        return float(sum(a * b for a, b in sides)) / self.plan.area

    def reserve(self, center: Float, half: tuple[float, float], yaw: float, top: float) -> None:
        """Keep a rectangle of floor free, e.g. in front of a door."""
        size = np.array(half)
        self.obstacles.append(Obstacle(_corners(-size, size, center, yaw), 0.0, top))


def _corners(low: Float, high: Float, xy: Float, yaw: float) -> Float:
    flat = np.array([[low[0], low[1]], [high[0], low[1]], [high[0], high[1]], [low[0], high[1]]])
    return flat @ rotation_z(yaw)[:2, :2].T + xy


def _overlap(a: Float, b: Float) -> bool:
    """Whether two rectangles, given by their corners (4, 2), overlap (separating axes)."""
    gap = (a[0] + a[2] - b[0] - b[2]) / 2
    if 2 * np.hypot(*gap) > np.hypot(*(a[2] - a[0])) + np.hypot(*(b[2] - b[0])):
        return False  # not even the circles around them meet
    for rectangle in (a, b):
        for edge in (rectangle[1] - rectangle[0], rectangle[2] - rectangle[1]):
            pa, pb = a @ edge, b @ edge
            if pa.max() <= pb.min() or pb.max() <= pa.min():
                return False
    return True
