"""Connected components of points that lie close together, on the host.

Points are sorted into cells so small that all points of a cell belong together; what is left is to find which cells
touch. Two cells touch if one pair of their points is close enough: one pair of points is tried for each two cells,
what that joins is joined, and only cells that are then still apart are compared point by point, in pieces. Memory is
linear in the number of points however dense they are, and there is no loop over points.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]
REACH = 2  # cells along an axis that two points closer than the radius can be apart
_PIECE = 2**20  # pairs of points compared at a time


def radius_components(coord: NDArray[Any], radius: float, *, group: NDArray[np.integer] | None = None) -> Rows:
    """Number the connected components of the graph that joins points of one group closer than a radius.

    Args:
        coord: (N, 3) metres, finite.
        radius: metres; points exactly this far apart are not joined.
        group: (N,) whole numbers from 0; points of different groups are never joined. None: one group.

    Returns:
        (N,) component of each point, numbered by their first points.

    Example:
        >>> radius_components(np.array([[0.0, 0, 0], [1, 0, 0], [1.5, 0, 0]]), 0.6).tolist()
        [0, 1, 1]
    """
    if coord.ndim != 2 or coord.shape[1] != 3 or not radius > 0 or not np.isfinite(coord).all():
        raise ValueError(
            f"Expected finite coord of shape (N, 3) and a positive radius; got {coord.shape}, {radius}. "
            "Remove points that are not finite."
        )
    if len(coord) == 0:
        return np.zeros(0, np.int64)
    group = np.zeros(len(coord), np.int64) if group is None else group
    cells = _sort_into_cells(coord.astype(np.float64), group.astype(np.int64), radius)
    label_of_cell = _join(cells, radius**2)
    label = np.empty(len(coord), np.int64)
    label[cells.order] = np.repeat(label_of_cell, cells.count)
    _, first, inverse = np.unique(label, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]


@dataclass(frozen=True, eq=False)
class _Cells:
    """C occupied cells in the order of their keys; neighbours along z have neighbouring keys."""

    key: Rows  # (C,)
    stride: tuple[int, int]  # difference of keys between neighbours along x, y
    order: Rows  # (N,) points sorted by cell
    coord: NDArray[np.float64]  # (N, 3) in that order
    start: Rows  # (C,)
    count: Rows  # (C,)


def _sort_into_cells(coord: NDArray[np.float64], group: Rows, radius: float) -> _Cells:
    # A little smaller than it may be, for what rounding does to the cell of a point.
    edge = radius / np.sqrt(3.0) * (1 - 1e-6)
    cell = np.floor(coord / edge)
    cell -= cell.min(0)
    size = cell.max(0) + 1 + REACH  # empty cells between one row and the next, so that neighbours' keys do not wrap
    if np.prod(size) * (float(group.max()) + 1) > 2.0**62:
        raise ValueError(
            f"The points span {size.tolist()} cells of {edge:.3g} m in {group.max() + 1} groups: too many to index. "
            "Expected coordinates in metres without stray points; crop the scene or raise the radius."
        )
    x, y, z = cell.astype(np.int64).T
    stride_y = int(size[2])
    stride_x = int(size[1]) * stride_y
    key = group * (int(size[0]) * stride_x) + x * stride_x + y * stride_y + z
    order = np.argsort(key, kind="stable")
    key = key[order]
    start = np.flatnonzero(np.diff(key, prepend=key[0] - 1))
    return _Cells(key[start], (stride_x, stride_y), order, coord[order], start, np.diff(start, append=len(key)))


def _join(cells: _Cells, limit: float) -> Rows:
    """Component of each cell (C,); points of a squared distance below `limit` are joined."""
    joined, open_pairs = [], []
    for first, second in _neighbours(cells):
        near = _squared(cells.coord[cells.start[first]] - cells.coord[cells.start[second]]) < limit
        single = (cells.count[first] == 1) & (cells.count[second] == 1)
        joined.append(np.stack([first[near], second[near]]))
        rest = ~near & ~single
        open_pairs.append(np.stack([first[rest], second[rest]]))
    edges, (first, second) = np.concatenate(joined, 1), np.concatenate(open_pairs, 1)
    label = _components(edges, len(cells.key))
    apart = label[first] != label[second]
    first, second = first[apart], second[apart]
    touching = _touch(cells, first, second, limit)
    if not touching.any():
        return label
    edges = label[np.stack([first[touching], second[touching]])]
    return _components(edges, int(label.max()) + 1)[label]


def _neighbours(cells: _Cells) -> Iterator[tuple[Rows, Rows]]:
    """Pairs of occupied cells within reach of each other, each once: the cells of a column in z are one range."""
    rows = np.arange(len(cells.key))
    for dx in range(REACH + 1):
        for dy in range(-REACH if dx else 0, REACH + 1):
            middle = cells.key + dx * cells.stride[0] + dy * cells.stride[1]
            lowest = middle + (-REACH if dx or dy else 1)
            start = np.searchsorted(cells.key, lowest)
            count = np.searchsorted(cells.key, middle + REACH, side="right") - start
            yield np.repeat(rows, count), _ranges(start, count)


def _touch(cells: _Cells, first: Rows, second: Rows, limit: float) -> NDArray[np.bool_]:
    """Which pairs of cells (P,) hold two points, one of each, with a squared distance below `limit`."""
    low, high = (reduce.reduceat(cells.coord, cells.start) for reduce in (np.minimum, np.maximum))
    touching = np.zeros(len(first), bool)
    gap = np.maximum(low[first] - high[second], low[second] - high[first]).clip(min=0)
    possible = np.flatnonzero(_squared(gap) < limit)
    for piece in _pieces(cells.count[first[possible]] + cells.count[second[possible]]):
        pairs = possible[piece]
        a, b = first[pairs], second[pairs]
        pair_a, row_a = _near_box(cells, a, low[b], high[b], limit)
        pair_b, row_b = _near_box(cells, b, low[a], high[a], limit)
        partners = np.bincount(pair_b, minlength=len(pairs))
        start = np.cumsum(partners) - partners
        for part in _pieces(partners[pair_a]):
            pair, row = pair_a[part], row_a[part]
            other = row_b[_ranges(start[pair], partners[pair])]
            near = _squared(np.repeat(cells.coord[row], partners[pair], 0) - cells.coord[other]) < limit
            touching[pairs[np.repeat(pair, partners[pair])[near]]] = True
    return touching


def _near_box(
    cells: _Cells, cell: Rows, low: NDArray[Any], high: NDArray[Any], limit: float
) -> tuple[Rows, NDArray[Any]]:
    """Points of each cell (P,) close enough to a box (P, 3): numbers of the pair, ascending, and of the point."""
    row, pair = _ranges(cells.start[cell], cells.count[cell]), np.repeat(np.arange(len(cell)), cells.count[cell])
    gap = np.maximum(low[pair] - cells.coord[row], cells.coord[row] - high[pair]).clip(min=0)
    near = _squared(gap) < limit
    return pair[near], row[near]


def _components(edges: Rows, nodes: int) -> Rows:
    """Component of each node, of an undirected graph given by edges (2, E)."""
    from scipy.sparse import coo_array  # imported here: `import ponder_zoo` must not cost scipy
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(edges.shape[1], np.int8), (edges[0], edges[1])), shape=(nodes, nodes))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def _squared(vector: NDArray[Any]) -> NDArray[Any]:
    return np.einsum("ij,ij->i", vector, vector)


def _ranges(start: Rows, count: Rows) -> Rows:
    """start[0], start[0] + 1, ... (count[0] of them), start[1], ...: one after the other."""
    ends = np.cumsum(count)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(start - ends + count, count)


def _pieces(size: Rows) -> Iterator[slice]:
    """Slices of consecutive entries whose sizes sum to about `_PIECE`, one entry at least."""
    ends = np.cumsum(size)
    start = 0
    while start < len(ends):
        before = ends[start] - size[start]
        stop = max(int(np.searchsorted(ends, before + _PIECE, side="right")), start + 1)
        yield slice(start, stop)
        start = stop
