"""The loss of a batch does not depend on how processes share it."""

from __future__ import annotations

import torch

from ponder_zoo.losses.render import masked_mean


def test_shares_with_the_mean_count_average_to_the_whole():
    value, counted = torch.rand(4, 6), torch.rand(4, 6) > 0.7
    counted[:2] = False
    mean_count = counted.sum().float() / 2
    shares = [masked_mean(value[part], counted[part], lambda _: mean_count) for part in (slice(0, 2), slice(2, 4))]
    torch.testing.assert_close(sum(shares) / 2, value[counted].mean())
    assert masked_mean(value[:2], counted[:2]) == 0


def test_entries_may_count_in_part_and_those_that_do_not_may_hold_anything():
    value, counted = torch.tensor([1.0, 3.0, float("nan")]), torch.tensor([1.0, 0.5, 0.0])
    torch.testing.assert_close(masked_mean(value, counted), torch.tensor(2.5 / 1.5))
