"""Points to volumes: average the features that fall in each cell."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops.segment import segment_mean
from ..structures import FeatureVolume, PointBatch, VolumeGrid
from .occupied import OccupiedCells, average_in_cells


def densify(points: PointBatch, grid: VolumeGrid) -> FeatureVolume:
    """Average the features that fall in each cell; empty cells are zero (Sec. 3.1).

    Points outside the grid are left out: a scene with no point inside gives a volume of zeros (the data layer rejects
    such scenes; a check here would synchronize). Differentiable in `feat`, not in `coord`; sums in float32 or better.

    Example:
        >>> points = PointBatch.from_list([{"coord": torch.rand(5, 3), "feat": torch.ones(5, 6)}])
        >>> grid = VolumeGrid(torch.tensor([[[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]]), (1, 2, 4))
        >>> densify(points, grid).feat.shape
        torch.Size([1, 6, 4, 2, 1])
    """
    _check_scenes(points, grid)
    index = grid.flat_index(points.coord, points.batch)  # (N,); outside the grid -> one past the last row
    X, Y, Z = grid.shape
    rows = segment_mean(_full(points.feat), index, points.batch_size * Z * Y * X)
    return FeatureVolume(rows.view(-1, Z, Y, X, rows.shape[1]).movedim(-1, 1), grid)  # channels_last_3d in memory


def occupied_cells(points: PointBatch, grid: VolumeGrid) -> OccupiedCells:
    """What `densify` gives, as its occupied cells alone. Their number is read on the host: this synchronizes."""
    _check_scenes(points, grid)
    X, Y, Z = grid.shape
    return average_in_cells(points, grid.flat_index(points.coord, points.batch), (points.batch_size, Z, Y, X))


def occupied_cells_official(
    points: PointBatch, grid: VolumeGrid, metres_per_unit: Tensor, *, grid_size: float = 0.02
) -> OccupiedCells | None:
    """What `densify_official` gives, as its occupied cells alone; None where a scene has to be interpolated."""
    _check_scenes(points, grid)
    X, Y, Z = grid.shape
    step, steps = _official_steps(points, grid, metres_per_unit, grid_size)
    if bool((steps < min(grid.shape)).any()):
        return None
    batch = points.batch
    index = batch * (Z * Y * X) + _official_index(step, steps[batch, None], grid.shape)
    return average_in_cells(points, index, (points.batch_size, Z, Y, X))


def densify_official(
    points: PointBatch, grid: VolumeGrid, metres_per_unit: Tensor, *, grid_size: float = 0.02
) -> FeatureVolume:
    """Average features with the cell rule of the official code (`ponder_indoor_base.py`, `to_dense`).

    Coordinates are first rounded down to multiples of `grid_size`, then R = floor(L / grid_size) + 2 such steps are
    spread over the cells of each axis, L being the longest side of the scene: with `grid.shape` (128, 128, 32), the 32
    cells of z span L metres too. A scene with R smaller than every side of the grid is pooled at R^3 and interpolated.
    Only for the numbers of released checkpoints. One scene at a time, and R is read on the host: this synchronizes.

    Args:
        points: coordinates in unit-cube frames (see `data.unit_cube`).
        grid: the cubes, one per scene.
        metres_per_unit: (B,) L in metres.
        grid_size: metres, the rounding step.
    """
    _check_scenes(points, grid)
    step, all_steps = _official_steps(points, grid, metres_per_unit, grid_size)
    volumes = []
    for b, steps in enumerate(all_steps.tolist()):
        # R differs between scenes, and with it the shape of what is interpolated: hence the loop.
        R = int(steps)
        shape = grid.shape if steps >= min(grid.shape) else (R, R, R)
        X, Y, Z = shape
        index = _official_index(step, steps, shape).masked_fill(points.batch != b, Z * Y * X)
        feat = segment_mean(_full(points.feat), index, Z * Y * X).view(1, Z, Y, X, -1).movedim(-1, 1)
        if shape != grid.shape:
            feat = F.interpolate(feat, grid.shape[::-1], mode="trilinear", align_corners=False)
        volumes.append(feat)
    return FeatureVolume(torch.cat(volumes), grid)


def _official_steps(
    points: PointBatch, grid: VolumeGrid, metres_per_unit: Tensor, grid_size: float
) -> tuple[Tensor, Tensor]:
    """Coordinates in steps of `grid_size` (N, 3), and R, how many span the cells of an axis, for each scene (B,)."""
    batch, scale = points.batch, metres_per_unit.to(points.coord)
    step = ((points.coord - grid.bounds[batch, 0]) * scale[batch, None] / grid_size).floor()
    return step, (scale / grid_size).floor() + 2.0


def _official_index(step: Tensor, steps: Tensor | float, shape: tuple[int, int, int]) -> Tensor:
    """Row of each point's cell in a (Z Y X) table: (N,) int64, for (N, 3) steps of which `steps` span an axis."""
    X, Y, _ = shape
    cell = (step / (steps / step.new_tensor(shape))).floor().long()
    x, y, z = cell.clamp(min=0).minimum(cell.new_tensor(shape) - 1).unbind(-1)
    return (z * Y + y) * X + x


def official_lookup_grid(grid: VolumeGrid, *, padding: float = 0.1) -> VolumeGrid:
    """Where the official code looks the cells up: the cube grown by 1 + padding + 0.001, values at the corners.

    The volume is filled on the cube itself, so features are read from a place up to 4.6 % of the cube beside where they
    were written; `docs/differences.md` has the measured effect. Only for released checkpoints.
    """
    lower, upper = grid.bounds.unbind(1)
    centre, half = (lower + upper) / 2, (upper - lower) / 2 * (1.0 + padding + 1e-3)
    return replace(grid, bounds=torch.stack([centre - half, centre + half], 1), align="corners")


def _check_scenes(points: PointBatch, grid: VolumeGrid) -> None:
    if len(grid.bounds) != points.batch_size:
        raise ValueError(
            f"Expected one box per scene; got grid.bounds {tuple(grid.bounds.shape)} for {points.batch_size} scenes. "
            "Build the grid from the same list of scenes as the points."
        )


def _full(feat: Tensor) -> Tensor:
    return feat.to(torch.promote_types(feat.dtype, torch.float32))
