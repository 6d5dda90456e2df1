"""Surfaces of signed distance grids."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Mesh:
    """A triangle mesh on the host. Faces are counter-clockwise seen from outside (where the distance is positive)."""

    vertices: NDArray[np.float32]  # (V, 3) metres
    faces: NDArray[np.int64]  # (F, 3) rows of `vertices`
    normals: NDArray[np.float32]  # (V, 3) unit, towards positive distance
    color: NDArray[np.uint8] | None = None  # (V, 3)


def marching_cubes(
    sdf: Tensor, bounds: Tensor, *, level: float = 0.0, known: Tensor | None = None, at_corners: bool = False
) -> Mesh:
    """Triangulate where a grid of signed distances crosses `level` (Lewiner et al. 2003, as scikit-image has it).

    Not differentiable. A grid without a crossing gives an empty mesh.

    Args:
        sdf: (Z, Y, X), positive in front of surfaces; the axis order of a FeatureVolume.
        bounds: (2, 3) metres, lower and upper corner (x, y, z) of the box.
        level: the distance to draw.
        known: (Z, Y, X) bool; no triangle is made in cubes with a corner that is not known. None = all.
        at_corners: False: values sit at the centres of the cells of the box. True: the first and last values sit on
            the faces of the box.

    Raises:
        ValueError: if shapes do not fit, values are not finite where known, or an axis has fewer than two values.
        ImportError: if scikit-image is not installed.
    """
    try:
        from skimage.measure import marching_cubes as cubes  # optional, and 0.3 s
    except ImportError as error:
        raise ImportError(
            "Extracting a mesh uses scikit-image, which is not installed. Run: pip install scikit-image"
        ) from error
    values = sdf.detach().double().cpu().numpy()
    mask = None if known is None else known.detach().cpu().numpy().astype(bool)
    box = bounds.detach().double().cpu().numpy()
    _check(values, box, mask)
    size = np.array(values.shape[::-1])  # X, Y, Z
    step = (box[1] - box[0]) / (size - 1 if at_corners else size)
    values = values.transpose(2, 1, 0)  # x, y, z
    mask = None if mask is None else mask.transpose(2, 1, 0)
    shown = values if mask is None else values[mask]
    if shown.size == 0 or not shown.min() <= level <= shown.max():
        return _empty()
    if mask is not None:
        values = np.where(mask, values, level + 1.0)  # whatever stood there, NaN included, must not be read
    try:
        # "descent": seen from outside, where values are larger, faces are counter-clockwise.
        vertices, faces, _, _ = cubes(values, level, gradient_direction="descent", allow_degenerate=False)
    except RuntimeError:  # scikit-image's answer when the level is touched, but nowhere crossed
        return _empty()
    if mask is not None:
        vertices, faces = _in_known_cubes(vertices, faces, mask)
    origin = box[0] + (0.0 if at_corners else 0.5) * step
    vertices = origin + vertices * step
    return Mesh(vertices.astype(np.float32), faces.astype(np.int64), vertex_normals(vertices, faces))


def _in_known_cubes(
    vertices: NDArray[np.floating], faces: NDArray[np.integer], known: NDArray[np.bool_]
) -> tuple[NDArray[np.floating], NDArray[np.integer]]:
    """The triangles of cubes whose 8 corners are known; scikit-image's own mask asks one corner of each cube."""
    whole = np.ones([side - 1 for side in known.shape], dtype=bool)
    for corner in np.ndindex(2, 2, 2):
        whole &= known[tuple(slice(c, c + side - 1) for c, side in zip(corner, known.shape, strict=True))]
    cube = np.floor(vertices[faces].mean(1)).astype(np.int64).clip(0, np.array(whole.shape) - 1)
    used, rows = np.unique(faces[whole[tuple(cube.T)]], return_inverse=True)
    return vertices[used], rows.reshape(-1, 3)


def vertex_normals(vertices: NDArray[np.floating], faces: NDArray[np.integer]) -> NDArray[np.float32]:
    """Area-weighted mean normal of the triangles around each vertex: (V, 3), (F, 3) -> (V, 3) unit, or zero."""
    corners = vertices.astype(np.float64)[faces]  # (F, 3, 3)
    with np.errstate(invalid="ignore"):  # vertices of a file need not be finite
        across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])  # twice the area long
    row = faces.reshape(-1)
    total = [np.bincount(row, np.repeat(across[:, axis], 3), minlength=len(vertices)) for axis in range(3)]
    normals = np.stack(total, axis=-1)
    length = np.linalg.norm(normals, axis=-1, keepdims=True)
    return np.divide(normals, length, out=np.zeros(normals.shape), where=length > 1e-12).astype(np.float32)


def _empty() -> Mesh:
    return Mesh(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.int64), np.zeros((0, 3), np.float32))


def _check(values: NDArray[np.floating], box: NDArray[np.floating], mask: NDArray[np.bool_] | None) -> None:
    if values.ndim != 3 or min(values.shape) < 2 or box.shape != (2, 3) or not (box[1] > box[0]).all():
        raise ValueError(
            f"Marching cubes needs sdf (Z, Y, X) with two or more values per axis and bounds (2, 3), lower < upper; "
            f"got sdf {values.shape} and bounds {box.tolist()}. Take one scene of a batch: sdf[b], grid.bounds[b]."
        )
    if mask is not None and mask.shape != values.shape:
        raise ValueError(
            f"Marching cubes needs `known` of the shape of `sdf`, {values.shape}; got {mask.shape}. "
            "Compute both on the same grid."
        )
    bad = ~np.isfinite(values if mask is None else values[mask])
    if bad.any():
        raise ValueError(
            f"Marching cubes needs finite distances; {int(bad.sum())} of {bad.size} values are NaN or infinite. "
            "Mark them as not known (`known=sdf.isfinite()`), or look for NaN in the model's weights."
        )
