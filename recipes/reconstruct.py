"""Reconstruct surfaces from few points with a pre-trained model, beside methods that learn nothing (Fig. 7).

    python recipes/reconstruct.py run=runs/pretrain                  # 2 % of the points of 8 built-in test rooms
    python recipes/reconstruct.py run=runs/pretrain keep=0.1 rooms=2 output=runs/surfaces
    python recipes/reconstruct.py run=runs/pretrain scans=[scan.ply] # own scans instead; what is left out is the truth

Of each room a few points are kept and encoded once, and the zero of the signed distance is drawn with marching cubes.
Screened Poisson and ball pivoting (pip install "ponder_zoo[mesh]") get the same points and normals. All methods may
drop surface that is far from every point. The settings of each are chosen by F-score on validation rooms. Writes
surfaces.json, surfaces.png and a .ply of each surface into `output`. Takes minutes on a CPU.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

import ponder_zoo as pz
from ponder_zoo.data.catalog import DataConfig
from ponder_zoo.data.normals import estimate_normals, room_viewpoint
from ponder_zoo.data.readers import read_scene
from ponder_zoo.data.scene import Scene
from ponder_zoo.data.synthetic import SyntheticRooms, sample_surface
from ponder_zoo.data.transforms import RandomDropout
from ponder_zoo.data.visibility import seen_by_views
from ponder_zoo.metrics.surface import SurfaceScores, sample_mesh, surface_scores
from ponder_zoo.ops.knn import knn_tree
from ponder_zoo.ops.marching_cubes import Mesh
from ponder_zoo.ops.point_meshing import (
    ball_pivoting_mesh,
    mean_spacing,
    poisson_mesh,
    require_open3d,
    trim_mesh,
)
from ponder_zoo.render.mesh import extract_mesh
from ponder_zoo.report.markdown import markdown_table
from ponder_zoo.report.mesh import write_mesh
from ponder_zoo.report.pointcloud_io import write_ply
from ponder_zoo.report.run_files import write_json
from ponder_zoo.report.surface_views import SurfaceRow, SurfaceSamples, write_surface_views
from ponder_zoo.report.system import system_info
from ponder_zoo.train.config import ConfigError, config_to_dict, saved_values
from ponder_zoo.train.log import setup_logging
from ponder_zoo.train.run import command_line

logger = logging.getLogger("ponder_zoo.recipes.reconstruct")
OURS, FIELD, POISSON, PIVOTING = "ours", "field alone", "screened Poisson", "ball pivoting"
COLUMNS = ("accuracy", "completeness", "normal_consistency", "f_score", "f_score_5cm", "f_score_all", "seconds")
CENTIMETRES = ("accuracy", "completeness")
Setting = dict[str, Any]


@dataclass(frozen=True)
class Config:
    """Settings. Of lists, all values are tried on the validation rooms; without such rooms the first ones are taken."""

    run: str = "runs/pretrain"  # run folder, or an exported model
    output: str | None = None  # where to write; null: RUN/surfaces
    scans: tuple[str, ...] = ()  # files of points to reconstruct, instead of rooms
    rooms: int = 8  # built-in test rooms
    tuning_rooms: int = 4  # built-in validation rooms
    keep: float = 0.02  # share of the points that the methods get; Fig. 7: 0.02
    seed: int = 0  # of which points are kept, and of the points on surfaces that are compared
    data: DataConfig = field(default_factory=DataConfig)  # views, image_size, sensor and cache of the built-in rooms

    volume_shape: tuple[int, int, int] = (48, 48, 24)  # X, Y, Z cells
    margin: float = 0.3  # metres around the points that the volume covers, too
    finer: tuple[int, ...] = (2,)  # distances that our method reads per cell and axis
    anchors: tuple[float, ...] = (0.1, 0.05)  # metres, of our method; see extract_mesh. "field alone" has none
    depths: tuple[int, ...] = (8, 7)  # of Poisson's octree
    balls: tuple[tuple[float, ...], ...] = ((2.0, 4.0), (1.0, 2.0, 4.0))  # radii over the mean spacing
    reaches: tuple[float, ...] = (0.2, 0.15, 0.3)  # metres from the nearest point beyond which surface is dropped
    facing: tuple[float, ...] = (0.3, -1.0)  # cosine to the nearest point's normal below which it is; -1: none

    samples: int = 100_000  # points on each surface that are compared
    threshold: float = 0.01  # of the F-score, over the longest side of the true surface's box
    tolerance: float = 0.05  # metres from the depth that a view has there, for a true point to be seen by it
    pictures: int = 3  # rooms or scans in the picture

    def __post_init__(self) -> None:
        if not 0.0 < self.keep <= 1.0 or min(self.rooms, self.samples, self.pictures) < 1 or self.tuning_rooms < 0:
            raise ValueError(
                "Expected keep in (0, 1], rooms, samples and pictures of 1 or more and tuning_rooms of 0 or more; got "
                f"keep={self.keep}, rooms={self.rooms}, samples={self.samples}, pictures={self.pictures}, "
                f"tuning_rooms={self.tuning_rooms}."
            )
        lists = (self.finer, self.anchors, self.depths, self.balls, self.reaches, self.facing)
        if not all(lists):
            raise ValueError(
                f"Expected values in each of finer, anchors, depths, balls, reaches and facing; got {lists}."
            )


class Truth(NamedTuple):
    """What is to be found."""

    coord: NDArray[Any]  # (T, 3) metres
    normal: NDArray[Any]  # (T, 3) unit
    seen: NDArray[np.bool_]  # (T,) whether a view shows it: what none shows need not be found


class Task(NamedTuple):
    scene: Scene  # the points that are kept, each with a normal
    truth: Truth


def main(cfg: Config) -> None:
    setup_logging(main=True)
    absent = [path for path in cfg.scans if not Path(path).is_file()]
    if absent:
        raise ConfigError(f"Expected files in scans, got {absent}, which are none. Check the paths.")
    methods, missing = available_methods(load_ponder(cfg), cfg)
    output, began = Path(cfg.output or Path(cfg.run) / "surfaces"), time.monotonic()
    report: dict[str, Any] = {"command": shlex.join(sys.argv), "config": config_to_dict(cfg), "system": system_info()}
    tasks = scan_tasks(cfg) if cfg.scans else room_tasks(cfg, "test", cfg.rooms)
    trials, scenes, rows = [], {}, []
    with tqdm(total=cfg.tuning_rooms + (len(cfg.scans) or cfg.rooms), unit="scene", disable=None, leave=False) as bar:
        for task in room_tasks(cfg, "val", cfg.tuning_rooms):
            trials += tune(task, methods, cfg)
            bar.update()
        chosen = choose(trials, methods, cfg)
        for task in tasks:
            name = task.scene.name
            found = {method: reconstruct(task, methods[method], setting) for method, setting in chosen.items()}
            scores = {method: compare(mesh, task.truth, cfg) | {"seconds": t} for method, (mesh, t) in found.items()}
            scenes[name] = {"points": len(task.scene), "seen": float(task.truth.seen.mean()), **scores}
            write_ply(output / f"{name}.points.ply", task.scene.coord, color=task.scene.color, normal=task.scene.normal)
            for method, (mesh, _) in found.items():
                if len(mesh.faces):
                    write_mesh(mesh, output / f"{name}.{method.replace(' ', '_')}.ply")
            if len(rows) < cfg.pictures:
                rows.append(picture_row(task, {method: mesh for method, (mesh, _) in found.items()}, scores, cfg))
            logger.info("%s: F-score %s", name, ", ".join(f"{m} {s['f_score']:.3f}" for m, s in scores.items()))
            bar.update()
    summary = summarize(scenes, list(chosen))
    report |= {"summary": summary, "missing": missing, "chosen": chosen, "scenes": scenes, "tuning": trials}
    write_json(output / "surfaces.json", report | {"wall_time": time.monotonic() - began})
    title = f"Surfaces from {100 * cfg.keep:.3g} % of the points"
    picture = write_surface_views(output / "surfaces.png", rows, max_error=0.2, title=title)
    logger.info("%s\n%s", table(summary, missing), picture)


# Points and truth


def room_tasks(cfg: Config, split: Any, count: int) -> Iterator[Task]:
    """Built-in rooms: of the points that their views see some are kept; the truth is the generator's."""
    if count == 0:
        return
    options: dict[str, Any] = {"num_views": cfg.data.views, "image_size": cfg.data.image_size}
    options |= {"sensor": cfg.data.sensor, "cache_dir": cfg.data.cache}
    rooms = SyntheticRooms(split, num_scenes=count, **options)
    for index in range(count):
        scene, room = rooms[index], rooms.room(index)
        assert scene.views is not None
        exact = sample_surface(room.primitives, room.plan, cfg.samples, np.random.default_rng((cfg.seed, index)))
        seen = seen_by_views(scene.views, exact.coord, exact.normal, tolerance=cfg.tolerance)
        yield Task(kept_points(scene, cfg, index), Truth(exact.coord, exact.normal, seen))


def scan_tasks(cfg: Config) -> Iterator[Task]:
    """Own scans; all of their points are the truth."""
    for index, path in enumerate(cfg.scans):
        scan = read_scene(path)
        whole = with_normals(scan)
        assert whole.normal is not None
        yield Task(kept_points(scan, cfg, index), Truth(whole.coord, whole.normal, np.ones(len(whole), dtype=bool)))


def kept_points(scene: Scene, cfg: Config, index: int) -> Scene:
    rng = np.random.default_rng((cfg.seed, index, 1))
    return with_normals(RandomDropout(1.0 - cfg.keep, p=1.0)(replace(scene, views=None), rng))


def with_normals(scene: Scene) -> Scene:
    """Where normals are absent, those of planes through the neighbours, towards the middle of the room."""
    normal = np.zeros_like(scene.coord) if scene.normal is None else scene.normal
    absent = np.linalg.norm(normal, axis=-1, keepdims=True) < 0.5
    if not absent.any():
        return scene
    estimated = estimate_normals(scene.coord, viewpoint=room_viewpoint(scene.coord))
    return replace(scene, normal=np.where(absent, estimated, normal).astype(np.float32))


# Methods


class Method(NamedTuple):
    build: Any  # (scene, **setting) -> Mesh
    settings: list[Setting]


def load_ponder(cfg: Config) -> Any:
    run = Path(cfg.run)
    folder = run / "export" if (run / "export").is_dir() else run
    ponder = pz.create_pretrainer(f"local-dir:{folder}", pretrained=True)
    return ponder.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def available_methods(ponder: Any, cfg: Config) -> tuple[dict[str, Method], dict[str, str]]:
    """Methods by name with the settings to try, and why others are missing."""
    transform = pz.create_transform(**pz.resolve_model_data_config(ponder.encoder))

    def ours(scene: Scene, finer: int, anchor: float) -> Mesh:
        item = transform.scene_input(scene, volume_shape=cfg.volume_shape, margin=cfg.margin)
        with torch.no_grad():
            volume = ponder.volume_encoder(item.to(next(ponder.parameters()).device))
        options: dict[str, Any] = {"finer": finer, "anchor": anchor, "reach": max(cfg.reaches)}
        return extract_mesh(ponder.renderer.field, volume, scene.coord, **options)

    def poisson(scene: Scene, depth: int) -> Mesh:
        assert scene.normal is not None
        return poisson_mesh(scene.coord, scene.normal, depth=depth)

    def pivoting(scene: Scene, balls: Sequence[float]) -> Mesh:
        assert scene.normal is not None
        spacing = mean_spacing(scene.coord)
        return ball_pivoting_mesh(scene.coord, scene.normal, radii=[ball * spacing for ball in balls])

    methods = {
        OURS: Method(ours, [{"finer": f, "anchor": a} for f, a in itertools.product(cfg.finer, cfg.anchors)]),
        FIELD: Method(ours, [{"finer": finer, "anchor": 0.0} for finer in cfg.finer]),
    }
    try:
        require_open3d()
    except ImportError as error:
        logger.warning("%s", error)
        return methods, dict.fromkeys((POISSON, PIVOTING), "not installed")
    methods[POISSON] = Method(poisson, [{"depth": depth} for depth in cfg.depths])
    methods[PIVOTING] = Method(pivoting, [{"balls": balls} for balls in cfg.balls])
    return methods, {}


def trimmed(mesh: Mesh, scene: Scene, reach: float, facing: float) -> Mesh:
    return trim_mesh(mesh, scene.coord, reach, normal=scene.normal if facing > -1 else None, facing=facing)


def trims(cfg: Config) -> list[Setting]:
    """What any method may drop."""
    return [{"reach": reach, "facing": facing} for reach, facing in itertools.product(cfg.reaches, cfg.facing)]


def reconstruct(task: Task, method: Method, setting: Setting) -> tuple[Mesh, float]:
    """The surface near the points, and the seconds that it took."""
    began = time.perf_counter()
    options = {key: value for key, value in setting.items() if key not in ("reach", "facing")}
    mesh = trimmed(method.build(task.scene, **options), task.scene, setting["reach"], setting["facing"])
    return mesh, time.perf_counter() - began


def tune(task: Task, methods: Mapping[str, Method], cfg: Config) -> Iterator[dict[str, Any]]:
    """F-score of each method with each of its settings, from a fifth of the points on surfaces: enough to choose."""
    cfg = replace(cfg, samples=max(cfg.samples // 5, 1))
    truth = Truth(*(column[: cfg.samples] for column in task.truth))  # drawn in random order
    for name, method in methods.items():
        for setting in method.settings:
            mesh = method.build(task.scene, **setting)  # once for all trims
            for trim in trims(cfg):
                score = scores_of(trimmed(mesh, task.scene, **trim), truth, cfg).f_score
                yield {"scene": task.scene.name, "method": name, "setting": setting | trim, "f_score": score}


def choose(trials: Sequence[Mapping[str, Any]], methods: Mapping[str, Method], cfg: Config) -> dict[str, Setting]:
    """The setting of each method with the best mean F-score; the first of equals."""

    def mean(name: str, setting: Setting) -> float:
        same = [trial["f_score"] for trial in trials if trial["method"] == name and trial["setting"] == setting]
        return float(np.mean(same)) if same else 0.0

    chosen = {}
    for name, method in methods.items():
        settings = [setting | trim for setting, trim in itertools.product(method.settings, trims(cfg))]
        scores = [mean(name, setting) for setting in settings]
        chosen[name] = settings[int(np.argmax(scores))]
    return chosen


# Scores


def compare(mesh: Mesh, truth: Truth, cfg: Config) -> dict[str, float]:
    """Scores of a surface: metres and shares; F-scores also at 5 cm, and with what no view shows to be found, too."""
    everything = truth._replace(seen=np.ones_like(truth.seen))
    scores = dataclasses.asdict(scores_of(mesh, truth, cfg)) | {"threshold": threshold_of(truth, cfg)}
    scores["f_score_5cm"] = scores_of(mesh, truth, cfg, threshold=0.05).f_score
    return scores | {"f_score_all": scores_of(mesh, everything, cfg).f_score}


def scores_of(mesh: Mesh, truth: Truth, cfg: Config, threshold: float | None = None) -> SurfaceScores:
    coord, normal = spread(mesh, cfg)
    options = {"predicted_normal": normal, "true_normal": truth.normal, "seen": truth.seen}
    return surface_scores(coord, truth.coord, threshold=threshold or threshold_of(truth, cfg), **options)


def threshold_of(truth: Truth, cfg: Config) -> float:
    """Metres, of the F-score."""
    return cfg.threshold * float(np.ptp(truth.coord, axis=0).max())


def spread(mesh: Mesh, cfg: Config) -> tuple[NDArray[Any], NDArray[Any]]:
    """Points on a surface and its normals there: none on one without faces."""
    if len(mesh.faces) == 0:
        return np.zeros((0, 3)), np.zeros((0, 3))
    return sample_mesh(mesh.vertices, mesh.faces, cfg.samples, rng=np.random.default_rng(cfg.seed))


def summarize(scenes: Mapping[str, Mapping[str, Any]], methods: Sequence[str]) -> dict[str, Any]:
    """Mean and standard deviation over the scenes, and of our F-score minus that of each other method."""
    scores = {name: [scene[name] for scene in scenes.values()] for name in methods}
    summary = {n: {key: mean_and_spread([s[key] for s in each]) for key in COLUMNS} for n, each in scores.items()}
    for name in methods:
        if name != OURS:
            gain = [a["f_score"] - b["f_score"] for a, b in zip(scores[OURS], scores[name], strict=True)]
            summary[name]["ours_minus_this_f_score"] = mean_and_spread(gain)
    return summary


def mean_and_spread(values: Sequence[float]) -> dict[str, float]:
    """Of the values that are numbers; an empty surface has no distances."""
    known = [value for value in values if np.isfinite(value)]
    if not known:
        return {"mean": float("nan"), "std": float("nan"), "scenes": 0}
    return {"mean": float(np.mean(known)), "std": float(np.std(known, ddof=int(len(known) > 1))), "scenes": len(known)}


def table(summary: Mapping[str, Any], missing: Mapping[str, str]) -> str:
    """The summary as Markdown: distances in cm."""
    head = [f"{key} (cm)" if key in CENTIMETRES else key for key in COLUMNS]
    rows = []
    for name, scores in summary.items():
        cells = []
        for key in COLUMNS:
            factor, digits = (100.0, 1) if key in CENTIMETRES else (1.0, 3)
            cells.append(f"{factor * scores[key]['mean']:.{digits}f} ± {factor * scores[key]['std']:.{digits}f}")
        rows.append([name, *cells])
    rows += [[name, *([why] * len(head))] for name, why in missing.items()]
    return markdown_table(["method", *head], rows)


# Picture


def picture_row(task: Task, meshes: Mapping[str, Mesh], scores: Mapping[str, Any], cfg: Config) -> SurfaceRow:
    surfaces = {}
    for name in (OURS, POISSON):
        if name in meshes:
            mesh, caption = meshes[name], f"F-score {scores[name]['f_score']:.3f}"
            coord, normal = spread(mesh, cfg)
            error = knn_tree(coord, task.truth.coord, 1)[0][:, 0]
            color = None if mesh.color is None else mesh.color[knn_tree(coord, mesh.vertices, 1)[1][:, 0]]
            surfaces[name] = SurfaceSamples(coord, normal, error, color, caption)
    truth = SurfaceSamples(task.truth.coord, task.truth.normal)
    return SurfaceRow(task.scene.name, task.scene.coord, task.scene.color, surfaces, truth)


def run_settings(arguments: Sequence[str]) -> dict[str, Any]:
    """Data and volume of the run that the arguments name, from its config.yaml, if it has one."""
    run = Path(next((text.partition("=")[2] for text in arguments if text.startswith("run=")), Config.run))
    file = next((folder / "config.yaml" for folder in (run, run.parent) if (folder / "config.yaml").is_file()), None)
    saved = {} if file is None else saved_values(file)
    return {key: saved[key] for key in ("data", "volume_shape", "margin") if key in saved}


if __name__ == "__main__":
    command_line(main, Config, __doc__, base=run_settings(sys.argv[1:]))
