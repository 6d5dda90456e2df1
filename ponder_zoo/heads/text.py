"""Segmentation by comparing features with embeddings of class names (Point Prompt Training, arXiv:2308.09718)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TextAlignedHead(nn.Module):
    """Logits are scaled cosines between projected features and class embeddings; each condition has its own classes.

    Args:
        in_chans: channels of the features.
        embed_dim: of the embeddings; 512 for CLIP ViT-B/16.
        num_embeddings: rows of the table of class embeddings, which all conditions share. It is a buffer: weights bring
            their own.
        classes: condition -> row of the table for each of its labels, in label order.
        scale: of the cosines. CLIP's 100 suits its embeddings, which are all alike; rows at right angles want less.
    """

    class_embedding: Tensor

    def __init__(
        self,
        in_chans: int,
        embed_dim: int,
        num_embeddings: int,
        classes: Mapping[str, Sequence[int]],
        *,
        scale: float = 100.0,
    ) -> None:
        super().__init__()
        wrong = [name for name, rows in classes.items() if not all(0 <= row < num_embeddings for row in rows)]
        if wrong:
            raise ValueError(
                f"The table of class embeddings has {num_embeddings} rows; {wrong} name others. Give rows that exist."
            )
        self.classes = {name: tuple(rows) for name, rows in classes.items()}
        self.proj = nn.Linear(in_chans, embed_dim)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(scale)), requires_grad=False)
        self.register_buffer("class_embedding", F.normalize(torch.ones(num_embeddings, embed_dim), dim=1))

    def table(self, condition: str) -> Tensor:
        """Embeddings of the classes of a condition, in label order: (K, embed_dim)."""
        if condition not in self.classes:
            raise ValueError(f"Unknown condition '{condition}'; this head has classes for {list(self.classes)}.")
        return self.class_embedding[list(self.classes[condition])]

    def forward(self, feat: Tensor, condition: str) -> Tensor:
        """(N, in_chans) -> (N, number of classes of the condition), in float32 or better: the scale is large."""
        projected = self.proj(feat)
        with torch.autocast(feat.device.type, enabled=False):
            projected = projected.to(torch.promote_types(projected.dtype, torch.float32))
            table = self.table(condition).to(projected.dtype)
            return self.logit_scale.exp() * F.normalize(projected, dim=1) @ table.t()
