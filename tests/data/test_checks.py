"""Scenes that cannot be right are refused, with the scene's name and what to do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ponder_zoo.data.checks import check_scene
from ponder_zoo.data.scene import Scene


def changed(array: Any, value: float) -> Any:
    array = array.copy()
    array.reshape(-1)[7] = value
    return array


def test_a_good_scene_passes(room: Scene) -> None:
    check_scene(room)
    check_scene(replace(room, color=None, normal=None, segment=None, views=None))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: {"coord": changed(s.coord, np.nan)}, "coord are NaN or infinite.*row 2.*Remove"),
        (lambda s: {"coord": changed(s.coord, np.inf)}, "coord are NaN or infinite"),
        (lambda s: {"color": changed(s.color, np.nan)}, "color are NaN"),
        (lambda s: {"coord": np.hstack([s.coord, s.color])}, r"shape \(N, 3\).*\(2304, 6\)"),
        (lambda s: {"color": s.color[:, :2]}, r"color of shape \(2304, 3\).*\(2304, 2\)"),
        (lambda s: {"segment": s.segment[:-1]}, r"segment of shape \(2304,\)"),
        (lambda s: {"coord": s.coord[:0]}, "has no points"),
        (lambda s: {"coord": s.coord * 1000}, "spans 3000 m.*millimetres, divide them by 1000"),
    ],
)
def test_bad_points_are_refused(room: Scene, change: Any, words: str) -> None:
    with pytest.raises(ValueError, match=f"'room'.*{words}"):
        check_scene(replace(room, **change(room)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: {"depth": v.depth * 1000}, "depth in metres.*divide by 1000"),
        (lambda v: {"depth": -v.depth}, "depth in metres"),
        (lambda v: {"depth": changed(v.depth, np.nan)}, "views.depth holds NaN"),
        (lambda v: {"cam_to_world": changed(v.cam_to_world, -np.inf)}, "views.cam_to_world holds NaN"),
        (lambda v: {"cam_to_world": v.cam_to_world[:2]}, r"views.cam_to_world of shape \(3, 4, 4\).*\(2, 4, 4\)"),
        (lambda v: {"color": v.color[:, ::2]}, "views.color of shape"),
        (lambda v: {"intrinsics": v.intrinsics * 10}, "intrinsics do not suit images of 32x24"),
    ],
)
def test_bad_views_are_refused(room: Scene, change: Any, words: str) -> None:
    with pytest.raises(ValueError, match=f"'room'.*{words}"):
        check_scene(replace(room, views=replace(room.views, **change(room.views))))


def test_large_scenes_pass_when_allowed(room: Scene) -> None:
    check_scene(replace(room, coord=room.coord * 50), max_extent=300.0)
