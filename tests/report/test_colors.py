from __future__ import annotations

import numpy as np
import pytest

from ponder_zoo.report.colors import INVALID, class_palette, color_table, colorize, normal_to_rgb, oklch_to_rgb


def luminance(rgb: np.ndarray) -> np.ndarray:
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return linear @ np.array([0.2126, 0.7152, 0.0722])


def test_oklch_of_white_black_and_red_are_the_published_ones() -> None:
    lch = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.627955, 0.257683, 29.2339]])
    expected = np.array([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    np.testing.assert_allclose(oklch_to_rgb(*lch.T), expected, atol=2e-4)


@pytest.mark.parametrize("name", ["depth", "error"])
def test_lightness_rises_along_a_colour_map(name: str) -> None:
    light = luminance(color_table(name) / 255.0)  # type: ignore[arg-type]
    assert (np.diff(light) > -4e-3).all() and light[-1] > light[0] + 0.6


def test_colorize_maps_the_ends_clips_and_marks_what_is_unknown() -> None:
    colors = colorize(np.array([-5.0, 1.0, 3.0, 9.0, np.nan, 2.0]), "depth", low=1.0, high=3.0, valid=np.arange(6) < 5)
    table = color_table("depth")
    np.testing.assert_array_equal(colors[:4], table[[0, 0, 255, 255]])
    np.testing.assert_array_equal(colors[4:], [INVALID, INVALID])


def test_class_colours_are_far_apart_and_do_not_change_with_the_number_of_classes() -> None:
    palette = class_palette(20).astype(int)
    distance = np.linalg.norm(palette[:, None] - palette[None], axis=-1) + 1e3 * np.eye(20)
    assert distance.min() > 40
    np.testing.assert_array_equal(class_palette(5), palette[:5])


def test_normals_become_the_usual_colours() -> None:
    colors = normal_to_rgb(np.array([[0, 0, 1.0], [-0.5, 0, 0], [0, 0, 0], [np.nan, 0, 0]]))
    np.testing.assert_array_equal(colors[:2], [[128, 128, 255], [0, 128, 128]])
    np.testing.assert_array_equal(colors[2:], [INVALID, INVALID])
