"""Drawing of a table of pictures with headers, captions and colour scales, with Pillow."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..files import write_atomic
from .colors import INVALID, ColorMap, color_table

if TYPE_CHECKING:
    from PIL import Image

BACKGROUND, TEXT, MUTED, LINE = (16, 18, 22), (236, 238, 242), (150, 156, 167), (44, 48, 56)


@dataclass
class Tile:
    image: NDArray[Any]  # (h, w, 3) uint8
    size: tuple[int, int]  # width, height to draw it at
    caption: str = ""
    bold: bool = False  # captions of what the model made stand out


@dataclass(frozen=True)
class Bar:
    label: str
    table: ColorMap | None  # name of a colour map, or None for a single chip of the invalid colour
    low: str
    high: str


@dataclass
class Grid:
    headers: list[str]
    rows: list[list[Tile]]
    title: str = ""
    bars: Sequence[Bar] = ()
    chips: Sequence[tuple[str, tuple[int, int, int]]] = ()


def save_grid(grid: Grid, path: str | os.PathLike[str]) -> Path:
    """Write the picture as PNG."""
    file = io.BytesIO()
    _draw(grid).save(file, format="PNG", optimize=True)
    return write_atomic(path, file.getvalue())


def _draw(grid: Grid) -> Image.Image:
    from PIL import Image, ImageDraw  # here, because importing ponder_zoo must not cost an image library

    width = grid.rows[0][0].size[0]
    gap, margin = 10, 28
    body, small = _font(min(max(13, width // 11), 23)), _font(min(max(12, width // 13), 20))
    line = round(1.75 * body.size)
    total_width = 2 * margin + len(grid.headers) * (width + gap) - gap
    top = margin + (round(1.3 * line) if grid.title else 0)
    chip_rows = _wrap_chips(grid.chips, small, total_width - 2 * margin)
    bar_height = round(1.5 * line) if grid.bars else 0
    footer = bar_height + len(chip_rows) * line + (line // 2 if chip_rows else 0)
    captions = [line if any(tile.caption for tile in row) else gap for row in grid.rows]
    total_height = top + line + sum(r[0].size[1] + c + gap for r, c in zip(grid.rows, captions, strict=True)) + footer
    canvas = Image.new("RGB", (total_width, total_height + margin // 2), BACKGROUND)
    pen = ImageDraw.Draw(canvas)
    if grid.title:
        pen.text((margin, margin), grid.title, fill=TEXT, font=_font(round(1.25 * body.size)), anchor="lt")
    y = top
    for column, header in enumerate(grid.headers):
        pen.text((margin + column * (width + gap), y + line // 2), header, fill=MUTED, font=body, anchor="lm")
    y += line
    for row, caption in zip(grid.rows, captions, strict=True):
        for column, tile in enumerate(row):
            x = margin + column * (width + gap)
            _paste(canvas, tile, (x, y))
            if tile.caption:
                color = TEXT if tile.bold else MUTED
                text = _fit_text(tile.caption, small, width)
                pen.text((x, y + tile.size[1] + caption // 2), text, fill=color, font=small, anchor="lm")
        y += row[0].size[1] + caption + gap
    if grid.bars:
        _draw_bars(canvas, pen, grid.bars, small, (margin, y + line // 2))
    y += bar_height
    for chips in chip_rows:
        x = margin
        for name, color, length in chips:
            pen.rounded_rectangle((x, y + line // 4, x + line // 2, y + 3 * line // 4), 4, fill=color)
            pen.text((x + line // 2 + 8, y + line // 2), name, fill=TEXT, font=small, anchor="lm")
            x += length
        y += line
    return canvas


def _paste(canvas: Image.Image, tile: Tile, corner: tuple[int, int]) -> None:
    """Enlarge without inventing detail (one pixel becomes a block), shrink with averaging; round the corners."""
    from PIL import Image, ImageDraw

    image = Image.fromarray(np.ascontiguousarray(tile.image))
    if image.size != tile.size:
        enlarge = tile.size[0] >= image.size[0]
        image = image.resize(tile.size, Image.Resampling.NEAREST if enlarge else Image.Resampling.BOX)
    mask = Image.new("L", tile.size, 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, tile.size[0] - 1, tile.size[1] - 1), 6, fill=255)
    canvas.paste(image, corner, mask)


def _draw_bars(canvas: Image.Image, pen: Any, bars: Sequence[Bar], font: Any, corner: tuple[int, int]) -> None:
    """Colour scales in one line, from the left."""
    from PIL import Image

    x, y = corner
    length, height = 150, max(10, round(0.75 * font.size))
    for bar in bars:
        pen.text((x, y + height // 2), bar.label, fill=MUTED, font=font, anchor="lm")
        x += round(pen.textlength(bar.label, font=font)) + 12
        if bar.table is None:
            pen.rounded_rectangle((x, y, x + 2 * height, y + height), 3, fill=INVALID, outline=LINE)
            continue
        pen.text((x, y + height // 2), bar.low, fill=TEXT, font=font, anchor="lm")
        x += round(pen.textlength(bar.low, font=font)) + 8
        gradient = Image.fromarray(np.ascontiguousarray(color_table(bar.table)[None])).resize((length, height))
        canvas.paste(gradient, (x, y))
        x += length + 8
        pen.text((x, y + height // 2), bar.high, fill=TEXT, font=font, anchor="lm")
        x += round(pen.textlength(bar.high, font=font)) + 44


def _wrap_chips(
    chips: Sequence[tuple[str, tuple[int, int, int]]], font: Any, width: int
) -> list[list[tuple[str, tuple[int, int, int], int]]]:
    rows: list[list[tuple[str, tuple[int, int, int], int]]] = []
    used = width + 1
    for name, color in chips:
        length = round(font.getlength(name)) + 2 * round(font.size) + 24
        if used + length > width:
            rows.append([])
            used = 0
        rows[-1].append((name, color, length))
        used += length
    return rows


def _fit_text(text: str, font: Any, width: int) -> str:
    while len(text) > 1 and font.getlength(text) > width:
        text = text[:-2].rstrip() + "…"
    return text


def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)
