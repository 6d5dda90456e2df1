"""SparseUNet-34 against the same network and weights in spconv's modules; kernel maps are built in every forward.

python -m benchmarks.sparse_unet --profile    which share of our time goes where, and what matrix products alone take
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch

import ponder_zoo as pz
from ponder_zoo.structures import PointBatch

from . import floors
from .harness import Call, Case, timed, warm_up
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


# Which part of the work an operator belongs to, by the beginning of its name
PARTS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::linear", "aten::matmul"),
    "gathers": ("aten::index_select", "aten::index", "aten::gather", "aten::take"),
    "sums of rows": ("aten::_embedding_bag", "aten::index_add", "aten::segment_reduce", "aten::scatter", "aten::sum"),
    "norms": ("aten::native_batch_norm", "aten::batch_norm", "aten::var", "aten::mean", "aten::addcmul", "aten::rsqrt"),
    "activations, additions": ("aten::relu", "aten::clamp", "aten::threshold", "aten::add", "aten::mul", "aten::where"),
    "memory": ("aten::empty", "aten::zero", "aten::fill", "aten::copy", "aten::cat", "aten::resize", "aten::clone"),
    "sorting, searching": ("aten::sort", "aten::argsort", "aten::searchsorted", "aten::cumsum", "aten::unique"),
}


def shares(call: Call) -> dict[str, float]:
    """Seconds that the operators of each part take by themselves in one call."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as trace:
        call()
    parts = dict.fromkeys([*PARTS, "the rest"], 0.0)
    for event in trace.key_averages():
        names = [part for part, starts in PARTS.items() if event.key.removesuffix("_").startswith(starts)]
        parts[names[0] if names else "the rest"] += event.self_cpu_time_total / 1e6
    return parts


def median_seconds(call: Call, repeats: int) -> float:
    warm_up(call)
    return statistics.median(timed(call, 1) for _ in range(repeats))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sparse_unet", description="Profile our sparse U-Net.")
    parser.add_argument("--profile", action="store_true", required=True, help="show the share of each part")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    for kind, scene in TARGETS:
        points, train = SCENES[scene](), kind == "train"
        call = ours(points, train)
        total, parts = median_seconds(call, args.repeats), shares(call)
        peer = median_seconds(theirs(points, train, check=False), args.repeats)
        print(f"{kind}, {scene}: ours {total:.2f} s, peer {peer:.2f} s, ratio {peer / total:.2f}")
        for name, seconds in parts.items():
            print(f"    {name:<24}{seconds:8.3f} s{100 * seconds / sum(parts.values()):6.1f} %")
        print(f"    ratio if all but the products were free: {peer / parts['matrix products']:.2f}", flush=True)


if __name__ == "__main__":
    main()
