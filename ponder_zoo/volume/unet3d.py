"""The dense 3D U-Net that completes and smooths a densified volume (f_d of paper Eq. 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.sync_norm import SyncBatchNorm
from .occupied import OccupiedCells, norm_conv


class UNet3D(nn.Module):
    """U-Net with one convolution per level and summed skips: the official code's projection network.

    Each level is batch norm -> 3x3x3 convolution -> ReLU, in this order; going down by max-pooling, up by a transposed
    convolution whose output is added to the level's features. A 1x1x1 convolution ends it, without activation. With the
    default widths and 96 -> 128 channels it has 2,991,520 parameters.

    Volumes stay `channels_last_3d` in memory from end to end, which convolutions prefer and the trilinear lookup needs.

    Args:
        in_chans: channels of the volume.
        out_chans: channels of the result.
        channels: width of each level, finest first; every level after the first halves the resolution.
        shortcut: add the input to the result, through a 1x1x1 convolution where the widths differ: what the encoder
            writes in a cell reaches the renderer also while the network is still untrained. Official: False.
    """

    def __init__(
        self,
        in_chans: int,
        out_chans: int,
        *,
        channels: Sequence[int] = (32, 64, 128, 256),
        shortcut: bool = False,
    ) -> None:
        super().__init__()
        if len(channels) == 0:
            raise ValueError("UNet3D expected the width of at least one level in `channels`, got none.")
        self.in_chans = in_chans
        self.out_chans = out_chans
        below = [in_chans, *channels[:-1]]
        self.encoder = nn.ModuleList(NormConv(i, o) for i, o in zip(below, channels, strict=True))
        up = list(reversed(channels))
        self.decoder = nn.ModuleList(UpLevel(i, o) for i, o in pairwise(up))
        self.pool = nn.MaxPool3d(2)
        self.head = nn.Conv3d(channels[0], out_chans, 1)
        self.shortcut: nn.Module | None = None
        if shortcut:
            self.shortcut = nn.Identity() if in_chans == out_chans else nn.Conv3d(in_chans, out_chans, 1, bias=False)

    def forward(self, volume: Tensor | OccupiedCells) -> Tensor:
        """(B, C, Z, Y, X) -> (B, C', Z, Y, X); Z, Y and X are multiples of 2^(levels - 1)."""
        if isinstance(volume, OccupiedCells) and not self.takes_occupied(volume):
            volume = volume.dense()
        if isinstance(volume, Tensor):
            self._check(volume)
            volume = _channels_last(volume)
        x: Any = volume
        skips: list[Tensor] = []
        for level, block in enumerate(self.encoder):
            x = block(self.pool(x) if level > 0 else x)
            skips.append(x)
        for block, skip in zip(self.decoder, reversed(skips[:-1]), strict=True):
            x = block(x, skip)
        x = self.head(x)
        return _channels_last(x if self.shortcut is None else _add_shortcut(self.shortcut, x, volume))

    def takes_occupied(self, cells: OccupiedCells) -> bool:
        """Whether the first layer can work on the occupied cells alone."""
        block: Any = self.encoder[0]
        known = type(block.norm) in (nn.BatchNorm3d, SyncBatchNorm)
        multiple = 2 ** len(self.decoder)
        fits = all(size % multiple == 0 and size > 1 for size in cells.shape[1:])
        return known and fits and cells.feat.shape[1] == self.in_chans

    def _check(self, volume: Tensor) -> None:
        if volume.ndim != 5 or volume.shape[1] != self.in_chans:
            raise ValueError(
                f"UNet3D takes volumes (B, {self.in_chans}, Z, Y, X); got {tuple(volume.shape)}. Build it with "
                f"in_chans={volume.shape[1] if volume.ndim == 5 else 'the channels of the volume'}."
            )
        multiple = 2 ** len(self.decoder)
        if any(size % multiple for size in volume.shape[2:]):
            raise ValueError(
                f"UNet3D with {len(self.encoder)} levels halves the volume {len(self.decoder)} times, so (Z, Y, X) "
                f"must be multiples of {multiple}; got {tuple(volume.shape[2:])}. Choose such a volume shape, or "
                "fewer levels (`channels`)."
            )


class NormConv(nn.Module):
    """Batch norm, 3x3x3 convolution without bias, ReLU."""

    def __init__(self, in_chans: int, out_chans: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm3d(in_chans)
        self.conv = nn.Conv3d(in_chans, out_chans, 3, padding=1, bias=False)

    def forward(self, x: Tensor | OccupiedCells) -> Tensor:
        y = norm_conv(self.norm, self.conv, x) if isinstance(x, OccupiedCells) else self.conv(self.norm(x))
        return _channels_last(y).relu_()  # the convolution does not need its result again


class UpLevel(nn.Module):
    """Double the resolution, add the level's features, NormConv."""

    def __init__(self, in_chans: int, out_chans: int) -> None:
        super().__init__()
        self.upsample = nn.ConvTranspose3d(in_chans, out_chans, 3, stride=2, padding=1, output_padding=1)
        self.block = NormConv(out_chans, out_chans)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.block(_channels_last(self.upsample(x)) + skip)


def _add_shortcut(shortcut: nn.Module, x: Tensor, volume: Tensor | OccupiedCells) -> Tensor:
    if isinstance(volume, Tensor):
        return x + shortcut(volume)
    feat = volume.feat
    if isinstance(shortcut, nn.Conv3d):
        feat = F.linear(feat, shortcut.weight.flatten(1))
    rows = x.movedim(1, -1).reshape(-1, feat.shape[1])
    return rows.index_add_(0, volume.index, feat.to(rows.dtype)).view(*volume.shape, -1).movedim(-1, 1)


def _channels_last(volume: Tensor) -> Tensor:
    # Free where the layout is right already. On a CPU, convolutions of a single small volume return the other one.
    return volume.contiguous(memory_format=torch.channels_last_3d)


def checkpoint_filter_fn(state_dict: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Rename the keys of the official code's `UNet3D-v1m2` (as under `proj_net.`) to UNet3D's; ours pass unchanged."""
    renames = (
        ("encoders.", "encoder."),
        ("decoders.", "decoder."),
        ("upsampling.upsample.", "upsample."),
        ("basic_module.batchnorm.", "norm."),
        ("basic_module.conv.", "conv."),
        ("final_conv.", "head."),
    )
    result = {}
    for key, value in state_dict.items():
        inner = "block." if key.startswith("decoders.") else ""
        for old, new in renames:
            key = key.replace(old, inner + new if old.startswith("basic_module.") else new)
        result[key] = value
    return result
