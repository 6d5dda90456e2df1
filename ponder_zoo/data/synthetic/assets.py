"""What the furniture builders return: objects made of parts, and the surfaces that small things may stand on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from .primitives import Float, Part, Vector, bounds, moved, rotation_z


@dataclass(frozen=True)
class Support:
    """A horizontal rectangle of an object, in its frame: things can stand on it."""

    low: tuple[float, float]
    high: tuple[float, float]
    z: float
    headroom: float = 0.6  # metres of free height above it


@dataclass(frozen=True, eq=False)
class Item:
    """One labelled instance: its class, a finer name, and its parts in the asset's frame."""

    name: str
    segment: str  # name of the class, or "ignored"
    parts: list[Part]


@dataclass(frozen=True, eq=False)
class Asset:
    """Something placed as a whole: one or more labelled items in one frame (x width, +y front, z up, floor z = 0)."""

    items: list[Item]
    supports: list[Support] = field(default_factory=list)
    slots: tuple[int, int] = (1, 1)  # seats that a table offers along x and y

    @property
    def parts(self) -> list[Part]:
        """All parts of all items."""
        return [part for item in self.items for part in item.parts]

    @cached_property
    def bounds(self) -> tuple[Float, Float]:
        """Axis-aligned box in the asset's frame: two corners (3,)."""
        return bounds(self.parts)

    def placed(self, position: Vector, yaw: float) -> list[Item]:
        """The items in the world's frame, turned by `yaw` and moved to `position` (x, y, z)."""
        return [Item(i.name, i.segment, moved(i.parts, position, rotation_z(yaw))) for i in self.items]


def asset(name: str, segment: str, parts: list[Part], supports: Sequence[Support] = ()) -> Asset:
    """An asset with a single item."""
    return Asset([Item(name, segment, parts)], list(supports))
