"""Light: Lambert surfaces under one or two lamps with hard shadows, plus ambient light."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .classes import Draw
from .layout import Room
from .materials import Materials, shade_albedo
from .primitives import Float, Primitives
from .tracing import lit


@dataclass(frozen=True, eq=False)
class Lights:
    """Point lamps with inverse-square fall-off, and ambient light from above and below."""

    position: Float  # (L, 3) metres
    power: Float  # (L, 3) linear RGB
    above: Float  # (3,) ambient light on surfaces that face up
    below: Float  # (3,) ambient light on surfaces that face down
    casters: Primitives  # what throws shadows: none in a room with diffuse light


def draw_lights(draw: Draw, room: Room) -> Lights:
    """The room's lamps, with colours from warm to cool and a share of ambient light."""
    positions = room.lamps
    tint = np.array([1.0, draw.uniform(0.9, 1.0), draw.uniform(0.75, 1.05)])
    # Brightness relative to a surface 1.6 m below one lamp; exposure is set afterwards.
    power = np.array([tint * draw.uniform(2.0, 3.2) for _ in positions])
    ambient = draw.uniform(0.25, 0.45)
    cool = np.array([draw.uniform(0.88, 1.0), draw.uniform(0.94, 1.0), 1.0])
    below = draw.uniform(0.6, 0.9) * ambient * tint
    rows = _shadow_casters(room) if draw.chance(0.85) else np.zeros(0, int)
    return Lights(positions, power, ambient * cool, below, room.primitives.subset(rows))


def _shadow_casters(room: Room) -> NDArray[np.integer]:
    """Primitives that can stand between a lamp and a surface: not the shell, unless the room has a bend."""
    flat = {"floor", "ceiling", "door", "window", "picture", "rug", "ceiling lamp"}
    if len(room.plan.rectangles) == 1:
        flat.add("wall")
    return np.flatnonzero([room.instances[i].name not in flat for i in room.primitives.instance])


def shade(
    room: Room,
    materials: Materials,
    lights: Lights,
    prim: NDArray[np.integer],
    position: Float,
    normal: Float,
    footprint: Float,
) -> Float:
    """Linear radiance (N, 3) leaving world points (N, 3) of primitives (N,)."""
    albedo = shade_albedo(materials, room.primitives, prim, position, normal, footprint)
    up = (0.5 + 0.5 * normal[:, 2:]).astype(np.float32)
    light = up * lights.above.astype(np.float32) + (1 - up) * lights.below.astype(np.float32)
    lifted = position + np.float32(4e-3) * normal
    for lamp, power in zip(lights.position, lights.power, strict=True):
        to_lamp = lamp.astype(np.float32) - position
        square = (to_lamp * to_lamp).sum(1)
        cosine = np.maximum((to_lamp * normal).sum(1) / np.sqrt(square), 0)
        strength = cosine / (square + np.float32(0.6))
        rows = np.flatnonzero(strength > 1e-3)
        if len(lights.casters):
            rows = rows[lit(lights.casters, lifted.take(rows, axis=0), lamp)]
        light[rows] += strength[rows, None] * power.astype(np.float32)
    glow = materials.emission[materials.index[prim]][:, None] * materials.base[materials.index[prim]]
    return albedo * light + glow


def to_display(radiance: Float, gain: Float | float) -> Float:
    """Display colours in 0-1 (gamma 2.2) of linear radiance; highlights roll off instead of clipping."""
    x = np.maximum(radiance * np.float32(gain), 0.0)
    y = x * (1 + x / np.float32(6.25)) / (1 + np.float32(0.4) * x)  # about linear up to a half; white at 1.8
    return np.clip(y, 0, 1).astype(np.float32) ** np.float32(1 / 2.2)


def exposure(radiance: Float) -> float:
    """Gain for a scene's images: half way between the one for its mean and the one for its bright parts."""
    brightness = radiance.mean(-1)
    return (0.3 / max(float(brightness.mean()), 1e-3) + 0.75 / max(float(np.quantile(brightness, 0.95)), 1e-3)) / 2
