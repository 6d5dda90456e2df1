"""`features_only=True`: a model whose output is its intermediate features."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ..structures import PointBatch


class FeatureList(nn.Module):
    """Wraps an encoder; returns a list of `PointBatch`, coarse or fine as `feature_info` says.

    Args:
        model: with `forward_intermediates` and `feature_info`.
        out_indices: which intermediate features, negative ones from the end; None for all.
    """

    def __init__(self, model: nn.Module, out_indices: Sequence[int] | None = None) -> None:
        super().__init__()
        info = list(model.feature_info)  # type: ignore[arg-type]
        indices = range(len(info)) if out_indices is None else out_indices
        bad = [i for i in indices if not -len(info) <= i < len(info)]
        if bad:
            raise ValueError(
                f"{type(model).__name__} has {len(info)} intermediate features; out_indices asks for {bad}."
            )
        self.model = model
        self.out_indices = [i % len(info) for i in indices]
        self.feature_info = [info[i] for i in self.out_indices]

    def forward(self, points: PointBatch) -> list[PointBatch]:
        return self.model.forward_intermediates(points, indices=self.out_indices)  # type: ignore[operator]
