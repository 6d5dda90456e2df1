"""Evaluate a run or an exported model on scenes that it was not trained on.

    python recipes/evaluate.py run=runs/pretrain    # renders held-out views: PSNR and depth against constant images
    python recipes/evaluate.py run=runs/finetune    # segmentation: IoU of each class, mIoU; of instances also AP
    python recipes/evaluate.py run=runs/finetune votes=13 fragments=0 submission=FOLDER   # files for ScanNet's server
    python recipes/evaluate.py folds=[runs/area_1,runs/area_2,...] output=runs/six_fold   # sums of evaluated runs
    python recipes/evaluate.py run=runs/pretrain data.name=rgbd data.root=PATH output=runs/pretrain_on_frames
    python recipes/evaluate.py --table 9            # the paper's numbers, and those of the runs under runs/

Data and grid are those of the run's config.yaml unless given. Writes eval.json and previews into `output`.
"""

from __future__ import annotations

import copy
import json
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.nn.functional import normalize

import ponder_zoo as pz
from ponder_zoo.data.catalog import DataConfig, Source, open_labelled, open_views, pretrain_dataset
from ponder_zoo.data.collate import PointCollate, collate_scenes
from ponder_zoo.data.image_features import ImageFeatures, look_up
from ponder_zoo.data.model_input import model_collate
from ponder_zoo.data.motion import move_scene
from ponder_zoo.data.pretrain import PretrainDataset
from ponder_zoo.data.scene import Scene, Views
from ponder_zoo.data.semantics import Relabel, kept_cluster_labels
from ponder_zoo.data.submission import benchmark_ids, write_instances, write_semantic
from ponder_zoo.data.transforms import CenterShift, axis_rotation, grid_fragments, segmentation_test_transforms
from ponder_zoo.files import write_atomic
from ponder_zoo.metrics.instance import InstanceAP
from ponder_zoo.metrics.render import class_scores, mean_scores, view_scores
from ponder_zoo.metrics.segmentation import ConfusionMatrix, add_confusions, score_table
from ponder_zoo.models.pointgroup import PointGroup
from ponder_zoo.render.image import render_image
from ponder_zoo.report.instance_views import write_instance_views
from ponder_zoo.report.pca import PCAColors, pca_rgb
from ponder_zoo.report.previews import PreviewView, write_segmentation_views, write_view_grid
from ponder_zoo.report.run_files import write_clouds, write_eval
from ponder_zoo.report.splat import Camera
from ponder_zoo.structures import Instances
from ponder_zoo.train.config import saved_values
from ponder_zoo.train.log import setup_logging
from ponder_zoo.train.run import command_line

logger = logging.getLogger("ponder_zoo.recipes.evaluate")


@dataclass(frozen=True)
class Config:
    """Settings."""

    run: str = "runs/pretrain"  # run folder, or an exported model
    output: str | None = None  # where to write; null: into `run`
    folds: tuple[str, ...] = ()  # evaluated runs whose counts are added up instead, as in S3DIS's cross-validation
    task: Literal["auto", "render", "segment", "instances"] = "auto"  # auto: what the model has heads for
    data: DataConfig = field(default_factory=DataConfig)
    split: Literal["train", "val", "test"] = "val"  # test: for a submission, its scenes need no labels
    expected: dict[str, Any] = field(default_factory=dict)  # what the paper reports; see finetune.py
    grid_size: float | None = None  # metres; null: that of the model
    volume_shape: tuple[int, int, int] = (48, 48, 24)  # X, Y, Z cells, for rendering
    margin: float = 0.3  # metres around the points that the volume covers, too
    dropout: float = 0.3  # share of the points that the encoder does not see; as in training, or colours are off
    input_views: int = 7  # views of a room whose pixels are the points
    eval_views: int = 8  # views to render
    eval_stride: int = 2  # render every so many-th row and column
    votes: int = 1  # augmented copies that vote on each point: 1, 4 (quarter turns) or 13 (official)
    fragments: int = 4  # grid-sampled clouds of each copy that vote; 0: until each point was in one (official)
    stuff: tuple[str, ...] = ("wall", "floor")  # classes without instances
    cluster_radius: float = 1.5  # points of an instance are closer, in cells of the grid
    cluster_points: int = 30  # an instance has more, in cells; official: 100, of 2 cm
    submission: str | None = None  # folder for the files of ScanNet's server


def main(cfg: Config) -> None:
    accelerator = Accelerator()
    setup_logging(main=accelerator.is_main_process)
    if cfg.folds:
        add_folds(cfg)
        return
    run, output = Path(cfg.run), Path(cfg.output or cfg.run)
    folder = run / "export" if (run / "export").is_dir() else run
    options: dict[str, Any] = {} if cfg.grid_size is None else {"grid_size": cfg.grid_size}
    model = pz.create_model(f"local-dir:{folder}", pretrained=True, **options).to(accelerator.device).eval()
    if cfg.task in EVALUATED or (cfg.task == "auto" and model.num_classes):
        has_offsets = isinstance(model, PointGroup)
        task = ("instances" if has_offsets else "segment") if cfg.task == "auto" else cfg.task
        EVALUATED[task](accelerator, model, cfg, output)
        return
    ponder = pz.create_pretrainer(f"local-dir:{folder}", pretrained=True, encoder_args=options)
    ponder = ponder.to(accelerator.device).eval()
    relabel = kept_cluster_labels(folder)
    sets = view_sets(replace(cfg, grid_size=model.grid_size), model, relabel=relabel)
    scores = show_views(accelerator, ponder, sets, output / "previews/views.png", cfg.eval_views, cfg.eval_stride)
    if accelerator.is_main_process:
        write_eval(output, scores, run=str(run), data=cfg.data.name, split=cfg.split)
        write_features(output, model, sets[0])
        logger.info("%s", "\n".join(f"{key:24} {value:.4g}" for key, value in scores.items()))


# Rendering held-out views


def view_sets(
    cfg: Any,
    encoder: nn.Module,
    image_features: ImageFeatures | None = None,
    relabel: Relabel = list,
) -> list[PretrainDataset]:
    """Scenes with views that training does not see, of each data set of a configuration, with an encoder's columns."""
    options = {key: getattr(cfg, key) for key in ("volume_shape", "input_views", "grid_size", "dropout", "margin")}
    sources = relabel(open_views(cfg.data, getattr(cfg, "split", "val")))
    options |= {"points": model_collate(encoder), "image_features": image_features}
    return [pretrain_dataset(source, "val", **options) for source in sources]


@torch.no_grad()
def render_views(
    ponder: nn.Module, sets: Sequence[PretrainDataset], count: int, stride: int, *, first: int = 0, every: int = 1
) -> Iterator[tuple[dict[str, float], PreviewView]]:
    """Scores and pictures of about `count` views, evenly over the sets; every so many-th only (share of a process)."""
    device = next(ponder.parameters()).device
    for data in sets:
        number = min(len(data), max(count // len(sets) // (data.target_views or 1), 1))
        for index in np.linspace(0, len(data) - 1, number).astype(int)[first::every].tolist():
            scene, bounds = data.prepare((0, index))
            item = collate_scenes([replace(scene, inverse=None)], [bounds], data.volume_shape, points=data.points)
            volume, views = ponder.volume_encoder(item.to(device)), scene.views  # type: ignore[operator]
            assert views is not None
            for v in range(len(views)):
                K, pose = torch.from_numpy(views.intrinsics[v]), torch.from_numpy(views.cam_to_world[v])
                size = views.depth.shape[1], views.depth.shape[2]
                image = render_image(ponder.renderer, volume, K, pose, size, stride=stride)  # type: ignore[arg-type]
                rgb = views.color[v, ::stride, ::stride].astype(np.float32) / 255.0
                depth = views.depth[v, ::stride, ::stride]
                rendered = {name: value.float().cpu() for name, value in image.items() if name != "semantic"}
                scores = view_scores(
                    rendered["rgb"], rendered["depth"], torch.from_numpy(rgb), torch.from_numpy(depth.copy())
                )
                more, panels = semantic_panels(ponder, item.points, image, views, v, stride, data.classes)
                yield (
                    scores | more,
                    PreviewView(
                        rgb,
                        rendered["rgb"].clamp(0, 1).numpy(),
                        rendered["depth"].numpy(),
                        depth,
                        rendered["normal"].numpy(),
                        None if views.normal is None else views.normal[v, ::stride, ::stride],
                        rendered["opacity"].numpy(),
                        Camera(views.intrinsics[v], views.cam_to_world[v], size),
                        scene.coord,
                        scene.color,
                        scene.name if scene.condition is None else f"{scene.condition}: {scene.name}",
                        **panels,
                    ),
                )


def semantic_panels(
    ponder: Any,
    points: pz.PointBatch,
    image: dict[str, Tensor],
    views: Views,
    v: int,
    stride: int,
    names: tuple[str, ...],
) -> tuple[dict[str, float], dict[str, Any]]:
    """Scores and images of what is rendered beside colour and depth: classes of labelled views, or features."""
    if "semantic" not in image:
        return {}, {}
    semantic = image["semantic"].float().cpu()  # (H, W, D)
    if views.feature is not None:
        return feature_panels(semantic, views.feature, v, stride, views.depth.shape[1:])
    if ponder.head is None or views.segment is None or points.condition not in (None, *ponder.head.classes):
        return {}, {}  # a label space that the run knows nothing of
    table = ponder.class_table(points)
    if len(table) != len(names):
        return {}, {}
    segment, classes = views.segment[v, ::stride, ::stride], (semantic @ table.T.float().cpu()).argmax(-1)
    panels = {"reference_segment": segment, "rendered_segment": classes.numpy(), "class_names": names}
    return class_scores(classes, torch.from_numpy(segment.copy())), panels


def feature_panels(
    rendered: Tensor, maps: np.ndarray, v: int, stride: int, size: tuple[int, ...]
) -> tuple[dict[str, float], dict[str, Any]]:
    """Directions of features as colours by the main axes of the observed ones."""
    row, column = np.meshgrid(np.arange(0, size[0], stride), np.arange(0, size[1], stride), indexing="ij")
    observed = look_up(maps, np.full(row.size, v), row.ravel(), column.ravel(), (size[0], size[1]))
    observed = normalize(torch.from_numpy(observed).view(rendered.shape), dim=-1)
    rendered = normalize(rendered, dim=-1)
    colors = PCAColors.fit(observed.flatten(0, 1))
    panels = {"reference_feature": colors(observed).numpy(), "rendered_feature": colors(rendered).numpy()}
    return {"feature_cosine": (observed * rendered).sum(-1).mean().item()}, panels


def show_views(
    accelerator: Accelerator, ponder: nn.Module, sets: Sequence[PretrainDataset], picture: Path, count: int, stride: int
) -> dict[str, float]:
    """Render held-out views (all processes share them), draw the first few, and return their mean scores."""
    training, dtype = ponder.training, next(ponder.parameters()).dtype
    ponder = (ponder if dtype == torch.float32 else copy.deepcopy(ponder).float()).eval()
    share = {"first": accelerator.process_index, "every": accelerator.num_processes}
    results = list(render_views(ponder, sets, count, stride, **share))
    ponder.train(training)
    if accelerator.is_main_process:
        picture.parent.mkdir(parents=True, exist_ok=True)
        write_view_grid(picture, [view for _, view in results[:4]], title="Views that training does not see")
    return mean_scores(gather_object([scores for scores, _ in results]))


@torch.no_grad()
def write_features(run: Path, encoder: nn.Module, data: PretrainDataset) -> None:
    """The first scene with its features as PCA colours, for the report."""
    device = next(encoder.parameters()).device
    scene, _ = data.prepare((0, 0))
    training = encoder.training
    encoder.eval()
    features = encoder.forward_features(data.points.pack([scene]).to(device)).feat  # type: ignore[operator]
    encoder.train(training)
    write_clouds(run, scene.coord, color=scene.color, feature_rgb=pca_rgb(features.float().cpu()).numpy())


# Segmentation


def evaluate_segmentation(accelerator: Accelerator, model: nn.Module, cfg: Any, output: Path) -> dict[str, Any]:
    """Predict every point of the labelled scans, write eval.json and a picture, and return the scores."""
    options = {"grid_size": model.grid_size, "votes": cfg.votes, "fragments": cfg.fragments}
    collate, confusions = model_collate(model), Confusions(open_labelled(cfg.data, cfg.split), accelerator)
    for first, source, scene in share_of_scenes(confusions.sources, accelerator):
        prediction = vote(model, scene, collate, **options).argmax(-1)
        confusions.update(source, scene, prediction)
        if getattr(cfg, "submission", None):
            write_semantic(cfg.submission, scene.name, prediction.cpu().numpy(), benchmark_ids(source))
        if first and scene.segment is not None:
            show_segmentation(output, scene, prediction, source.classes)
    return confusions.write(output, cfg)


@torch.no_grad()
def evaluate_instances(accelerator: Accelerator, model: nn.Module, cfg: Any, output: Path) -> dict[str, Any]:
    """Find the instances of the labelled scans; AP beside what `evaluate_segmentation` gives of one copy per scan."""
    assert isinstance(model, PointGroup)
    collate, confusions = model_collate(model), Confusions(open_labelled(cfg.data, cfg.split), accelerator)
    classes, transform = confusions.sources[0].classes, segmentation_test_transforms(model.grid_size)
    stuff = [label for label, name in enumerate(classes) if name in cfg.stuff]
    options = {"ignored_classes": stuff, "radius": cfg.cluster_radius, "min_points": cfg.cluster_points}
    metric = InstanceAP(len(classes), ignored_classes=stuff)
    for first, source, scene in share_of_scenes(confusions.sources, accelerator):
        points = collate.pack([transform(scene, np.random.default_rng(0))]).to(accelerator.device)  # draws nothing
        logits, offset = model(points, return_offsets=True)
        found = model.group_points(points, logits, offset, **options).to("cpu")
        assert points.inverse is not None
        prediction = logits.argmax(-1)[points.inverse]
        confusions.update(source, scene, prediction)
        if getattr(cfg, "submission", None):
            write_instances(cfg.submission, scene.name, found, len(scene), benchmark_ids(source))
        if scene.segment is not None and scene.instance is not None:
            metric.update(found, scene.segment, scene.instance)
            if first:
                show_segmentation(output, scene, prediction, classes)
                show_instances(output, scene, found, stuff)
    metric.scenes = gather_object(metric.scenes)
    return confusions.write(output, cfg, metric.compute())


EVALUATED = {"segment": evaluate_segmentation, "instances": evaluate_instances}


def share_of_scenes(sources: Sequence[Source], accelerator: Accelerator) -> Iterator[tuple[bool, Source, Scene]]:
    """The scenes that this process evaluates: whether it is the first of all, its source, and the scene."""
    scenes = [(source, index) for source in sources for index in range(len(source))]
    for number in range(accelerator.process_index, len(scenes), accelerator.num_processes):
        source, index = scenes[number]
        yield number == 0, source, source[index]


class Confusions:
    """Counts per list of classes: data sets with the same classes are scored together, others each on its own."""

    def __init__(self, sources: Sequence[Source], accelerator: Accelerator) -> None:
        self.sources, self.accelerator = sources, accelerator
        self.counts = {s.classes: ConfusionMatrix(len(s.classes), device=accelerator.device) for s in sources}

    def update(self, source: Source, scene: Scene, prediction: Tensor) -> None:
        if scene.segment is not None:  # a test split has none
            segment = torch.from_numpy(scene.segment).to(self.accelerator.device)
            self.counts[source.classes].update(prediction.to(self.accelerator.device), segment)

    def write(self, output: Path, cfg: Any, precision: dict[str, Any] | None = None) -> dict[str, Any]:
        """Add up what all processes counted, write eval.json and confusion.json, and return the first list's scores."""
        for counts in self.counts.values():
            counts.matrix = self.accelerator.reduce(counts.matrix, reduction="sum")  # type: ignore[assignment]
        scores = [counts.compute() for counts in self.counts.values()]
        numbers: dict[str, float] = {}
        for number, (classes, values) in enumerate(zip(self.counts, scores, strict=True)):
            name = next(source.condition or source.name for source in self.sources if source.classes == classes)
            suffix = f"_{name}" if number else ""  # the first one's have the plain names
            numbers |= {key + suffix: value for key, value in values.items() if isinstance(value, float)}
        more: dict[str, Any] = {}
        if precision is not None:
            numbers = {key: precision[key] for key in ("AP", "AP50", "AP25")} | numbers
            keys = ("ap", "ap50", "ap25")
            more = {key: dict(zip(self.sources[0].classes, precision[key], strict=True)) for key in keys}
        if self.accelerator.is_main_process:
            scenes = sum(len(source) for source in self.sources)
            about = {"data": cfg.data.name, "split": cfg.split, "votes": cfg.votes, "scenes": scenes}
            write_scores(output, self.counts, numbers, **about, **more)
        return scores[0] | numbers


def write_scores(
    output: Path, counts: Mapping[tuple[str, ...], ConfusionMatrix], numbers: dict[str, float], **more: Any
) -> None:
    """eval.json, a table for each list of classes, and the counts, from which `folds` makes the scores of a sum."""
    iou = {}
    for classes, confusion in counts.items():
        scores = confusion.compute()
        per_class = zip(classes, scores["iou"], scores["count"], strict=True)
        iou = {name: value if count else float("nan") for name, value, count in per_class} | iou
        logger.info("%s", score_table(scores, classes))
    if "AP" in numbers:
        logger.info("AP %.1f  AP50 %.1f  AP25 %.1f", *(100 * numbers[key] for key in ("AP", "AP50", "AP25")))
    write_eval(output, numbers, iou=iou, **more)
    dumped = [confusion.dump(classes) for classes, confusion in counts.items()]
    write_atomic(output / "confusion.json", json.dumps(dumped[0]))


def add_folds(cfg: Config) -> None:
    """Scores of the sum of what several runs counted, each on its own part of the data."""
    folds = [json.loads((Path(run) / "confusion.json").read_text()) for run in cfg.folds]
    total, classes = add_confusions(folds), tuple(folds[0]["classes"])
    numbers = {key: value for key, value in total.compute().items() if isinstance(value, float)}
    write_scores(Path(cfg.output or cfg.run), {classes: total}, numbers, folds=list(cfg.folds))


def show_segmentation(output: Path, scene: Scene, prediction: Tensor, classes: Sequence[str]) -> None:
    """Draw truth, prediction and error of a scene, for the report."""
    picture = output / "previews/segmentation.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    guess, names = prediction.cpu().numpy(), list(classes)
    assert scene.segment is not None
    write_segmentation_views(
        picture, scene.coord, guess, scene.segment, names=names, color=scene.color, normal=scene.normal
    )


def show_instances(output: Path, scene: Scene, found: Instances, stuff: Sequence[int]) -> None:
    """Draw true and predicted instances and where they differ."""
    assert scene.segment is not None and scene.instance is not None
    prediction = np.full(len(scene), -1)
    prediction[found.point.numpy()] = found.index.numpy()
    truth = np.where((scene.segment < 0) | np.isin(scene.segment, stuff), -1, scene.instance)
    picture = output / "previews/instances.png"
    write_instance_views(picture, scene.coord, prediction, truth, color=scene.color, normal=scene.normal)


@torch.no_grad()
def vote(
    model: nn.Module, scene: Scene, collate: PointCollate, *, grid_size: float, votes: int = 1, fragments: int = 0
) -> Tensor:
    """Class probabilities of the original points (M, K), summed over grid-sampled fragments of augmented copies.

    With `fragments=0` (the official test protocol) as many as the fullest cell has points, hundreds close to a camera;
    each votes on the points that it holds. A smaller number votes on all points of the cells.
    """
    device = next(model.parameters()).device
    total = torch.zeros(len(scene), 1, device=device)
    for rotation, scale in augmentations(votes):
        moved = CenterShift()(move_scene(scene, rotation, scale=scale), np.random.default_rng(0))  # draws nothing
        for fragment, rows in grid_fragments(moved, grid_size)[: fragments or None]:
            probability = model(collate.pack([replace(fragment, inverse=None)]).to(device)).float().softmax(-1)
            total = total.expand(-1, probability.shape[1]).contiguous()  # as many classes as the scene's condition has
            if fragments:
                total += probability[torch.from_numpy(fragment.inverse).to(device)]
            else:
                total.index_add_(0, torch.from_numpy(rows).to(device), probability)
    return total


def augmentations(votes: int) -> list[tuple[np.ndarray, float]]:
    """Rotations (3, 3) and scales: quarter turns, the same at 0.95 and 1.05, and, as in the official test, both flips.

    Mirroring in x and in y is the half turn again, which therefore has two of the 13 votes.
    """
    turns = [axis_rotation("z", quarter * np.pi / 2) for quarter in range(4)]
    every = [(turn, scale) for scale in (1.0, 0.95, 1.05) for turn in turns] + [(np.diag([-1.0, -1.0, 1.0]), 1.0)]
    if not 1 <= votes <= len(every):
        raise ValueError(f"Expected 1 to {len(every)} votes, got {votes}. Use 1, 4 or 13.")
    return every[:votes]


def run_settings(arguments: Sequence[str]) -> dict[str, Any]:
    """The config.yaml of the run that the arguments name, if it has one."""
    run = next((argument.partition("=")[2] for argument in arguments if argument.startswith("run=")), Config.run)
    file = Path(run) / "config.yaml"
    return {key: value for key, value in saved_values(file).items() if key != "output"} if file.is_file() else {}


if __name__ == "__main__":
    from ponder_zoo.report.tables import print_table

    if not print_table(sys.argv[1:], Path(__file__).parent / "configs/indoor"):
        command_line(main, Config, __doc__, base=run_settings(sys.argv[1:]))
