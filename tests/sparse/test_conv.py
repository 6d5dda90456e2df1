"""Sparse convolution against dense convolution, and the backends against each other."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ponder_zoo.sparse import DownConv3d, SparseTensor, SubMConv3d, UpConv3d, backends, coarsening, submanifold_map
from ponder_zoo.sparse.backends import dense, tiles
from ponder_zoo.sparse.backends import torch as torch_backend
from ponder_zoo.sparse.kernel_map import KernelMap

EXTENT = 8  # cells; coordinates run from -4 to 3
BACKENDS = ["torch", pytest.param("spconv", marks=pytest.mark.spconv)]


def random_tensor(
    count: int, channels: int, seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[SparseTensor, Tensor]:
    """Distinct random voxels in two scenes; the features are a leaf that requires gradients."""
    generator = torch.Generator().manual_seed(seed)
    flat = torch.randperm(2 * EXTENT**3, generator=generator)[:count]
    batch, cell = flat // EXTENT**3, flat % EXTENT**3
    coord = torch.stack([cell // EXTENT**2, cell // EXTENT % EXTENT, cell % EXTENT], 1) - EXTENT // 2
    feat = torch.randn(count, channels, generator=generator, dtype=dtype).requires_grad_()
    return SparseTensor.from_points(feat, coord, batch, 2)[0], feat


def to_dense(x: SparseTensor, stride: int = 1) -> Tensor:
    """(B, C, X, Y, Z), zero in empty cells."""
    extent = EXTENT // stride
    dense = x.feat.new_zeros(x.batch_size, extent, extent, extent, x.feat.shape[1])
    index = x.grid_coord.long() + extent // 2
    return dense.index_put((x.batch, *index.unbind(1)), x.feat).movedim(-1, 1)


def at_voxels(dense: Tensor, x: SparseTensor) -> Tensor:
    index = x.grid_coord.long() + dense.shape[2] // 2
    return dense.movedim(1, -1)[(x.batch, *index.unbind(1))]


def dense_weight(layer: nn.Module) -> Tensor:
    return layer.weight.permute(0, 4, 1, 2, 3)  # torch's (out, in, kx, ky, kz)


def check_against(ours: Tensor, expected: Tensor, leaves: list[Tensor]) -> None:
    """Outputs and gradients of all leaves agree."""
    torch.testing.assert_close(ours, expected, atol=2e-5, rtol=2e-5)
    cotangent = torch.randn(ours.shape)
    first = torch.autograd.grad((ours * cotangent).sum(), leaves, retain_graph=True)
    second = torch.autograd.grad((expected * cotangent).sum(), leaves, retain_graph=True)
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, atol=5e-5, rtol=5e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("kernel_size", "in_chans"), [(3, 5), (3, 12), (5, 6), (5, 16)])
def test_submanifold_conv_is_the_dense_conv_at_the_voxels(backend: str, kernel_size: int, in_chans: int) -> None:
    x, feat = random_tensor(300, in_chans)
    layer = SubMConv3d(in_chans, 7, kernel_size=kernel_size, backend=backend)
    dense = F.conv3d(to_dense(x), dense_weight(layer), padding=kernel_size // 2)
    check_against(layer(x).feat, at_voxels(dense, x), [feat, layer.weight])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("in_chans", [5, 12])
def test_down_conv_is_the_dense_strided_conv(backend: str, in_chans: int) -> None:
    x, feat = random_tensor(200, in_chans)
    layer = DownConv3d(in_chans, 7, backend=backend)
    out = layer(x)
    dense = F.conv3d(to_dense(x), dense_weight(layer), stride=2)
    check_against(out.feat, at_voxels(dense, out), [feat, layer.weight])
    assert to_dense(out, 2).count_nonzero() == out.feat.count_nonzero()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("in_chans", [5, 12])
def test_up_conv_is_the_dense_transposed_conv_at_the_fine_voxels(backend: str, in_chans: int) -> None:
    fine, _ = random_tensor(200, 1)
    coarse = coarsening(fine.voxels).coarse
    feat = torch.randn(len(coarse), in_chans, requires_grad=True)
    layer = UpConv3d(in_chans, 7, backend=backend)
    x = SparseTensor(feat, coarse)
    dense = F.conv_transpose3d(to_dense(x, 2), dense_weight(layer).transpose(0, 1), stride=2)
    check_against(layer(x, fine).feat, at_voxels(dense, fine), [feat, layer.weight])


def maps_of_all_kinds(x: SparseTensor) -> dict[str, KernelMap]:
    step = coarsening(x.voxels)
    return {"5": submanifold_map(x.voxels, 5), "3": submanifold_map(x.voxels, 3), "down": step.down, "up": step.up}


SIZES = {"5": 5, "3": 3, "down": 2, "up": 2}


@pytest.mark.parametrize("kind", list(SIZES))
@pytest.mark.parametrize("in_chans", [2, 9])  # below and above the limit of the dense form
def test_gradients_are_those_of_finite_differences(kind: str, in_chans: int) -> None:
    x, _ = random_tensor(6, 1)
    kmap = maps_of_all_kinds(x)[kind]
    feat = torch.randn(kmap.num_in, in_chans, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, *[SIZES[kind]] * 3, in_chans, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(torch_backend.conv, (feat, weight, kmap), fast_mode=True)


@pytest.mark.parametrize("kind", list(SIZES))
@settings(max_examples=8, deadline=None)
@given(count=st.integers(1, 60), in_chans=st.integers(1, 40), out_chans=st.integers(1, 40), seed=st.integers(0, 99))
def test_fast_form_equals_the_reference(kind: str, count: int, in_chans: int, out_chans: int, seed: int) -> None:
    x, _ = random_tensor(count, 1, seed)
    kmap = maps_of_all_kinds(x)[kind]
    feat = torch.randn(kmap.num_in, in_chans, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(out_chans, *[SIZES[kind]] * 3, in_chans, dtype=torch.float64, requires_grad=True)
    ours, expected = torch_backend.conv(feat, weight, kmap), torch_backend.conv_reference(feat, weight, kmap)
    torch.testing.assert_close(ours, expected)
    grads = [torch.autograd.grad(out.square().sum(), (feat, weight)) for out in (ours, expected)]
    torch.testing.assert_close(grads[0], grads[1])


@pytest.mark.parametrize("limit", [0, 8])  # never or always in dense form
def test_dense_form_equals_the_reference(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "DENSE_MAX_CHANNELS", limit)
    x, feat = random_tensor(80, 3, dtype=torch.float64)
    weight = torch.randn(5, 5, 5, 5, 3, dtype=torch.float64, requires_grad=True)
    kmap = submanifold_map(x.voxels, 5)
    ours, expected = torch_backend.conv(x.feat, weight, kmap), torch_backend.conv_reference(x.feat, weight, kmap)
    torch.testing.assert_close(ours, expected)
    grads = [torch.autograd.grad(out.square().sum(), (feat, weight), retain_graph=True) for out in (ours, expected)]
    torch.testing.assert_close(grads[0], grads[1])


@pytest.mark.parametrize("in_chans", [4, 12])
def test_tiles_do_not_change_the_result(in_chans: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(5, 3, 3, 3, in_chans, dtype=torch.float64, requires_grad=True)
    results = []
    for size in (10_000, 7):
        monkeypatch.setattr(tiles, "TILE_PAIRS", size)
        monkeypatch.setattr(dense, "DENSE_TILE", size)
        x, feat = random_tensor(150, in_chans, dtype=torch.float64)
        out = torch_backend.conv(x.feat, weight, submanifold_map(x.voxels, 3))
        results.append((out, *torch.autograd.grad(out.square().sum(), (feat, weight))))
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("wants", [(True, False), (False, True)])
def test_only_the_gradients_asked_for_are_computed(wants: tuple[bool, bool]) -> None:
    x, _ = random_tensor(50, 1)
    feat = torch.randn(50, 12, requires_grad=wants[0])
    weight = torch.randn(5, 3, 3, 3, 12, requires_grad=wants[1])
    kmap = submanifold_map(x.voxels, 3)
    leaf = feat if wants[0] else weight
    (ours,) = torch.autograd.grad(torch_backend.conv(feat, weight, kmap).square().sum(), leaf)
    (expected,) = torch.autograd.grad(torch_backend.conv_reference(feat, weight, kmap).square().sum(), leaf)
    torch.testing.assert_close(ours, expected, atol=1e-3, rtol=1e-4)


def test_backward_is_deterministic() -> None:
    x, feat = random_tensor(400, 12)
    layer = SubMConv3d(12, 12)
    leaves = (feat, layer.weight)
    grads = [torch.autograd.grad(layer(x).feat.square().sum(), leaves, retain_graph=True) for _ in range(2)]
    assert all(a.equal(b) for a, b in zip(*grads, strict=True))


def test_scratch_memory_made_in_inference_mode_can_be_used_in_training() -> None:
    torch_backend.release_scratch()
    x, feat = random_tensor(50, 12)
    layer = SubMConv3d(12, 12, backend="torch")
    with torch.inference_mode():
        expected = layer(x).feat.clone()
    out = layer(x).feat
    out.sum().backward()
    assert out.equal(expected) and feat.grad is not None


@pytest.mark.parametrize("in_chans", [4, 24])
def test_autocast_computes_in_its_precision_and_sums_in_float32(in_chans: int) -> None:
    x, feat = random_tensor(500, in_chans)
    layer = SubMConv3d(in_chans, 16, backend="torch")
    expected = layer(x).feat
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x).feat
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), expected, atol=2e-2, rtol=2e-2)
    ours = torch.autograd.grad(out.float().square().sum(), (feat, layer.weight), retain_graph=True)
    reference = torch.autograd.grad(expected.square().sum(), (feat, layer.weight))
    for a, b in zip(ours, reference, strict=True):
        assert a.dtype == torch.float32
        assert (a - b).norm() < 0.01 * b.norm()


def test_points_that_share_a_cell_are_averaged_and_all_get_its_result() -> None:
    cells = torch.tensor([[0, 0, 5], [0, 0, -1], [0, 0, 5], [2, 0, 0], [0, 0, 5]])
    feat = torch.tensor([[1.0], [2.0], [3.0], [4.0], [8.0]], requires_grad=True)
    x, inverse = SparseTensor.from_points(feat, cells, torch.zeros(5, dtype=torch.int64), 1)
    assert x.feat[inverse].flatten().tolist() == [4.0, 2.0, 4.0, 4.0, 4.0]
    assert len(x) == 3
    (x.feat[inverse] * torch.tensor([[1.0], [0.0], [0.0], [0.0], [2.0]])).sum().backward()
    assert feat.grad is not None and feat.grad.flatten().tolist() == [1.0, 0.0, 1.0, 0.0, 1.0]


def test_averaging_is_the_same_for_any_order_of_the_points() -> None:
    generator = torch.Generator().manual_seed(0)
    cells = torch.randint(0, 3, (60, 3), generator=generator)
    feat, batch = torch.randn(60, 4, generator=generator), torch.arange(60) // 20
    order = torch.randperm(60, generator=generator)
    x, row = SparseTensor.from_points(feat, cells, batch, 3)
    y, shuffled = SparseTensor.from_points(feat[order], cells[order], batch[order], 3)
    torch.testing.assert_close(y.feat[shuffled], x.feat[row][order])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_single_voxel_goes_through_all_layers(backend: str) -> None:
    x, _ = SparseTensor.from_points(torch.randn(1, 12), torch.tensor([[-7, 3, 0]]), torch.zeros(1).long(), 1)
    conv = SubMConv3d(12, 4, backend=backend)
    torch.testing.assert_close(conv(x).feat, x.feat @ conv.weight[:, 1, 1, 1].t())
    down = DownConv3d(12, 12, backend=backend)
    torch.testing.assert_close(down(x).feat, x.feat @ down.weight[:, 1, 1, 0].t())  # -7, 3, 0 are odd, odd, even
    up = UpConv3d(12, 4, backend=backend)
    torch.testing.assert_close(up(down(x), x).feat, down(x).feat @ up.weight[:, 1, 1, 0].t())


@pytest.mark.spconv
def test_spconv_inverts_a_step_that_it_has_not_taken_itself() -> None:
    x, _ = random_tensor(100, 12)
    coarse = coarsening(x.voxels).coarse
    y = SparseTensor(torch.randn(len(coarse), 12), coarse)
    ours = UpConv3d(12, 4, backend="torch")
    theirs = UpConv3d(12, 4, backend="spconv")
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(theirs(y, x).feat, ours(y, x).feat)


def test_layers_can_be_copied_and_keep_spconv_weight_layout() -> None:
    layer = SubMConv3d(4, 6, kernel_size=5)
    assert tuple(layer.weight.shape) == (6, 5, 5, 5, 4)
    assert copy.deepcopy(layer).weight.equal(layer.weight)


def test_default_initialization_is_uniform_with_fan_in() -> None:
    weight = DownConv3d(64, 64).weight
    bound = (64 * 8) ** -0.5
    assert weight.abs().max() <= bound
    assert abs(weight.std() - bound / 3**0.5) < 0.01 * bound


@pytest.mark.parametrize("kernel_size", [1, 2, 4, 7])
def test_other_kernel_sizes_are_errors(kernel_size: int) -> None:
    with pytest.raises(ValueError, match="kernel_size"):
        SubMConv3d(4, 4, kernel_size=kernel_size)


def test_up_conv_needs_the_voxels_it_came_from() -> None:
    x, _ = random_tensor(50, 4)
    other, _ = random_tensor(50, 4, seed=1)
    with pytest.raises(ValueError, match="strided with DownConv3d"):
        UpConv3d(4, 4)(DownConv3d(4, 4)(x), other)


def test_unknown_backend_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"auto.*torch.*spconv"):
        SubMConv3d(4, 4, backend="cuda")


def test_missing_spconv_is_an_error_with_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "has_spconv", lambda: False)
    with pytest.raises(ImportError, match=r"pip install 'ponder_zoo\[spconv\]'"):
        SubMConv3d(4, 4, backend="spconv")


def test_auto_is_torch_on_a_cpu_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    backends._fastest.cache_clear()
    with caplog.at_level(logging.INFO, logger="ponder_zoo"):
        chosen = [backends.get_backend("auto", torch.device("cpu")) for _ in range(3)]
    assert all(backend is torch_backend for backend in chosen)
    assert len(caplog.records) == 1
