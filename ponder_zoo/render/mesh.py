"""Surfaces out of a field (paper Sec. 4.1.5)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from ..ops.knn import knn_tree
from ..ops.marching_cubes import Mesh, marching_cubes, vertex_normals
from ..structures import FeatureVolume, FieldOutput
from .field import AbstractField, Volumes

REACH = 2.0  # cells of the volume
_CHUNK = 65_536  # positions per pass


@torch.no_grad()
def extract_mesh(
    field: AbstractField,
    volume: FeatureVolume,
    coord: NDArray[Any],
    *,
    finer: int = 2,
    reach: float | None = None,
    anchor: float = 0.0,
) -> Mesh:
    """Draw where the signed distance is zero near the points, in the colours that the field gives it from in front.

    The distance is read on a grid where a point is near (further off nothing was observed, and what surface the field
    has there is made up), marching cubes draws its zero, and each vertex is moved by a Newton step along the
    gradient: marching cubes interpolates linearly what is not linear.

    Args:
        field: of a renderer.
        volume: of one scene.
        coord: (N, 3) metres, N > 0: the points that were encoded, in the volume's frame.
        finer: distances read per cell of the volume and axis.
        reach: metres from the nearest point up to which surface is drawn. None: two cells.
        anchor: metres; if above 0, the field's distance at the points, which should be zero, is subtracted from it,
            smoothed with a Gaussian of this standard deviation: the surface then goes through the points.

    Returns:
        The mesh; without faces where the distance changes its sign nowhere.

    Raises:
        ValueError: for several scenes, no points, or numbers that are not positive.
        ImportError: if scipy or scikit-image is not installed.
    """
    if len(volume.feat) != 1 or len(coord) == 0 or finer < 1 or (reach is not None and not reach > 0) or anchor < 0:
        raise ValueError(
            f"Expected the volume of one scene, points, finer >= 1, reach > 0 and anchor >= 0 (metres); got "
            f"{len(volume.feat)} scenes, {len(coord)} points, finer={finer}, reach={reach} and anchor={anchor}. "
            "Of several scenes select one: rows [b : b + 1] of `feat` and of `grid.bounds`."
        )
    field = _AnchoredField(field, volume, coord, anchor) if anchor > 0 else field
    X, Y, Z = (cells * finer for cells in volume.grid.shape)
    bounds = volume.grid.bounds[0]
    step = (bounds[1] - bounds[0]) / bounds.new_tensor([X, Y, Z])
    axes = [torch.arange(count, device=bounds.device) + 0.5 for count in (Z, Y, X)]
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    centres = bounds[0] + torch.stack([x, y, z], -1).reshape(-1, 3) * step
    reach = REACH * float(volume.grid.cell_size.max()) if reach is None else reach
    distance, _ = knn_tree(centres.cpu().numpy(), coord, 1)
    known = torch.from_numpy(distance[:, 0] <= reach).to(bounds.device)
    sdf = torch.full_like(centres[:, 0], torch.nan)
    sdf[known] = torch.cat([field.sdf(part[None, :, None], volume)[0, :, 0] for part in centres[known].split(_CHUNK)])
    mesh = marching_cubes(sdf.view(Z, Y, X), bounds, known=known.view(Z, Y, X))
    return mesh if len(mesh.faces) == 0 else _refine(mesh, field, volume, float(step.max()))


class _AnchoredField(AbstractField):
    """A field less its own value at points of the surface, between which that value is interpolated.

    The gradient and the colours stay the field's: the correction changes slowly.
    """

    def __init__(self, field: AbstractField, volume: FeatureVolume, coord: NDArray[Any], radius: float) -> None:
        super().__init__()
        self.field, self.coord, self.radius = field, coord, radius
        points = torch.as_tensor(coord, dtype=torch.float32).to(volume.feat.device)
        self.offset = torch.cat([field.sdf(part[None, :, None], volume)[0, :, 0] for part in points.split(_CHUNK)])

    def sdf(self, positions: Tensor, volume: Volumes) -> Tensor:
        return self.field.sdf(positions, volume) - self._correction(positions)

    def forward(self, positions: Tensor, directions: Tensor, volume: Volumes) -> FieldOutput:
        output = self.field(positions, directions, volume)
        return replace(output, sdf=output.sdf - self._correction(positions))

    def _correction(self, positions: Tensor) -> Tensor:
        distance, index = knn_tree(positions.reshape(-1, 3).cpu().numpy(), self.coord, min(8, len(self.coord)))
        weight = torch.from_numpy(distance).to(positions) / self.radius
        weight = torch.exp(-0.5 * weight**2)  # (n, 8)
        offset = self.offset[torch.from_numpy(index).to(positions.device)]
        # The constant lets it fade out where no point is near.
        return ((weight * offset).sum(-1) / (weight.sum(-1) + 0.05)).view(positions.shape[:-1])


def _refine(mesh: Mesh, field: AbstractField, volume: FeatureVolume, limit: float) -> Mesh:
    """The mesh with its vertices on the zero of the field, moved by at most `limit` (metres), and coloured."""
    device = volume.feat.device
    vertices, normals = (torch.from_numpy(values.copy()).to(device) for values in (mesh.vertices, mesh.normals))
    moved = []
    for position, normal in zip(vertices.split(_CHUNK), normals.split(_CHUNK), strict=True):
        output = _query(field, position, -normal, volume)
        slope = output.gradient[0, :, 0]  # (v, 3)
        length = slope.norm(dim=-1, keepdim=True).clamp(min=1e-3)
        moved.append(position - (output.sdf[0] / length).clamp(-limit, limit) * slope / length)
    vertices = torch.cat(moved)
    position = vertices.cpu().numpy()
    normal = vertex_normals(position, mesh.faces)
    parts = zip(vertices.split(_CHUNK), torch.from_numpy(normal).to(device).split(_CHUNK), strict=True)
    rgb = torch.cat([_query(field, position, -normal, volume).rgb[0, :, 0] for position, normal in parts])
    return replace(mesh, vertices=position, normals=normal, color=_to_bytes(rgb))


def _query(field: AbstractField, position: Tensor, direction: Tensor, volume: FeatureVolume) -> FieldOutput:
    """At positions (v, 3) seen along directions (v, 3): one sample per ray."""
    return field(position[None, :, None], direction[None], volume)


def _to_bytes(rgb: Tensor) -> NDArray[Any]:
    return (255 * rgb.clamp(0, 1)).round().byte().cpu().numpy()
