"""SparseUNet-34 from spconv's own modules, with the attribute names of ours: the peer of the sparse benchmarks.

Written from the published architecture: 5^3 stem, four stages down and four up, residual blocks of two convolutions.
Layers of one resolution share their pair list through `indice_key`, as users of spconv do.
"""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ponder_zoo.structures import PointBatch

from ..machine import device

CHANNELS = (32, 64, 128, 256, 256, 128, 96, 96)
DEPTHS = (2, 3, 4, 6, 2, 2, 2, 2)
MARGIN = 96  # spare cells at the upper end of the box, as in the official code


def spconv_version() -> str:
    """Version of the installed spconv, or "" where there is none."""
    for name in ("spconv-cu120", "spconv-cu126", "spconv-cu124", "spconv-cu121", "spconv-cu118", "spconv"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""


def describe_peer() -> str:
    """The peer in words."""
    return f"spconv {spconv_version() or '2.3'}, {'Native' if device().type == 'cpu' else 'its best, fp16'}"


def import_spconv() -> Any:
    """The spconv.pytorch module.

    Raises:
        ImportError: where it is not installed, or fails on this GPU.
    """
    if device().type == "cuda" and (failure := failure_on_gpu()):
        raise ImportError(f"spconv fails on this GPU: {failure}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import spconv.pytorch as spconv
    except ImportError as error:
        raise ImportError("spconv is not installed") from error
    from spconv import constants

    constants.SPCONV_ALLOW_TF32 = device().type == "cuda"  # where it gets float32, ours may use it too
    return spconv


PROBE = """
import torch, spconv.pytorch as spconv
cells = torch.randperm(8000)[:1000]
rows = torch.stack([cells * 0, cells // 400, cells // 20 % 20, cells % 20], 1).int().cuda()
layer = spconv.SubMConv3d(16, 16, 3, bias=False).cuda().half()
out = layer(spconv.SparseConvTensor(torch.randn(1000, 16).cuda().half(), rows, [20] * 3, 1)).features
assert out.isfinite().all()
"""


@cache
def failure_on_gpu(seconds: float = 90.0) -> str:
    """Why a layer cannot run on the GPU, "" where it can; tried in a process that may crash or hang."""
    try:
        done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return f"no answer within {seconds:.0f} s"
    lines = done.stderr.strip().splitlines()
    return "" if done.returncode == 0 else lines[-1] if lines else f"exit status {done.returncode}"


def conv_options() -> dict[str, Any]:
    """Native on a CPU, which has nothing else; on a GPU spconv's own choice."""
    if device().type != "cpu":
        return {}
    import_spconv()
    from spconv.core import ConvAlgo

    return {"algo": ConvAlgo.Native}


def sites(points: PointBatch) -> tuple[Tensor, list[int]]:
    """Rows (scene, x, y, z) int32 and the box's shape, as spconv wants them; part of preparing a batch."""
    assert points.grid_coord is not None
    index = torch.cat([points.batch[:, None].int(), points.grid_coord.int()], dim=1).contiguous()
    return index, (points.grid_coord.amax(0) + MARGIN).tolist()


class ConvNorm(nn.Module):
    def __init__(self, conv: nn.Module, chans: int) -> None:
        super().__init__()
        self.conv = conv
        self.norm = _norm(chans)

    def forward(self, x: Any) -> Any:
        x = self.conv(x)
        return x.replace_feature(torch.relu_(self.norm(x.features)))


class ResidualBlock(nn.Module):
    def __init__(self, in_chans: int, out_chans: int, key: str, options: dict[str, Any]) -> None:
        super().__init__()
        conv = import_spconv().SubMConv3d
        self.conv1 = conv(in_chans, out_chans, 3, padding=1, bias=False, indice_key=key, **options)
        self.norm1 = _norm(out_chans)
        self.conv2 = conv(out_chans, out_chans, 3, padding=1, bias=False, indice_key=key, **options)
        self.norm2 = _norm(out_chans)
        # A matrix product on both sides: spconv's own layer of size 1 is one, too.
        self.shortcut = nn.Linear(in_chans, out_chans, bias=False) if in_chans != out_chans else nn.Identity()
        self.shortcut_norm = _norm(out_chans) if in_chans != out_chans else None

    def forward(self, x: Any) -> Any:
        shortcut = self.shortcut(x.features)
        if self.shortcut_norm is not None:
            shortcut = self.shortcut_norm(shortcut)
        out = self.conv1(x)
        out = self.conv2(out.replace_feature(torch.relu_(self.norm1(out.features))))
        return out.replace_feature(torch.relu_(self.norm2(out.features) + shortcut))


class Stage(nn.Module):
    def __init__(self, resize: nn.Module, in_chans: int, out_chans: int, depth: int, key: str, **options: Any) -> None:
        super().__init__()
        widths = [in_chans, *[out_chans] * depth]
        self.resize = ConvNorm(resize, out_chans)
        self.blocks = nn.ModuleList(ResidualBlock(widths[i], out_chans, key, options) for i in range(depth))


class SpconvUNet(nn.Module):
    """Features (N, 96) of the points of a batch, whose cells are distinct."""

    def __init__(
        self,
        in_chans: int,
        *,
        channels: Sequence[int] = CHANNELS,
        depths: Sequence[int] = DEPTHS,
        stem_channels: int = 32,
    ) -> None:
        super().__init__()
        spconv, options = import_spconv(), conv_options()
        stem = spconv.SubMConv3d(in_chans, stem_channels, 5, padding=1, bias=False, indice_key="stem", **options)
        self.stem = ConvNorm(stem, stem_channels)
        widths = [stem_channels, *channels[:4]]
        self.enc, self.dec = nn.ModuleList(), nn.ModuleList()
        for i in range(4):
            wide = widths[i + 1]
            down = spconv.SparseConv3d(widths[i], wide, 2, stride=2, bias=False, indice_key=f"down{i}", **options)
            self.enc.append(Stage(down, wide, wide, depths[i], f"level{i + 1}", **options))
        for i in range(4):
            into, wide, skip = channels[3 + i], channels[4 + i], widths[3 - i]
            up = spconv.SparseInverseConv3d(into, wide, 2, bias=False, indice_key=f"down{3 - i}", **options)
            self.dec.append(Stage(up, wide + skip, wide, depths[4 + i], f"level{3 - i}", **options))

    def forward(self, feat: Tensor, index: Tensor, shape: list[int], batch_size: int) -> Tensor:
        """Pair lists are built anew in every call."""
        x = self.stem(import_spconv().SparseConvTensor(feat, index, shape, batch_size))
        skips: list[Any] = []
        stage: Any
        for stage in self.enc:
            skips.append(x)
            x = stage.resize(x)
            for block in stage.blocks:
                x = block(x)
        for stage in self.dec:
            x = stage.resize(x)
            x = x.replace_feature(torch.cat([x.features, skips.pop().features], dim=1))
            for block in stage.blocks:
                x = block(x)
        return x.features

    def load_ours(self, state_dict: dict[str, Tensor]) -> None:
        """Take the weights of our SparseUNet without a head, in its published layout."""
        renamed = {key.replace(".down.", ".resize.").replace(".up.", ".resize."): x for key, x in state_dict.items()}
        self.load_state_dict(renamed)


def _norm(chans: int) -> nn.BatchNorm1d:
    return nn.BatchNorm1d(chans, eps=1e-3, momentum=0.01)
