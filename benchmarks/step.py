"""The whole pre-training step in the paper's indoor settings, one scene, against the official formulation.

SparseUNet-34 with prompt-driven norms on the thin scene, a volume of 128 x 128 x 32 cells, the dense U-Net 96 -> 128,
NeuS with 1280 rays, the official losses, backward, and SGD with momentum over all 46.7 million parameters.

    python -m benchmarks step               the cases
    python -m benchmarks.step --profile     which share of our step each part takes
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import ponder_zoo as pz
from ponder_zoo.losses.render import RenderLossWeights, render_loss
from ponder_zoo.structures import FeatureVolume, PointBatch, SceneInput, VolumeGrid
from ponder_zoo.train.optim import make_optimizer
from ponder_zoo.volume import official_lookup_grid
from ponder_zoo.volume.densify import occupied_cells_official

from .harness import Call, Case
from .machine import device, our_backend, synchronize, use_device
from .render import CELLS, Inputs, make_inputs
from .scenes import thin_scene

PEER = "official formulation (spconv, good sampler)"


def cases() -> Iterator[Case]:
    """Time and memory of a step."""
    yield Case(name="step/train", peer=PEER, ours=_ours, theirs=_theirs, done=3.0, aim=5.0, repeats=5)
    yield Case(name="step/memory", peer=PEER, ours=_ours, theirs=_theirs, metric="memory")


def unit_cube_scene() -> SceneInput:
    """The thin scene in its unit cube."""
    points = thin_scene()
    lower, upper = points.coord.min(0).values, points.coord.max(0).values
    size = (upper - lower).max() + 2e-5
    middle = (lower + upper) / 2
    origin = torch.stack([middle[0], middle[1], lower[2] + size / 2])
    coord = ((points.coord - origin) / size).clamp(-0.5 + 1e-5, 0.5 - 1e-5)
    points = PointBatch(coord, points.feat, points.offset, points.grid_coord, condition="ScanNet")
    X, Y, Z = CELLS
    grid = VolumeGrid(torch.tensor([[[-0.5] * 3, [0.5] * 3]]), (X, Y, Z))
    return SceneInput(points, grid, metres_per_unit=size[None]).to(device())


class Step:
    """Our model, its inputs and its optimizer."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.inputs: Inputs = make_inputs(channels=2)  # of its volume nothing is used
        self.scene = unit_cube_scene()
        self.model: Any = pz.create_pretrainer(
            "sparseunet_ponderv2",
            "neus_ponderv2",
            unet_shortcut=False,
            cells="official",
            encoder_args={"backend": our_backend()},
        ).to(device())
        self.optimizer = make_optimizer(self.model, "sgd", lr=8e-4, weight_decay=1e-4, decay_all=True)
        self.weights = RenderLossWeights.official()

    def __call__(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        output = self.model(self.scene, self.inputs.rays)
        self.loss(output).backward()
        self.optimizer.step()

    def loss(self, output: Any) -> Tensor:
        inputs = self.inputs
        losses = render_loss(output, inputs.targets, inputs.rays, self.weights, class_embeddings=inputs.table)
        return torch.stack(list(losses.values())).sum()

    def timed(self) -> dict[str, float]:
        """Seconds of each part, forward and backward, of one step."""
        marks: list[tuple[str, float]] = []

        def mark(name: str) -> None:
            synchronize()
            marks.append((name, time.perf_counter()))

        def watch(value: Tensor, name: str) -> Tensor:
            value.register_hook(lambda grad: mark(name))  # its gradient is complete: the part above is done
            return value

        parts, scene = self.model.volume_encoder, self.scene
        mark("start")
        self.optimizer.zero_grad(set_to_none=True)
        points = parts.encoder.forward_features(scene.points)
        mark("encoder forward")
        watch(points.feat, "densify backward")
        volume = occupied_cells_official(points, scene.grid, scene.metres_per_unit)  # type: ignore[arg-type]
        assert volume is not None
        mark("densify forward")
        watch(volume.feat, "dense U-Net backward")
        feat = parts.unet(volume)
        mark("dense U-Net forward")
        volume = FeatureVolume(watch(feat, "renderer backward"), official_lookup_grid(scene.grid))
        output = self.model.renderer(self.inputs.rays, volume)
        mark("renderer forward")
        loss = self.loss(output)
        mark("losses")
        loss.backward()
        mark("encoder backward")
        self.optimizer.step()
        mark("optimizer")
        return {name: end - start for (_, start), (name, end) in itertools.pairwise(marks)}


def _ours() -> Call:
    return Step()


def _theirs() -> Call:
    from .peers.official_step import OfficialPonder

    torch.manual_seed(0)
    inputs, scene = make_inputs(channels=2), unit_cube_scene()
    model = OfficialPonder(CELLS).to(device())
    optimizer = torch.optim.SGD(model.parameters(), lr=8e-4, weight_decay=1e-4, momentum=0.9, nesterov=True)
    arguments = scene.points, scene.metres_per_unit, inputs.origins[None], inputs.directions[None]
    targets = inputs.depth[None], inputs.rgb[None], inputs.semantic[None]

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        losses = model(*arguments, *targets)
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description="Profile our pre-training step.")
    parser.add_argument("--profile", action="store_true", required=True, help="show the share of each part")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    args = parser.parse_args()
    use_device(args.device)
    step = Step()
    step.timed()
    runs = [step.timed() for _ in range(args.repeats)]
    medians = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    total = sum(medians.values())
    for name, seconds in medians.items():
        print(f"{name:<24}{seconds:8.3f} s{100 * seconds / total:6.1f} %")
    print(f"{'step':<24}{total:8.3f} s")
    if args.device == "cuda":
        print(kernel_table(step))


def kernel_table(step: Step) -> str:
    """The kernels of one step on a GPU, those that take the most time first."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as trace:
        step()
        synchronize()
    return trace.key_averages().table(sort_by="cuda_time_total", row_limit=30, max_name_column_width=60)


if __name__ == "__main__":
    main()
