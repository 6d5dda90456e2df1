"""A whole SparseUNet on the Triton backend is equal to the torch backend.

The official outputs and gradients, and what the zoo promises, are tested with all backends in test_sparse_unet.py,
test_ponder.py, test_convert.py and test_zoo.py (the Triton backend with `-m slow`).
"""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from test_sparse_unet import relative_error
from torch import nn
from triton_inputs import DEVICE, random_voxels, use_large_blocks

from ponder_zoo.layers.blocks import ConvNorm
from ponder_zoo.layers.norms import BatchNorm
from ponder_zoo.models.sparse_unet import EncoderStage, SparseUNet
from ponder_zoo.sparse import SparseTensor, UpConv3d
from ponder_zoo.sparse.backends import triton as triton_backend
from ponder_zoo.structures import PointBatch

pytestmark = pytest.mark.triton


@pytest.fixture(autouse=True)
def _exact_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_backend, "_allows_tf32", lambda: False)
    use_large_blocks(monkeypatch)


def test_a_stage_down_and_back_equals_the_torch_backend_with_all_gradients() -> None:
    class Stage(nn.Module):
        def __init__(self, backend: str) -> None:
            super().__init__()
            self.down = EncoderStage(3, 5, 1, norm_layer=BatchNorm, backend=backend)
            self.up = ConvNorm(UpConv3d(5, 4, backend=backend), BatchNorm(4))

    ours, theirs = Stage("triton").to(DEVICE), Stage("torch").to(DEVICE)
    ours.load_state_dict(theirs.state_dict())
    voxels, feat = random_voxels(60), torch.randn(60, 3, device=DEVICE)
    results = []
    for stage in (ours, theirs):
        x = SparseTensor(feat.clone().requires_grad_(), voxels)
        out = stage.up(stage.down(x, None), x).feat
        results.append([out.detach(), *torch.autograd.grad(out.square().sum(), [x.feat, *stage.parameters()])])
    for one, expected in zip(*results, strict=True):
        assert relative_error(one, expected) < 1e-4


@pytest.mark.slow
def test_network_equals_the_torch_backend_with_all_gradients() -> None:
    options = {"channels": (4, 6, 6, 8, 8, 6, 6, 5), "depths": (1,) * 8, "stem_channels": 4}
    theirs = SparseUNet(6, 3, backend="torch", **options).to(DEVICE)
    ours = SparseUNet(6, 3, backend="triton", **options).to(DEVICE)
    ours.load_state_dict(theirs.state_dict())
    cells = torch.randint(-4, 4, (60, 3), device=DEVICE, dtype=torch.int32)
    feat = torch.randn(60, 6, device=DEVICE)
    offset = torch.tensor([40, 60], device=DEVICE)
    outputs, gradients = [], []
    for model in (ours, theirs):
        leaf = feat.clone().requires_grad_()
        out = model(PointBatch(cells * 0.02, leaf, offset, grid_coord=cells))
        out.square().sum().backward()
        outputs.append(out)
        gradients.append({"feat": leaf.grad, **{name: p.grad for name, p in model.named_parameters()}})
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-4, rtol=1e-4)
    for name, gradient in gradients[0].items():
        assert gradient is not None and relative_error(gradient, gradients[1][name]) < 1e-3, name
