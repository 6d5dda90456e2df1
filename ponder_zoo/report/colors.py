"""Colour maps and palettes, computed in OKLab so that equal steps look equal; numpy only.

Source of the transform: B. Ottosson, "A perceptual color space for image processing" (2020).
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

ColorMap = Literal["depth", "error"]

INVALID = (30, 32, 38)  # what "nothing measured here" looks like, darker than every colour of the maps
UNLABELLED = (58, 61, 68)

# OKLab -> cone responses (cubed) -> linear sRGB
_LAB_TO_LMS = np.array(
    [
        [1.0, 0.3963377774, 0.2158037573],
        [1.0, -0.1055613458, -0.0638541728],
        [1.0, -0.0894841775, -1.2914855480],
    ]
)
_LMS_TO_RGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)


def oklch_to_rgb(lightness: NDArray[Any], chroma: NDArray[Any], hue: NDArray[Any]) -> NDArray[np.float64]:
    """Lightness in [0, 1], chroma, hue in degrees, all (N,) -> sRGB (N, 3), not clipped."""
    angle = np.deg2rad(hue)
    lab = np.stack(np.broadcast_arrays(lightness, chroma * np.cos(angle), chroma * np.sin(angle)), -1)
    linear = (lab @ _LAB_TO_LMS.T) ** 3 @ _LMS_TO_RGB.T
    magnitude = np.abs(linear)
    encoded = np.where(magnitude <= 0.0031308, 12.92 * magnitude, 1.055 * magnitude ** (1 / 2.4) - 0.055)
    return np.sign(linear) * encoded


def _displayable(lightness: NDArray[Any], chroma: NDArray[Any], hue: NDArray[Any]) -> NDArray[np.uint8]:
    """As oklch_to_rgb in uint8; where a screen cannot show a colour its chroma is lowered, lightness and hue stay."""
    low, high = np.zeros_like(chroma), np.ones_like(chroma)
    for _ in range(14):  # bisection of the factor on the chroma
        middle = 0.5 * (low + high)
        inside = _is_displayable(oklch_to_rgb(lightness, chroma * middle, hue))
        low, high = np.where(inside, middle, low), np.where(inside, high, middle)
    factor = np.where(_is_displayable(oklch_to_rgb(lightness, chroma, hue)), 1.0, low)
    return np.round(255 * oklch_to_rgb(lightness, chroma * factor, hue).clip(0.0, 1.0)).astype(np.uint8)


def _is_displayable(rgb: NDArray[Any]) -> NDArray[np.bool_]:
    return np.asarray(((rgb >= 0.0) & (rgb <= 1.0)).all(-1))


@cache
def color_table(name: ColorMap) -> NDArray[np.uint8]:
    """256 colours of rising lightness (256, 3): `depth` is violet to yellow, `error` near black to cream."""
    t = np.linspace(0.0, 1.0, 256)
    if name == "depth":
        lightness, chroma, hue = 0.36 + 0.58 * t, np.full_like(t, 0.13), 305.0 - 205.0 * t
    elif name == "error":
        lightness, chroma, hue = 0.20 + 0.77 * t, 0.17 * np.sin(np.pi * (0.12 + 0.80 * t)), 345.0 + 115.0 * t
    else:
        raise ValueError(f"Expected the colour map 'depth' or 'error', got {name!r}. Use one of the two.")
    return _displayable(lightness, chroma, hue)


def colorize(
    values: NDArray[Any], name: ColorMap, *, low: float, high: float, valid: NDArray[np.bool_] | None = None
) -> NDArray[np.uint8]:
    """Scalars (...) -> uint8 colours (..., 3); `low` and below get the first colour, `high` and above the last.

    Entries that are not finite, or where `valid` is False, get `INVALID`.
    """
    values = np.asarray(values, dtype=np.float64)
    shown = np.isfinite(values) if valid is None else np.isfinite(values) & valid
    fraction = (np.where(shown, values, low) - low) / max(high - low, 1e-12)
    colors = color_table(name)[np.round(255 * fraction.clip(0.0, 1.0)).astype(np.int64)]
    colors[~shown] = INVALID
    return colors


@cache
def class_palette(num_classes: int) -> NDArray[np.uint8]:
    """Well separated colours (num_classes, 3): hues by the golden angle, lightness in a cycle of three."""
    index = np.arange(num_classes)
    lightness = np.array([0.72, 0.58, 0.84])[index % 3]
    return _displayable(lightness, np.full(num_classes, 0.15), (25.0 + 137.508 * index) % 360.0)


def normal_to_rgb(normal: NDArray[Any]) -> NDArray[np.uint8]:
    """Unit vectors (..., 3) -> uint8 colours (..., 3), (n + 1) / 2; shorter than 0.1 or not finite: `INVALID`."""
    normal = np.asarray(normal, dtype=np.float64)
    length = np.linalg.norm(normal, axis=-1, keepdims=True)
    known = np.isfinite(length[..., 0]) & (length[..., 0] >= 0.1)
    unit = np.where(known[..., None], normal, 0.0) / np.where(known[..., None], length, 1.0)
    colors = np.round(127.5 * (unit + 1.0)).astype(np.uint8)
    colors[~known] = INVALID
    return colors
