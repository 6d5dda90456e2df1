"""Fine-tune an encoder for semantic segmentation of point clouds.

    python recipes/finetune.py init=runs/pretrain                   # from a pre-training run, on the built-in rooms
    python recipes/finetune.py init=scratch                         # the same without pre-training, to compare
    accelerate launch recipes/finetune.py init=runs/pretrain/export data.name=scannet_labelled data.root=PATH
    python recipes/finetune.py init=runs/pretrain mode=linear       # only a linear head on frozen features

Prints IoU per class and mIoU, and leaves a run folder (`output`) with config.yaml, metrics.jsonl, checkpoints/,
export/, eval.json and report.html. A run that was stopped goes on where it was if started again with the same settings.
"""

from __future__ import annotations

import logging
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from evaluate import evaluate_segmentation
from torch import nn

import ponder_zoo as pz
from ponder_zoo.data.catalog import DataConfig, open_labelled
from ponder_zoo.data.collate import PointCollate
from ponder_zoo.data.segmentation import SegmentationDataset
from ponder_zoo.data.transforms import segmentation_train_transforms
from ponder_zoo.layers.sync_norm import set_norm_momentum, synchronize_batch_norm
from ponder_zoo.losses.segmentation import cross_entropy_lovasz
from ponder_zoo.report.html import write_report
from ponder_zoo.report.run_files import write_run_info
from ponder_zoo.report.system import system_info
from ponder_zoo.train.checkpoint import save_checkpoint
from ponder_zoo.train.config import ConfigError, config_to_dict, save_config
from ponder_zoo.train.distributed import gather_rows
from ponder_zoo.train.guard import NonFiniteGuard
from ponder_zoo.train.log import RunLog
from ponder_zoo.train.optim import ScheduleName
from ponder_zoo.train.run import command_line, make_loader, make_sampler, make_training, resume_run, start_run

logger = logging.getLogger("ponder_zoo.recipes.finetune")
TRAINED = {"full": ("",), "decoder": ("dec", "head"), "linear": ("head",)}  # beginnings of parameter names, per mode


@dataclass(frozen=True)
class Config:
    """Settings."""

    output: str = "runs/finetune"  # run folder
    resume: str = "auto"  # auto: go on with `output` if it has checkpoints; none: refuse if it has; or a path
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)

    init: str = "runs/pretrain"  # run folder or export of a pre-training; or scratch
    encoder: str = "sparseunet_tiny"  # name for create_model, with init=scratch
    encoder_args: dict[str, Any] = field(default_factory=dict)
    mode: Literal["full", "decoder", "linear"] = "full"  # what is trained; the rest is frozen, norm statistics included
    grid_size: float | None = None  # metres; null: that of the pre-training, 0.08 with init=scratch
    max_points: int = 100_000  # of a scene, cropped after grid sampling

    max_steps: int = 200  # of the optimizer, for the whole run
    stop_step: int | None = None  # save and stop here; the schedule stays that of max_steps
    batch_size: int = 2  # scenes per process and step
    accumulate: int = 1  # parts of a batch, one after the other
    optimizer: str = "adamw"  # as timm names them
    lr: float = 3e-3
    layer_decay: float | None = None  # learning rate of each layer over that of the next, e.g. 0.9
    weight_decay: float = 0.02
    decay_all: bool = False  # also norms and biases
    schedule: ScheduleName = "onecycle"
    warmup: float = 0.1  # share of the steps
    max_grad_norm: float = 1.0
    norm_momentum: float | None = 0.1  # of running statistics; null: the model's own, 0.01 in SparseUNet: for long runs
    ema: float = 0.0  # decay of averaged weights; 0 is none
    mixed_precision: Literal["no", "bf16"] = "no"
    grad_checkpointing: bool = False  # less memory, more time
    max_broken_steps: int = 5  # non-finite steps in a row before the run stops

    log_every: int = 10
    save_every: int = 100
    keep: int = 3  # checkpoints
    split: Literal["train", "val"] = "val"  # of the final evaluation
    votes: int = 1  # augmented copies that vote on each point in it; see evaluate.py
    fragments: int = 4  # grid-sampled clouds of each copy; 0 is the official number
    log_with: str | None = None  # further trackers of Accelerate: tensorboard, wandb, trackio, ...
    # What the paper reports: table, row, column and numbers; `evaluate.py --table N` puts the run's beside them
    expected: dict[str, Any] = field(default_factory=dict)


def build_model(cfg: Config, num_classes: int) -> nn.Module:
    """The encoder with a new head; parameters that `mode` leaves out are frozen."""
    options: dict[str, Any] = {"num_classes": num_classes}
    if cfg.grid_size is not None or cfg.init == "scratch":
        options["grid_size"] = cfg.grid_size or 0.08
    if cfg.init == "scratch":
        model = pz.create_model(cfg.encoder, **options, **cfg.encoder_args)
    else:
        path = Path(cfg.init)
        folder = path / "export" if (path / "export").is_dir() else path
        if not (folder / "model.safetensors").is_file():
            raise ConfigError(
                f"Expected `init` to be a finished pre-training run, an exported model or scratch; {cfg.init} has no "
                "model.safetensors. Run recipes/pretrain.py first, or pass init=scratch."
            )
        model = pz.create_model(f"local-dir:{folder}", pretrained=True, **options)
        logger.info("%s", model.load_report)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(TRAINED[cfg.mode]))
    model.set_grad_checkpointing(cfg.grad_checkpointing)  # type: ignore[operator]
    return set_norm_momentum(synchronize_batch_norm(model), cfg.norm_momentum)


def frozen_parts(model: nn.Module) -> Iterator[nn.Module]:
    """Parts of a model that do not train. Their norms must not follow the batch either."""
    for child in model.children():
        if not any(parameter.requires_grad for parameter in child.parameters()):
            yield child


def main(cfg: Config) -> None:
    accelerator = start_run(cfg)
    first, device, run, began = accelerator.is_main_process, accelerator.device, Path(cfg.output), time.monotonic()
    sources = open_labelled(cfg.data, "train")
    segmentor = build_model(cfg, len(sources[0].classes)).to(device)
    transform = segmentation_train_transforms(segmentor.grid_size, max_points=cfg.max_points)  # type: ignore[arg-type]
    sets = [
        SegmentationDataset(source, transform=transform, seed=cfg.seed + 1000 * i) for i, source in enumerate(sources)
    ]
    optimizer, schedule, ema, trained, state = make_training(segmentor, cfg)
    sampler = make_sampler(sets, cfg, accelerator)
    step = resume_run(cfg, state, sampler, device)
    loader = make_loader(sets, sampler, PointCollate(), workers=cfg.data.workers, pin_memory=device.type == "cuda")
    guard = NonFiniteGuard(segmentor, limit=cfg.max_broken_steps)
    model, optimizer = accelerator.prepare(segmentor, optimizer)  # not the schedule: it would step once per process
    about: dict[str, Any] = {"task": "finetune", "model": cfg.encoder, "device": str(device)}
    about["command"] = shlex.join(sys.argv)
    if first:
        save_config(cfg, run / "config.yaml")
        write_run_info(run, **about, system=system_info())
    accelerator.init_trackers("ponder_zoo", config_to_dict(cfg) if cfg.log_with else None)

    model.train()
    for part in frozen_parts(segmentor):
        part.eval()
    with RunLog(run / "metrics.jsonl", total=cfg.max_steps, start=step, main=first, track=accelerator.log) as log:
        for points, segment in loader:
            points, segment = points.to(device, non_blocking=True), segment.to(device, non_blocking=True)
            with accelerator.accumulate(model):
                logits = model(points)
                # Over the points of all processes: Lovasz-softmax of a batch is not the mean over its parts.
                losses = cross_entropy_lovasz(gather_rows(logits), gather_rows(segment))
                guard.watch(losses)
                accelerator.backward(sum(losses.values()))
                if not accelerator.sync_gradients:
                    continue
                step += 1
                norm = accelerator.clip_grad_norm_(model.parameters(), cfg.max_grad_norm)
                if guard.allows(norm, step=step):
                    optimizer.step()
                    if ema is not None:
                        ema.update(segmentor, step)
                lr = optimizer.param_groups[-1]["lr"]
                schedule.step()
                optimizer.zero_grad()
            log.advance(step)
            if step % cfg.log_every == 0 or step == 1:
                values = {key: loss.item() for key, loss in losses.items()}
                rest = {"lr": lr, "gradient_norm": norm.item(), "skipped": guard.skipped}
                log.write(
                    step, {"loss": sum(values.values())} | values | rest, show=("loss", "cross_entropy", "lovasz")
                )
            if step % cfg.save_every == 0 or step == sampler.stop:
                save_checkpoint(run, step, state, keep=cfg.keep, info=sampler.describe())

    if step == cfg.max_steps:
        trained.eval()
        scores = evaluate_segmentation(accelerator, trained, cfg, run)
        if first:
            metadata = {"training_data": cfg.data.name, "label_names": sources[0].classes}
            metadata |= {"metrics": {key: scores[key] for key in ("mIoU", "mAcc", "allAcc")}}
            pz.save_for_hf(trained, run / "export", metadata=metadata)
            write_run_info(run, **about, status="finished", wall_time=time.monotonic() - began, system=system_info())
            logger.info("Open %s", write_report(run))
    accelerator.end_training()


if __name__ == "__main__":
    command_line(main, Config, __doc__)
