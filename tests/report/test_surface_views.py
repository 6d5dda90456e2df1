from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ponder_zoo.report.surface_views import SurfaceRow, SurfaceSamples, write_surface_views


def room(offset: float = 0.0, count: int = 100_000) -> SurfaceSamples:
    """The inside of a box of 4 x 4 x 2 m: floor, walls and ceiling face inwards."""
    rng = np.random.default_rng(0)
    coord = rng.random((count, 3)) * [4, 4, 2]
    axis, side = rng.integers(3, size=count), rng.integers(2, size=count)
    rows = np.arange(count)
    coord[rows, axis] = side * np.array([4, 4, 2])[axis]
    normal = np.zeros((count, 3))
    normal[rows, axis] = 1 - 2 * side
    return SurfaceSamples(coord + offset, normal, error=np.full(count, offset))


def row(surface: SurfaceSamples, name: str = "room") -> SurfaceRow:
    points = room(count=500).coord
    return SurfaceRow(name, points, None, {"ours": surface, "screened Poisson": room()}, room())


def test_one_looks_into_the_room_and_errors_have_their_colour(tmp_path: Path) -> None:
    plain = np.asarray(Image.open(write_surface_views(tmp_path / "a.png", [row(room(0.0))], max_error=0.1)))
    wrong = np.asarray(Image.open(write_surface_views(tmp_path / "b.png", [row(room(0.1))], max_error=0.1)))
    assert plain.shape == wrong.shape
    tile = plain.shape[1] // 6  # input, two surfaces, truth, two errors
    middle = (plain.shape[0] // 2, slice(None))
    floor = plain[middle][3 * tile + tile // 2]
    assert floor.min() > 150  # the ceiling, which is nearer, shows its back and is left out
    error = [image[60:-60, 4 * tile + 40 : 5 * tile - 40].mean() for image in (plain, wrong)]
    assert error[1] > error[0] + 50


def test_colours_are_a_further_picture(tmp_path: Path) -> None:
    colored = replace(room(), color=np.tile([200, 30, 30], (100_000, 1)))
    with_color = Image.open(write_surface_views(tmp_path / "a.png", [row(colored)], max_error=0.1))
    without = Image.open(write_surface_views(tmp_path / "b.png", [row(room())], max_error=0.1))
    assert with_color.width > without.width
    red = (np.asarray(with_color) == [200, 30, 30]).all(-1).sum()
    assert red > 5000 > (np.asarray(without) == [200, 30, 30]).all(-1).sum()


def test_an_empty_surface_is_an_empty_picture(tmp_path: Path) -> None:
    nothing = SurfaceSamples(np.zeros((0, 3)), np.zeros((0, 3)), error=np.zeros(0))
    assert write_surface_views(tmp_path / "a.png", [row(nothing)], max_error=0.1).is_file()


def test_scenes_need_the_same_pictures(tmp_path: Path) -> None:
    other = replace(row(room()), surfaces={"ours": room()})
    for rows in ([], [row(room()), other]):
        with pytest.raises(ValueError, match="same pictures"):
            write_surface_views(tmp_path / "a.png", rows, max_error=0.1)
