"""Evaluate a run or an exported model on scenes that it was not trained on.

    python recipes/evaluate.py run=runs/pretrain    # renders held-out views: PSNR and depth against constant images
    python recipes/evaluate.py run=runs/finetune    # semantic segmentation: IoU of each class, mIoU
    python recipes/evaluate.py run=runs/pretrain data.name=rgbd data.root=PATH output=runs/pretrain_on_frames

Data and grid are those of the run's config.yaml unless given. Writes eval.json and previews into `output`.
"""

from __future__ import annotations

import copy
import logging
import sys
from collections.abc import Iterator, Sequence
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
from ponder_zoo.data.catalog import DataConfig, open_labelled, open_views, pretrain_dataset
from ponder_zoo.data.collate import PointCollate, collate_scenes
from ponder_zoo.data.image_features import ImageFeatures, look_up
from ponder_zoo.data.motion import move_scene
from ponder_zoo.data.pretrain import PretrainDataset
from ponder_zoo.data.scene import Scene, Views
from ponder_zoo.data.transforms import CenterShift, axis_rotation, grid_fragments
from ponder_zoo.metrics.render import class_scores, mean_scores, view_scores
from ponder_zoo.metrics.segmentation import ConfusionMatrix, score_table
from ponder_zoo.render.image import render_image
from ponder_zoo.report.pca import PCAColors, pca_rgb
from ponder_zoo.report.previews import PreviewView, write_segmentation_views, write_view_grid
from ponder_zoo.report.run_files import write_clouds, write_eval
from ponder_zoo.report.splat import Camera
from ponder_zoo.train.config import saved_values
from ponder_zoo.train.log import setup_logging
from ponder_zoo.train.run import command_line

logger = logging.getLogger("ponder_zoo.recipes.evaluate")


@dataclass(frozen=True)
class Config:
    """Settings."""

    run: str = "runs/pretrain"  # run folder, or an exported model
    output: str | None = None  # where to write; null: into `run`
    task: Literal["auto", "render", "segment"] = "auto"  # auto: segment if the model has a head
    data: DataConfig = field(default_factory=DataConfig)
    split: Literal["train", "val"] = "val"
    grid_size: float | None = None  # metres; null: that of the model
    volume_shape: tuple[int, int, int] = (48, 48, 24)  # X, Y, Z cells, for rendering
    margin: float = 0.3  # metres around the points that the volume covers, too
    dropout: float = 0.3  # share of the points that the encoder does not see; as in training, or colours are off
    input_views: int = 7  # views of a room whose pixels are the points
    eval_views: int = 8  # views to render
    eval_stride: int = 2  # render every so many-th row and column
    votes: int = 1  # augmented copies that vote on each point: 1, 4 (quarter turns) or 13 (official)
    fragments: int = 4  # grid-sampled clouds of each copy that vote; 0: until each point was in one (official)


def main(cfg: Config) -> None:
    accelerator = Accelerator()
    setup_logging(main=accelerator.is_main_process)
    run, output = Path(cfg.run), Path(cfg.output or cfg.run)
    folder = run / "export" if (run / "export").is_dir() else run
    options: dict[str, Any] = {} if cfg.grid_size is None else {"grid_size": cfg.grid_size}
    model = pz.create_model(f"local-dir:{folder}", pretrained=True, **options).to(accelerator.device).eval()
    if cfg.task == "segment" or (cfg.task == "auto" and model.num_classes):
        evaluate_segmentation(accelerator, model, cfg, output)
        return
    ponder = pz.create_pretrainer(f"local-dir:{folder}", pretrained=True, encoder_args=options)
    ponder = ponder.to(accelerator.device).eval()
    sets = view_sets(replace(cfg, grid_size=model.grid_size))
    scores = show_views(accelerator, ponder, sets, output / "previews/views.png", cfg.eval_views, cfg.eval_stride)
    if accelerator.is_main_process:
        write_eval(output, scores, run=str(run), data=cfg.data.name, split=cfg.split)
        write_features(output, model, sets[0])
        logger.info("%s", "\n".join(f"{key:24} {value:.4g}" for key, value in scores.items()))


# Rendering held-out views


def view_sets(cfg: Any, image_features: ImageFeatures | None = None) -> list[PretrainDataset]:
    """Scenes with views that training does not see, of each data set of a configuration."""
    options = {key: getattr(cfg, key) for key in ("volume_shape", "input_views", "grid_size", "dropout", "margin")}
    sources = open_views(cfg.data, getattr(cfg, "split", "val"))
    return [pretrain_dataset(source, "val", image_features=image_features, **options) for source in sources]


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


# Semantic segmentation


def evaluate_segmentation(accelerator: Accelerator, model: nn.Module, cfg: Any, output: Path) -> dict[str, Any]:
    """Predict every point of the labelled scans, write eval.json and a picture, and return the scores."""
    sources = open_labelled(cfg.data, cfg.split)
    scans = [(source, index) for source in sources for index in range(len(source))]
    confusion = ConfusionMatrix(len(sources[0].classes), device=accelerator.device)
    collate = PointCollate()
    for number, (source, index) in enumerate(scans):
        if number % accelerator.num_processes != accelerator.process_index:
            continue
        scene = source[index]
        options = {"grid_size": model.grid_size, "votes": cfg.votes, "fragments": cfg.fragments}
        prediction = vote(model, scene, collate, **options).argmax(-1)
        assert scene.segment is not None
        confusion.update(prediction.to(accelerator.device), torch.from_numpy(scene.segment).to(accelerator.device))
        if number == 0:
            picture = output / "previews/segmentation.png"
            picture.parent.mkdir(parents=True, exist_ok=True)
            names = list(source.classes)
            guess = prediction.cpu().numpy()
            write_segmentation_views(
                picture, scene.coord, guess, scene.segment, names=names, color=scene.color, normal=scene.normal
            )
    confusion.matrix = accelerator.reduce(confusion.matrix, reduction="sum")  # type: ignore[assignment]
    scores = confusion.compute()
    if accelerator.is_main_process:
        numbers = {key: value for key, value in scores.items() if isinstance(value, float)}
        per_class = zip(sources[0].classes, scores["iou"], scores["count"], strict=True)
        iou = {name: value if count else float("nan") for name, value, count in per_class}
        write_eval(output, numbers, iou=iou, data=cfg.data.name, split=cfg.split, votes=cfg.votes, scenes=len(scans))
        logger.info("%s", score_table(scores, sources[0].classes))
    return scores


@torch.no_grad()
def vote(
    model: nn.Module, scene: Scene, collate: PointCollate, *, grid_size: float, votes: int = 1, fragments: int = 0
) -> Tensor:
    """Class probabilities of the original points (M, K), summed over grid-sampled fragments of augmented copies.

    With `fragments=0` (the official test protocol) as many as the fullest cell has points, hundreds close to a camera;
    each votes on the points that it holds. A smaller number votes on all points of the cells.
    """
    device = next(model.parameters()).device
    total = torch.zeros(len(scene), int(model.num_classes), device=device)  # type: ignore[arg-type]
    for rotation, scale in augmentations(votes):
        moved = CenterShift()(move_scene(scene, rotation, scale=scale), np.random.default_rng(0))  # draws nothing
        for fragment, rows in grid_fragments(moved, grid_size)[: fragments or None]:
            probability = model(collate.pack([replace(fragment, inverse=None)]).to(device)).float().softmax(-1)
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
    command_line(main, Config, __doc__, base=run_settings(sys.argv[1:]))
