"""Batch norm and ReLU in one function against the two of them, and what it keeps for the backward pass."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint

from ponder_zoo.layers.blocks import ResidualBlock
from ponder_zoo.layers.norm_relu import keep_activations, recomputed
from ponder_zoo.layers.norms import BatchNorm, keep_statistics, synchronize_norms
from ponder_zoo.sparse import SparseTensor

DOUBLE: dict[str, Any] = {"dtype": torch.float64}


def make_norm(affine: bool) -> BatchNorm:
    norm = BatchNorm(5, affine=affine).double()
    if affine:
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    return norm


@pytest.mark.parametrize("synchronized", [False, True])
@pytest.mark.parametrize("affine", [True, False])
def test_values_gradients_and_statistics_are_those_of_norm_and_relu(affine: bool, synchronized: bool) -> None:
    torch.manual_seed(0)
    norm, other = make_norm(affine), make_norm(affine)
    norm.synchronized = synchronized
    other.load_state_dict(norm.state_dict())
    feat = (torch.randn(40, 5, **DOUBLE) * 3 + 7).requires_grad_()
    cotangent = torch.randn(40, 5, **DOUBLE)
    ours, expected = norm(feat, relu=True), torch.relu(other(feat))
    torch.testing.assert_close(ours, expected)
    leaves = [[feat, *n.parameters()] for n in (norm, other)]
    first, second = (torch.autograd.grad(o, on, cotangent) for o, on in zip((ours, expected), leaves, strict=True))
    torch.testing.assert_close(first, second)
    torch.testing.assert_close(norm.state_dict(), other.state_dict())


@pytest.mark.parametrize("synchronized", [False, True])
def test_the_gradient_is_that_of_finite_differences(synchronized: bool) -> None:
    torch.manual_seed(0)
    norm = make_norm(True)
    norm.synchronized = synchronized
    feat = torch.randn(8, 5, **DOUBLE).requires_grad_()
    with keep_statistics():
        assert torch.autograd.gradcheck(partial(norm, relu=True), (feat,))


@pytest.mark.parametrize("train", [True, False])
def test_one_row_and_evaluation_use_the_running_statistics(train: bool) -> None:
    norm = make_norm(True).train(train)
    feat = torch.randn(1 if train else 20, 5, **DOUBLE).requires_grad_()
    before = norm.running_mean.clone()
    torch.testing.assert_close(norm(feat, relu=True), torch.relu(norm(feat)))
    assert norm.running_mean.equal(before)


def sparse_input() -> SparseTensor:
    torch.manual_seed(0)
    cells = torch.randint(0, 5, (60, 3))
    x, _ = SparseTensor.from_points(torch.randn(60, 5, **DOUBLE), cells, torch.zeros(60).long(), 1)
    return x.with_feat(x.feat.detach().requires_grad_())


def gradients(block: ResidualBlock, x: SparseTensor, keep: bool) -> tuple[list[Tensor], int]:
    """All gradients, and how many tensors of the features' size the graph holds."""
    held: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.shape == x.feat.shape:
            held[tensor.data_ptr()] = tensor
        return tensor

    if keep:
        with keep_activations(), saved_tensors_hooks(pack, lambda tensor: tensor):
            out = block(x)
    else:
        with saved_tensors_hooks(pack, lambda tensor: tensor):
            out = block(x)
    loss = out.feat.square().sum()
    return list(torch.autograd.grad(loss, [x.feat, *block.parameters()])), len(held)


@pytest.mark.parametrize("synchronized", [False, True])
def test_a_block_keeps_one_activation_less_and_has_the_same_gradients(synchronized: bool) -> None:
    block = ResidualBlock(5, 5, norm_layer=BatchNorm, backend="torch").double()
    synchronize_norms(block, synchronized)
    x = sparse_input()
    ours, count = gradients(block, x, keep=False)
    expected, kept = gradients(block, x, keep=True)
    torch.testing.assert_close(ours, expected)
    assert count == kept - 1


def test_the_memory_of_the_activation_is_free_after_the_forward_pass() -> None:
    block = ResidualBlock(5, 5, norm_layer=BatchNorm, backend="torch").double()
    held: list[StorageWeakRef] = []
    block.conv2.register_forward_pre_hook(lambda _, args: held.append(StorageWeakRef(args[0].feat.untyped_storage())))
    out = block(sparse_input())
    assert out.feat.requires_grad and [storage.expired() for storage in held] == [True]


def test_checkpointing_gives_the_same_gradients() -> None:
    block = ResidualBlock(5, 5, norm_layer=BatchNorm, backend="torch").double()
    x = sparse_input()
    expected, _ = gradients(block, x, keep=False)
    contexts = lambda: (keep_activations(), keep_statistics())  # noqa: E731
    out = checkpoint(block, x, use_reentrant=False, context_fn=contexts)
    assert isinstance(out, SparseTensor)
    ours = torch.autograd.grad(out.feat.square().sum(), [x.feat, *block.parameters()])
    torch.testing.assert_close(list(ours), expected)


def test_other_tensors_are_left_alone() -> None:
    plain = torch.randn(4, 5, requires_grad=True) * 2
    with recomputed(plain):
        out = plain.square().sum()
    out.backward()
