"""Surfaces of oriented points without learning, to compare with: screened Poisson and ball pivoting, through Open3D."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .knn import knn_tree
from .marching_cubes import Mesh, vertex_normals


def require_open3d() -> Any:
    """Open3D, or an ImportError that says how to get it."""
    try:
        import open3d  # pyright: ignore[reportMissingImports]  # optional, and 3 s
    except ImportError as error:  # also where a library of the system is missing, which its message names
        raise ImportError(
            f"Poisson and ball pivoting use Open3D, which cannot be imported ({error}). "
            'Run: pip install "ponder_zoo[mesh]" (on Debian also: apt install libusb-1.0-0 libgl1 libgomp1)'
        ) from error
    return open3d


def poisson_mesh(coord: NDArray[Any], normal: NDArray[Any], *, depth: int = 8) -> Mesh:
    """Screened Poisson reconstruction (Kazhdan and Hoppe 2013): a closed surface, also where there are no points.

    Args:
        coord: (N, 3) metres, N >= 4.
        normal: (N, 3) not zero, to the side that the surface was seen from.
        depth: of the octree, 5 or more (its tree is full to depth 5): its cells are the longest side of the cloud's
            box, enlarged by a tenth, over 2**depth.

    Raises:
        ValueError: if shapes or values do not fit.
        ImportError: if Open3D cannot be imported.
    """
    o3d = require_open3d()
    if depth < 5:
        raise ValueError(f"Expected an octree of depth 5 or more; got {depth}.")
    cloud = _cloud(o3d, coord, normal)
    # One thread, because with several the result depends on their order.
    mesh, _ = o3d.geometry.TriangleMesh.create_from_point_cloud_poisson(cloud, depth=depth, n_threads=1)
    return _mesh(mesh)


def ball_pivoting_mesh(coord: NDArray[Any], normal: NDArray[Any], *, radii: Sequence[float]) -> Mesh:
    """Ball pivoting (Bernardini et al. 1999): triangles between points that balls of growing radii touch.

    Args:
        coord: (N, 3) metres, N >= 4.
        normal: (N, 3) not zero, to the side that the surface was seen from.
        radii: of the balls, metres, one pass for each.

    Raises:
        ValueError: if shapes or values do not fit.
        ImportError: if Open3D cannot be imported.
    """
    o3d = require_open3d()
    if len(radii) == 0 or not min(radii) > 0:
        raise ValueError(f"Expected one or more radii above 0 (metres); got {list(radii)}.")
    cloud = _cloud(o3d, coord, normal)
    balls = o3d.utility.DoubleVector(sorted(radii))
    return _mesh(o3d.geometry.TriangleMesh.create_from_point_cloud_ball_pivoting(cloud, balls))


def mean_spacing(coord: NDArray[Any]) -> float:
    """Mean distance of points (N, 3), N > 1, to their nearest neighbour, metres."""
    if len(coord) < 2:
        raise ValueError(f"The spacing of points needs two or more of them; got {len(coord)}.")
    return float(knn_tree(coord, coord, 2)[0][:, 1].mean())


def trim_mesh(
    mesh: Mesh, coord: NDArray[Any], reach: float, *, normal: NDArray[Any] | None = None, facing: float = 0.0
) -> Mesh:
    """The mesh without triangles that points do not support.

    Args:
        mesh: faces counter-clockwise seen from the side that is free.
        coord: (N, 3) metres, N > 0.
        reach: metres; triangles with a corner farther than this from all points are dropped.
        normal: (N, 3) unit, to the side that the surface was seen from. If given, triangles are dropped whose front
            turns away from that of the point nearest to their middle: nobody saw them.
        facing: the smallest cosine between the two that is kept.

    Raises:
        ValueError: if `reach` is not positive.
    """
    if not reach > 0:
        raise ValueError(f"Expected a reach above 0 (metres); got {reach}.")
    if len(mesh.faces) == 0:
        return mesh
    near = knn_tree(mesh.vertices, coord, 1)[0][:, 0] <= reach
    faces = mesh.faces[near[mesh.faces].all(1)]
    if normal is not None:
        corners = mesh.vertices[faces].astype(np.float64)  # (F, 3, 3)
        front = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        nearest = knn_tree(corners.mean(1), coord, 1)[1][:, 0]
        cosine = (front * np.asarray(normal)[nearest]).sum(1) / np.maximum(np.linalg.norm(front, axis=1), 1e-12)
        faces = faces[cosine >= facing]
    used, rows = np.unique(faces, return_inverse=True)
    color = None if mesh.color is None else mesh.color[used]
    return Mesh(mesh.vertices[used], rows.reshape(-1, 3).astype(np.int64), mesh.normals[used], color)


def _cloud(o3d: Any, coord: NDArray[Any], normal: NDArray[Any]) -> Any:
    points, normals = (np.ascontiguousarray(values, dtype=np.float64) for values in (coord, normal))
    good = points.ndim == 2 and points.shape[1:] == (3,) and len(points) >= 4 and normals.shape == points.shape
    length = np.linalg.norm(normals, axis=-1, keepdims=True) if good else np.zeros(1)
    if not good or not np.isfinite(points).all() or not (length > 1e-6).all():  # NaN normals fail here, too
        raise ValueError(
            "Expected four or more finite points (N, 3), and as many normals that are not zero; got "
            f"{points.shape} and {normals.shape}. Fill in normals with data.normals.estimate_normals."
        )
    cloud = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(points))
    cloud.normals = o3d.utility.Vector3dVector(normals / length)
    return cloud


def _mesh(mesh: Any) -> Mesh:
    vertices, faces = np.asarray(mesh.vertices, dtype=np.float32), np.asarray(mesh.triangles, dtype=np.int64)
    return Mesh(vertices.reshape(-1, 3), faces.reshape(-1, 3), vertex_normals(vertices, faces))
