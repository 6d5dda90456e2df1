"""Fine-tune an encoder for semantic or instance segmentation of point clouds.

    python recipes/finetune.py init=runs/pretrain                   # from a pre-training run, on the built-in rooms
    python recipes/finetune.py init=scratch                         # the same without pre-training, to compare
    accelerate launch recipes/finetune.py init=runs/pretrain/export data.name=scannet_labelled data.root=PATH
    python recipes/finetune.py init=runs/pretrain mode=linear       # only a linear head on frozen features
    python recipes/finetune.py init=runs/pretrain task=instances    # PointGroup
    python recipes/finetune.py head=per_condition data.name=A,B data.root=PATH,PATH data.condition=A,B   # several sets

Prints IoU per class and mIoU (of instances also AP), and leaves a run folder (`output`) with config.yaml,
metrics.jsonl, checkpoints/, export/, eval.json and report.html. A run that was stopped goes on where it was if started
again with the same settings.
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

from evaluate import EVALUATED
from torch import Tensor, nn

import ponder_zoo as pz
from ponder_zoo.data.catalog import DataConfig, Source, open_labelled
from ponder_zoo.data.collate import LabelCollate
from ponder_zoo.data.limited import LimitedScenes, read_annotations, read_scene_list
from ponder_zoo.data.model_input import model_collate
from ponder_zoo.data.segmentation import SegmentationDataset
from ponder_zoo.data.semantics import SemanticConfig, embed_classes
from ponder_zoo.data.transforms import Transform, instance_train_transforms, segmentation_train_transforms
from ponder_zoo.layers.sync_norm import set_norm_momentum, synchronize_batch_norm
from ponder_zoo.losses.instance import offset_losses
from ponder_zoo.losses.segmentation import cross_entropy, cross_entropy_lovasz
from ponder_zoo.models.pointgroup import pointgroup_on
from ponder_zoo.report.html import write_report
from ponder_zoo.report.run_files import write_run_info
from ponder_zoo.report.system import system_info
from ponder_zoo.structures import PointBatch, PointLabels
from ponder_zoo.train.checkpoint import save_checkpoint
from ponder_zoo.train.config import ConfigError, config_to_dict, save_config
from ponder_zoo.train.distributed import gather_rows
from ponder_zoo.train.guard import NonFiniteGuard
from ponder_zoo.train.log import RunLog
from ponder_zoo.train.optim import ScheduleName
from ponder_zoo.train.run import command_line, make_loader, make_sampler, make_training, resume_run, start_run

logger = logging.getLogger("ponder_zoo.recipes.finetune")
HEADS = ("head", "offset_head")
TRAINED = {"full": ("",), "decoder": ("dec", *HEADS), "linear": HEADS}  # beginnings of parameter names, per mode


@dataclass(frozen=True)
class Config:
    """Settings."""

    output: str = "runs/finetune"  # run folder
    resume: str = "auto"  # auto: go on with `output` if it has checkpoints; none: refuse if it has; or a path
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)

    init: str = "runs/pretrain"  # run folder or export of a pre-training; a model with weights, by name; or scratch
    encoder: str = "sparseunet_tiny"  # name for create_model, with init=scratch
    encoder_args: dict[str, Any] = field(default_factory=dict)
    task: Literal["segment", "instances"] = "segment"
    head: Literal["linear", "per_condition", "text"] = "linear"  # of several sets: of their common classes, or of each
    semantic: SemanticConfig = field(default_factory=SemanticConfig)  # of head=text: table, text_model, text_weights
    mode: Literal["full", "decoder", "linear"] = "full"  # what is trained; the rest is frozen, norm statistics included
    grid_size: float | None = None  # metres; null: that of the pre-training, 0.08 with init=scratch
    max_points: int = 100_000  # of a scene, cropped after grid sampling
    crop_ratio: float | None = None  # share of a scene to crop to instead, e.g. 0.8; see docs/finetune.md
    shuffle_points: bool = True  # for semantic segmentation; not for ScanNet200 in the official code
    mix: float = 0.0  # probability that two scenes of a batch become one (Mix3D); official: 0.8
    scene_list: str | None = None  # file with the names of the scenes to train on (limited reconstructions)
    annotations: str | None = None  # file with the labelled points of each scene (limited annotations)
    annotated_points: int | None = None  # or how many of each scene, drawn by the seed

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
    stuff: tuple[str, ...] = ("wall", "floor")  # classes without instances
    cluster_radius: float = 1.5  # points of an instance are closer, in cells of the grid
    cluster_points: int = 30  # an instance has more, in cells; official: 100, of 2 cm
    log_with: str | None = None  # further trackers of Accelerate: tensorboard, wandb, trackio, ...
    # What the paper reports: table, row, column and numbers; `evaluate.py --table N` puts the run's beside them
    expected: dict[str, Any] = field(default_factory=dict)


# Data


def training_sets(cfg: Config, sources: list[Source], grid_size: float) -> list[SegmentationDataset]:
    """Augmented scenes of each source, or of the part of it that `scene_list` and `annotations` leave."""
    names = None if cfg.scene_list is None else read_scene_list(cfg.scene_list)
    annotations = cfg.annotated_points if cfg.annotations is None else read_annotations(cfg.annotations)
    limits: dict[str, Any] = {"names": names, "annotations": annotations, "seed": cfg.seed}
    transform = train_transform(cfg, grid_size, keep_labelled=annotations is not None)
    sets = enumerate(LimitedScenes(source, **limits) for source in sources)
    return [SegmentationDataset(each, transform=transform, seed=cfg.seed + 1000 * number) for number, each in sets]


def train_transform(cfg: Config, grid_size: float, keep_labelled: bool) -> Transform:
    crop: dict[str, Any] = {"max_points": cfg.max_points, "crop_ratio": cfg.crop_ratio}
    if cfg.task == "instances":
        return instance_train_transforms(grid_size, keep_labelled=keep_labelled, **crop)
    return segmentation_train_transforms(grid_size, keep_labelled=keep_labelled, shuffle=cfg.shuffle_points, **crop)


def stuff_classes(cfg: Config, sources: list[Source]) -> tuple[int, ...]:
    """Labels of the classes that have no instances."""
    return tuple(label for label, name in enumerate(sources[0].classes) if name in cfg.stuff)


# Model


def build_model(cfg: Config, sources: list[Source]) -> nn.Module:
    """The encoder with new heads for the task; parameters that `mode` leaves out are frozen."""
    options, table = head_options(cfg, sources)
    if cfg.grid_size is not None or cfg.init == "scratch":
        options["grid_size"] = cfg.grid_size or 0.08
    if cfg.init == "scratch":
        model = pz.create_model(cfg.encoder, **options, **cfg.encoder_args)
    else:
        model = pz.create_model(initial_model(cfg), pretrained=True, **options)
        logger.info("%s", model.load_report)
    if table is not None:
        model.head.class_embedding.copy_(table)  # type: ignore[operator, union-attr]
    if cfg.task == "instances" and not hasattr(model, "predict_instances"):
        model = pointgroup_on(model)  # type: ignore[arg-type]
    for name, parameter in model.named_parameters():
        trains = name.removeprefix("encoder.").startswith(TRAINED[cfg.mode])
        parameter.requires_grad_(parameter.requires_grad and trains)
    model.set_grad_checkpointing(cfg.grad_checkpointing)  # type: ignore[operator]
    return set_norm_momentum(synchronize_batch_norm(model), cfg.norm_momentum)


def initial_model(cfg: Config) -> str:
    """What `init` is for `create_model`."""
    path = Path(cfg.init)
    if not path.is_dir() and pz.is_model(cfg.init):
        return cfg.init
    folder = path / "export" if (path / "export").is_dir() else path
    if not (folder / "model.safetensors").is_file():
        raise ConfigError(
            f"Expected `init` to be a finished pre-training run, an export, a model's name or scratch; {cfg.init} has "
            "no model.safetensors. Run recipes/pretrain.py first, or pass init=scratch."
        )
    return f"local-dir:{folder}"


def head_options(cfg: Config, sources: list[Source]) -> tuple[dict[str, Any], Tensor | None]:
    """Arguments of `create_model` that describe the semantic head, and the table of a text-aligned one."""
    classes = sources[0].classes
    if cfg.head == "linear":
        if any(source.classes != classes for source in sources):
            raise ConfigError(
                f"Expected sets with the same classes, got {cfg.data.name}. Give each its own with head=per_condition "
                "or head=text, or train on one of them."
            )
        return {"num_classes": len(classes)}, None
    spaces = {source.condition: source.classes for source in sources}
    if None in spaces or len(spaces) < len(sources) or cfg.task == "instances":
        raise ConfigError(
            f"head={cfg.head} expected task=segment and one data.condition for each of {cfg.data.name}, all different; "
            f"got task={cfg.task} and {cfg.data.condition}. Write data.condition=ScanNet,S3DIS for two sets."
        )
    options = {"num_classes": len(classes), "condition": sources[0].condition, "head": cfg.head}
    if cfg.head == "per_condition":
        return options | {"head_classes": {name: len(names) for name, names in spaces.items()}}, None
    semantics = embed_classes(cfg.semantic, {str(name): names for name, names in spaces.items()})
    return options | {"text_head": semantics.head}, semantics.table


def frozen_parts(model: nn.Module) -> Iterator[nn.Module]:
    """Parts of a model that do not train. Their norms must not follow the batch either."""
    for child in model.children():
        trains = [parameter.requires_grad for parameter in child.parameters()]
        if trains and not any(trains):
            yield child
        elif not all(trains):
            yield from frozen_parts(child)


# Losses, over the points of all processes: Lovasz-softmax of a batch is not the mean over its parts


def segment_losses(model: nn.Module, points: PointBatch, labels: PointLabels) -> dict[str, Tensor]:
    return cross_entropy_lovasz(gather_rows(model(points)), gather_rows(labels.segment))


def instance_losses(model: nn.Module, points: PointBatch, labels: PointLabels) -> dict[str, Tensor]:
    logits, offset = model(points, return_offsets=True)
    place = (offset, points.coord, labels.center, labels.instance)
    classes = cross_entropy(gather_rows(logits), gather_rows(labels.segment))
    return {"cross_entropy": classes, **offset_losses(*map(gather_rows, place))}


LOSSES = {"segment": segment_losses, "instances": instance_losses}


def main(cfg: Config) -> None:
    with start_run(cfg) as accelerator:
        train(cfg, accelerator)


def train(cfg: Config, accelerator: Any) -> None:
    first, device, run, began = accelerator.is_main_process, accelerator.device, Path(cfg.output), time.monotonic()
    sources = open_labelled(cfg.data, "train")
    segmentor = build_model(cfg, sources).to(device)
    sets = training_sets(cfg, sources, segmentor.grid_size)  # type: ignore[arg-type]
    optimizer, schedule, ema, trained, state = make_training(segmentor, cfg)
    sampler = make_sampler(sets, cfg, accelerator)
    step = resume_run(cfg, state, sampler, device)
    collate = LabelCollate(model_collate(segmentor), stuff_classes(cfg, sources), cfg.mix)
    loader = make_loader(sets, sampler, collate, workers=cfg.data.workers, pin_memory=device.type == "cuda")
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
        for points, labels in loader:
            points, labels = points.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            with accelerator.accumulate(model):
                losses = LOSSES[cfg.task](model, points, labels)
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
                log.write(step, {"loss": sum(values.values())} | values | rest, show=("loss", *values))
            if step % cfg.save_every == 0 or step == sampler.stop:
                save_checkpoint(run, step, state, keep=cfg.keep, info=sampler.describe())

    if step == cfg.max_steps:
        trained.eval()
        scores = EVALUATED[cfg.task](accelerator, trained, cfg, run)
        if first:
            metadata = {"training_data": cfg.data.name, "label_names": sources[0].classes}
            metadata |= {"metrics": {key: scores[key] for key in ("AP", "mIoU", "mAcc", "allAcc") if key in scores}}
            pz.save_for_hf(trained, run / "export", metadata=metadata)
            write_run_info(run, **about, status="finished", wall_time=time.monotonic() - began, system=system_info())
            logger.info("Open %s", write_report(run))


if __name__ == "__main__":
    command_line(main, Config, __doc__)
