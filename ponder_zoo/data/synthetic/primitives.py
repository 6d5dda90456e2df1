"""Oriented boxes, cylinders and ellipsoids: the parts that furniture is made of, and packed arrays of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.floating]
Vector = Sequence[float] | Float  # three coordinates
BOX, CYLINDER, ELLIPSOID = 0, 1, 2


def rotation_z(angle: float) -> Float:
    """Rotation about z by `angle` radians, counter-clockwise seen from above: (3, 3)."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def rotation_x(angle: float) -> Float:
    """Rotation about x by `angle` radians: (3, 3)."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[1.0, 0.0, 0.0], [0.0, c, -s], [0.0, s, c]])


_IDENTITY = np.eye(3)
_AXES = {
    "x": np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]),  # columns: where local x, y, z point
    "y": np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]),
    "z": _IDENTITY,
}


@dataclass(frozen=True, eq=False)
class Part:
    """One primitive in the frame of its object (x width, +y front, z up; the floor is z = 0)."""

    kind: int
    center: Float  # (3,) metres
    half: Float  # (3,) half sizes; (r, r, half height) of a cylinder along local z; radii of an ellipsoid
    slot: str  # parts of an object that share a slot share a material
    rotation: Float = field(default_factory=lambda: _IDENTITY)  # (3, 3) part to object
    texture_origin: Float | None = None  # (3,) where the texture starts; None = the part's centre


def box(low: Vector, high: Vector, slot: str = "body", *, rotation: Float = _IDENTITY) -> Part:
    """A box between two corners (its axes then rotated about its centre)."""
    a, b = np.asarray(low, float), np.asarray(high, float)
    return Part(BOX, (a + b) / 2, np.abs(b - a) / 2, slot, rotation)


def cylinder(
    center: Vector,
    radius: float,
    length: float,
    slot: str = "body",
    *,
    axis: str = "z",
    tilt: Float = _IDENTITY,
) -> Part:
    """A cylinder around `axis` through `center`, turned by `tilt` afterwards."""
    return Part(CYLINDER, np.asarray(center, float), np.array([radius, radius, length / 2]), slot, tilt @ _AXES[axis])


def ellipsoid(center: Vector, radii: Vector, slot: str = "body", *, rotation: Float = _IDENTITY) -> Part:
    """An ellipsoid with the given radii along its own axes."""
    return Part(ELLIPSOID, np.asarray(center, float), np.asarray(radii, float), slot, rotation)


def moved(parts: Sequence[Part], offset: Vector, rotation: Float = _IDENTITY) -> list[Part]:
    """The parts rotated about the origin and then shifted."""
    shift = np.asarray(offset, float)
    return [
        replace(
            part,
            center=rotation @ part.center + shift,
            rotation=rotation @ part.rotation,
            texture_origin=None if part.texture_origin is None else rotation @ part.texture_origin + shift,
        )
        for part in parts
    ]


def bounds(parts: Sequence[Part]) -> tuple[Float, Float]:
    """Axis-aligned box around the parts in their common frame: two corners (3,)."""
    center, half = np.array([part.center for part in parts]), np.array([part.half for part in parts])
    reach = (np.abs(np.array([part.rotation for part in parts])) @ half[..., None])[..., 0]
    return (center - reach).min(0), (center + reach).max(0)


@dataclass(frozen=True, eq=False)
class Primitives:
    """P primitives in the world frame (z up, floor at z = 0), as arrays."""

    kind: NDArray[np.int64]  # (P,)
    center: Float  # (P, 3) metres
    rotation: Float  # (P, 3, 3) local to world
    half: Float  # (P, 3) metres
    texture_origin: Float  # (P, 3) metres
    instance: NDArray[np.int64]  # (P,) index of the instance
    slot: tuple[str, ...]  # P names

    def __len__(self) -> int:
        return len(self.kind)

    @property
    def radius(self) -> Float:
        """Radius of the sphere around each primitive's centre that holds it: (P,)."""
        flat = np.hypot(self.half[:, 0], self.half[:, 1])
        round_xy = np.where(self.kind == CYLINDER, self.half[:, 0], flat)
        return np.where(self.kind == ELLIPSOID, self.half.max(1), np.hypot(round_xy, self.half[:, 2]))

    def subset(self, rows: NDArray[np.integer]) -> Primitives:
        """The primitives of the given indices, in that order."""
        return Primitives(
            kind=self.kind[rows],
            center=self.center[rows],
            rotation=self.rotation[rows],
            half=self.half[rows],
            texture_origin=self.texture_origin[rows],
            instance=self.instance[rows],
            slot=tuple(self.slot[i] for i in rows),
        )

    @classmethod
    def from_parts(cls, parts: Sequence[Part], instance: Sequence[int]) -> Primitives:
        """Pack parts whose frame is already the world's."""
        origins = [part.center if part.texture_origin is None else part.texture_origin for part in parts]
        return cls(
            kind=np.array([part.kind for part in parts]),
            center=np.array([part.center for part in parts]),
            rotation=np.array([part.rotation for part in parts]),
            half=np.array([part.half for part in parts]),
            texture_origin=np.array(origins),
            instance=np.asarray(instance, dtype=np.int64),
            slot=tuple(part.slot for part in parts),
        )


def surface_normal(kind: NDArray[np.integer], local: Float, half: Float) -> Float:
    """Outward unit normals, in the local frame, of points on primitives: (N,), (N, 3), (N, 3) -> (N, 3)."""
    normal = np.zeros_like(local)
    rows = np.arange(len(local))
    excess = np.abs(local) - half
    axis = excess.argmax(1)
    normal[rows, axis] = np.where(local[rows, axis] < 0, -1.0, 1.0)
    tube = np.flatnonzero(kind == CYLINDER)
    if len(tube):
        radial = np.hypot(local[tube, 0], local[tube, 1])
        side = tube[radial - half[tube, 0] >= excess[tube, 2]]
        normal[tube] = 0.0
        normal[tube, 2] = np.where(local[tube, 2] < 0, -1.0, 1.0)
        normal[side] = 0.0
        normal[side, :2] = local[side, :2] / np.maximum(np.hypot(local[side, 0], local[side, 1]), 1e-9)[:, None]
    round_ = np.flatnonzero(kind == ELLIPSOID)
    if len(round_):
        gradient = local[round_] / half[round_] ** 2
        normal[round_] = gradient / np.maximum(np.linalg.norm(gradient, axis=1, keepdims=True), 1e-9)
    return normal
