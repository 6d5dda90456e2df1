from __future__ import annotations

import pytest
import torch
from torch import nn

from ponder_zoo.train.guard import NonFiniteError, NonFiniteGuard

NAN = torch.tensor(float("nan"))
FINE = torch.tensor(1.0)


def test_a_broken_term_is_named_and_its_step_refused(caplog):
    guard = NonFiniteGuard(nn.Linear(2, 1), limit=3)
    guard.watch({"rgb": FINE, "depth": NAN})
    assert not guard.allows(FINE, step=7)
    assert "Step 7 is skipped: depth not finite" in caplog.text
    guard.watch({"rgb": FINE, "depth": FINE})
    assert guard.allows(FINE, step=8) and guard.skipped == 1


def test_a_broken_gradient_is_refused_even_if_all_terms_are_finite():
    guard = NonFiniteGuard(nn.Linear(2, 1))
    guard.watch({"rgb": FINE})
    assert not guard.allows(torch.tensor(float("inf")), step=1)


def test_a_broken_part_of_an_accumulated_step_is_not_forgotten():
    guard = NonFiniteGuard(nn.Linear(2, 1))
    guard.watch({"rgb": NAN})
    guard.watch({"rgb": FINE})
    assert not guard.allows(FINE, step=1)


def test_it_stops_after_a_few_in_a_row_with_their_names():
    guard = NonFiniteGuard(nn.Linear(2, 1), limit=2)
    for step, losses in ((1, {"rgb": NAN}), (2, {"rgb": FINE}), (3, {"rgb": NAN})):
        guard.watch(losses)
        guard.allows(FINE, step=step)
    guard.watch({"sdf": NAN})
    with pytest.raises(NonFiniteError, match=r"step 3: rgb; step 4: sdf.*Resume"):
        guard.allows(FINE, step=4)


def test_batch_norm_statistics_survive_a_broken_forward_pass():
    model = nn.BatchNorm1d(2)
    guard = NonFiniteGuard(model)
    model(torch.randn(8, 2))
    guard.watch({"a": FINE})
    guard.allows(FINE, step=1)
    before = model.running_mean.clone()
    loss = model(torch.full((4, 2), float("nan"))).mean()
    assert model.running_mean.isnan().all()
    guard.watch({"a": loss})
    assert not guard.allows(FINE, step=2)
    assert torch.equal(model.running_mean, before)
    model(torch.randn(8, 2))
    guard.watch({"a": FINE})
    assert guard.allows(FINE, step=3) and not torch.equal(model.running_mean, before)
