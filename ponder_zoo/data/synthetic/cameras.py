"""Hand-held camera paths: a closed smooth curve around the room at eye level, looking across it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .classes import Draw
from .geometry import signed_distance
from .layout import Room
from .primitives import Float

CLEARANCE = 0.3  # metres from the camera to the nearest surface
_WAYPOINTS = 6


def look_at(position: Float, target: Float, roll: float = 0.0) -> Float:
    """Camera-to-world matrix (4, 4) with OpenCV axes (x right, y down, z forward), z up in the world."""
    forward = (target - position) / np.linalg.norm(target - position)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    c, s = np.cos(roll), np.sin(roll)
    pose = np.eye(4)
    pose[:3, 0], pose[:3, 1] = c * right + s * down, c * down - s * right
    pose[:3, 2], pose[:3, 3] = forward, position
    return pose


def draw_intrinsics(draw: Draw, image_size: tuple[int, int]) -> Float:
    """A pinhole with the field of view of a Kinect (57 degrees across), up to 6 percent wider or narrower: (3, 3)."""
    H, W = image_size
    focal = 585.0 / 640.0 * W * draw.uniform(0.94, 1.06)
    return np.array([[focal, 0.0, (W - 1) / 2], [0.0, focal, (H - 1) / 2], [0.0, 0.0, 1.0]])


def draw_path(draw: Draw, room: Room, count: int) -> tuple[Float, Float, Float]:
    """Positions (V, 3), look-at targets (V, 3) and rolls (V,) along one lap around the room."""
    spots = _free_spots(draw, room)
    waypoints = _lap(draw, spots)
    aims = np.array([draw_target(draw, room, spot) for spot in waypoints])
    phase = draw.uniform(0.0, 1.0)
    turns = (np.arange(count) + phase + [draw.uniform(-0.2, 0.2) for _ in range(count)]) / count
    positions = _closed_spline(waypoints, turns)
    wobble = np.array([[draw.uniform(-0.02, 0.02) for _ in range(3)] for _ in range(count)])
    positions = _keep_clear(room, positions + wobble, spots)
    rolls = np.array([draw.uniform(-0.05, 0.05) for _ in range(count)])
    return positions, _closed_spline(aims, turns), rolls


def draw_target(draw: Draw, room: Room, position: Float) -> Float:
    """A point to look at: often a piece of furniture across the room, else the other side of the room's middle."""
    movable = [i for i in room.instances if i.name not in ("floor", "ceiling", "wall", "ceiling lamp", "beam")]
    far = [i for i in movable if np.hypot(*(i.center - position)[:2]) > 1.2]
    if far and draw.chance(0.6):
        target = draw.pick(far).center.copy()
    else:
        middle = np.append(room.plan.rectangles[0].reshape(2, 2).mean(0), 0.0)
        target = middle + draw.uniform(0.2, 0.8) * (middle - position)
        target += [draw.uniform(-0.5, 0.5), draw.uniform(-0.5, 0.5), 0.0]
    target[2] = np.clip(target[2], 0.3, 1.5) if draw.chance(0.5) else draw.uniform(0.4, 1.2)
    if np.hypot(*(target - position)[:2]) < 0.5:
        target[:2] += 0.8
    return target


def _free_spots(draw: Draw, room: Room, count: int = 256) -> Float:
    """Positions (S, 3) at eye level, away from walls and furniture; those with the most room if none has enough."""
    rectangles = room.plan.rectangles
    low, high = rectangles[:, :2].min(0), rectangles[:, 2:].max(0)
    flat = np.array([[draw.uniform(low[k], high[k]) for k in (0, 1)] for _ in range(count)])
    level = draw.uniform(1.3, 1.6)
    spots = np.column_stack([flat, [level + draw.uniform(-0.1, 0.1) for _ in range(count)]])
    spots = spots[room.plan.contains(flat, 0.1)]
    room_around = signed_distance(room.primitives, spots)
    margin = 0.42
    while (room_around > margin).sum() < 8 and margin > CLEARANCE:
        margin -= 0.04
    good = room_around > margin
    return spots[good] if good.any() else spots[np.argsort(-room_around)[:4]]


def _lap(draw: Draw, spots: Float) -> Float:
    """Way points (K, 3) around the middle of the free spots, one per sector, preferring the outer ones."""
    relative = spots[:, :2] - np.median(spots[:, :2], axis=0)
    sector = (
        np.floor((np.arctan2(relative[:, 1], relative[:, 0]) / (2 * np.pi) + 0.5) * _WAYPOINTS).astype(int) % _WAYPOINTS
    )
    distance = np.linalg.norm(relative, axis=1)
    chosen = []
    for k in range(_WAYPOINTS):
        members = np.flatnonzero(sector == k)
        if len(members):
            outer = members[np.argsort(-distance[members], kind="stable")[: max(1, (len(members) + 1) // 2)]]
            chosen.append(draw.pick(outer.tolist()))
    return spots[chosen]


def _closed_spline(points: Float, turns: Float) -> Float:
    """A closed Catmull-Rom spline through points (K, 3), evaluated at turns (V,) where 1 is one lap: (V, 3)."""
    K = len(points)
    where = (turns % 1.0) * K
    k = np.floor(where).astype(int)
    f = (where - k)[:, None]
    a, b, c, d = (points[(k + shift) % K] for shift in (-1, 0, 1, 2))
    return b + 0.5 * f * (c - a + f * (2 * a - 5 * b + 4 * c - d + f * (3 * (b - c) + d - a)))


def _keep_clear(room: Room, positions: Float, spots: Float) -> Float:
    """Move positions that came too close to something towards the nearest free spot, as far as needed."""
    nearest = spots[np.linalg.norm(positions[:, None] - spots, axis=2).argmin(1)]
    result = positions
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        moved = positions + share * (nearest - positions)
        close = _clearance(room, result) < CLEARANCE
        if not close.any():
            break
        result = np.where(close[:, None], moved, result)
    return result


def _clearance(room: Room, positions: Float) -> NDArray[np.float64]:
    inside = room.plan.contains(positions[:, :2], 0.0)
    return np.where(inside, signed_distance(room.primitives, positions), -1.0)
