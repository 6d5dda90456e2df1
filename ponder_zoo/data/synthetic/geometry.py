"""Exact signed distance, surface samples and triangles of primitives, for reconstruction metrics and self-checks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .plan import Plan
from .primitives import BOX, CYLINDER, Float, Primitives, surface_normal

_RECESS = 0.16  # metres: how far doors and windows are set back into the walls
_PROBE = 2e-3  # metres in front of a surface at which it must be free to count as visible


def signed_distance(primitives: Primitives, points: Float, *, chunk: int = 65536) -> Float:
    """Distance in metres from points (N, 3) to the nearest surface, negative inside: (N,) float64.

    It is the minimum over exact distances of the primitives: exact in free space, a bound inside overlapping ones.
    """
    points = np.asarray(points, float)
    parts = [_signed_distance(primitives, points[start : start + chunk]) for start in range(0, len(points), chunk)]
    return np.concatenate(parts) if parts else np.zeros(0)


def _signed_distance(primitives: Primitives, points: Float) -> Float:
    radius, best = primitives.radius, np.full(len(points), np.inf)
    gap = np.linalg.norm(points.mean(0) - primitives.center, axis=1) - radius
    for p in np.argsort(gap, kind="stable"):
        offset = points - primitives.center[p]
        # The distance to the sphere around a primitive is a lower bound: most are skipped by it.
        near = np.flatnonzero(np.sqrt((offset * offset).sum(1)) - radius[p] < best)
        if len(near):
            local = offset[near] @ primitives.rotation[p]
            best[near] = np.minimum(best[near], distance_to(int(primitives.kind[p]), primitives.half[p], local))
    return best


def distance_to(kind: int, half: Float, local: Float) -> Float:
    """Signed distance from points in a primitive's own frame: (N, 3) -> (N,)."""
    if kind == BOX:
        return _box_distance(np.abs(local) - half)
    if kind == CYLINDER:
        radial = np.hypot(local[:, 0], local[:, 1]) - half[0]
        return _box_distance(np.stack([radial, np.abs(local[:, 2]) - half[2]], 1))
    return _ellipsoid_distance(half, np.abs(local))


def _box_distance(excess: Float) -> Float:
    outside = np.maximum(excess, 0.0)
    return np.sqrt((outside * outside).sum(1)) + np.minimum(excess.max(1), 0.0)


def _ellipsoid_distance(radii: Float, local: Float) -> Float:
    """Distance to the closest point x_i = r_i^2 y_i / (t + r_i^2); t solves sum (r_i y_i / (t + r_i^2))^2 = 1.

    The sum falls convexly in t right of -min r^2, so Newton's method from its left end converges monotonically.
    """
    squares = radii**2
    t = (radii * local - squares).max(1)
    t = np.maximum(t, -squares.min() * (1 - 1e-9))
    for _ in range(40):
        ratio = radii * local / (t[:, None] + squares)
        value = (ratio * ratio).sum(1) - 1.0
        slope = -2.0 * (ratio * ratio / (t[:, None] + squares)).sum(1)
        step = np.where(value > 0, -value / np.minimum(slope, -1e-30), 0.0)
        t = t + step
        if np.abs(step).max(initial=0.0) < 1e-14:
            break
    closest = squares * local / (t[:, None] + squares)
    inside = ((local / radii) ** 2).sum(1) < 1.0
    distance = np.linalg.norm(local - closest, axis=1)
    return np.where(inside, -distance, distance)


@dataclass(frozen=True, eq=False)
class SurfaceSamples:
    """Points on the visible surfaces of a room, uniform by area."""

    coord: Float  # (N, 3) metres
    normal: Float  # (N, 3) unit, out of the surface
    primitive: NDArray[np.int64]  # (N,)


def sample_surface(primitives: Primitives, plan: Plan, count: int, rng: np.random.Generator) -> SurfaceSamples:
    """`count` points on what can be seen from inside the room: no inner faces, no outsides of walls."""
    areas = np.array([_area(int(k), h) for k, h in zip(primitives.kind, primitives.half, strict=True)])
    found: list[tuple[Float, Float, NDArray[np.int64]]] = []
    total = 0
    while total < count:
        index = np.searchsorted(np.cumsum(areas) / areas.sum(), rng.random(2 * count), side="right").clip(
            max=len(areas) - 1
        )
        local = _local_samples(primitives, index, rng)
        rotation = primitives.rotation[index]
        normal = np.einsum(
            "nij,nj->ni", rotation, surface_normal(primitives.kind[index], local, primitives.half[index])
        )
        coord = np.einsum("nij,nj->ni", rotation, local) + primitives.center[index]
        keep = is_visible(primitives, plan, coord, normal)
        keep[keep] = signed_distance(primitives, coord[keep]) > -1e-6  # pieces of a wall overlap by a millimetre
        found.append((coord[keep], normal[keep], index[keep]))
        total += int(keep.sum())
    coord, normal, index = (np.concatenate(column)[:count] for column in zip(*found, strict=True))
    return SurfaceSamples(coord, normal, index)


def is_visible(primitives: Primitives, plan: Plan, coord: Float, normal: Float) -> NDArray[np.bool_]:
    """Whether the space just in front of surface points is free and belongs to the room (or a door's recess): (N,)."""
    probe = coord + _PROBE * normal
    inside = plan.contains(probe[:, :2], -_RECESS) & (probe[:, 2] > 0) & (probe[:, 2] < plan.height)
    visible = np.zeros(len(coord), bool)
    visible[inside] = signed_distance(primitives, probe[inside]) > 0.5 * _PROBE
    return visible


def _area(kind: int, half: Float) -> float:
    x, y, z = half
    if kind == BOX:
        return float(8 * (x * y + y * z + z * x))
    if kind == CYLINDER:
        return float(2 * np.pi * x * x + 4 * np.pi * x * z)
    p = 1.6075  # Thomsen's formula: within 1.1 percent
    return float(4 * np.pi * (((x * y) ** p + (x * z) ** p + (y * z) ** p) / 3) ** (1 / p))


def _local_samples(primitives: Primitives, index: NDArray[np.int64], rng: np.random.Generator) -> Float:
    """Uniform points on the surface of the given primitives, in their frames: (N, 3)."""
    half, kind, n = primitives.half[index], primitives.kind[index], len(index)
    u, v, w = rng.random((3, n)) * 2 - 1
    x, y, z = half.T
    face = np.stack([y * z, z * x, x * y], 1)
    axis = (rng.random(n)[:, None] * face.sum(1, keepdims=True) > np.cumsum(face, 1)).sum(1).clip(max=2)
    sign = np.where(w < 0, -1.0, 1.0)
    rows = np.arange(n)
    local = np.stack([u, v, rng.random(n) * 2 - 1], 1) * half
    local[rows, axis] = sign * half[rows, axis]
    angle = np.pi * u
    is_cap = (kind == CYLINDER) & (rng.random(n) * (x + 2 * z) < x)
    radius = np.where(is_cap, x * np.sqrt(np.abs(v)), x)
    tube = np.stack([radius * np.cos(angle), radius * np.sin(angle), np.where(is_cap, sign * z, v * z)], 1)
    local = np.where((kind == CYLINDER)[:, None], tube, local)
    # A uniform direction scaled to an ellipsoid is too dense at its poles; thinning by the local stretch corrects that.
    flat = np.sqrt(np.maximum(1 - v * v, 0))
    ball = np.stack([flat * np.cos(angle), flat * np.sin(angle), v], 1)
    again = np.flatnonzero(kind > CYLINDER)
    while len(again):
        stretch = np.linalg.norm(ball[again] / half[again], axis=1) * half[again].min(1)
        again = again[rng.random(len(again)) > stretch]
        fresh = rng.normal(size=(len(again), 3))
        ball[again] = fresh / np.linalg.norm(fresh, axis=1, keepdims=True)
    return np.where((kind > CYLINDER)[:, None], ball * half, local)


def triangulate(
    primitives: Primitives, plan: Plan, *, edge: float = 0.25, visible_only: bool = True
) -> tuple[Float, NDArray[np.int64], NDArray[np.int64]]:
    """Vertices (N, 3), triangles (T, 3) wound outwards, and the primitive of each triangle (T,).

    Args:
        primitives: what to triangulate.
        plan: the room, to tell inner faces from outer ones.
        edge: largest side of a triangle on a flat face, metres.
        visible_only: leave out triangles whose middle is inside another object or outside the room.
    """
    vertices, faces, owner, base = [], [], [], 0
    for p in range(len(primitives)):
        v, f = _mesh(int(primitives.kind[p]), primitives.half[p], edge)
        vertices.append(v @ primitives.rotation[p].T + primitives.center[p])
        faces.append(f + base)
        owner.append(np.full(len(f), p))
        base += len(v)
    vertex, face, index = np.concatenate(vertices), np.concatenate(faces), np.concatenate(owner)
    if visible_only:
        a, b, c = vertex[face].transpose(1, 0, 2)
        normal = np.cross(b - a, c - a)
        normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
        keep = is_visible(primitives, plan, (a + b + c) / 3, normal)
        face, index = face[keep], index[keep]
        used, face = np.unique(face, return_inverse=True)
        vertex, face = vertex[used], face.reshape(-1, 3)
    return vertex, face, index


def _mesh(kind: int, half: Float, edge: float) -> tuple[Float, NDArray[np.int64]]:
    if kind == BOX:
        patches = []
        for axis in range(3):
            a, b = (axis + 1) % 3, (axis + 2) % 3
            for sign in (-1.0, 1.0):
                counts = [max(1, int(np.ceil(2 * half[k] / edge))) for k in (a, b)]
                s, t = np.meshgrid(
                    *[np.linspace(-half[k], half[k], n + 1) for k, n in zip((a, b), counts, strict=True)], indexing="ij"
                )
                points = np.empty((*s.shape, 3))
                points[..., axis], points[..., a], points[..., b] = sign * half[axis], s, t
                patches.append((points, sign < 0))
        return _join(patches)
    turns = np.linspace(0, 2 * np.pi, 25)
    circle = np.stack([np.cos(turns), np.sin(turns)], 1)
    if kind == CYLINDER:
        rows = max(1, int(np.ceil(2 * half[2] / edge)))
        profile = [(0.0, -1.0), *[(1.0, -1 + 2 * k / rows) for k in range(rows + 1)], (0.0, 1.0)]
    else:
        angles = np.linspace(-np.pi / 2, np.pi / 2, 13)
        profile = [(max(float(np.cos(a)), 0.0), float(np.sin(a))) for a in angles]
    points = np.array([np.column_stack([r * circle, np.full(len(circle), z)]) for r, z in profile]) * half
    return _join([(points, True)])


def _join(patches: list[tuple[Float, bool]]) -> tuple[Float, NDArray[np.int64]]:
    """Grids of points (A, B, 3), each with whether its winding must be turned, as one mesh without zero triangles."""
    vertices, faces, base = [], [], 0
    for points, turned in patches:
        rows, columns = points.shape[:2]
        grid = np.arange(rows * columns).reshape(rows, columns) + base
        a, b, c, d = (g.ravel() for g in (grid[:-1, :-1], grid[1:, :-1], grid[1:, 1:], grid[:-1, 1:]))
        quads = [np.stack([a, b, c], 1), np.stack([a, c, d], 1)]
        faces += [q[:, ::-1] if turned else q for q in quads]
        vertices.append(points.reshape(-1, 3))
        base += rows * columns
    vertex, face = np.concatenate(vertices), np.concatenate(faces)
    a, b, c = vertex[face].transpose(1, 0, 2)
    return vertex, face[np.linalg.norm(np.cross(b - a, c - a), axis=1) > 1e-14]
