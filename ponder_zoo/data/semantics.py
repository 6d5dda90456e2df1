"""What a pre-training run renders beside colour and depth (paper Eq. 9): classes by name, or features of images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from .array_cache import read_arrays, write_arrays
from .catalog import Source
from .class_tables import class_table
from .image_features import PCA_IMAGES, ImageFeatures, Weights
from .scene import Array, Scene
from .shape_context import CHANNELS, ContextLabels, context_clusters
from .text_embeddings import class_embeddings

CLUSTER_SCALE = 16.0  # of cosines: rows at right angles want less than CLIP's


@dataclass(frozen=True)
class SemanticConfig:
    """Targets of the semantic branch: classes, weighted by `loss.semantic` and `ppt_loss_weight`, or `loss.feature`."""

    targets: Literal["none", "labels", "clusters", "features"] = "none"  # clusters of shape contexts need no labels
    clusters: int = 64  # how many; their table is one-hot
    table: Literal["clip", "one-hot", "official"] = "clip"  # one-hot: without CLIP; official: its mixed-up rows
    scale: float | None = None  # of the cosines that score points; null: CLIP's 100 for labels, 16 for clusters
    text_model: str = "ViT-B-16-quickgelu"  # as open_clip names it: the one of the paper
    text_weights: str = "openai"  # tag of open_clip, or a file
    image_model: str = "timm/vit_small_patch14_dinov2.lvd142m"  # or open_clip/NAME:TAG; whose features to render
    image_weights: Weights = "pretrained"  # random: an untrained model, to try things out without a download
    image_dim: int | None = 64  # principal components of the features to render; null: all channels
    cache: str = "~/.cache/ponder_zoo/embeddings"  # folder for embeddings of prompts and images

    @property
    def head_scale(self) -> float | None:
        """Of the head's cosines; None: the head's own default, CLIP's."""
        return self.scale or (CLUSTER_SCALE if self.targets == "clusters" else None)


@dataclass(frozen=True, eq=False)
class Semantics:
    """What a run's model and data need for its semantic targets."""

    dim: int | None = None  # of what is rendered; None for nothing
    table: Tensor | None = None  # (n, dim) unit rows, one per class of all data sets
    rows: Mapping[str, tuple[int, ...]] | None = None  # condition -> row of each of its labels
    features: ImageFeatures | None = None
    scale: float | None = None  # of the head's cosines; None: its own default

    @property
    def head(self) -> dict[str, Any] | None:
        """Arguments of the head that has this table."""
        if self.table is None or self.rows is None:
            return None
        rows = {condition: list(rows) for condition, rows in self.rows.items()}
        scale = {} if self.scale is None else {"scale": self.scale}
        return {"embed_dim": self.dim, "num_embeddings": len(self.table), "classes": rows} | scale


Relabel = Callable[[Sequence[Source]], list[Source]]
CLUSTERED_SCENES = 24  # that clusters are found in
CENTRES = "clusters.safetensors"  # their descriptors, (K, C), in the folders of a run and of its export
# The weights that each kind of targets has.
OF_CLASSES = {"loss.semantic", "ppt_loss_weight"}
WEIGHTS = {"labels": OF_CLASSES, "clusters": OF_CLASSES, "features": {"loss.feature"}, "none": set[str]()}


def make_semantics(
    config: SemanticConfig,
    sources: Sequence[Source],
    *,
    weights: Mapping[str, float],
    condition: str | None = None,
) -> Semantics:
    """Embed the classes or images of a run's data sets; nothing for `targets="none"`.

    Args:
        config: which.
        sources: of scenes with images; those without labels may be among labelled ones.
        weights: of the semantic losses, by their names.
        condition: what scenes that name none have.

    Raises:
        ValueError: if weights and targets do not belong together, no set has the labels that are asked for, or two
            have other classes under one condition.
        ConnectionError: if weights are not at hand and cannot be downloaded.
    """
    positive = {name for name, weight in weights.items() if weight > 0.0}
    wanted = WEIGHTS[config.targets]
    if positive - wanted or (wanted and not positive):
        raise ValueError(
            f"Expected semantic.targets={config.targets} with a weight for {sorted(wanted) or 'nothing'}, got one for "
            f"{sorted(positive) or 'nothing'}. Labels and clusters have loss.semantic and ppt_loss_weight, features "
            "loss.feature."
        )
    if config.targets == "clusters":
        rows = {name: tuple(range(len(classes))) for name, classes in label_spaces(sources, condition).items()}
        return Semantics(config.clusters, torch.eye(config.clusters), rows, scale=config.head_scale)
    if config.targets == "labels":
        return embed_classes(config, label_spaces(sources, condition))
    if config.targets == "features":
        features = _images(config, sources)
        return Semantics(dim=features.channels, features=features)
    return Semantics()


def embed_classes(config: SemanticConfig, spaces: Mapping[str, Sequence[str]]) -> Semantics:
    """The table of all classes of some conditions, by name; see `make_semantics` for what it raises."""
    official = config.table == "official"
    names, rows = class_table(spaces, official=official)
    if config.table == "one-hot":
        table = torch.eye(len(names))
    else:
        encoder: dict[str, Any] = {"model": config.text_model, "weights": config.text_weights, "cache": config.cache}
        table = class_embeddings(names, ensemble="official" if official else "class", **encoder)
    return Semantics(table.shape[1], table, rows, scale=config.head_scale)


def _images(config: SemanticConfig, sources: Sequence[Source]) -> ImageFeatures:
    """The features of images, with the projection fitted to some evenly from all sets."""
    options: dict[str, Any] = {"weights": config.image_weights, "dim": config.image_dim, "cache": config.cache}
    features = ImageFeatures(config.image_model, **options)
    views = [scene.views for scene in _some_scenes(sources, PCA_IMAGES)]
    features.fit([view.color[0] for view in views if view is not None])
    return features


def cluster_labels(config: SemanticConfig, sources: Sequence[Source], folder: Path) -> Relabel:
    """Find clusters of shape contexts in some sources; what is returned gives sources these as labels.

    Their centres are kept in `folder`: a run that goes on has the ones that it began with.
    """
    if config.targets != "clusters":
        return list
    centres = _read_centres(folder)
    if centres is None or len(centres) != config.clusters:
        centres = context_clusters(_some_scenes(sources, CLUSTERED_SCENES), config.clusters)
        write_arrays(folder / CENTRES, {"centres": centres})
    return _labels_by(centres)


def kept_cluster_labels(folder: Path) -> Relabel:
    """The clusters of a run or an export; without any, sources stay as they are."""
    centres = _read_centres(folder)
    return list if centres is None else _labels_by(centres)


def _read_centres(folder: Path) -> Array | None:
    """None if there are none, or what is there cannot be any."""
    centres = (read_arrays(folder / CENTRES) or {}).get("centres")
    fits = centres is not None and centres.ndim == 2 and centres.shape[1] == CHANNELS and centres.dtype == np.float32
    return centres if fits else None


def _labels_by(centres: Array) -> Relabel:
    return lambda sources: [each.with_scenes(ContextLabels(each.scenes, centres)) for each in sources]


def _some_scenes(sources: Sequence[Source], count: int) -> Iterator[Scene]:
    """Evenly from all sets."""
    scenes = [(source, index) for source in sources for index in range(len(source))]
    for place in np.linspace(0, len(scenes) - 1, min(len(scenes), count)).astype(int):
        source, index = scenes[place]
        yield source[index]


def label_spaces(sources: Sequence[Source], condition: str | None = None) -> dict[str, tuple[str, ...]]:
    """Condition -> names of its classes, empty for sets without labels."""
    spaces: dict[str, tuple[str, ...]] = {}
    for source in sources:
        name, classes = source.condition or condition or source.name, tuple(getattr(source.scenes, "classes", ()))
        if spaces.setdefault(name, classes) != classes:
            raise ValueError(
                f"Expected the same classes in all sets of the condition {name!r}; {source.name} has others than the "
                "set before. Name them apart with data.condition."
            )
    if not any(spaces.values()):
        raise ValueError(
            f"Expected labelled images for semantic.targets=labels; {[source.name for source in sources]} have none. "
            "Use semantic.targets=clusters or features, which need none, or semantic.targets=none."
        )
    return spaces
