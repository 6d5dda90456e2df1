from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ponder_zoo.ops.gradient_pool import PooledVolume, RowSums, pool_gradients
from ponder_zoo.ops.rows import scatter_rows
from ponder_zoo.ops.trilinear import sample_volume, sample_volume_with_gradient
from ponder_zoo.structures import FeatureVolume, VolumeGrid


def make_volume(feat: Tensor) -> FeatureVolume:
    bounds = torch.tensor([[[0.0, 0.0, 0.0], [5.0, 4.0, 3.0]]], dtype=feat.dtype).repeat(len(feat), 1, 1)
    return FeatureVolume(feat, VolumeGrid(bounds, (5, 4, 3)))


def look_up(volume: FeatureVolume, positions: Tensor) -> Tensor:
    """A scalar from two lookups of a volume, of all its channels and of the first two."""
    feat, gradient = sample_volume_with_gradient(volume, positions)
    slope = gradient(torch.sin(feat[..., :2]))
    return feat.square().sum() + (slope * feat[..., 2:]).sum()


def test_the_gradient_is_the_one_of_separate_lookups() -> None:
    feat = torch.randn(2, 5, 3, 4, 5, dtype=torch.float64).requires_grad_()
    chunks = (torch.rand(3, 2, 6, 7, 3, dtype=torch.float64) * 7 - 1).unbind(0)
    (expected,) = torch.autograd.grad(sum(look_up(make_volume(feat), chunk) for chunk in chunks), feat)
    for _ in range(2):  # nothing is left over from one pass to the next
        pooled = pool_gradients(make_volume(feat))
        assert isinstance(pooled, PooledVolume)
        total = sum(look_up(pooled, chunk) for chunk in chunks)
        (grad,) = torch.autograd.grad(total, feat, retain_graph=True)
        torch.testing.assert_close(grad, expected)
        torch.testing.assert_close(torch.autograd.grad(total, feat)[0], expected)


def test_other_uses_of_the_features_keep_their_gradient() -> None:
    feat = torch.randn(1, 5, 3, 4, 5, dtype=torch.float64).requires_grad_()
    positions = torch.rand(1, 2, 3, 3, dtype=torch.float64) * 3
    pooled = pool_gradients(make_volume(feat))
    (grad,) = torch.autograd.grad(look_up(pooled, positions) + pooled.feat.square().sum(), feat)
    (alone,) = torch.autograd.grad(look_up(pool_gradients(make_volume(feat)), positions), feat)
    torch.testing.assert_close(grad, alone + 2 * feat)
    unused = pool_gradients(make_volume(feat)).feat.sum()
    torch.testing.assert_close(torch.autograd.grad(unused, feat)[0], torch.ones_like(feat))


def test_half_precision_volumes_get_half_precision_gradients() -> None:
    feat = torch.randn(1, 5, 3, 4, 5).bfloat16().requires_grad_()
    look_up(pool_gradients(make_volume(feat)), torch.rand(1, 2, 3, 3) * 3).backward()
    assert feat.grad is not None and feat.grad.dtype == torch.bfloat16 and feat.grad.abs().max() > 0


def test_without_gradients_nothing_is_pooled() -> None:
    assert not isinstance(pool_gradients(make_volume(torch.randn(1, 2, 3, 4, 5))), PooledVolume)
    feat = torch.randn(1, 2, 3, 4, 5).requires_grad_()
    with torch.no_grad():
        assert not isinstance(pool_gradients(make_volume(feat)), PooledVolume)


def test_second_derivatives_are_refused_not_wrong() -> None:
    feat = torch.randn(1, 5, 3, 4, 5).requires_grad_()
    value = look_up(pool_gradients(make_volume(feat)), torch.rand(1, 2, 3, 3) * 3)
    with pytest.raises(RuntimeError, match="samples_per_chunk"):
        torch.autograd.grad(value, feat, create_graph=True)


@pytest.mark.parametrize("num_items", [1, 40])
def test_row_sums_equal_a_scatter(num_items: int) -> None:
    index, weight = torch.randint(0, 9, (num_items, 8)), torch.randn(num_items, 8).double()
    value = torch.randn(num_items, 3).double()
    rows, sums = RowSums(index)(weight, value, 9)
    assert len(rows) == len(rows.unique())
    torch.testing.assert_close(
        torch.zeros(9, 3).double().index_add(0, rows, sums), scatter_rows(index, weight, value, 9)
    )


def test_the_first_channels_alone_are_those_of_all() -> None:
    positions = torch.rand(1, 3, 4, 3) * 4
    for channels in (6, 5):  # rows that split into shorter ones, and rows that do not
        feat = torch.randn(1, channels, 3, 4, 5).contiguous(memory_format=torch.channels_last_3d)
        volume = make_volume(feat)
        torch.testing.assert_close(
            sample_volume(volume, positions, channels=3), sample_volume(volume, positions)[..., :3], rtol=0, atol=0
        )
