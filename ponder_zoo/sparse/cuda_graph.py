"""A whole forward pass over sparse tensors as one CUDA graph: its hundreds of launches cost one.

A graph has fixed shapes and addresses, scenes have not. So the neighbour tables of a scene are copied into larger ones
whose spare rows have no neighbours: no other row reads a spare one, and spare rows cost little. What a backend
derives from a table is computed inside the graph, from the copy.

The kernel maps of a new scene are built outside: each coarser resolution's number of voxels is a size of tensors, which
the host has to know.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from .kernel_map import Coarsening, KernelMap, coarsening, submanifold_map
from .tensor import SparseTensor
from .voxels import Voxels

KernelSizes = Sequence[Sequence[int]]  # of the submanifold convolutions at each resolution, the largest first
LARGEST_WASTE = 2.0  # rows of a graph per voxel of a scene, up to which the graph is used for it


def padded_size(count: int) -> int:
    """Rows to reserve for `count` voxels: an eighth more at most, but for counts below 2048."""
    step = max(256, 1 << max(count.bit_length() - 4, 0))
    return -(-count // step) * step


class CapturedForward:
    """Calls `forward` through CUDA graphs, captured as needed. For inference: no gradients, norms in eval mode.

    The first call is an ordinary one: it compiles kernels and shows which maps `forward` uses. Later calls replay the
    smallest graph that has room for the scene, or capture one. On a CPU there are no graphs and `forward` is called on
    the padded tensors instead, with the same results.

    Args:
        forward: from a tensor to features (N, C) on the same voxels, without host synchronisation once the maps exist:
            with backend="triton", and one condition per batch.
        max_graphs: that are kept; each holds the memory of a forward pass.
    """

    def __init__(self, forward: Callable[[SparseTensor], Tensor], *, max_graphs: int = 4) -> None:
        self.forward = forward
        self.max_graphs = max_graphs
        self._kernel_sizes: list[list[int]] | None = None
        self._graphs: list[_Graph] = []  # the last used one last

    @torch.no_grad()
    def __call__(self, x: SparseTensor) -> Tensor:
        """(N, C) features on the voxels of `x`."""
        kind, precision = x.feat.device.type, _autocast_dtype(x.feat)
        # Without autocast's cache of cast weights: they would be freed while a graph still reads them.
        with torch.autocast(kind, precision, enabled=precision is not None, cache_enabled=False):
            return self._call(x)

    def _call(self, x: SparseTensor) -> Tensor:
        if self._kernel_sizes is None:
            out = self.forward(x)
            self._kernel_sizes = used_kernel_sizes(x.voxels)
            return out
        levels = build_levels(x.voxels, self._kernel_sizes)
        graph = self._fitting(x, levels)
        if graph is None:
            graph = _Graph(self.forward, x, levels, self._kernel_sizes)
            self._graphs = self._graphs[-(self.max_graphs - 1) :] if self.max_graphs > 1 else []
        else:
            self._graphs.remove(graph)
        self._graphs.append(graph)
        return graph(x, levels)

    def _fitting(self, x: SparseTensor, levels: Sequence[Voxels]) -> _Graph | None:
        fitting = [graph for graph in self._graphs if graph.fits(x, levels)]
        return min(fitting, key=lambda graph: len(graph.x), default=None)


def _autocast_dtype(feat: Tensor) -> torch.dtype | None:
    kind = feat.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def _kind(x: SparseTensor) -> tuple[torch.dtype, int, int]:
    return x.feat.dtype, x.feat.shape[1], x.batch_size


class _Graph:
    def __init__(
        self,
        forward: Callable[[SparseTensor], Tensor],
        x: SparseTensor,
        levels: Sequence[Voxels],
        kernel_sizes: KernelSizes,
    ) -> None:
        self.forward = forward
        self.kernel_sizes = kernel_sizes
        self.sizes = [padded_size(len(level)) for level in levels]
        self.levels = _empty_levels(levels, self.sizes, kernel_sizes)
        self.x = SparseTensor(x.feat.new_zeros(self.sizes[0], x.feat.shape[1]), self.levels[0])
        self.out: Tensor | None = None
        self.precision = _autocast_dtype(x.feat)
        self._load(x, levels)
        self._replay = _record(self._run, x.feat.device)

    def fits(self, x: SparseTensor, levels: Sequence[Voxels]) -> bool:
        like = _kind(x) == _kind(self.x) and _autocast_dtype(x.feat) == self.precision
        room = all(len(level) <= size for level, size in zip(levels, self.sizes, strict=True))
        return like and room and self.sizes[0] <= max(LARGEST_WASTE * len(x), padded_size(len(x)))

    def __call__(self, x: SparseTensor, levels: Sequence[Voxels]) -> Tensor:
        self._load(x, levels)
        self._replay()
        assert self.out is not None
        return self.out[: len(x)].clone()  # the next replay overwrites it

    def _load(self, x: SparseTensor, levels: Sequence[Voxels]) -> None:
        self.x.feat[: len(x)].copy_(x.feat)
        self.x.feat[len(x) :].zero_()  # another scene's features may be there; nobody reads them, but they could be inf
        targets, sources = (_maps(some, self.kernel_sizes) for some in (self.levels, levels))
        for target, source in zip(targets, sources, strict=True):
            target.table[:, : source.num_out].copy_(source.table)
            target.table[:, source.num_out :].fill_(-1)
            if target.reads_itself:  # holds for spare rows too: backends rely on it
                spare = torch.arange(source.num_out, target.num_out, dtype=torch.int32, device=x.feat.device)
                target.table[target.kernel_volume // 2, source.num_out :].copy_(spare)

    def _run(self) -> None:
        for kmap in _maps(self.levels, self.kernel_sizes):
            kmap.cache.clear()  # so that what is derived from the tables is derived again in every replay
        self.out = self.forward(self.x)


def used_kernel_sizes(voxels: Voxels) -> list[list[int]]:
    """Kernel sizes whose maps exist at each resolution reached by strided convolutions."""
    sizes = [sorted((name[1] for name in voxels.cache if name[0] == "submanifold"), reverse=True)]
    step = voxels.cache.get("coarsening")
    return sizes if step is None else sizes + used_kernel_sizes(step.coarse)


def build_levels(voxels: Voxels, kernel_sizes: KernelSizes) -> list[Voxels]:
    """The resolutions of a scene, with the maps of these kernel sizes built."""
    build = submanifold_map
    if voxels.device.type == "cuda":  # what can be captured runs through Triton, and so can the search
        from .backends.triton_maps import submanifold_map as build
    levels = [voxels]
    for sizes in kernel_sizes:
        for size in sizes:
            build(levels[-1], size)
        if len(levels) < len(kernel_sizes):
            levels.append(coarsening(levels[-1]).coarse)
    return levels


def _maps(levels: Sequence[Voxels], kernel_sizes: KernelSizes) -> list[KernelMap]:
    maps = [submanifold_map(level, size) for level, sizes in zip(levels, kernel_sizes, strict=True) for size in sizes]
    for fine in levels[:-1]:
        step = coarsening(fine)
        maps += [step.down, step.up]
    return maps


def _empty_levels(levels: Sequence[Voxels], sizes: Sequence[int], kernel_sizes: KernelSizes) -> list[Voxels]:
    """Resolutions of these sizes with the maps that `levels` have, and no neighbours yet."""
    table = lambda volume, size: torch.full((volume, size), -1, dtype=torch.int32, device=levels[0].device)  # noqa: E731
    empty = [replace(level, **_padded_fields(level, size), cache={}) for level, size in zip(levels, sizes, strict=True)]
    for level, size, kernels in zip(empty, sizes, kernel_sizes, strict=True):
        for kernel in kernels:
            level.cache["submanifold", kernel] = KernelMap(table(kernel**3, size), size)
    for fine, coarse in pairwise(empty):
        down, up = KernelMap(table(8, len(coarse)), len(fine)), KernelMap(table(8, len(fine)), len(coarse))
        down.transpose, up.transpose = up, down
        parent = torch.zeros(len(fine), dtype=torch.int64, device=fine.device)
        fine.cache["coarsening"] = Coarsening(fine, coarse, parent, down, up)
    return empty


def _padded_fields(voxels: Voxels, size: int) -> dict[str, Tensor]:
    """Placeholders: only the maps and the number of rows are read once the maps exist."""
    return {
        "key": voxels.key.new_zeros(size),
        "grid_coord": voxels.grid_coord.new_zeros(size, 3),
        "batch": voxels.batch.new_zeros(size),
    }


def _record(run: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """A function that does what `run` does, on the same addresses."""
    if device.type != "cuda":
        return run
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()  # compiles what these shapes need, and creates workspaces
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay
