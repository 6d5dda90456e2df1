"""Neighbour search: all kernel maps of SparseUNet-34, and the lists of one convolution, against spconv's."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ponder_zoo.sparse import DownConv3d, SparseTensor, SubMConv3d, UpConv3d
from ponder_zoo.sparse.kernel_map import submanifold_map
from ponder_zoo.sparse.voxels import voxelize
from ponder_zoo.structures import PointBatch

from . import floors
from .harness import Call, Case, Seconds
from .machine import device, our_backend, synchronize
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


class _Layers(nn.Module):
    """One narrow convolution of ours for each map of the network, in the order in which the network asks for them."""

    def __init__(self) -> None:
        super().__init__()
        backend = our_backend()
        self.stem = SubMConv3d(6, WIDTH, kernel_size=5, backend=backend)
        self.same = nn.ModuleList(SubMConv3d(WIDTH, WIDTH, backend=backend) for _ in range(LEVELS + 1))
        self.down = nn.ModuleList(DownConv3d(WIDTH, WIDTH, backend=backend) for _ in range(LEVELS))
        self.up = nn.ModuleList(UpConv3d(WIDTH, WIDTH, backend=backend) for _ in range(LEVELS))

    def forward(self, x: SparseTensor) -> SparseTensor:
        x = self.stem(x)
        finer = []
        for down, same in zip(self.down, self.same[:LEVELS], strict=True):
            finer.append(x)
            x = same(down(x))
        for up in self.up:
            x = up(x, finer.pop())
        return self.same[LEVELS](x)  # the decoder's 3^3 at full resolution


def _ours_net(points: PointBatch) -> Call:
    """Maps, and what a backend derives from them, are built by the layer that first needs them.

    So what is measured is the difference between a first and a second pass over the same voxels.
    """
    assert points.grid_coord is not None
    layers, cells, batch = _Layers().to(device()), points.grid_coord, points.batch

    @torch.inference_mode()
    def call() -> Seconds:
        synchronize()
        start = time.perf_counter()
        x, _ = SparseTensor.from_points(points.feat, cells, batch, points.batch_size)
        layers(x)
        synchronize()
        middle = time.perf_counter()
        layers(x)
        synchronize()
        return Seconds(2 * middle - start - time.perf_counter())

    return call


def _theirs_net(points: PointBatch) -> Call:
    """The pair lists of the same layers, built by the functions that spconv's layers call."""
    pairs = _pair_builder()

    def call() -> None:
        index, shape = spconv_unet.sites(points)
        pairs(index, points.batch_size, shape, 5, subm=True)
        for level in range(LEVELS + 1):
            pairs(index, points.batch_size, shape, 3, subm=True)
            if level < LEVELS:  # the inverse convolution uses the same list
                index = pairs(index, points.batch_size, shape, 2, subm=False)[0]
                shape = [(size - 2) // 2 + 1 for size in shape]

    return call


def _pair_builder() -> Callable[..., Any]:
    """Builds what a spconv layer of a size needs: lists of pairs, or on a GPU the table of its implicit GEMM."""
    spconv_unet.import_spconv()
    from spconv.core import ConvAlgo
    from spconv.pytorch import ops

    def pairs(index: Tensor, batch_size: int, shape: list[int], size: int, subm: bool) -> Any:
        padding = size // 2 if subm else 0
        geometry = ([size] * 3, [1 if subm else 2] * 3, [padding] * 3, [1] * 3, [0] * 3)
        if index.device.type == "cpu" or size**3 > 32:  # its implicit GEMM has at most 32 offsets
            return ops.get_indice_pairs(index, batch_size, shape, ConvAlgo.Native, *geometry, subm=subm)
        algo = ConvAlgo.MaskImplicitGemm
        return ops.get_indice_pairs_implicit_gemm(index, batch_size, shape, algo, *geometry, subm=subm, is_train=False)

    return pairs


# One convolution ------------------------------------------------------------------------------------------------------


def _ours_list(points: PointBatch, size: int) -> Call:
    assert points.grid_coord is not None
    cells, batch = points.grid_coord, points.batch
    return torch.inference_mode()(lambda: submanifold_map(voxelize(cells, batch, points.batch_size)[0], size).table)


def _theirs_list(points: PointBatch, size: int) -> Call:
    pairs, (index, shape) = _pair_builder(), spconv_unet.sites(points)
    return lambda: pairs(index, points.batch_size, shape, size, subm=True)
