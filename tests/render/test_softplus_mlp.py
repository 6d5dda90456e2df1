from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ponder_zoo.render import softplus_mlp as module
from ponder_zoo.render.softplus_mlp import BETA, reference, sigmoid_and_softplus, softplus_mlp


def arguments(num_rows: int, scale: float = 1.0) -> tuple[Tensor, ...]:
    shapes = ((num_rows, 3), (5, 3), (5,), (4, 3), (4, 5), (4,))  # f, M, m, A, W, a
    return tuple((scale * torch.randn(shape, dtype=torch.float64)).requires_grad_() for shape in shapes)


@pytest.mark.parametrize("num_rows", [0, 1, 7])
def test_values_and_derivatives_are_those_of_the_formula(num_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 3)
    inputs = arguments(num_rows)
    ours, theirs = softplus_mlp(*inputs), reference(*inputs)
    cotangents = [torch.randn_like(value) for value in theirs]
    results = [[*out, *torch.autograd.grad(out, inputs, cotangents)] for out in (ours, theirs)]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-7, rtol=1e-7)  # F.softplus is linear beyond 20 / beta


def test_gradcheck_and_gradgradcheck() -> None:
    inputs = arguments(4, scale=0.1)  # a softplus of beta 100 bends too sharply for finite differences further out
    assert torch.autograd.gradcheck(softplus_mlp, inputs, atol=1e-5, rtol=1e-4)
    assert torch.autograd.gradgradcheck(softplus_mlp, inputs, atol=1e-3, rtol=1e-3)


def test_one_output_alone_and_frozen_parameters_pass_gradients() -> None:
    inputs = arguments(4)
    for index in (0, 1):
        (ours,) = torch.autograd.grad(softplus_mlp(*inputs)[index].sum(), inputs[0])
        (theirs,) = torch.autograd.grad(reference(*inputs)[index].sum(), inputs[0])
        torch.testing.assert_close(ours, theirs, atol=1e-7, rtol=1e-7)


def test_the_softplus_is_exact_over_the_whole_range_of_float32() -> None:
    h = torch.cat([torch.linspace(-200.0, 200.0, 4001), torch.tensor([-3e38, -1e4, -0.0, 0.0, 1e4, 3e38])])
    s, softplus = sigmoid_and_softplus(h.clone())
    exact = torch.logaddexp(h.double(), torch.zeros(()).double())
    torch.testing.assert_close(softplus.double(), exact, atol=1e-5, rtol=2e-7)  # 1e-5 / BETA in the network
    torch.testing.assert_close(s, torch.sigmoid(h), atol=1e-29, rtol=1.3e-6)
    assert BETA == 100.0
