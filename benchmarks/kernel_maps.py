"""Neighbour search: all kernel maps of SparseUNet-34, and the lists of one convolution, against spconv's."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from ponder_zoo.sparse import DownConv3d, SparseTensor, SubMConv3d, UpConv3d
from ponder_zoo.sparse.kernel_map import submanifold_map
from ponder_zoo.sparse.voxels import voxelize
from ponder_zoo.structures import PointBatch

from . import floors
from .harness import Call, Case, Seconds
from .machine import device, synchronize
from .peers import spconv_unet
from .sparse_unet import SCENES

LEVELS = 4  # below the input's resolution
WIDTH = 16  # channels of the layers that ask for the maps: more than those for which a backend may use no lists
NET_TARGETS = {"thin": (2.0, 3.0), "dense": (2.0, 4.0)}
GPU_SECONDS = (0.002, 0.0005)
LIST_TARGETS = {3: (2.0, 3.5), 5: (2.5, 4.0)}


def cases() -> Iterator[Case]:
    """The whole network's maps, then lists of a 3^3 and a 5^3 convolution; from unsorted cells."""
    for scene, build in SCENES.items():
        yield Case(
            name=f"kernel_maps/net/{scene}",
            peer=spconv_unet.describe_peer(),
            ours=lambda build=build: _ours_net(build().to(device())),
            theirs=lambda build=build: _theirs_net(build().to(device())),
            done=NET_TARGETS[scene][0],
            aim=NET_TARGETS[scene][1],
            floor=lambda machine, build=build: floors.kernel_maps(build(), machine),
        )
    if device().type == "cuda":
        yield Case(
            name="kernel_maps/seconds/dense",
            peer="none; seconds",
            ours=lambda: _ours_net(SCENES["dense"]().to(device())),
            done=GPU_SECONDS[0],
            aim=GPU_SECONDS[1],
            target_seconds=True,
        )
    for scene, build in SCENES.items():
        for size, (done, aim) in LIST_TARGETS.items():
            yield Case(
                name=f"kernel_maps/list{size}/{scene}",
                peer=spconv_unet.describe_peer(),
                ours=lambda build=build, size=size: _ours_list(build().to(device()), size),
                theirs=lambda build=build, size=size: _theirs_list(build().to(device()), size),
                done=done,
                aim=aim,
                floor=lambda machine, build=build, size=size: floors.kernel_list(build(), size, machine),
            )


# The whole network ----------------------------------------------------------------------------------------------------
#
# Maps, and what a backend derives from them, are built by the layer that first needs them. So each kind of map gets one
# narrow convolution, and what is measured is the difference between a first and a second pass over the same voxels.


def _first_minus_second(first: Callable[[], Any], second: Callable[[Any], object]) -> Call:
    def call() -> Seconds:
        start = time.perf_counter()
        prepared = first()
        second(prepared)
        synchronize()
        middle = time.perf_counter()
        second(prepared)
        synchronize()
        return Seconds(2 * middle - start - time.perf_counter())

    return torch.inference_mode()(call)


class _Layers(nn.Module):
    """One convolution for each map of the network, in the order in which the network asks for them."""

    def __init__(self, stem: nn.Module, same: list[nn.Module], down: list[nn.Module], up: list[nn.Module]) -> None:
        super().__init__()
        self.stem = stem
        self.same, self.down, self.up = nn.ModuleList(same), nn.ModuleList(down), nn.ModuleList(up)

    def forward(self, x: Any, invert: Callable[[nn.Module, Any, Any], Any]) -> None:
        x = self.stem(x)
        finer = []
        for level in range(LEVELS):
            finer.append(x)
            x = self.same[level](self.down[level](x))
        for layer in self.up:
            x = invert(layer, x, finer.pop())
        self.same[LEVELS](x)  # the decoder's 3^3 at full resolution


def _ours_net(points: PointBatch) -> Call:
    layers = _Layers(
        SubMConv3d(6, WIDTH, kernel_size=5),
        [SubMConv3d(WIDTH, WIDTH) for _ in range(LEVELS + 1)],
        [DownConv3d(WIDTH, WIDTH) for _ in range(LEVELS)],
        [UpConv3d(WIDTH, WIDTH) for _ in range(LEVELS)],
    ).to(device())

    def first() -> SparseTensor:
        assert points.grid_coord is not None
        return SparseTensor.from_points(points.feat, points.grid_coord, points.batch, points.batch_size)[0]

    return _first_minus_second(first, lambda x: layers(x, lambda layer, x, finer: layer(x, finer)))


def _theirs_net(points: PointBatch) -> Call:
    spconv, options = spconv_unet.import_spconv(), spconv_unet.conv_options()
    options = options | {"bias": False}
    keys = [*(f"level{level + 1}" for level in range(LEVELS)), "level0"]
    layers = _Layers(
        spconv.SubMConv3d(6, WIDTH, 5, padding=2, indice_key="stem", **options),
        [spconv.SubMConv3d(WIDTH, WIDTH, 3, padding=1, indice_key=key, **options) for key in keys],
        [spconv.SparseConv3d(WIDTH, WIDTH, 2, stride=2, indice_key=f"down{i}", **options) for i in range(LEVELS)],
        [spconv.SparseInverseConv3d(WIDTH, WIDTH, 2, indice_key=f"down{3 - i}", **options) for i in range(LEVELS)],
    ).to(device())

    def first() -> Any:
        return spconv.SparseConvTensor(points.feat, *spconv_unet.sites(points), points.batch_size)

    return _first_minus_second(first, lambda x: layers(x, lambda layer, x, _: layer(x)))


# One convolution ------------------------------------------------------------------------------------------------------


def _ours_list(points: PointBatch, size: int) -> Call:
    assert points.grid_coord is not None
    cells, batch = points.grid_coord, points.batch
    return torch.inference_mode()(lambda: submanifold_map(voxelize(cells, batch, points.batch_size)[0], size).table)


def _theirs_list(points: PointBatch, size: int) -> Call:
    spconv = spconv_unet.import_spconv()
    from spconv.pytorch import ops

    del spconv
    options = spconv_unet.conv_options()
    if not options:
        from spconv.core import ConvAlgo

        options = {"algo": ConvAlgo.Native}  # the list form; its implicit GEMM has a table of its own
    index, shape = spconv_unet.sites(points)
    geometry = ([size] * 3, [1] * 3, [size // 2] * 3, [1] * 3, [0] * 3)  # size, stride, padding, dilation, more padding
    return lambda: ops.get_indice_pairs(index, points.batch_size, shape, options["algo"], *geometry, subm=True)
