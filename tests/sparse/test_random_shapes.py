"""Convolutions of random shapes and both their gradients in float32, through every own backend, against float64."""

from __future__ import annotations

import importlib

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from triton_inputs import DEVICE, KINDS, map_of, random_operands, random_voxels

from ponder_zoo.sparse import KernelMap
from ponder_zoo.sparse.backends.torch import conv_reference

TOLERANCE = 2e-6  # of the largest value; measured 2026-11: 2e-7
CHANNELS = st.sampled_from([1, 3, 17, 96]) | st.integers(1, 40)
SIZES = {"1": 1, **KINDS}
EXAMPLES = {"1": 6, "3": 3, "5": 1, "down": 4, "up": 4}  # random ones, beside two that are always tried
BACKENDS = ["torch", pytest.param("triton", marks=pytest.mark.triton)]


def kernel_map(kind: str, count: int, seed: int) -> KernelMap:
    """Of `count` distinct random voxels; size 1 is the identity, which layers leave to nn.Linear."""
    if count == 0:
        empty = torch.zeros(SIZES[kind] ** 3, 0, dtype=torch.int32, device=DEVICE)
        kmap = KernelMap(empty, 0)
        kmap.transpose = KernelMap(empty, 0, transpose=kmap) if kind in ("down", "up") else None
        return kmap
    if kind == "1":
        return KernelMap(torch.arange(count, dtype=torch.int32, device=DEVICE)[None], count)
    return map_of(kind, random_voxels(count, seed))


def check_conv(backend: str, kind: str, kmap: KernelMap, in_chans: int, out_chans: int) -> None:
    conv = importlib.import_module(f"ponder_zoo.sparse.backends.{backend}").conv
    feat, weight = random_operands(kmap, SIZES[kind], in_chans, out_chans)
    out = conv(feat, weight, kmap)
    exact = [x.detach().double().requires_grad_() for x in (feat, weight)]
    expected = conv_reference(exact[0], exact[1], kmap)
    cotangent = torch.randn(out.shape).to(out)
    ours = [out, *torch.autograd.grad(out, (feat, weight), cotangent)]
    theirs = [expected, *torch.autograd.grad(expected, exact, cotangent.double())]
    for name, x, y in zip(("output", "input", "weight"), ours, theirs, strict=True):
        assert x.dtype == torch.float32 and x.shape == y.shape, name
        if y.numel():
            assert (x - y).abs().max() <= TOLERANCE * y.abs().max().clamp(min=1e-3), name


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", list(EXAMPLES))
def test_values_and_gradients_are_those_of_float64(kind: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if backend == "triton":
        triton = importlib.import_module("ponder_zoo.sparse.backends.triton")
        monkeypatch.setattr(triton, "_allows_tf32", lambda: False)

    @settings(max_examples=EXAMPLES[kind], deadline=None)
    @given(count=st.integers(0, 60), in_chans=CHANNELS, out_chans=CHANNELS, seed=st.integers(0, 9))
    @example(count=1, in_chans=1, out_chans=96, seed=0)
    @example(count=0, in_chans=3, out_chans=17, seed=0)
    def check(count: int, in_chans: int, out_chans: int, seed: int) -> None:
        torch.manual_seed(seed)
        check_conv(backend, kind, kernel_map(kind, count, seed), in_chans, out_chans)

    check()
