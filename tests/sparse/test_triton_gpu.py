"""What only a GPU can show: compiled kernels in every precision against float64, determinism, launches without waits.

Untested where there is no GPU; the same kernels run in the interpreter in the other files.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from triton_inputs import DEVICE, KINDS, map_of, random_operands, random_voxels

from ponder_zoo.sparse import KernelMap, SparseTensor, SubMConv3d, submanifold_map, voxelize
from ponder_zoo.sparse.backends import torch as torch_backend
from ponder_zoo.sparse.backends import triton as triton_backend
from ponder_zoo.sparse.backends import triton_tuning as tuning
from ponder_zoo.sparse.backends.triton_maps import search_neighbours

pytestmark = [pytest.mark.cuda, pytest.mark.triton]

# Relative to the norm. The products of float16 and bfloat16 are exact in float32: what is left is one rounding of the
# result (half a unit is 4.9e-4 and 3.9e-3). TF32 rounds operands to 11 bits. In float32 the longest sums here,
# of 32,000 products, are 1.4e-6 off on an H100.
TOLERANCE = {"float64": 1e-14, "float32": 2e-6, "tf32": 1e-3, "float16": 5e-4, "bfloat16": 4e-3}


def run(feat: Tensor, weight: Tensor, kmap: KernelMap, cotangent: Tensor) -> list[Tensor]:
    out = triton_backend.conv(feat, weight, kmap)
    return [out.detach(), *torch.autograd.grad(out, (feat, weight), cotangent)]


@pytest.mark.parametrize("precision", list(TOLERANCE))
@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("channels", [(6, 32), (32, 32), (96, 96), (256, 256), (96, 7)])
@pytest.mark.parametrize("count", [1, 63, 64, 65, 5000])
def test_every_precision_against_float64_and_twice_the_same(
    precision: str, kind: str, channels: tuple[int, int], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_backend, "_allows_tf32", lambda: precision == "tf32")
    dtype = getattr(torch, "float32" if precision == "tf32" else precision)
    kmap = map_of(kind, random_voxels(count, extent=24))
    feat, weight = random_operands(kmap, KINDS[kind], *channels, dtype=dtype)
    cotangent = torch.randn(kmap.num_out, channels[1], device=DEVICE).to(dtype)
    ours, again = run(feat, weight, kmap, cotangent), run(feat, weight, kmap, cotangent)
    assert all(a.equal(b) for a, b in zip(ours, again, strict=True))
    exact = [x.detach().double().requires_grad_() for x in (feat, weight)]
    expected = torch_backend.conv_reference(exact[0], exact[1], kmap)
    theirs = [expected.detach(), *torch.autograd.grad(expected, exact, cotangent.double())]
    for name, a, b in zip(("out", "feat", "weight"), ours, theirs, strict=True):
        assert (a.double() - b).norm() <= TOLERANCE[precision] * b.norm(), name


@pytest.mark.parametrize("op", ["forward", "input_gradient", "weight_gradient"])
@pytest.mark.parametrize("dtype", ["float32", "tf32", "float16", "bfloat16"])
def test_every_candidate_can_be_launched_and_agrees(op: tuning.Op, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_backend, "_allows_tf32", lambda: dtype == "tf32")
    kmap = map_of("3", random_voxels(3000, extent=16))
    feat, weight = random_operands(kmap, 3, 96, 64, dtype=torch.float32 if dtype == "tf32" else getattr(torch, dtype))
    cotangent = torch.randn(kmap.num_out, 64, device=DEVICE).to(feat.dtype)
    first = run(feat, weight, kmap, cotangent)
    choose = triton_backend._choose
    for number in range(tuning.MAX_CANDIDATES):

        def pick(problem: tuning.Problem, *rest: object, number: int = number) -> tuning.Config:
            options = tuning.candidates(problem, 132)
            return options[number % len(options)] if problem.op == op else choose(problem, *rest)  # type: ignore[arg-type]

        monkeypatch.setattr(triton_backend, "_choose", pick)
        for a, b in zip(run(feat, weight, kmap, cotangent), first, strict=True):
            assert (a.double() - b.double()).norm() <= 2 * TOLERANCE[dtype] * b.double().norm()


@pytest.mark.parametrize("reach", [1, 2])
def test_tables_are_those_of_the_host(reach: int) -> None:
    for extent in (24, 3000):  # small and large keys
        cells = torch.randint(0, extent, (20_000, 3), device=DEVICE)
        voxels, _ = voxelize(cells, torch.zeros(20_000, dtype=torch.int64, device=DEVICE), 1)
        assert search_neighbours(voxels, reach).equal(submanifold_map(voxels, 2 * reach + 1).table)


def test_neither_maps_nor_layers_wait_for_the_gpu() -> None:
    voxels = random_voxels(500)
    layer = SubMConv3d(32, 32, backend="triton").to(DEVICE)
    feat = torch.randn(500, 32, device=DEVICE, requires_grad=True)

    def step(kmap: KernelMap) -> None:
        voxels.cache["submanifold", 3] = kmap
        layer(SparseTensor(feat, voxels)).feat.sum().backward()

    step(KernelMap(search_neighbours(voxels, 1), 500))  # compiles
    try:
        torch.cuda.set_sync_debug_mode("error")
        step(KernelMap(search_neighbours(voxels, 1), 500))
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_layer_can_be_captured() -> None:
    voxels = random_voxels(500)
    layer = SubMConv3d(32, 32, backend="triton").to(DEVICE)
    feat = torch.randn(500, 32, device=DEVICE)
    with torch.no_grad():
        expected = layer(SparseTensor(feat, voxels)).feat
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = layer(SparseTensor(feat, voxels)).feat
        graph.replay()
    assert out.equal(expected)


def test_tuning_measures_keeps_and_reuses(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("PONDER_ZOO_CACHE", str(tmp_path))
    kmap = map_of("3", random_voxels(500))
    feat, weight = random_operands(kmap, 3, 32, 32, dtype=torch.float16)
    assert triton_backend.tune(lambda: triton_backend.conv(feat, weight, kmap).sum().backward()) == 3
    assert triton_backend.tune(lambda: triton_backend.conv(feat, weight, kmap).sum().backward()) == 3
