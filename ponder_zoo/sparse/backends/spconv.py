"""Sparse convolution through spconv 2.3, with the same modules and weights. On CPU it has its Native algorithm only.

spconv keeps its own pair lists, so voxels are handed over as coordinates: shifted to be non-negative, by an even number
of cells so that parents stay the same. Its rows of strided voxels have an order of their own, which is matched to ours.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ..kernel_map import Coarsening
from ..voxels import REACH, Voxels


def submanifold_conv(feat: Tensor, weight: Tensor, voxels: Voxels) -> Tensor:
    """(N, C_in), (C_out, k, k, k, C_in) -> (N, C_out)."""
    layer = _layer("SubMConv3d", weight.shape, feat.device.type, f"submanifold{weight.shape[1]}")
    sites = voxels.cached("spconv", lambda: _sites(voxels))
    return _run(layer, weight, sites.replace_feature(feat)).features


def down_conv(feat: Tensor, weight: Tensor, step: Coarsening) -> Tensor:
    """(N_fine, C_in), (C_out, 2, 2, 2, C_in) -> (N_coarse, C_out)."""
    layer = _layer("SparseConv3d", weight.shape, feat.device.type, "coarsening")
    sites = step.fine.cached("spconv", lambda: _sites(step.fine))
    out = _run(layer, weight, sites.replace_feature(feat))
    _, theirs = step.fine.cached("spconv_coarse", lambda: _coarse_sites(out, step))
    return out.features.index_select(0, theirs)


def up_conv(feat: Tensor, weight: Tensor, step: Coarsening) -> Tensor:
    """(N_coarse, C_in), (C_out, 2, 2, 2, C_in) -> (N_fine, C_out)."""
    if "spconv_coarse" not in step.fine.cache:  # spconv inverts a strided convolution that it has seen
        width = weight.shape[0]
        down_conv(feat.new_zeros(len(step.fine), width), weight.new_zeros(width, 2, 2, 2, width), step)
    coarse, theirs = step.fine.cache["spconv_coarse"]
    ours = torch.empty_like(theirs).scatter_(0, theirs, torch.arange(len(theirs), device=theirs.device))
    layer = _layer("SparseInverseConv3d", weight.shape, feat.device.type, "coarsening")
    return _run(layer, weight, coarse.replace_feature(feat.index_select(0, ours))).features


@cache
def _import() -> tuple[Any, Any]:
    """Import spconv and its Native algorithm, without deprecation warnings: nobody here can act on them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import spconv.pytorch as spconv
        from spconv.core import ConvAlgo
    return spconv, ConvAlgo.Native


@cache
def _layer(kind: str, shape: torch.Size, device_type: str, key: str) -> nn.Module:
    """A spconv layer without memory for a weight of its own; the caller's is put in for each call."""
    spconv, native = _import()
    out_chans, size, _, _, in_chans = shape
    # The CPU has no implicit GEMM, and on a GPU spconv takes Native itself for the 125 offsets of size 5.
    options: dict[str, Any] = {"bias": False, "indice_key": key}
    if device_type == "cpu":
        options["algo"] = native
    if kind == "SparseConv3d":
        options["stride"] = 2
    layer = getattr(spconv, kind)(in_chans, out_chans, size, **options)
    layer.weight = nn.Parameter(torch.empty(0))
    return layer


def _run(layer: nn.Module, weight: Tensor, x: Any) -> Any:
    with torch.autocast(weight.device.type, enabled=False):
        return torch.func.functional_call(layer, {"weight": weight}, (x,))


def _sites(voxels: Voxels) -> Any:
    """Voxels as spconv's tensor without features, which carries the pair lists from layer to layer."""
    spconv, _ = _import()
    low = (voxels.origin >> 1 << 1)[voxels.batch]  # even
    index = torch.cat([voxels.batch[:, None].int(), voxels.grid_coord - low], dim=1).contiguous()
    # One cell for the shift to even numbers, and a margin as in the official code so that no window is cut off.
    shape = [size - REACH + 1 + 96 for size in voxels.layout.size]
    empty = torch.empty(len(voxels), 1, device=voxels.device)
    return spconv.SparseConvTensor(empty, index, shape, voxels.batch_size)


def _coarse_sites(out: Any, step: Coarsening) -> tuple[Any, Tensor]:
    """Strided voxels without features, and the row among them of each of our coarse voxels (N_coarse,)."""
    coarse = step.coarse
    batch = out.indices[:, 0].long()
    cell = out.indices[:, 1:] + (step.fine.origin >> 1)[batch] - coarse.origin[batch]
    theirs = coarse.layout.pack(cell, batch, coarse.batch_size).argsort()
    return out.replace_feature(torch.empty(len(theirs), 1, device=coarse.device)), theirs
