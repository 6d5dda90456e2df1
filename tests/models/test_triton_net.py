"""A whole SparseUNet on the Triton backend: equal to the torch backend, and to the official outputs and gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from test_sparse_unet import CASES, load_case, relative_error

from ponder_zoo.models.sparse_unet import SparseUNet
from ponder_zoo.sparse.backends import triton as triton_backend
from ponder_zoo.structures import PointBatch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def _exact_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_backend, "_allows_tf32", lambda: False)


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


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_official_outputs_and_gradients(name: str, shared_dir: Path) -> None:
    """In the interpreter one takes 40 s and more on one thread (2026-11)."""
    case = load_case(shared_dir / "parity", name, "triton")
    case.model.to(DEVICE)
    tensors = {key: value.to(DEVICE) for key, value in case.tensors.items()}
    case = type(case)(case.model, tensors, case.config)
    key, condition = "eval.out", None
    if case.model.conditions:
        condition = case.model.conditions[0]
        key = f"eval.out.{condition}"
    with torch.no_grad():
        out = case.model.eval()(case.points(tensors["in.feat"], condition))
    assert relative_error(out, tensors[key]) < 2e-5

    feat = tensors["in.feat"].clone().requires_grad_()
    out = case.model.train()(case.points(feat, case.config.get("train_condition")))
    (out * tensors["train.cotangent"]).sum().backward()
    assert relative_error(out, tensors["train.out"]) < 2e-5
    assert feat.grad is not None and relative_error(feat.grad, tensors["grad.in.feat"]) < 2e-5
    parameters = dict(case.model.named_parameters())
    for entry, value in case.entries("grad.state.").items():
        grad = parameters[entry].grad
        assert grad is not None and relative_error(grad, value) < 2e-5, entry
