"""What is special on a GPU: more precisions, a batch, CUDA graphs, the table search; and measured block sizes.

    python -m benchmarks --device cuda                   fills docs/performance.md's table of a GPU
    python -m benchmarks --device cuda --budget 540 gpu  these cases, in nine minutes at most

Timing, peers and results are the harness's. The peer comes along as a folder on PYTHONPATH where there is no network;
it is tried in a process of its own first, because its libraries may not live beside this torch.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from ponder_zoo.sparse import submanifold_map, voxelize
from ponder_zoo.structures import PointBatch

from . import sparse_unet
from .harness import Call, Case
from .machine import ROOT, device, precision, python_path
from .peers import spconv_unet
from .scenes import dense_scene, repeat_scene, thin_scene

SCENES: dict[str, Callable[[], PointBatch]] = {
    "thin": thin_scene,
    "dense": dense_scene,
    "dense8": lambda: repeat_scene(dense_scene(), 8),
}
PRECISIONS = ("float16", "bfloat16", "tf32")
PEER_PRECISIONS = ("float16", "tf32")
FORWARD_SECONDS = {("bfloat16", "dense"): (0.004, 0.001)}  # (done, aim)
COMPILE_SECONDS = 150.0  # for all processes that compile ahead


def cases(**sizes: Any) -> Iterator[Case]:
    """Rows beside those of `sparse_unet`, which are in float16 on one scene. `sizes` are for tests."""
    if device().type != "cuda":
        return
    for scene, build in SCENES.items():
        for dtype in PRECISIONS:
            if dtype == "float16" and scene in sparse_unet.SCENES:
                continue  # rows of `sparse_unet`
            yield _network("forward", scene, build, dtype, sizes)
            yield _network("train", scene, build, dtype, sizes)
    for scene, build in SCENES.items():
        for dtype in ("float16", "bfloat16"):
            yield Case(
                name=f"gpu/graph/{dtype}/{scene}",
                peer="the same, kernel by kernel",
                ours=lambda build=build, dtype=dtype: _graph(build(), dtype, sizes),
                theirs=lambda build=build, dtype=dtype: sparse_unet.ours(build(), False, dtype, **sizes),
            )
        yield Case(
            name=f"gpu/search/{scene}",
            peer="the search with nonzero",
            ours=lambda build=build: _search(build(), searched=True),
            theirs=lambda build=build: _search(build(), searched=False),
        )


def _network(kind: str, scene: str, build: Callable[[], PointBatch], dtype: str, sizes: dict[str, Any]) -> Case:
    train, has_peer = kind == "train", dtype in PEER_PRECISIONS
    seconds = FORWARD_SECONDS.get((dtype, scene)) if kind == "forward" else None
    done, aim = seconds or (sparse_unet.GPU_TARGET if has_peer else (None, None))
    return Case(
        name=f"gpu/{kind}/{dtype}/{scene}",
        peer=f"{spconv_unet.describe_peer().rpartition(',')[0]}, {dtype}" if has_peer else "none; seconds",
        ours=lambda: sparse_unet.ours(build(), train, dtype, **sizes),
        theirs=(lambda: sparse_unet.theirs(build(), train, dtype, **sizes)) if has_peer else None,
        done=done,
        aim=aim,
        target_seconds=seconds is not None,
    )


def _graph(points: PointBatch, dtype: str, sizes: dict[str, Any]) -> Call:
    """A replayed graph with the kernel maps of the scene built before it, whose features must be the model's."""
    from ponder_zoo.models import CapturedFeatures

    model, points = sparse_unet.make_model(**sizes).eval(), points.to(device())
    captured = CapturedFeatures(model)

    def call() -> torch.Tensor:
        with precision(dtype):
            return captured(points).feat

    call()
    found = call().float()  # the first call is an ordinary one, this one is captured
    with torch.no_grad(), precision(dtype):
        expected = model.forward_features(points).feat.float()
    error = float((found - expected).norm() / expected.norm())
    if not error < 1e-2:
        raise RuntimeError(f"A captured graph should give the model's features, but they differ by {error:.2g}.")
    return call


def _search(points: PointBatch, *, searched: bool) -> Call:
    """The 5^3 table of the finest resolution from unsorted cells, by the kernel or by the host's search."""
    from ponder_zoo.sparse.backends.triton_maps import search_neighbours

    points = points.to(device())
    assert points.grid_coord is not None
    cells, batch = points.grid_coord, points.batch

    @torch.inference_mode()
    def call() -> torch.Tensor:
        voxels, _ = voxelize(cells, batch, points.batch_size)
        return submanifold_map(voxels, 5, search=search_neighbours if searched else None).table

    return call


# Measured block sizes -------------------------------------------------------------------------------------------------


def use_measured_choices(chosen: Sequence[Case], output: Path) -> None:
    """Let the Triton kernels measure their block sizes, in this process and its children, and keep them by the results.

    Compiling the candidates takes longer than measuring them and uses one core, so processes side by side do it first.
    """
    os.environ.setdefault("PONDER_ZOO_TUNE", "1")
    os.environ.setdefault("PONDER_ZOO_CACHE", str(output.parent / "triton_choices"))
    compile_ahead([case.name for case in chosen if "/train/" in case.name and case.name.startswith(("gpu", "sparse"))])


def compile_ahead(names: Sequence[str]) -> None:
    """Call ours of these cases once, each in a process; what they measure in each other's way is thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"PONDER_ZOO_CACHE": folder, "PYTHONPATH": python_path()}
        command = [sys.executable, "-m", "benchmarks", "--device", device().type, "--child"]
        children = [
            subprocess.Popen([*command, name, "ours"], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
            for name in names
        ]
        for child in children:
            try:
                child.wait(COMPILE_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
