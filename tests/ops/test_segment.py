"""Segment reductions against loops over the segments."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from ponder_zoo.ops.segment import segment_count, segment_max, segment_mean, segment_sum

INDEX = torch.tensor([3, 0, 3, 3, 1, 0])  # segments 2 and 4 are empty


@pytest.mark.parametrize(
    ("function", "reduce"),
    [
        (segment_sum, lambda rows: rows.sum(0)),
        (segment_mean, lambda rows: rows.mean(0)),
        (segment_max, lambda rows: rows.amax(0)),
    ],
)
@pytest.mark.parametrize("shape", [(6,), (6, 4), (6, 2, 3)])
def test_each_segment_is_reduced_on_its_own(function: Callable, reduce: Callable, shape: tuple[int, ...]) -> None:
    values = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    out = function(values, INDEX, 5)
    expected = torch.stack([reduce(values[s == INDEX]) if (s == INDEX).any() else out[s] * 0 for s in range(5)])
    torch.testing.assert_close(out, expected)
    assert not out[[2, 4]].any()
    assert torch.autograd.gradcheck(lambda v: function(v, INDEX, 5), values)


def test_maxima_below_zero_survive() -> None:
    assert segment_max(torch.tensor([-2.0, -1.0]), torch.tensor([0, 0]), 1).item() == -1.0


def test_half_precision_accumulates_in_float32() -> None:
    values = torch.ones(5000, 1, dtype=torch.bfloat16)  # bfloat16 cannot count past 256
    assert segment_sum(values, torch.zeros(5000, dtype=torch.int64), 1).item() == pytest.approx(5000, rel=0.01)
    mean = segment_mean(values, torch.zeros(5000, dtype=torch.int64), 1)
    assert mean.dtype == torch.bfloat16 and mean.item() == 1.0


def test_the_mean_leaves_out_rows_of_no_segment() -> None:
    mean = segment_mean(torch.tensor([1.0, 3.0, 100.0]), torch.tensor([0, 0, 2]), 2)
    assert mean.tolist() == [2.0, 0.0]


def test_no_rows_give_zeros() -> None:
    for function in (segment_sum, segment_mean, segment_max):
        assert not function(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), 3).any()
    assert segment_count(INDEX, 5).tolist() == [2, 1, 0, 3, 0]
