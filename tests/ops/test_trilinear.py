from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ponder_zoo.ops import rows, trilinear
from ponder_zoo.ops.trilinear import sample_volume, sample_volume_with_gradient
from ponder_zoo.structures import FeatureVolume, VolumeGrid

ALIGNS = ["centers", "corners"]
SHAPE = (5, 4, 3)


def make_volume(
    align: str = "centers", channels: int = 4, dtype: torch.dtype = torch.float64, shape: tuple[int, int, int] = SHAPE
) -> FeatureVolume:
    bounds = torch.tensor([[[-1.0, 0.0, 2.0], [1.5, 2.0, 3.0]], [[0.0, 0.0, 0.0], [5.0, 8.0, 3.0]]], dtype=dtype)
    feat = torch.randn(2, channels, *shape[::-1], dtype=dtype)
    return FeatureVolume(feat, VolumeGrid(bounds, shape, align))


def random_positions(volume: FeatureVolume, rays: int = 3, samples: int = 5, spread: float = 1.3) -> Tensor:
    lower, upper = volume.grid.bounds.unbind(1)
    unit = (torch.rand(len(lower), rays, samples, 3, dtype=lower.dtype) - 0.5) * spread + 0.5
    return lower[:, None, None] + unit * (upper - lower)[:, None, None]


def brute_force(volume: FeatureVolume, positions: Tensor) -> Tensor:
    """Sum over all cells of feat x product of hat functions: differentiable by plain autograd, no indexing at all."""
    lower, upper = volume.grid.bounds.unbind(1)
    size = positions.new_tensor(volume.grid.shape)
    relative = (positions - lower[:, None, None]) / (upper - lower)[:, None, None]
    cell = relative * size - 0.5 if volume.grid.align == "centers" else relative * (size - 1)
    hats = [
        (1 - (cell[..., a, None] - torch.arange(n, dtype=cell.dtype)).abs()).clamp(min=0)
        for a, n in enumerate(volume.grid.shape)
    ]
    return torch.einsum("brsx,brsy,brsz,bczyx->brsc", *hats, volume.feat)


@pytest.mark.parametrize("align", ALIGNS)
def test_values_are_those_of_the_hat_functions_and_of_grid_sample(align: str) -> None:
    volume = make_volume(align)
    positions = random_positions(volume)
    lower, upper = volume.grid.bounds.unbind(1)
    unit = 2 * (positions - lower[:, None, None]) / (upper - lower)[:, None, None] - 1
    torch_result = F.grid_sample(volume.feat, unit[:, None], align_corners=align == "corners")[:, :, 0]
    result = sample_volume(volume, positions)
    torch.testing.assert_close(result, brute_force(volume, positions))
    torch.testing.assert_close(result, torch_result.movedim(1, -1))


@pytest.mark.parametrize("align", ALIGNS)
def test_a_linear_ramp_is_reproduced_between_the_outer_cell_centres(align: str) -> None:
    grid = make_volume(align).grid
    slope = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
    lower, upper = grid.bounds.unbind(1)
    size = torch.tensor(SHAPE, dtype=torch.float64)
    cells = torch.stack(torch.meshgrid(*map(torch.arange, SHAPE), indexing="ij"), -1).double()  # (X, Y, Z, 3)
    unit = (cells + 0.5) / size if align == "centers" else cells / (size - 1)
    at = lower[:, None, None, None] + unit * (upper - lower)[:, None, None, None]  # where the cells' values sit
    volume = FeatureVolume((at @ slope + 7.0).permute(0, 3, 2, 1)[:, None], grid)
    spread = (size - 1) / size if align == "centers" else 1.0
    positions = (
        lower[:, None, None] + ((torch.rand(2, 6, 5, 3).double() - 0.5) * spread + 0.5) * (upper - lower)[:, None, None]
    )
    feat, gradient = sample_volume_with_gradient(volume, positions)
    torch.testing.assert_close(feat[..., 0], positions @ slope + 7.0)
    torch.testing.assert_close(gradient(torch.ones_like(feat)), slope.expand(positions.shape))


def test_far_outside_is_zero_and_nan_positions_touch_nothing() -> None:
    volume = make_volume()
    positions = torch.full((2, 1, 3, 3), 1e30, dtype=torch.float64)
    positions[:, :, 1] = -50.0
    positions[:, :, 2] = torch.nan
    result = sample_volume(volume, positions)
    assert (result[:, :, :2] == 0).all()
    assert result[:, :, 2].isnan().all()


@pytest.mark.parametrize("align", ALIGNS)
def test_gradcheck_and_gradgradcheck(align: str) -> None:
    volume = make_volume(align, channels=2, shape=(3, 2, 2))
    positions = random_positions(volume, rays=1, samples=3).requires_grad_()
    feat = volume.feat.clone().requires_grad_()

    def sample(feat: Tensor, positions: Tensor) -> Tensor:
        return sample_volume(FeatureVolume(feat, volume.grid), positions)

    assert torch.autograd.gradcheck(sample, (feat, positions))
    assert torch.autograd.gradgradcheck(sample, (feat, positions))


@pytest.mark.parametrize("align", ALIGNS)
@pytest.mark.parametrize("used", [2, 1])
def test_gradcheck_and_gradgradcheck_of_the_position_gradient(align: str, used: int) -> None:
    volume = make_volume(align, channels=2, shape=(3, 2, 2))
    positions = random_positions(volume, rays=1, samples=2).requires_grad_()
    feat = volume.feat.clone().requires_grad_()
    value = torch.randn(2, 1, 2, used, dtype=torch.float64, requires_grad=True)

    def gradient(feat: Tensor, positions: Tensor, value: Tensor) -> Tensor:
        return sample_volume_with_gradient(FeatureVolume(feat, volume.grid), positions)[1](value)

    assert torch.autograd.gradcheck(gradient, (feat, positions, value))
    assert torch.autograd.gradgradcheck(gradient, (feat, positions, value))


def test_the_position_gradient_of_a_network_and_its_training_gradients_match_double_backward() -> None:
    volume = make_volume(channels=6)
    positions = random_positions(volume)
    weight, readout = torch.randn(6, 8).double(), torch.randn(8).double()

    def train_step(feat: Tensor, sample: str) -> tuple[Tensor, Tensor]:
        inputs = FeatureVolume(feat, volume.grid)
        if sample == "analytic":
            values, gradient = sample_volume_with_gradient(inputs, positions)
            hidden = torch.sigmoid(values @ weight)
            normal = gradient((hidden * (1 - hidden) * readout) @ weight.T)
        else:
            at = positions.clone().requires_grad_()
            hidden = torch.sigmoid(brute_force(inputs, at) @ weight)
            (normal,) = torch.autograd.grad((hidden @ readout).sum(), at, create_graph=True)
        loss = (normal.norm(dim=-1) - 1).square().sum() + (hidden @ readout).square().sum()
        return normal, torch.autograd.grad(loss, feat)[0]

    feat = volume.feat.clone().requires_grad_()
    for ours, oracle in zip(train_step(feat, "analytic"), train_step(feat, "oracle"), strict=True):
        torch.testing.assert_close(ours, oracle)


def test_the_loop_over_corners_equals_the_fused_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    volume = make_volume()
    positions = random_positions(volume)

    def run() -> list[Tensor]:
        feat = volume.feat.clone().requires_grad_()
        at = positions.clone().requires_grad_()
        values, gradient = sample_volume_with_gradient(FeatureVolume(feat, volume.grid), at)
        loss = (values.square().sum(-1) + gradient(values[..., :3]).square().sum(-1)).sum()
        return [values, *torch.autograd.grad(loss, [feat, at])]

    fused = run()
    monkeypatch.setattr(rows, "_has_fused_kernels", lambda values, index: False)
    for one, other in zip(run(), fused, strict=True):
        torch.testing.assert_close(one, other)


def test_scenes_of_a_batch_do_not_see_each_other() -> None:
    volume = make_volume()
    positions = random_positions(volume)
    together = sample_volume(volume, positions)
    for b in range(2):
        alone = FeatureVolume(volume.feat[b : b + 1], VolumeGrid(volume.grid.bounds[b : b + 1], SHAPE))
        torch.testing.assert_close(sample_volume(alone, positions[b : b + 1])[0], together[b])


def test_a_channels_last_volume_is_not_copied() -> None:
    volume = make_volume(channels=4)
    last = volume.feat.contiguous(memory_format=torch.channels_last_3d)
    table, *_ = trilinear._locate(FeatureVolume(last, volume.grid), random_positions(volume), slopes=False)
    assert table.data_ptr() == last.data_ptr()


def test_half_precision_volumes_are_sampled_in_float32() -> None:
    volume = make_volume(dtype=torch.float32)
    positions = random_positions(volume)
    half = FeatureVolume(volume.feat.bfloat16().requires_grad_(), volume.grid)
    result = sample_volume(half, positions)
    assert result.dtype == torch.float32
    exact = sample_volume(FeatureVolume(half.feat.detach().float(), volume.grid), positions)
    torch.testing.assert_close(result, exact, rtol=0, atol=0)
    result.sum().backward()
    assert half.feat.grad is not None and half.feat.grad.dtype == torch.bfloat16


def test_no_rays_and_single_cell_grids_work() -> None:
    volume = make_volume()
    empty = volume.feat.clone().requires_grad_()
    result = sample_volume(FeatureVolume(empty, volume.grid), torch.zeros(2, 0, 4, 3, dtype=torch.float64))
    assert result.shape == (2, 0, 4, 4)
    result.sum().backward()
    assert empty.grad is not None and (empty.grad == 0).all()
    single = FeatureVolume(
        torch.full((1, 1, 1, 1, 1), 3.0), VolumeGrid(torch.tensor([[[0.0] * 3, [1.0] * 3]]), (1, 1, 1), "corners")
    )
    torch.testing.assert_close(sample_volume(single, torch.rand(1, 2, 2, 3)), torch.full((1, 2, 2, 1), 3.0))


def test_wrong_shapes_are_explained() -> None:
    volume = make_volume()
    with pytest.raises(ValueError, match=r"positions \(B, R, S, 3\)"):
        sample_volume(volume, torch.zeros(2, 4, 3))
    with pytest.raises(ValueError, match="Move the axes"):
        sample_volume(FeatureVolume(volume.feat.transpose(2, 4), volume.grid), torch.zeros(2, 1, 1, 3))
