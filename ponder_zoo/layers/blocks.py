"""Blocks of sparse networks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from ..sparse import Epilogue, SparseTensor, SubMConv3d
from .norm_relu import recomputed
from .norms import Prompt

NormLayer = Callable[[int], nn.Module]  # number of features -> BatchNorm or PromptDrivenNorm


def convolve(
    conv: nn.Module,
    norm: nn.Module,
    x: SparseTensor,
    *like: SparseTensor,
    prompt: Prompt | None,
    residual: Tensor | None = None,
) -> SparseTensor:
    """A convolution, its norm, a sum with `residual` (N, C) and a ReLU; in inference in one pass over the result."""
    folded = None if norm.training or torch.is_grad_enabled() else norm.folded(prompt)  # type: ignore[operator]
    if folded is not None:
        return conv(x, *like, epilogue=Epilogue(folded[0], folded[1], residual, relu=True))
    # Only what a block keeps to itself: nearly all other activations are kept elsewhere, too, and computing those again
    # saves 5 of 765 MiB (2026-11, SparseUNet-34, 40 000 voxels).
    with nullcontext() if residual is None else recomputed(x.feat):
        out = conv(x, *like)
    if residual is None:
        return out.with_feat(apply_norm(norm, out, prompt, relu=True))
    return out.with_feat(apply_norm(norm, out, prompt).add_(residual).relu_())


def apply_norm(norm: nn.Module, x: SparseTensor, prompt: Prompt | None, *, relu: bool = False) -> Tensor:
    """Normalized features (N, C): with the batch's prompt where there is one, and a ReLU after it where asked for."""
    return norm(x.feat, relu=relu) if prompt is None else norm(x.feat, prompt, x.batch, relu=relu)


class ConvNorm(nn.Module):
    """A convolution, its norm and a ReLU. Arguments after `x` go to the convolution."""

    def __init__(self, conv: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.conv = conv
        self.norm = norm

    def forward(self, x: SparseTensor, *args: SparseTensor, prompt: Prompt | None = None) -> SparseTensor:
        return convolve(self.conv, self.norm, x, *args, prompt=prompt)


class ResidualBlock(nn.Module):
    """Two 3x3x3 submanifold convolutions with norms, and a shortcut: linear with a norm where the width changes."""

    def __init__(self, in_chans: int, out_chans: int, *, norm_layer: NormLayer, backend: str = "auto") -> None:
        super().__init__()
        self.conv1 = SubMConv3d(in_chans, out_chans, backend=backend)
        self.norm1 = norm_layer(out_chans)
        self.conv2 = SubMConv3d(out_chans, out_chans, backend=backend)
        self.norm2 = norm_layer(out_chans)
        self.shortcut = nn.Linear(in_chans, out_chans, bias=False) if in_chans != out_chans else nn.Identity()
        self.shortcut_norm = norm_layer(out_chans) if in_chans != out_chans else None

    def forward(self, x: SparseTensor, prompt: Prompt | None = None) -> SparseTensor:
        """(N, in) -> (N, out) on the same voxels."""
        shortcut = x.with_feat(self.shortcut(x.feat))
        if self.shortcut_norm is not None:
            shortcut = shortcut.with_feat(apply_norm(self.shortcut_norm, shortcut, prompt))
        hidden = convolve(self.conv1, self.norm1, x, prompt=prompt)
        return convolve(self.conv2, self.norm2, hidden, prompt=prompt, residual=shortcut.feat)
