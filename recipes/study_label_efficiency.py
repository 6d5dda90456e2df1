"""Does pre-training by rendering save labels? The same fine-tuning from it and from scratch, with few labels and many.

    python recipes/study_label_efficiency.py --config recipes/configs/study/smoke.yaml      # minutes: does it run?
    python recipes/study_label_efficiency.py --config recipes/configs/study/full.yaml       # hours on two cores
    python recipes/study_label_efficiency.py --config recipes/configs/study/ablation.yaml   # what matters

`real_root=PATH` adds labelled scans, with rooms left out in turn; `jobs=1` suits a GPU.

For each seed an encoder is pre-trained in each way that `arms` names; `{init: NAME}` is one that has its weights, as
finetune.py names them. Then each arm and an encoder from
scratch are fine-tuned for equal steps with a part of the scenes labelled (`reconstructions`), or a few points of every
scene (`annotations`), or frozen below a linear head (`linear`). How, is chosen for each arm and each kind of labels
from `choices` on validation rooms, built-in ones also for real scans; scores are those of test rooms, whose sizes,
colours and styles no other room has.

The folder `output` gets results.json, results.md and, for several amounts of labels, results.svg, written anew after
every fine-tuning, and a run folder for each training. What was stopped goes on where it was if started again with the
same settings; seeds and arms may be added: `seeds=[0]` first and all seeds later has a table of all arms early.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from tqdm import tqdm

from ponder_zoo.data.catalog import DataConfig, open_labelled
from ponder_zoo.data.synthetic.baseline import feature_baselines, point_features
from ponder_zoo.files import write_atomic
from ponder_zoo.metrics.segmentation import add_confusions
from ponder_zoo.report.run_files import write_json
from ponder_zoo.report.study import arms_table, study_table, write_study_chart
from ponder_zoo.report.system import system_info
from ponder_zoo.train.config import ConfigError, check_same_run, config_to_dict, load_config, save_config, saved_values
from ponder_zoo.train.log import setup_logging
from ponder_zoo.train.run import command_line

logger = logging.getLogger("ponder_zoo.recipes.study")
SCRATCH = "scratch"
CHOSEN_AS = {"real": "scenes"}  # of real scans there are too few to choose on some and score on others
# Settings that may differ when a study goes on
FREE_KEYS = (
    *("output", "jobs", "data.workers", "data.cache", "seeds"),
    *("reconstructions", "annotations", "linear", "real_root", "reference"),
)


@dataclass(frozen=True)
class Config:
    """Settings."""

    output: str = "runs/label_efficiency"  # folder of the study
    seeds: tuple[int, ...] = (0, 1, 2)  # each pre-trains anew, draws its own labels and starts its own heads
    encoder: str = "sparseunet_tiny"  # name for create_model
    grid_size: float = 0.1  # metres
    data: DataConfig = field(default_factory=lambda: DataConfig(scenes=400, val_scenes=16))
    test_scenes: int = 32  # rooms of the test split
    # Settings of pretrain.py by name, or {init: WEIGHTS}; scratch is always there
    arms: dict[str, Any] = field(default_factory=dict)
    reference: str = SCRATCH  # arm that the others are compared with
    pretrain: dict[str, Any] = field(default_factory=dict)  # settings of pretrain.py for all arms
    finetune: dict[str, Any] = field(default_factory=lambda: {"max_steps": 200, "batch_size": 2})  # of finetune.py
    reconstructions: tuple[float, ...] = (0.01, 0.05, 0.1, 0.2, 1.0)  # shares of the scenes that are labelled
    annotations: tuple[int, ...] = (20, 50, 100, 200)  # labelled points of each scene
    linear: tuple[float, ...] = (1.0,)  # shares of the scenes for a linear head on the frozen encoder
    # Settings of finetune.py by name, to choose from per arm and kind of labels
    choices: dict[str, Any] = field(default_factory=lambda: {"lr3e-3": {"lr": 3e-3}})
    tune_reconstructions: float = 0.05  # where it is chosen for reconstructions, with the first seed
    tune_annotations: int = 50  # the same for annotations
    real_root: str | None = None  # folder of labelled scans (data.name=scannet_labelled)
    real_folds: int = 3  # rooms are left out in so many turns
    jobs: int = 2  # trainings at a time
    threads: int = 1  # of each


@dataclass(frozen=True)
class Labels:
    """What is labelled in a fine-tuning, and what of the encoder learns from it."""

    kind: str  # scenes, points, linear or real
    amount: float = 1.0  # share of the scenes, or points of each scene
    fold: int | None = None  # of real scans

    @property
    def name(self) -> str:
        amount = f"{self.amount:g}" if self.kind == "points" else f"{100 * self.amount:g}%"
        return f"{self.kind}-{amount}" + ("" if self.fold is None else f"-fold{self.fold}")


@dataclass(frozen=True)
class Job:
    """One training of a recipe in its own folder; with `test`, scored on rooms that nothing was chosen on."""

    folder: Path
    recipe: str  # pretrain or finetune
    values: dict[str, Any]
    test: dict[str, Any] | None = None  # settings of evaluate.py
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def result(self) -> Path:
        return self.folder / "result.json"

    @property
    def done(self) -> bool:
        return self.result.is_file()

    def read(self) -> dict[str, Any]:
        """What a training that is done has found, and what it was."""
        return json.loads(self.result.read_text()) | self.about


def without_nulls(cfg: Config) -> Config:
    """The study without the arms and choices that `null` leaves out of those of a file."""
    arms, choices = (
        {name: each for name, each in group.items() if each is not None} for group in (cfg.arms, cfg.choices)
    )
    return replace(cfg, arms=arms, choices=choices)


# What is to be trained


def pretrainings(cfg: Config) -> Iterator[Job]:
    from omegaconf import OmegaConf

    shared = {"encoder": cfg.encoder, "grid_size": cfg.grid_size, "data": config_to_dict(cfg.data)}
    for arm in cfg.arms:
        if "init" in cfg.arms[arm]:
            continue
        for seed in cfg.seeds:
            merged = OmegaConf.merge(shared, cfg.pretrain, cfg.arms[arm], {"seed": seed})  # also inside groups
            values = cast(dict[str, Any], OmegaConf.to_container(merged))
            yield Job(pretrain_folder(cfg, arm, seed), "pretrain", values, about={"arm": arm, "seed": seed})


def pretrain_folder(cfg: Config, arm: str, seed: int) -> Path:
    return Path(cfg.output) / "pretrain" / f"{arm}-seed{seed}".replace(" ", "_")


def finetuning(cfg: Config, arm: str, labels: Labels, seed: int, choice: str) -> Job:
    """Fine-tuning of an arm on some labels."""
    folder = Path(cfg.output) / "finetune" / f"{labels.name}-{arm}-{choice}-seed{seed}".replace(" ", "_")
    data = config_to_dict(cfg.data)
    test: dict[str, Any] = {"data": data | {"val_scenes": cfg.test_scenes}, "split": "test"}
    values: dict[str, Any] = {"data": data, "encoder": cfg.encoder, "grid_size": cfg.grid_size, "fragments": 1}
    values |= cfg.finetune | cfg.choices[choice] | {"seed": seed}
    values["save_every"], values["keep"] = values.get("max_steps", 200), 1
    pretrained = cfg.arms.get(arm, {}).get("init", str(pretrain_folder(cfg, arm, seed)))
    values["init"] = SCRATCH if arm == SCRATCH else pretrained
    if labels.kind == "linear":
        values["mode"] = "linear"
    if labels.kind == "points":
        values["annotated_points"] = int(labels.amount)
    elif labels.kind == "real":
        real = {"name": "scannet_labelled", "root": cfg.real_root, "val_every": cfg.real_folds, "val_fold": labels.fold}
        values["data"], test = real, {"data": real, "split": "val"}
    elif labels.amount < 1.0:
        values["scene_list"] = str(write_scene_list(cfg, labels.amount, seed))
    test |= {"fragments": 1, "task": "segment"}
    return Job(folder, "finetune", values, test, {"arm": arm, "labels": asdict(labels), "seed": seed, "choice": choice})


def write_scene_list(cfg: Config, share: float, seed: int) -> Path:
    """The labelled scenes of a seed: the first of one random order, so that fewer are a part of more."""
    names = open_labelled(cfg.data, "train")[0].scenes.names
    chosen = np.random.default_rng(seed).permutation(len(names))[: max(1, round(share * len(names)))]
    path = Path(cfg.output) / "scenes" / f"{share:g}-seed{seed}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_atomic(path, "".join(f"{names[row]}\n" for row in chosen))


def all_labels(cfg: Config) -> list[Labels]:
    """Every amount of labels that the study compares on."""
    labels = [Labels("scenes", share) for share in cfg.reconstructions]
    labels += [Labels("points", count) for count in cfg.annotations]
    labels += [Labels("linear", share) for share in cfg.linear]
    folds = range(cfg.real_folds) if cfg.real_root else ()
    return labels + [Labels("real", fold=fold) for fold in folds]


def tuning_labels(cfg: Config, kind: str) -> Labels:
    """On what it is chosen how to fine-tune on a kind."""
    return Labels(kind, {"scenes": cfg.tune_reconstructions, "points": cfg.tune_annotations}.get(kind, 1.0))


# Training


@dataclass(frozen=True)
class Workers:
    """Processes that train, each one run after the other: starting one takes as long as a short run."""

    pool: ProcessPoolExecutor
    log: Path  # what they print

    def run(self, jobs: Sequence[Job], title: str, after: Callable[[], None] = lambda: None) -> list[dict[str, Any]]:
        """Train what is not there yet, and call `after` after each; the results in the order of the jobs."""
        missing = [job for job in {job.folder: job for job in jobs}.values() if not job.done]
        waiting = {self.pool.submit(run_job, job): job for job in missing}
        for future in tqdm(as_completed(waiting), total=len(waiting), desc=title, unit="run", disable=not waiting):
            error = future.exception()
            if error is not None:
                self.pool.shutdown(wait=False, cancel_futures=True)
                raise ConfigError(
                    f"{waiting[future].folder} failed: {type(error).__name__}: {error}. {self.log} has what it "
                    "printed; the same command goes on from here."
                ) from error
            after()
        return [job.read() for job in jobs]


@contextmanager
def start_workers(cfg: Config) -> Iterator[Workers]:
    log = Path(cfg.output) / "workers.log"
    options = {"mp_context": get_context("spawn"), "initializer": start_worker, "initargs": (str(log), cfg.threads)}
    with ProcessPoolExecutor(cfg.jobs, **options) as pool:
        yield Workers(pool, log)


def start_worker(log: str, threads: int) -> None:
    """A process for many trainings: its output goes to a file, and it takes its share of the cores."""
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    torch.set_num_threads(threads)
    sys.path.insert(0, str(Path(__file__).parent))
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent() -> None:
    """A worker ends when the study is killed: it would train on beside the study that goes on, in the same folders."""
    parent = parent_process()
    assert parent is not None, "runs in a worker"
    parent.join()
    os._exit(1)


def run_job(job: Job) -> None:
    """Train, test, and write the result last; only that says that a job is done."""
    began = time.monotonic()
    recipe = importlib.import_module(job.recipe)
    recipe.main(load_config(recipe.Config, values=job.values | {"output": str(job.folder)}))
    result: dict[str, Any] = {"validation": read_metrics(job.folder / "eval.json")}
    if job.test is not None:
        evaluate = importlib.import_module("evaluate")
        values = job.test | {"run": str(job.folder), "output": str(job.folder / "test")}
        evaluate.main(load_config(evaluate.Config, values=values))
        result["test"] = read_metrics(job.folder / "test/eval.json")
        result["confusion"] = json.loads((job.folder / "test/confusion.json").read_text())
        shutil.rmtree(job.folder / "export")
    shutil.rmtree(job.folder / "checkpoints")
    write_json(job.result, result | {"seconds": time.monotonic() - began})


def read_metrics(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text())["metrics"]


def choices_of(cfg: Config, kind: str) -> list[str]:
    """What there is to choose from; a linear head has nothing below it to train."""
    return [name for name in cfg.choices if kind != "linear" or "mode" not in cfg.choices[name]]


def choose(cfg: Config, workers: Workers, arms: Sequence[str], kinds: Sequence[str]) -> dict[tuple[str, str], str]:
    """The choice for each arm and kind with the highest mIoU on validation rooms, first seed; or the only one."""
    options = {kind: choices_of(cfg, kind) for kind in dict.fromkeys(CHOSEN_AS.get(kind, kind) for kind in kinds)}
    best = {(arm, kind): names[0] for kind, names in options.items() for arm in arms}
    jobs = [
        finetuning(cfg, arm, tuning_labels(cfg, kind), cfg.seeds[0], choice)
        for kind, names in options.items()
        if len(names) > 1
        for arm in arms
        for choice in names
    ]
    scores: dict[tuple[str, str], dict[str, float]] = {}
    for result in workers.run(jobs, "choices"):
        found = scores.setdefault((result["arm"], result["labels"]["kind"]), {})
        found[result["choice"]] = result["validation"]["mIoU"]
    for (arm, kind), found in scores.items():
        logger.info("%s, %s: %s", arm, kind, {choice: round(100 * score, 1) for choice, score in found.items()})
    best |= {place: max(found, key=found.__getitem__) for place, found in scores.items()}
    return {(arm, kind): best[arm, CHOSEN_AS.get(kind, kind)] for arm in arms for kind in kinds}


def collect_scores(cfg: Config, results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The mIoU of each arm, kind and amount of labels and seed; folds count together, over the classes they have."""
    groups: dict[tuple[str, str, float, int], list[Mapping[str, Any]]] = {}
    for result in results:
        labels = result["labels"]
        groups.setdefault((result["arm"], labels["kind"], labels["amount"], result["seed"]), []).append(result)
    rows = []
    for (arm, kind, amount, seed), group in groups.items():
        total = add_confusions([result["confusion"] for result in group]).compute()
        mean = total["mIoU_present" if kind == "real" else "mIoU"]
        rows.append({"arm": arm, "kind": kind, "amount": amount, "seed": seed, "mIoU": mean})
    return rows


def baselines(cfg: Config) -> dict[str, float]:
    """The mIoU on the test rooms of what knows a point's colour or height and nothing of its surroundings."""
    train = open_labelled(cfg.data, "train")[0].scenes
    test = open_labelled(replace(cfg.data, val_scenes=cfg.test_scenes), "test")[0].scenes
    return feature_baselines(point_features(train, 1000), point_features(test, 1000))


def check_settings(cfg: Config, jobs: Sequence[Job]) -> None:
    """Settings of recipes that do not exist are errors now, not after hours."""
    if cfg.data.name != "synthetic":
        raise ConfigError(
            f"Expected data.name=synthetic, the set with a test split made for this; got {cfg.data.name}."
        )
    if not cfg.arms:
        raise ConfigError(
            "Expected arms to compare with scratch, got none. Give --config recipes/configs/study/full.yaml, or "
            "arms={NAME: {settings of pretrain.py}}."
        )
    if SCRATCH in cfg.arms or min(len(cfg.seeds), len(choices_of(cfg, "linear")), cfg.jobs, cfg.threads) < 1:
        raise ConfigError(
            f"Expected arms with other names than {SCRATCH!r}, and at least one seed, choice without a mode, "
            "job and thread."
        )
    if cfg.reference not in (SCRATCH, *cfg.arms):
        raise ConfigError(f"Expected reference to be {SCRATCH} or one of the arms, got {cfg.reference!r}.")
    for arm in cfg.arms:
        if "init" in cfg.arms[arm] and len(cfg.arms[arm]) > 1:
            raise ConfigError(f"Expected arms.{arm} to have init or settings of pretrain.py, got {cfg.arms[arm]}.")
    for job in jobs:
        load_config(importlib.import_module(job.recipe).Config, values=job.values)


def check_goes_on(cfg: Config, file: Path) -> None:
    """A study goes on with the settings that it was started with; arms may come to those that were there."""
    known = saved_values(file).get("arms", {})
    before = {arm: values for arm, values in cfg.arms.items() if arm in known}
    check_same_run(replace(cfg, arms=before), file, free=FREE_KEYS)


def main(cfg: Config) -> None:
    setup_logging(main=True)
    cfg = without_nulls(cfg)
    names, labels = [SCRATCH, *cfg.arms], all_labels(cfg)
    pretrain_jobs = list(pretrainings(cfg))
    trials = [finetuning(cfg, SCRATCH, Labels("points", 1), cfg.seeds[0], choice) for choice in cfg.choices]
    check_settings(cfg, [*pretrain_jobs, *trials])
    output = Path(cfg.output)
    output.mkdir(parents=True, exist_ok=True)
    if (output / "config.yaml").is_file():
        check_goes_on(cfg, output / "config.yaml")
    save_config(cfg, output / "config.yaml")
    known = baselines(cfg)
    with start_workers(cfg) as workers:
        content: dict[str, Any] = {"baselines": known, "config": config_to_dict(cfg), "system": system_info()}
        content["pretraining"] = workers.run(pretrain_jobs, "pre-training")
        chosen = choose(cfg, workers, names, [each.kind for each in labels])
        content["choices"] = [[*place, choice] for place, choice in chosen.items()]
        places = [(arm, each, seed) for each in labels for arm in names for seed in cfg.seeds]
        jobs = [finetuning(cfg, *place, choice=chosen[place[0], place[1].kind]) for place in places]
        workers.run(jobs, "fine-tuning", after=lambda: write_results(cfg, jobs, content))
    write_results(cfg, jobs, content)
    logger.info("%s\n\nWritten to %s", (output / "results.md").read_text(), output)


def write_results(cfg: Config, jobs: Sequence[Job], content: Mapping[str, Any]) -> None:
    """Table, chart and raw results of the fine-tunings that are done."""
    results = [job.read() for job in jobs if job.done]
    scores, output = collect_scores(cfg, results), Path(cfg.output)
    about = {"baselines": content["baselines"], "reference": cfg.reference}
    if len({(each.kind, each.amount) for each in all_labels(cfg)}) == 1:
        table = arms_table(scores, pretraining=content["pretraining"], **about)
    else:
        table = study_table(scores, **about)
        write_study_chart(output / "results.svg", scores)
    write_atomic(output / "results.md", table + "\n")
    write_json(output / "results.json", {"scores": scores, **content, "finetuning": results})


if __name__ == "__main__":
    command_line(main, Config, __doc__)
