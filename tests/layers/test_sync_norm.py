from __future__ import annotations

import pytest
import torch
from torch import nn

from ponder_zoo.layers.norms import BatchNorm
from ponder_zoo.layers.sync_norm import SyncBatchNorm, set_norm_momentum, synchronize_batch_norm


def test_layers_that_synchronize_on_their_own_are_switched_on():
    model = synchronize_batch_norm(nn.Sequential(BatchNorm(3), nn.Sequential(nn.BatchNorm3d(2))))
    assert type(model[0]) is BatchNorm and model[0].synchronized and type(model[1][0]) is SyncBatchNorm
    assert not BatchNorm(3).synchronized


@pytest.mark.parametrize(("kind", "shape"), [(nn.BatchNorm1d, (9, 3)), (nn.BatchNorm3d, (2, 3, 4, 2, 2))])
@pytest.mark.parametrize("kwargs", [{}, {"eps": 1e-3, "momentum": 0.01}, {"momentum": None}, {"affine": False}])
def test_the_synchronized_norm_is_torchs_where_there_is_one_process(kind, shape, kwargs):
    torch.manual_seed(0)
    plain = kind(3, **kwargs)
    synced = synchronize_batch_norm(kind(3, **kwargs))
    for _ in range(3):
        first = (torch.randn(shape) * 2 + 5).requires_grad_()
        second = first.detach().clone().requires_grad_()
        cotangent = torch.randn(shape)
        outputs = plain(first), synced(second)
        for output in outputs:
            (output * cotangent).sum().backward()
        torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(second.grad, first.grad, rtol=1e-4, atol=1e-5)
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(synced.state_dict()[key], value, rtol=1e-5, atol=1e-6, msg=key)
    plain.eval(), synced.eval()
    torch.testing.assert_close(synced(first), plain(first))


def test_momentum_is_set_on_all_norms_or_left():
    model = nn.Sequential(BatchNorm(2), nn.BatchNorm3d(2))
    assert [norm.momentum for norm in set_norm_momentum(model, None)] == [0.01, 0.1]
    assert [norm.momentum for norm in set_norm_momentum(model, 0.2)] == [0.2, 0.2]
