"""What a pre-training run renders beside colour and depth (paper Eq. 9): classes by name, or features of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .catalog import Source
from .class_tables import class_table
from .text_embeddings import class_embeddings


@dataclass(frozen=True)
class SemanticConfig:
    """Targets of the semantic branch. Its weights are `loss.semantic`, `loss.feature` and `ppt_loss_weight`."""

    # labels: the class of each pixel; features: what an image model says there, for images without labels
    targets: Literal["none", "labels", "features"] = "none"  # labels (classes), features (of an image model) or none
    # embeddings that stand for the classes
    table: Literal["clip", "one-hot", "official"] = "clip"  # one-hot: without CLIP; official: its mixed-up rows
    text_model: str = "ViT-B-16-quickgelu"  # as open_clip names it: the one of the paper
    text_weights: str = "openai"  # tag of open_clip, or a file
    cache: str | None = "~/.cache/ponder_zoo/embeddings"  # folder for embeddings; null for none


@dataclass(frozen=True, eq=False)
class ClassEmbeddings:
    """The classes of all data sets of a run in one table."""

    table: Tensor  # (n, D) unit rows
    rows: Mapping[str, tuple[int, ...]]  # condition -> row of each of its labels

    @property
    def head(self) -> dict[str, Any]:
        """Arguments of the head that has this table."""
        rows = {condition: list(rows) for condition, rows in self.rows.items()}
        return {"embed_dim": self.table.shape[1], "num_embeddings": len(self.table), "classes": rows}


def embed_classes(
    config: SemanticConfig, sources: Sequence[Source], *, condition: str | None = None
) -> ClassEmbeddings:
    """The table of a run's classes.

    Args:
        config: `table` and what it needs.
        sources: of labelled scenes; sets without labels may be among them.
        condition: what scenes that name none have.

    Raises:
        ValueError: if no set has labels, or two have other classes under one condition.
    """
    spaces = label_spaces(sources, condition)
    names, rows = class_table(spaces, official=config.table == "official")
    if config.table == "one-hot":
        return ClassEmbeddings(torch.eye(len(names)), rows)
    ensemble = "official" if config.table == "official" else "class"
    table = class_embeddings(
        names, model=config.text_model, weights=config.text_weights, ensemble=ensemble, cache=config.cache
    )
    return ClassEmbeddings(table, rows)


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
            "Use semantic.targets=features, or semantic.targets=none."
        )
    return spaces
