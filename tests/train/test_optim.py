from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from ponder_zoo.train.optim import make_ema, make_optimizer, make_schedule


class Layered(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.body, self.head = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 1)

    def group_matcher(self, coarse=False):
        return {"stem": r"^stem", "blocks": [(r"^body", None)]}

    def no_weight_decay(self):
        return {"body.weight"}


def groups_by_name(model, optimizer):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)]: group for group in optimizer.param_groups for p in group["params"]}


def test_layer_decay_scales_the_learning_rate_of_each_layer_for_torchs_schedules():
    model = Layered()
    optimizer = make_optimizer(model, "adamw", lr=0.1, weight_decay=0.05, layer_decay=0.5)
    groups = groups_by_name(model, optimizer)
    rates = [groups[f"{name}.weight"]["lr"] for name in ("stem", "body", "head")]
    assert rates == pytest.approx([0.025, 0.05, 0.1])
    assert groups["stem.weight"]["weight_decay"] == 0.05
    assert groups["stem.bias"]["weight_decay"] == groups["body.weight"]["weight_decay"] == 0.0
    schedule = make_schedule(optimizer, "onecycle", total_steps=100)
    peak = {name: 0.0 for name in groups}
    for _ in range(99):
        optimizer.step()
        schedule.step()
        peak = {name: max(peak[name], groups[name]["lr"]) for name in groups}
    assert peak["stem.weight"] == pytest.approx(0.025, rel=1e-3) and peak["head.weight"] == pytest.approx(0.1, rel=1e-3)


def test_decay_all_is_the_official_weight_decay():
    model = Layered()
    optimizer = make_optimizer(model, "sgd", lr=0.1, weight_decay=1e-4, decay_all=True)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {1e-4}
    assert optimizer.param_groups[0]["nesterov"] and optimizer.param_groups[0]["momentum"] == 0.9


def test_frozen_parameters_are_left_out_and_nothing_to_train_is_an_error():
    model = Layered()
    model.stem.requires_grad_(False)
    groups = groups_by_name(model, make_optimizer(model, "adamw", lr=0.1, weight_decay=0.0))
    assert "stem.weight" not in groups and "body.weight" in groups
    with pytest.raises(ValueError, match="frozen"):
        make_optimizer(model.requires_grad_(False), "adamw", lr=0.1, weight_decay=0.0)


def test_onecycle_runs_as_in_the_official_schedule():
    model = Layered()
    optimizer = make_optimizer(model, "sgd", lr=8e-4, weight_decay=1e-4, decay_all=True)
    schedule = make_schedule(optimizer, "onecycle", total_steps=1000)
    rates, momenta = [], []
    for _ in range(1000):
        rates.append(optimizer.param_groups[0]["lr"])
        momenta.append(optimizer.param_groups[0]["momentum"])
        optimizer.step()
        if len(rates) < 1000:
            schedule.step()
    assert rates[0] == pytest.approx(8e-5) and max(rates) == pytest.approx(8e-4) and rates.index(max(rates)) == 49
    assert rates[-1] == pytest.approx(8e-9, rel=1e-3)
    assert momenta[0] == pytest.approx(0.95) and min(momenta) == pytest.approx(0.85)
    middle = 49 + 475
    progress = (middle - 49) / (999 - 49)
    expected = 8e-9 + (8e-4 - 8e-9) * 0.5 * (1 + math.cos(math.pi * progress))
    assert rates[middle] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("name", ["exponential", "onecycle", "cosine", "constant", "poly"])
@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_schedules_last_for_very_short_runs(name, steps):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    schedule = make_schedule(optimizer, name, total_steps=steps)
    for _ in range(steps):
        optimizer.step()
        schedule.step()
        assert 0.0 <= optimizer.param_groups[0]["lr"] <= 0.1 + 1e-9


def test_cosine_rises_linearly_and_falls_to_its_end():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = make_schedule(optimizer, "cosine", total_steps=100, warmup=0.1, final=0.01)
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01)


def test_poly_falls_from_the_peak_as_in_the_official_schedule():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule = make_schedule(optimizer, "poly", total_steps=99)
    for step in range(99):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * (1 - step / 100) ** 0.9)
        optimizer.step()
        schedule.step()


def test_the_exponential_rise_starts_at_a_thousandth_of_the_peak():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = make_schedule(optimizer, "exponential", total_steps=100, warmup=0.3)
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    factor = 1000 ** (1 / 30)
    assert rates[0] == pytest.approx(2e-3 * factor)
    assert [b / a for a, b in itertools.pairwise(rates[:30])] == pytest.approx([factor] * 29)
    assert rates[29] == max(rates) == pytest.approx(2.0)
    assert rates[65] == pytest.approx(2.0 * 0.5 * (1 + math.cos(math.pi * 35 / 70)))
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.0)


def test_averaged_weights_follow_the_model():
    assert make_ema(nn.Linear(1, 1), 0.0) is None
    with pytest.raises(ValueError, match="EMA decay"):
        make_ema(nn.Linear(1, 1), 1.0)
    model = nn.Linear(1, 1)
    ema = make_ema(model, 0.999)
    for step in range(1, 200):
        with torch.no_grad():
            model.weight.fill_(float(step))
        ema.update(model, step)
    assert 100 < ema.module.weight.item() < 199
