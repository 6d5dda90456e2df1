"""Pre-train a 3D encoder by rendering posed RGB-D images of what it saw (PonderV2, arXiv:2310.08586, Sec. 3).

    python recipes/pretrain.py                                           # built-in rooms, any machine
    accelerate launch recipes/pretrain.py data.name=rgbd data.root=PATH  # folders of posed frames, all GPUs
    accelerate launch --cpu --num_processes 2 recipes/pretrain.py        # the same losses as with one process
    accelerate launch recipes/pretrain.py --config recipes/configs/paper_indoor.yaml data.name=rgbd data.root=PATH

The run folder (`output`) gets config.yaml, metrics.jsonl, checkpoints/, previews/, export/, eval.json and
report.html. A run that was stopped goes on where it was if started again with the same settings.
"""

from __future__ import annotations

import itertools
import json
import logging
import shlex
import shutil
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from evaluate import show_views, view_sets, write_features
from torch import Tensor

import ponder_zoo as pz
from ponder_zoo.data.catalog import DataConfig, Source, open_views, pretrain_dataset
from ponder_zoo.data.collate import PretrainCollate
from ponder_zoo.data.model_input import model_collate
from ponder_zoo.data.pretrain import PretrainDataset
from ponder_zoo.data.semantics import CENTRES, SemanticConfig, Semantics, cluster_labels, make_semantics
from ponder_zoo.layers.sync_norm import freeze_norms, set_norm_momentum, synchronize_batch_norm
from ponder_zoo.losses.render import TEMPERATURE, RenderLossWeights, point_loss, render_loss
from ponder_zoo.models.sparse_unet import SparseUNet, fill_untrained_conditions, raise_hue
from ponder_zoo.report.html import write_report
from ponder_zoo.report.previews import preview_path
from ponder_zoo.report.run_files import write_eval, write_run_info
from ponder_zoo.report.system import system_info
from ponder_zoo.train.checkpoint import list_checkpoints, save_checkpoint
from ponder_zoo.train.config import ConfigError, config_to_dict, save_config
from ponder_zoo.train.distributed import mean_over_processes
from ponder_zoo.train.guard import NonFiniteGuard
from ponder_zoo.train.log import RunLog
from ponder_zoo.train.optim import ScheduleName
from ponder_zoo.train.run import command_line, make_loader, make_sampler, make_training, resume_run, start_run

logger = logging.getLogger("ponder_zoo.recipes.pretrain")
NOTHING = Semantics()
SEMANTIC_TERMS = {"semantic", "feature", "ppt"}


@dataclass(frozen=True)
class Config:
    """Settings. The defaults suit two CPU cores; recipes/configs has the published ones."""

    output: str = "runs/pretrain"  # run folder
    resume: str = "auto"  # auto: go on with `output` if it has checkpoints; none: refuse if it has; or a path
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)

    encoder: str = "sparseunet_tiny"  # name for create_model
    encoder_args: dict[str, Any] = field(default_factory=dict)
    hue_gain: float = 6.0  # of the first layer's initial weights for hue, beside those for brightness; SparseUNet only
    renderer: str = "neus"  # neus, volsdf, unisurf
    renderer_args: dict[str, Any] = field(
        default_factory=lambda: {
            "num_samples": 32,
            "num_importance": 16,
            "hidden_dim": 64,
            "geo_dim": 32,
            "background": 0.5,  # held-out views also show what no input view saw
        }
    )
    grid_size: float = 0.08  # metres
    volume_shape: tuple[int, int, int] = (48, 48, 24)  # X, Y, Z cells
    margin: float = 0.3  # metres around the points that the volume covers, too
    volume_channels: int = 32  # of the volume that the renderer reads
    unet_channels: tuple[int, ...] = (32, 32, 64)  # of the dense U-Net, per level
    unet_shortcut: bool = True  # whether it adds its input to its result
    mask_ratio: float = 0.0  # share of blocks of voxels to hide behind a token
    mask_block: int = 8  # voxels per edge of such a block

    dropout: float = 0.3  # share of the points that the encoder does not see
    recolor: bool = True  # train on other colours of each scene, in points and images alike
    input_views: int = 7  # views of a room whose pixels are the points
    target_views: int = 5  # views of a room to render
    rays_per_view: int = 96
    loss: RenderLossWeights = field(default_factory=lambda: RenderLossWeights(semantic=0.5, feature=0.5))
    # Beside colour and depth. The default needs no labels; with none, the other weights of `semantic` do not matter
    semantic: SemanticConfig = field(default_factory=lambda: SemanticConfig(targets="clusters"))
    ppt_loss_weight: float = 3.0  # of telling points apart by class embeddings, where `semantic` has classes
    semantic_after: float = 0.2  # share of the steps for colour and depth alone; `semantic` then rises over as many

    max_steps: int = 550  # of the optimizer, for the whole run
    stop_step: int | None = None  # save and stop there, at the end of a time slot; the schedule stays that of max_steps
    batch_size: int = 2  # scenes per process and step
    accumulate: int = 1  # parts of a batch, one after the other
    optimizer: str = "adamw"  # as timm names them
    lr: float = 3e-3
    weight_decay: float = 0.01
    decay_all: bool = False  # also norms and biases
    schedule: ScheduleName = "exponential"
    warmup: float = 0.2  # share of the steps
    max_grad_norm: float = 1.0
    norm_freeze: float = 0.7  # share of the steps after which norms use running statistics, as in evaluation; 1: never
    norm_momentum: float | None = 0.1  # of running statistics; null: the model's own, 0.01 in SparseUNet: for long runs
    ema: float = 0.0  # decay of averaged weights, e.g. 0.999; 0 is none
    mixed_precision: Literal["no", "bf16"] = "no"  # bf16: encoder and dense U-Net; rendering stays in float32
    float64: bool = False  # compute in double precision, to compare runs: rounding grows tenfold in a few steps
    grad_checkpointing: bool = False  # less memory, more time
    max_broken_steps: int = 5  # non-finite steps in a row before the run stops

    log_every: int = 10
    save_every: int = 100
    keep: int = 3  # checkpoints
    preview_every: int = 100  # steps between pictures of views that are not trained on; there is one before step 1
    eval_views: int = 8  # of those pictures, in the final evaluation
    eval_stride: int = 2  # render every so many-th row and column of them
    log_with: str | None = None  # further trackers of Accelerate: tensorboard, wandb, trackio, ...


def with_weights(cfg: Config) -> Config:
    """The settings with weights of what `semantic.targets` has; those of the rest are zero, whatever was given."""
    if not 0.0 <= cfg.semantic_after <= 0.5:
        raise ConfigError(
            f"Expected semantic_after from 0 to 0.5, got {cfg.semantic_after:g}: the semantic terms rise over as many "
            "steps again, and count in full after twice that share of the run."
        )
    classes, features = cfg.semantic.targets in ("labels", "clusters"), cfg.semantic.targets == "features"
    scale = cfg.semantic.head_scale
    loss = replace(
        cfg.loss,
        semantic=classes * cfg.loss.semantic,
        feature=features * cfg.loss.feature,
        temperature=cfg.loss.temperature or (TEMPERATURE if scale is None else 1.0 / scale),
    )
    return replace(cfg, loss=loss, ppt_loss_weight=classes * cfg.ppt_loss_weight)


def training_sets(
    cfg: Config, encoder: torch.nn.Module, sources: list[Source], semantics: Semantics = NOTHING
) -> list[PretrainDataset]:
    """Augmented scenes of each source, with the encoder's columns."""
    options = {key: getattr(cfg, key) for key in ("volume_shape", "rays_per_view", "input_views", "target_views")}
    options |= {key: getattr(cfg, key) for key in ("grid_size", "dropout", "margin", "recolor")}
    options |= {"image_features": semantics.features, "points": model_collate(encoder)}
    return [
        pretrain_dataset(source, "train", seed=cfg.seed + 1000 * number, **options)
        for number, source in enumerate(sources)
    ]


def build_model(cfg: Config, semantics: Semantics = NOTHING) -> torch.nn.Module:
    names = ("volume_channels", "unet_channels", "unet_shortcut", "mask_ratio", "mask_block")
    options: dict[str, Any] = {name: getattr(cfg, name) for name in names} | {"head": semantics.head}
    encoder_args = {"grid_size": cfg.grid_size} | cfg.encoder_args
    renders = semantics.dim is not None and cfg.loss.semantic + cfg.loss.feature > 0.0
    renderer_args = cfg.renderer_args | ({"semantic_dim": semantics.dim} if renders else {})
    ponder = pz.create_pretrainer(
        cfg.encoder, cfg.renderer, encoder_args=encoder_args, renderer_args=renderer_args, **options
    )
    if semantics.table is not None:
        ponder.head.class_embedding.copy_(semantics.table)  # type: ignore[union-attr, operator]
    if isinstance(ponder.encoder, SparseUNet):
        raise_hue(ponder.encoder, cfg.hue_gain)
    ponder.encoder.set_grad_checkpointing(cfg.grad_checkpointing)  # type: ignore[operator]
    return set_norm_momentum(synchronize_batch_norm(ponder), cfg.norm_momentum)


def prepare_semantics(cfg: Config, sources: list[Source], accelerator: Any) -> Semantics:
    """Embeddings of classes or images; what takes long is computed once and cached, images by all processes."""
    weights = {"ppt_loss_weight": cfg.ppt_loss_weight}
    weights |= {"loss.semantic": cfg.loss.semantic, "loss.feature": cfg.loss.feature}
    default = pz.get_pretrained_cfg(cfg.encoder).condition if pz.is_model(cfg.encoder) else None
    condition = cfg.encoder_args.get("condition", default)
    with accelerator.main_process_first():
        semantics = make_semantics(cfg.semantic, sources, weights=weights, condition=condition)
    if semantics.features is not None:
        scenes = ((source, index) for source in sources for index in range(len(source)))
        share = itertools.islice(scenes, accelerator.process_index, None, accelerator.num_processes)
        semantics.features.prepare((source[index] for source, index in share), accelerator.device)
        accelerator.wait_for_everyone()
    return semantics


def semantic_share(step: int, cfg: Config) -> float:
    """What part of the semantic weights counts in the next step, after `step` of them."""
    alone = cfg.semantic_after * cfg.max_steps
    return min(max(step / alone - 1.0, 0.0), 1.0) if alone > 0.0 else 1.0


def compute_losses(
    ponder: Any, output: pz.RenderOutput, batch: pz.PretrainBatch, cfg: Config, share: float = 1.0
) -> dict[str, Tensor]:
    """All terms, weighted, the semantic ones by `share`, too. Means are over the rays and points of all processes."""
    shared: dict[str, Any] = {"average_count": mean_over_processes}
    table = ponder.class_table(batch.scene.points)
    losses = render_loss(output, batch.targets, batch.rays, cfg.loss, class_embeddings=table, **shared)
    if output.logits is not None and batch.segment is not None:
        losses["ppt"] = cfg.ppt_loss_weight * point_loss(output.logits, batch.segment, **shared)
    # Also where it is 0: every step has the same graph, on all processes.
    return {key: loss * share if key in SEMANTIC_TERMS else loss for key, loss in losses.items()}


def main(cfg: Config) -> None:
    cfg = with_weights(cfg)
    with start_run(cfg) as accelerator:
        train(cfg, accelerator)


def train(cfg: Config, accelerator: Any) -> None:
    first, device, run, began = accelerator.is_main_process, accelerator.device, Path(cfg.output), time.monotonic()
    sources = open_views(cfg.data, "train")
    with accelerator.main_process_first():
        if first and not list_checkpoints(run):  # of a run that ended before it began
            (run / CENTRES).unlink(missing_ok=True)
        relabel = cluster_labels(cfg.semantic, sources, run)
    sources = relabel(sources)
    semantics = prepare_semantics(cfg, sources, accelerator)
    ponder = build_model(cfg, semantics).to(device, torch.float64 if cfg.float64 else None)
    encoder: Any = ponder.encoder
    sets, views = training_sets(cfg, encoder, sources, semantics), view_sets(cfg, encoder, semantics.features, relabel)
    optimizer, schedule, ema, trained, state = make_training(ponder, cfg)
    sampler = make_sampler(sets, cfg, accelerator)
    start = resume_run(cfg, state, sampler, device)
    loader = make_loader(sets, sampler, PretrainCollate(), workers=cfg.data.workers, pin_memory=device.type == "cuda")
    guard = NonFiniteGuard(ponder, limit=cfg.max_broken_steps)
    model, optimizer = accelerator.prepare(ponder, optimizer)  # not the schedule: it would step once per process
    about: dict[str, Any] = {"task": "pretrain", "model": cfg.encoder, "device": str(device)}
    about["command"] = shlex.join(sys.argv)
    if first:
        save_config(cfg, run / "config.yaml")
        write_run_info(run, **about, system=system_info())
    accelerator.init_trackers("ponder_zoo", config_to_dict(cfg) if cfg.log_with else None)

    with RunLog(run / "metrics.jsonl", total=cfg.max_steps, start=start, main=first, track=accelerator.log) as log:

        def preview(step: int, count: int) -> dict[str, float]:
            scores = show_views(accelerator, trained, views, preview_path(run, step), count, cfg.eval_stride)
            values = {f"val_{key}": value for key, value in scores.items()}
            log.write(step, values, show=("val_psnr", "val_psnr_gain", "val_depth_median", "val_depth_ratio"))
            if first:
                write_report(run)
            return scores

        if start == 0:
            preview(0, 4)
        step, sums = start, {}
        for batch in loader:
            batch = batch.to(device, non_blocking=True)
            batch = batch.map(lambda x: x.double() if x.is_floating_point() else x) if cfg.float64 else batch
            freeze_norms(ponder, step >= cfg.norm_freeze * cfg.max_steps)
            with accelerator.accumulate(model):
                output = model(batch.scene, batch.rays, logits=cfg.ppt_loss_weight > 0.0)
                losses = compute_losses(ponder, output, batch, cfg, semantic_share(step, cfg))
                guard.watch(losses)
                accelerator.backward(sum(losses.values()))  # every entry counts; metrics live elsewhere
                sums = {key: sums.get(key, 0.0) + loss.detach() / cfg.accumulate for key, loss in losses.items()}
                if not accelerator.sync_gradients:
                    continue
                step += 1
                norm = accelerator.clip_grad_norm_(model.parameters(), cfg.max_grad_norm)
                if guard.allows(norm, step=step):
                    optimizer.step()
                    if ema is not None:
                        ema.update(ponder, step)
                lr = optimizer.param_groups[-1]["lr"]
                schedule.step()
                optimizer.zero_grad()
            log.advance(step)
            if step % cfg.log_every == 0 or step == 1:
                values = dict(zip(sums, mean_over_processes(torch.stack(list(sums.values()))).tolist(), strict=True))
                rest = {"lr": lr, "gradient_norm": norm.item(), "skipped": guard.skipped}
                log.write(step, {"loss": sum(values.values())} | values | rest, show=("loss", "rgb", "depth", "lr"))
            sums = {}
            if step % cfg.save_every == 0 or step == sampler.stop:
                save_checkpoint(run, step, state, keep=cfg.keep, info=sampler.describe())
            if step % cfg.preview_every == 0 and step < cfg.max_steps:
                preview(step, 4)
        if step == cfg.max_steps:
            scores = preview(step, cfg.eval_views)

    if step == cfg.max_steps and first:
        trained.float()
        metrics = {key: scores[key] for key in ("psnr", "psnr_gain", "depth_median", "depth_ratio")}
        about_weights = {"training_data": cfg.data.name, "metrics": metrics}
        encoder = trained.encoder
        if isinstance(encoder, SparseUNet) and (filled := fill_untrained_conditions(encoder)):
            logger.info("No data of %s: they get the norms of a trained condition.", ", ".join(filled))
        pz.save_for_hf(encoder, run / "export", renderer=trained, metadata=about_weights)
        if cfg.semantic.targets == "clusters":  # with them `evaluate.py` can tell what the classes are
            shutil.copy(run / CENTRES, run / "export" / CENTRES)
        write_eval(run, scores, step=step)
        write_features(run, encoder, views[0])
        write_run_info(run, **about, status="finished", wall_time=time.monotonic() - began, system=system_info())
        logger.info("%s", json.dumps(scores, indent=1))
        logger.info("Open %s", write_report(run))


if __name__ == "__main__":
    command_line(main, Config, __doc__)
