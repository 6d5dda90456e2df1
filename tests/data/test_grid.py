"""The box around a cloud."""

from __future__ import annotations

import numpy as np
import pytest

from ponder_zoo.data.grid import fit_grid

COORD = np.array([[0.0, 0.0, 0.0], [4.0, 2.0, 1.0], [1.0, 1.0, 1.0]], dtype=np.float32)


def test_cells_are_the_smallest_cubes_that_hold_cloud_and_margin() -> None:
    bounds = fit_grid(COORD, (32, 32, 16), margin=0.5)
    cell = (bounds[1] - bounds[0]) / [32, 32, 16]
    np.testing.assert_allclose(cell, 5.0 / 32, rtol=1e-6)  # x needs 5 m in 32 cells; y and z need less
    np.testing.assert_allclose(bounds.mean(0), [2.0, 1.0, 0.5], atol=1e-6)
    assert bounds.dtype == np.float32


def test_a_fixed_cell_is_centred_on_the_cloud() -> None:
    bounds = fit_grid(COORD, (10, 10, 10), cell_size=0.1)
    np.testing.assert_allclose(bounds, [[1.5, 0.5, 0.0], [2.5, 1.5, 1.0]], atol=1e-6)


def test_axes_are_stretched_only_when_asked() -> None:
    bounds = fit_grid(COORD, (10, 10, 10), margin=0.0, stretch=True)
    np.testing.assert_allclose(bounds, [[0, 0, 0], [4, 2, 1]], atol=1e-6)


def test_a_single_point_gets_a_box() -> None:
    bounds = fit_grid(COORD[:1], (4, 4, 4), margin=0.0)
    assert (bounds[1] > bounds[0]).all()


def test_bad_arguments_are_explained() -> None:
    for coord in (np.zeros((0, 3)), np.zeros((3, 2)), np.full((3, 3), np.nan)):
        with pytest.raises(ValueError, match="finite coordinates"):
            fit_grid(coord, (4, 4, 4))
    with pytest.raises(ValueError, match="three positive"):
        fit_grid(COORD, (4, 4))
    with pytest.raises(ValueError, match="cell_size > 0"):
        fit_grid(COORD, (4, 4, 4), cell_size=0.0)
