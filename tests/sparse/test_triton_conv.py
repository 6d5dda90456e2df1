"""The Triton backend against the float64 reference: in the interpreter without a GPU, on it where there is one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from triton_inputs import DEVICE, map_of, random_operands, random_voxels

from ponder_zoo.layers.norms import BatchNorm
from ponder_zoo.sparse import DownConv3d, Epilogue, KernelMap, SparseTensor, SubMConv3d, UpConv3d, submanifold_map
from ponder_zoo.sparse.backends import torch as torch_backend
from ponder_zoo.sparse.backends import triton as triton_backend
from ponder_zoo.sparse.backends import triton_tuning as tuning
from ponder_zoo.sparse.backends.triton_tuning import Config

# Largest error relative to the largest value, of outputs and both gradients. Measured 2026-11: 2e-7 for float32; for
# float16 and bfloat16 it is the rounding of the result (the interpreter cuts bfloat16 off instead of rounding it).
TOLERANCE = {torch.float64: 1e-14, torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def trained_norm(width: int) -> BatchNorm:
    """In eval mode, with statistics and parameters that differ from those of a new one."""
    norm = BatchNorm(width).to(DEVICE)
    for parameter in (norm.running_mean, norm.running_var, norm.weight.data, norm.bias.data):
        assert parameter is not None
        parameter.uniform_(0.5, 1.5)
    return norm.eval()


def errors(feat: Tensor, weight: Tensor, kmap: KernelMap) -> list[float]:
    """Of the output and the gradients of features and weight, against the reference in float64."""
    out = triton_backend.conv(feat, weight, kmap)
    exact = [x.detach().double().requires_grad_() for x in (feat, weight)]
    expected = torch_backend.conv_reference(exact[0], exact[1], kmap)
    cotangent = torch.randn(out.shape).to(out)
    ours = [out.detach(), *torch.autograd.grad(out, (feat, weight), cotangent)]
    theirs = [expected.detach(), *torch.autograd.grad(expected, exact, cotangent.double())]
    assert all(x.dtype == feat.dtype and x.shape == y.shape for x, y in zip(ours, theirs, strict=True))
    return [float((x - y).abs().max() / y.abs().max().clamp(min=1e-9)) for x, y in zip(ours, theirs, strict=True)]


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=lambda dtype: str(dtype)[6:])
def test_errors_of_all_precisions(dtype: torch.dtype) -> None:
    kmap = map_of("3", random_voxels(64))
    assert max(errors(*random_operands(kmap, 3, 24, 17, dtype), kmap)) < TOLERANCE[dtype]


@pytest.mark.parametrize("rows", [63, 64, 65, 130])
def test_row_counts_around_the_block_size(rows: int) -> None:
    kmap = map_of("down", random_voxels(300))
    kmap = KernelMap(kmap.table[:, :rows].contiguous(), kmap.num_in, kmap.transpose)
    feat, weight = random_operands(kmap, 2, 5, 3)
    expected = torch_backend.conv_reference(feat.double(), weight.double(), kmap)
    torch.testing.assert_close(triton_backend.conv(feat, weight, kmap).double(), expected, atol=2e-6, rtol=2e-6)


def test_a_single_row_and_no_row() -> None:
    kmap = map_of("3", random_voxels(1))
    assert max(errors(*random_operands(kmap, 3, 6, 4), kmap)) < 2e-6
    empty = KernelMap(kmap.table[:, :0], num_in=0)
    feat, weight = random_operands(empty, 3, 6, 4)
    out = triton_backend.conv(feat, weight, empty)
    out.sum().backward()
    assert out.shape == (0, 4) and feat.grad is not None and feat.grad.shape == (0, 6)
    assert weight.grad is not None and not weight.grad.any()


@pytest.mark.parametrize("splits", [1, 3])
def test_shares_of_a_sum_are_added_up_and_twice_the_same(splits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config(rows=32, ins=16, outs=32, splits=splits, warps=4, stages=2)
    monkeypatch.setattr(triton_backend, "_choose", lambda *_: config)
    kmap = map_of("down", random_voxels(150))
    feat, weight = random_operands(kmap, 2, 20, 33)
    assert max(errors(feat, weight, kmap)) < 2e-6
    results = []
    for _ in range(2):
        out = triton_backend.conv(feat, weight, kmap)
        results.append([out, *torch.autograd.grad(out.square().sum(), (feat, weight))])
    assert all(a.equal(b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("wants", [(True, False), (False, True)])
def test_only_the_gradients_asked_for_are_computed(wants: tuple[bool, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[str] = []
    choose = triton_backend._choose

    def spy(problem: tuning.Problem, *rest: object) -> Config:
        computed.append(problem.op)
        return choose(problem, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(triton_backend, "_choose", spy)
    kmap = map_of("down", random_voxels(30))
    feat, weight = random_operands(kmap, 2, 3, 4)
    feat.requires_grad_(wants[0])
    weight.requires_grad_(wants[1])
    triton_backend.conv(feat, weight, kmap).sum().backward()
    assert computed == ["forward", "input_gradient" if wants[0] else "weight_gradient"]


def test_memory_layout_of_the_operands_does_not_matter() -> None:
    kmap = map_of("down", random_voxels(50))
    feat, weight = (x.detach() for x in random_operands(kmap, 2, 6, 4))
    expected = triton_backend.conv(feat, weight, kmap)
    scattered = weight.permute(4, 1, 2, 3, 0).contiguous().permute(4, 1, 2, 3, 0)
    assert triton_backend.conv(feat.t().contiguous().t(), scattered, kmap).equal(expected)


def test_64_bit_positions_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    voxels = random_voxels(40)
    feat, weight = random_operands(map_of("3", voxels), 3, 6, 4)
    results = []
    for limit in (2**31, 1):
        monkeypatch.setattr(triton_backend.plan, "INT32_LIMIT", limit)
        kmap = KernelMap(map_of("3", voxels).table, num_in=40)
        out = triton_backend.conv(feat, weight, kmap)
        results.append([out, *torch.autograd.grad(out.square().sum(), (feat, weight))])
    assert all(a.equal(b) for a, b in zip(*results, strict=True))


def test_autocast_computes_in_its_precision_and_sums_in_float32() -> None:
    voxels = random_voxels(60)
    layer = SubMConv3d(24, 16, backend="triton").to(DEVICE)
    feat = torch.randn(60, 24, device=DEVICE, requires_grad=True)
    expected = layer(SparseTensor(feat, voxels)).feat
    with torch.autocast(DEVICE.type, torch.float16):
        out = layer(SparseTensor(feat, voxels)).feat
    assert out.dtype == torch.float16
    torch.testing.assert_close(out.float(), expected, atol=2e-3, rtol=2e-3)
    ours = torch.autograd.grad(out.float().square().sum(), (feat, layer.weight))
    reference = torch.autograd.grad(expected.square().sum(), (feat, layer.weight))
    for a, b in zip(ours, reference, strict=True):
        assert a.dtype == torch.float32
        assert (a - b).norm() < 2e-3 * b.norm()


@pytest.mark.parametrize("splits", [1, 2])
def test_epilogue_is_norm_residual_and_relu(splits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config(rows=32, ins=16, outs=16, splits=splits, warps=4, stages=2)
    monkeypatch.setattr(triton_backend, "_choose", lambda *_: config)
    kmap = map_of("3", random_voxels(40))
    feat, weight = (x.detach() for x in random_operands(kmap, 3, 6, 20))
    residual = torch.randn(40, 20, device=DEVICE)
    norm = trained_norm(20)
    plain = triton_backend.conv(feat, weight, kmap)
    ours = triton_backend.conv(feat, weight, kmap, Epilogue.of_norm(norm, residual=residual, relu=True))
    torch.testing.assert_close(ours, (norm(plain) + residual).relu().detach(), atol=3e-6, rtol=3e-6)
    assert triton_backend.conv(feat, weight, kmap, Epilogue()).equal(plain)
    shift = torch.randn(20, device=DEVICE)
    shifted = triton_backend.conv(feat, weight, kmap, Epilogue(shift=shift))
    torch.testing.assert_close(shifted, plain + shift)
    with pytest.raises(ValueError, match=r"`residual` of the output's shape \(40, 20\), got \(40, 19\)"):
        triton_backend.conv(feat, weight, kmap, Epilogue(residual=residual[:, 1:]))


@pytest.mark.parametrize("half", [False, True])
def test_layers_fuse_an_epilogue_where_nobody_wants_gradients(half: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    after_conv: list[Epilogue] = []
    apply = Epilogue.apply
    monkeypatch.setattr(Epilogue, "apply", lambda self, out: (after_conv.append(self), apply(self, out))[1])
    fine, other = SparseTensor(torch.randn(60, 6, device=DEVICE), random_voxels(60)), torch.randn(60, 4, device=DEVICE)
    down, same = DownConv3d(6, 5, backend="triton").to(DEVICE), SubMConv3d(5, 5, backend="triton").to(DEVICE)
    up, norms = UpConv3d(5, 4, backend="triton").to(DEVICE), [trained_norm(width) for width in (5, 5, 4)]

    def run() -> Tensor:
        x = down(fine, epilogue=Epilogue.of_norm(norms[0], relu=True))
        x = same(x, epilogue=Epilogue.of_norm(norms[1], residual=x.feat, relu=True))
        return up(x, fine, epilogue=Epilogue.of_norm(norms[2], residual=other)).feat

    with torch.autocast(DEVICE.type, torch.float16, enabled=half):
        after = run()
        assert after.requires_grad and len(after_conv) == 3
        with torch.no_grad():
            inside = run()
    assert len(after_conv) == 3 and inside.dtype == after.dtype == (torch.float16 if half else torch.float32)
    torch.testing.assert_close(inside, after.detach(), atol=4e-3 if half else 1e-5, rtol=4e-3 if half else 1e-5)
    assert torch.autograd.grad(after.float().sum(), down.weight)[0].abs().sum() > 0


def test_float32_products_follow_torchs_switch() -> None:
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = True
        assert triton_backend._arithmetic(torch.float32)["PRECISION"] == "tf32"
        assert triton_backend._arithmetic(torch.float16)["PRECISION"] == "ieee"
        torch.backends.cuda.matmul.allow_tf32 = False
        assert triton_backend._arithmetic(torch.float32)["PRECISION"] == "ieee"
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def test_operands_that_do_not_fit_are_errors() -> None:
    kmap = submanifold_map(random_voxels(5), 3)
    feat, weight = random_operands(kmap, 3, 6, 4)
    with pytest.raises(ValueError, match=r"one precision.*float16 and torch.float32"):
        triton_backend.conv(feat.half(), weight, kmap)
    with pytest.raises(ValueError, match=r"6 input channels, got \(5, 5\)"):
        triton_backend.conv(feat[:, 1:], weight, kmap)


def test_a_second_derivative_is_an_error() -> None:
    kmap = map_of("down", random_voxels(10))
    feat, weight = random_operands(kmap, 2, 3, 2)
    (grad,) = torch.autograd.grad(triton_backend.conv(feat, weight, kmap).square().sum(), feat, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_cpu_tensors_without_the_interpreter_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_backend, "INTERPRETED", False)
    x = SparseTensor(torch.randn(5, 6), random_voxels(5))
    with pytest.raises(RuntimeError, match=r"expected features on a CUDA device, got them on cpu.*backend='torch'"):
        SubMConv3d(6, 4, backend="triton")(x)
