"""The steps that every recipe begins with. They read its settings by name; Accelerate is imported when they run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from .checkpoint import CheckpointError, find_checkpoint, load_checkpoint, open_run_folder
from .config import ConfigError, check_same_run, parse_config
from .guard import NonFiniteError
from .launch import ensure_processes, use_idle_cores
from .log import setup_logging
from .optim import make_ema, make_optimizer, make_schedule
from .sampler import JointDataset, StepSampler

logger = logging.getLogger(__name__)

# Settings that may differ when a run goes on. The data and the whole batch are compared with the checkpoint instead.
FREE_KEYS = ("output", "resume", "stop_step", "log_", "keep", "save_every", "preview_every", "eval_", "votes", "split")
FREE_KEYS += ("fragments", "cluster_", "batch_size", "accumulate", "init")
FREE_KEYS += ("data.workers", "data.root", "data.cache", "data.val_scenes", "semantic.cache")


class Training(NamedTuple):
    """What trains a model."""

    optimizer: Optimizer
    schedule: LRScheduler  # step it by hand: `accelerator.prepare` would let it step once per process
    ema: Any | None
    trained: nn.Module  # what to evaluate and export: the averaged model, if there is one
    state: dict[str, Any]  # what a checkpoint holds


def command_line(
    main: Callable[[Any], None], cls: type, description: str | None, *, base: Mapping[str, Any] | None = None
) -> None:
    """Run a recipe from the command line; what a user can correct ends it with a message instead of a traceback.

    Args:
        main: takes the settings.
        cls: their dataclass.
        description: text above the keys in `--help`.
        base: see `parse_config`.
    """
    ensure_processes()
    use_idle_cores()
    cfg = parse_config(cls, description=description, base=base)
    try:
        main(cfg)
    except (ConfigError, CheckpointError, NonFiniteError, ConnectionError) as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit("stopped; the same command goes on from the last checkpoint") from None


@contextmanager
def start_run(cfg: Any) -> Iterator[Any]:
    """Accelerator, seeds, messages and the run folder, which is this run's alone until the block ends.

    Args:
        cfg: reads `mixed_precision`, `accumulate`, `log_with`, `output`, `seed`.
    """
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs, set_seed

    accelerator = Accelerator(
        mixed_precision=cfg.mixed_precision,
        gradient_accumulation_steps=cfg.accumulate,
        log_with=cfg.log_with,
        project_dir=cfg.output,
        # The norms of absent data sets are unused. Those in use are synchronized: no buffer needs a broadcast.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)],
    )
    setup_logging(main=accelerator.is_main_process)
    set_seed(cfg.seed)
    with open_run_folder(Path(cfg.output)) if accelerator.is_main_process else nullcontext():
        accelerator.wait_for_everyone()
        yield accelerator
        accelerator.end_training()


def make_training(model: nn.Module, cfg: Any) -> Training:
    """Optimizer, schedule and averaged weights.

    Args:
        model: on its device.
        cfg: reads `optimizer`, `lr`, `weight_decay`, `decay_all`, `layer_decay` (if it has it), `schedule`, `warmup`,
            `max_steps` and `ema`.
    """
    options = {key: getattr(cfg, key) for key in ("lr", "weight_decay", "decay_all")}
    optimizer = make_optimizer(model, cfg.optimizer, layer_decay=getattr(cfg, "layer_decay", None), **options)
    schedule = make_schedule(optimizer, cfg.schedule, total_steps=cfg.max_steps, warmup=cfg.warmup)
    ema = make_ema(model, cfg.ema)
    state = {"model": model, "optimizer": optimizer, "schedule": schedule} | ({} if ema is None else {"ema": ema})
    return Training(optimizer, schedule, ema, model if ema is None else ema.module, state)


def make_sampler(sets: Sequence[Any], cfg: Any, accelerator: Any) -> StepSampler:
    """Batches of this process.

    Args:
        sets: map-style data sets with items for keys (epoch, index).
        cfg: reads `batch_size`, `accumulate`, `max_steps`, `stop_step`, `seed` and `data.ratios`.
        accelerator: says which process this is.
    """
    return StepSampler(
        [len(each) for each in sets],
        cfg.batch_size * cfg.accumulate * accelerator.num_processes,
        stop=min(cfg.max_steps, cfg.stop_step or cfg.max_steps),
        ratios=cfg.data.ratios,
        seed=cfg.seed,
        parts=cfg.accumulate,
        processes=accelerator.num_processes,
        process=accelerator.process_index,
    )


def resume_run(cfg: Any, state: dict[str, Any], sampler: StepSampler, device: torch.device) -> int:
    """Restore what `resume` asks for; returns the number of steps done, where the sampler then starts.

    Args:
        cfg: reads `output` and `resume`; where the run goes on in its own folder, all settings are compared.
        state: `Training.state`.
        sampler: moved to the step.
        device: of the model.
    """
    run = Path(cfg.output)
    found = find_checkpoint(run, cfg.resume)
    if found is None:
        return 0
    if found.parent.parent == run:
        check_same_run(cfg, run / "config.yaml", free=FREE_KEYS)
    sampler.start = load_checkpoint(found, state, device=device, info=sampler.describe())
    logger.info("Going on from %s", found)
    return sampler.start


def make_loader(
    sets: Sequence[Any], sampler: StepSampler, collate: Callable[[Any], Any], *, workers: int, pin_memory: bool
) -> DataLoader[Any]:
    """A loader of the sampler's batches. Each process has its own share: it is not for `accelerator.prepare`."""
    return DataLoader(
        JointDataset(sets),
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=workers,
        pin_memory=pin_memory,
        generator=torch.Generator(),  # a new iterator draws a number: from here, not from the generator that resumes
    )
