"""SparseUNet-34 against the same network and weights in spconv's modules; kernel maps are built in every forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

import ponder_zoo as pz
from ponder_zoo.structures import PointBatch

from . import floors
from .harness import Call, Case
from .machine import device, our_backend, precision
from .peers import spconv_unet
from .scenes import dense_scene, thin_scene

SCENES: dict[str, Callable[[], PointBatch]] = {"thin": thin_scene, "dense": dense_scene}
TARGETS = {  # (done, aim)
    ("forward", "thin"): (1.7, 2.0),
    ("forward", "dense"): (1.7, 2.5),
    ("train", "thin"): (1.5, 1.8),
    ("train", "dense"): (1.6, 2.2),
}
GPU_TARGET = (1.2, 2.0)
AGREEMENT = 1e-4  # of the two outputs in float32, relative to the largest value


def cases() -> Iterator[Case]:
    """Forward, forward + backward, and training memory, each on a thin and a dense scene."""
    gpu = device().type == "cuda"
    for (kind, scene), target in TARGETS.items():
        build, (done, aim) = SCENES[scene], GPU_TARGET if gpu else target
        yield Case(
            name=f"sparse_unet/{kind}/{scene}",
            peer=spconv_unet.describe_peer(),
            ours=lambda build=build, kind=kind: ours(build(), kind == "train"),
            theirs=lambda build=build, kind=kind: theirs(build(), kind == "train"),
            done=done,
            aim=aim,
            floor=lambda machine, build=build, kind=kind: floors.sparse_unet(build(), machine, train=kind == "train"),
            repeats=5,
        )
    for scene, build in SCENES.items():
        yield Case(
            name=f"sparse_unet/memory/{scene}",
            peer=spconv_unet.describe_peer(),
            ours=lambda build=build: ours(build(), train=True),
            theirs=lambda build=build: theirs(build(), train=True, check=False),
            done=1.0,
            aim=0.7,
            metric="memory",
        )


def make_model(**sizes: Any) -> Any:
    """SparseUNet-34 (or other sizes) without a head, with norms that are not at their initial values."""
    torch.manual_seed(0)
    model: Any = pz.create_model("sparseunet34", in_chans=6, backend=our_backend(), **sizes)
    with torch.no_grad():
        for module in model.modules():
            if hasattr(module, "running_var"):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    return model.to(device())


def ours(points: PointBatch, train: bool, dtype: str = "", **sizes: Any) -> Call:
    """Features of the points, or a training step without the optimizer."""
    model, points = make_model(**sizes).train(train), points.to(device())
    return model_call(model, lambda: model.forward_features(points).feat, train, dtype)


def theirs(points: PointBatch, train: bool, dtype: str = "", *, check: bool = True, **sizes: Any) -> Call:
    """The same in spconv, whose features must be ours."""
    model, points = make_model(**sizes), points.to(device())
    peer = spconv_unet.SpconvUNet(6, **sizes).to(device())
    peer.load_ours(model.state_dict())
    forward = lambda: peer(points.feat, *spconv_unet.sites(points), points.batch_size)  # noqa: E731
    if check:
        _check_agreement(model, points, model_call(peer.eval(), forward, train=False))
    del model
    return model_call(peer.train(train), forward, train, dtype)


def _check_agreement(ours: Any, points: PointBatch, theirs: Call) -> None:
    with torch.inference_mode():
        expected = ours.eval().forward_features(points).feat
    found = theirs()
    assert isinstance(found, torch.Tensor)
    error = float((found - expected).abs().max() / expected.abs().max())
    if not error < AGREEMENT * (100 if device().type == "cuda" else 1):
        raise RuntimeError(
            f"The peer should compute the same as ours, but the outputs differ by {error:.2g} of the largest."
        )


def model_call(model: torch.nn.Module, forward: Callable[[], torch.Tensor], train: bool, dtype: str = "") -> Call:
    """A forward pass, or a training step without the optimizer, in a precision; by default float16 on a GPU."""
    dtype = dtype or ("float16" if device().type == "cuda" else "float32")

    def infer() -> torch.Tensor:
        with torch.inference_mode(), precision(dtype):
            return forward()

    def step() -> None:
        model.zero_grad(set_to_none=True)
        with precision(dtype):
            out = forward()
        out.float().square().mean().backward()

    return step if train else infer
