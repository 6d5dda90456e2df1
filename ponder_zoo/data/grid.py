"""The box that a scene's feature volume describes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .motion import bounding_box


def fit_grid(
    coord: NDArray[Any],
    shape: Sequence[int],
    *,
    cell_size: float | None = None,
    margin: float = 0.1,
    stretch: bool = False,
) -> NDArray[np.float32]:
    """Place a volume about a cloud: bounds (2, 3) in metres, lower and upper corner.

    Cells are cubes, because lengths must mean the same along every axis (a box fitted per axis bends the unit of the
    signed distance). The box is centred on the cloud's bounding box.

    Args:
        coord: (N, 3) metres.
        shape: (X, Y, Z) cells.
        cell_size: edge of a cell in metres; what lies outside is not described. None: the smallest cell with which the
            cloud and the margin fit.
        margin: metres of space to keep around the cloud when fitting; not used with a fixed `cell_size`.
        stretch: fit each axis on its own instead. Cells are then boxes.
    """
    coord = np.asarray(coord)
    if coord.ndim != 2 or coord.shape[1] != 3 or len(coord) == 0 or not np.isfinite(coord).all():
        raise ValueError(f"Expected finite coordinates of shape (N, 3) with N > 0; got {coord.shape}.")
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"Expected a volume shape of three positive cell counts (X, Y, Z); got {tuple(shape)}.")
    if margin < 0 or (cell_size is not None and not cell_size > 0):
        raise ValueError(f"Expected margin >= 0 and cell_size > 0 (metres); got {margin} and {cell_size}.")
    low, high = bounding_box(coord)
    cells = np.array(shape, dtype=np.float64)
    # 1 mm at least, so that a single point or a flat cloud without margin gives a box
    fitted = np.maximum((high - low + 2 * margin) / cells, 1e-3)
    if cell_size is not None:
        cell = np.full(3, cell_size)
    else:
        cell = fitted if stretch else np.full(3, fitted.max())
    middle = (low + high) / 2
    return np.stack([middle - cell * cells / 2, middle + cell * cells / 2]).astype(np.float32)
