"""What a training step of the sparse U-Net keeps for its backward pass."""

from __future__ import annotations

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from ponder_zoo.layers.norm_relu import keep_activations
from ponder_zoo.models.sparse_unet import SparseUNet
from ponder_zoo.structures import PointBatch


def make_model() -> SparseUNet:
    torch.manual_seed(0)
    return SparseUNet(3, channels=(8, 9, 10, 11, 12, 13, 14, 15), depths=(1,) * 8, stem_channels=7).double().train()


def points() -> PointBatch:
    torch.manual_seed(1)
    return PointBatch(torch.rand(300, 3), torch.randn(300, 3).double(), torch.tensor([120, 300]))


def test_features_joined_to_a_skip_connection_are_free_after_the_forward_pass() -> None:
    model = make_model()
    held: list[StorageWeakRef] = []
    for stage in model.dec:
        first = stage.get_submodule("blocks.0")
        first.register_forward_pre_hook(lambda _, args: held.append(StorageWeakRef(args[0].feat.untyped_storage())))
    out = model(points())
    assert out.requires_grad and [storage.expired() for storage in held] == [True] * 4


def test_gradients_are_those_with_all_activations_kept() -> None:
    model = make_model()
    weight = torch.randn(300, 15, dtype=torch.float64)  # a plain sum of normalized features has no gradient
    ours = torch.autograd.grad((model(points()) * weight).sum(), list(model.parameters()))
    with keep_activations():
        expected = torch.autograd.grad((model(points()) * weight).sum(), list(model.parameters()))
    torch.testing.assert_close(ours, expected)
