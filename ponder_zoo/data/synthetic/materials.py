"""Procedural materials, drawn from one palette per scene whatever the class of the object that carries them."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from .classes import GENERATOR_VERSION, Draw
from .primitives import Float, Primitives

SOLID, STRIPES, TILES, CHECKER, WOOD, CLOUDS, POSTER, SPINES = range(8)

# Hues (of 1) that accents and woods take: those of the test split never occur in the others.
_ACCENTS = ((0.0, 0.06), (0.1, 0.15), (0.52, 0.68))
_HELD_OUT_ACCENTS = ((0.2, 0.42), (0.74, 0.92))
_WOODS = (0.075, 0.11)
_HELD_OUT_WOODS = (0.02, 0.055)


@dataclass(frozen=True, eq=False)
class Finish:
    """One material. Colours are linear RGB in 0-1; lengths are metres on the surface."""

    base: Float  # (3,)
    second: Float  # (3,) the pattern mixes `base` and `second`
    pattern: int = SOLID
    period: float = 0.2
    coarse: float = 0.1  # relative brightness variation over decimetres to metres
    fine: float = 0.06  # relative brightness variation over centimetres
    emission: float = 0.0
    shiny: float = 0.0  # probability that a depth camera gets nothing back
    offset: float = 0.0


@dataclass(frozen=True, eq=False)
class Materials:
    """The finishes of a scene as arrays, and which one each primitive has."""

    index: NDArray[np.int64]  # (P,) finish of each primitive
    base: Float  # (M, 3)
    second: Float  # (M, 3)
    pattern: NDArray[np.int64]  # (M,)
    period: Float  # (M,)
    coarse: Float
    fine: Float
    emission: Float
    shiny: Float
    offset: Float


def draw_materials(draw: Draw, primitives: Primitives) -> Materials:
    """One finish per (instance, slot), from the scene's palette; bound only by a part's nature (glass, print)."""
    palette = _draw_palette(draw)
    finishes: list[Finish] = []
    chosen: dict[tuple[int, str], int] = {}
    accent: dict[tuple[int, str], bool] = {}
    index = []
    for instance, slot in zip(primitives.instance.tolist(), primitives.slot, strict=True):
        key = (instance, slot)
        if slot in ("wall", "trim"):  # one finish for the whole room, but for an accent wall now and then
            own = accent.setdefault(key, slot == "wall" and draw.chance(0.15))
            key = key if own else (-1, slot)
        if key not in chosen:
            chosen[key] = len(finishes)
            finishes.append(_finish_for(draw, slot, palette))
        index.append(chosen[key])
    return Materials(
        index=np.array(index),
        base=np.array([f.base for f in finishes], np.float32),
        second=np.array([f.second for f in finishes], np.float32),
        pattern=np.array([f.pattern for f in finishes]),
        **{
            name: np.array([getattr(f, name) for f in finishes], np.float32)
            for name in ("period", "coarse", "fine", "emission", "shiny", "offset")
        },
    )


def _color(hue: float, saturation: float, value: float) -> Float:
    """Linear RGB of a display colour given as hue, saturation, value."""
    return np.array(colorsys.hsv_to_rgb(hue, saturation, value)) ** 2.2


def _accent(draw: Draw) -> Float:
    low, high = draw.pick(_HELD_OUT_ACCENTS if draw.held_out else _ACCENTS)
    return _color(draw.uniform(low, high), draw.uniform(0.3, 0.8), draw.uniform(0.35, 0.85))


def _neutral(draw: Draw, low: float, high: float) -> Float:
    """White to black with a tint: warm in train and val, cool in test."""
    hue = draw.uniform(0.45, 0.6) if draw.held_out else draw.uniform(0.05, 0.16)
    return _color(hue, draw.uniform(0.0, 0.12), draw.uniform(low, high))


def _wood(draw: Draw) -> Finish:
    hue = draw.uniform(*(_HELD_OUT_WOODS if draw.held_out else _WOODS))
    value, saturation = draw.uniform(0.4, 0.85), draw.uniform(0.3, 0.6)
    base, dark = _color(hue, saturation, value), _color(hue, saturation, value * draw.uniform(0.7, 0.85))
    return Finish(base, dark, WOOD, period=draw.uniform(0.08, 0.16), fine=0.05)


def _draw_palette(draw: Draw) -> list[Finish]:
    """Ten to fourteen finishes: whites, greys, a dark, woods, accents plain and patterned."""
    palette = [_wood(draw) for _ in range(draw.integer(2, 3))]
    tones = [
        _neutral(draw, 0.85, 0.98),
        _neutral(draw, 0.75, 0.95),
        _neutral(draw, 0.4, 0.7),
        _neutral(draw, 0.12, 0.3),
    ]
    palette += [Finish(t, t, coarse=draw.uniform(0.02, 0.12), fine=draw.pick((0.0, 0.04, 0.08))) for t in tones]
    accents = [_accent(draw) for _ in range(draw.integer(2, 4))]
    palette += [Finish(a, a, coarse=draw.uniform(0.05, 0.15), fine=draw.pick((0.0, 0.05, 0.12))) for a in accents]
    for _ in range(draw.integer(2, 3)):
        base, second = draw.pick([*accents, *tones]), draw.pick([*accents, *tones])
        pattern = draw.pick((STRIPES, CHECKER, CLOUDS, TILES))
        palette.append(Finish(base, 0.5 * base + 0.5 * second, pattern, period=draw.uniform(0.12, 0.5)))
    return palette


def _finish_for(draw: Draw, slot: str, palette: list[Finish]) -> Finish:
    offset = draw.uniform(0.0, 100.0)
    finish = draw.pick(palette)
    if slot == "pane":
        sky = _color(draw.uniform(0.5, 0.65), draw.uniform(0.05, 0.3), draw.uniform(0.8, 1.0))
        finish = Finish(sky, 0.5 * sky, CLOUDS, period=1.0, fine=0.0, emission=draw.uniform(0.3, 0.8), shiny=0.7)
    elif slot == "shade":
        tone = _neutral(draw, 0.85, 1.0)
        finish = Finish(tone, tone, coarse=0.0, fine=0.0, emission=draw.uniform(0.0, 0.5))
    elif slot in ("metal", "screen", "display"):
        tone = _neutral(draw, 0.05, 0.3) if slot == "display" or draw.chance(0.5) else _neutral(draw, 0.4, 0.9)
        finish = Finish(tone, tone, coarse=0.05, fine=0.0, shiny=0.6 if slot == "metal" else 0.35)
    elif slot == "ceramic" or slot == "basin":
        tone = _neutral(draw, 0.85, 1.0) if draw.chance(0.6) else draw.pick(palette).base
        finish = Finish(tone, tone, coarse=0.03, fine=0.0, shiny=0.1)
    elif slot == "leaves" and draw.chance(0.5):
        green = _color(draw.uniform(0.25, 0.4), draw.uniform(0.3, 0.7), draw.uniform(0.3, 0.7))
        finish = Finish(green, 0.6 * green, CLOUDS, period=0.1)
    elif slot == "poster":
        finish = Finish(
            draw.pick(palette).base, draw.pick(palette).base, POSTER, period=draw.pick((0.1, 0.15, 0.22)), fine=0.1
        )
    elif slot.startswith("books"):
        finish = Finish(
            draw.pick(palette).base, draw.pick(palette).base, SPINES, period=draw.uniform(0.025, 0.05), fine=0.03
        )
    elif slot == "floor":
        kind = draw.pick(("planks", "tiles", "carpet", "plain"))
        if kind == "planks":
            wood = _wood(draw)
            finish = Finish(wood.base, wood.second, WOOD, period=draw.uniform(0.1, 0.2), coarse=0.12, fine=0.08)
        elif kind == "tiles":
            finish = Finish(finish.base, 0.6 * finish.base, TILES, period=draw.uniform(0.25, 0.6), coarse=0.05)
        elif kind == "carpet":
            finish = Finish(finish.base, finish.second, CLOUDS, period=draw.uniform(0.3, 1.0), fine=0.12)
    elif slot == "ceiling" or (slot == "wall" and draw.chance(0.45)):
        tone = _neutral(draw, 0.75, 1.0)
        finish = Finish(tone, tone, coarse=draw.uniform(0.03, 0.1), fine=0.03)
    return Finish(**{**finish.__dict__, "offset": offset})


def shade_albedo(
    materials: Materials,
    primitives: Primitives,
    prim: NDArray[np.integer],
    position: Float,
    normal: Float,
    footprint: Float,
) -> Float:
    """Linear albedo (N, 3) at world points (N, 3) of primitives (N,).

    `footprint` (N,) is the size of a pixel on the surface in metres: detail below it fades to its mean, so that images
    of one surface from near and far agree.
    """
    uv = surface_coordinates(primitives, prim, position, normal)
    m = materials.index[prim]
    shift = materials.offset[m][:, None]
    mix = np.zeros(len(prim), np.float32)
    for pattern in np.unique(materials.pattern[m]):
        rows = np.flatnonzero(materials.pattern[m] == pattern)
        if pattern != SOLID:
            mix[rows] = _pattern(
                int(pattern), uv[rows], materials.period[m[rows]], materials.offset[m[rows]], footprint[rows]
            )
    base, second = (color.take(m, axis=0) for color in (materials.base, materials.second))
    albedo = base + mix[:, None] * (second - base)
    coarse = noise(uv / np.float32(2.4) + shift) * materials.coarse[m]
    fine = noise(uv / np.float32(0.3) + shift) * materials.fine[m] * _fade(np.float32(0.06), footprint)
    return np.clip(albedo * (1 + 2 * coarse + 2 * fine)[:, None], 0.01, 0.98)


def surface_coordinates(primitives: Primitives, prim: NDArray[np.integer], position: Float, normal: Float) -> Float:
    """Metres along a surface, in the frame of its primitive: (N, 2)."""
    rotation = primitives.rotation.astype(np.float32).take(prim, axis=0)
    origin = primitives.texture_origin.astype(np.float32).take(prim, axis=0)
    local = np.einsum("nji,nj->ni", rotation, position - origin)
    facing = np.einsum("nji,nj->ni", rotation, normal)
    axis = np.abs(facing).argmax(1)
    half = primitives.half.astype(np.float32)[prim]
    u = np.where(axis == 0, local[:, 1], local[:, 0])
    v = np.where(axis == 2, local[:, 1], local[:, 2])
    side = (primitives.kind[prim] == 1) & (axis != 2)
    u = np.where(side, np.arctan2(local[:, 1], local[:, 0]) * half[:, 0], u)
    return np.stack([u, v], 1)


def _pattern(pattern: int, uv: Float, period: Float, offset: Float, footprint: Float) -> Float:
    """Mixing weight (N,) of the second colour."""
    cell = uv / period[:, None]
    fade = _fade(period, footprint)
    if pattern == STRIPES:
        value = (0.5 + 0.5 * np.sin(2 * np.pi * cell[:, 0])) * np.float32(1.0)
        return 0.5 + (value - 0.5) * fade
    if pattern == CHECKER:
        value = (np.floor(cell[:, 0]) + np.floor(cell[:, 1])) % 2
        return 0.5 + (value - 0.5) * fade
    if pattern == TILES:
        inside = np.abs(cell - np.floor(cell) - 0.5).max(1)
        joint = (inside > 0.5 - 0.01 / period) * _fade(np.float32(0.02), footprint)
        return np.maximum(joint, 0.35 * _hash(np.floor(cell), offset) * fade)
    if pattern == WOOD:
        plank = np.floor(cell[:, 1])
        grain = noise(
            np.stack([uv[:, 0] / np.float32(1.6), uv[:, 1] / np.float32(0.16)], 1)
            + _hash(plank[:, None], offset)[:, None] * 50
        )
        tone = _hash(plank[:, None], offset)
        return np.clip(0.5 + 0.9 * (tone - 0.5) * fade + 1.2 * grain * _fade(np.float32(0.05), footprint), 0, 1)
    if pattern == CLOUDS:
        return np.clip(0.5 + 1.5 * noise(cell * np.float32(0.15) + offset[:, None]), 0, 1)
    if pattern == POSTER:
        block = _hash(np.floor(cell), offset)
        disc = np.linalg.norm(cell - np.floor(cell) - 0.5, axis=1) < 0.3
        return np.where(disc & (block > 0.5), 1.0 - block, block)
    return _hash(np.floor(cell[:, :1]), offset) * fade + 0.5 * (1 - fade)


def _fade(size: Float | np.float32, footprint: Float) -> Float:
    """1 where a detail of `size` spans three pixels or more, 0 below one pixel."""
    return np.clip((size / footprint - 1.0) / 2.0, 0.0, 1.0).astype(np.float32)


def _hash(cell: Float, offset: Float) -> Float:
    """A number in [0, 1) for each integer cell (N, 1 or 2) and offset (N,)."""
    value = np.floor(offset * 97.0).astype(np.int64)
    for column in cell.T:
        value = (value * 1103515245 + column.astype(np.int64) * 668265263 + 12345) & 0x7FFFFFFF
        value ^= value >> 13
    return ((value * 48271) & 0xFFFF).astype(np.float32) / np.float32(65536)


@cache
def _noise_table(size: int = 128) -> Float:
    """A smooth random image that tiles, zero mean, values about within -0.5..0.5: octaves of 4 to 32 cells."""
    rng = np.random.Generator(np.random.PCG64(GENERATOR_VERSION))
    table = np.zeros((size, size))
    for cells, weight in ((4, 0.5), (8, 0.3), (16, 0.15), (32, 0.1)):
        lattice = rng.random((cells, cells)) - 0.5
        where = np.arange(size) * cells / size
        low, f = np.floor(where).astype(int), where - np.floor(where)
        f = f * f * (3 - 2 * f)
        high = (low + 1) % cells
        rows = lattice[low] * (1 - f)[:, None] + lattice[high] * f[:, None]
        table += weight * (rows[:, low] * (1 - f) + rows[:, high] * f)
    return (table / np.abs(table).max() * 0.5).astype(np.float32)


def noise(uv: Float) -> Float:
    """Smooth noise of period 1 at (N, 2): (N,)."""
    table = _noise_table()
    size = len(table)
    where = (uv * np.float32(size)).astype(np.float32)
    low = np.floor(where)
    f = where - low
    i, j = low.astype(np.int64).T & (size - 1)
    i1, j1 = (i + 1) & (size - 1), (j + 1) & (size - 1)
    fu, fv = f.T
    return (table[i, j] * (1 - fu) + table[i1, j] * fu) * (1 - fv) + (table[i, j1] * (1 - fu) + table[i1, j1] * fu) * fv
