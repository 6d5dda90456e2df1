from __future__ import annotations

import pytest
import torch

from ponder_zoo.ops import rows
from ponder_zoo.ops.rows import dot_rows, gather_rows, scatter_rows


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("num_items", [0, 1, 7])
def test_the_three_maps_equal_dense_matrices(fused: bool, num_items: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if not fused:
        monkeypatch.setattr(rows, "_has_fused_kernels", lambda values, index: False)
    table, value = torch.randn(5, 3).double(), torch.randn(num_items, 3).double()
    index, weight = torch.randint(0, 5, (num_items, 4)), torch.randn(num_items, 4).double()
    one_hot = torch.nn.functional.one_hot(index, 5).double()  # (P, K, T)
    matrix = torch.einsum("pk,pkt->pt", weight, one_hot)
    torch.testing.assert_close(gather_rows(table, index, weight), matrix @ table)
    torch.testing.assert_close(scatter_rows(index, weight, value, 5), matrix.T @ value)
    torch.testing.assert_close(dot_rows(table, index, value), torch.einsum("pkt,tc,pc->pk", one_hot, table, value))


@pytest.mark.parametrize("fused", [True, False])
def test_gradcheck_and_gradgradcheck_of_the_three_maps(fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not fused:
        monkeypatch.setattr(rows, "_has_fused_kernels", lambda values, index: False)
    index = torch.tensor([[0, 2], [2, 2], [1, 0]])  # a repeated row, and row 3 unused
    table, value, weight = (torch.randn(n, c).double().requires_grad_() for n, c in ((4, 3), (3, 3), (3, 2)))
    for function, inputs in (
        (lambda t, w: gather_rows(t, index, w), (table, weight)),
        (lambda t, v: dot_rows(t, index, v[:, :2]), (table, value)),
        (lambda w, v: scatter_rows(index, w, v, 4), (weight, value)),
    ):
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)
