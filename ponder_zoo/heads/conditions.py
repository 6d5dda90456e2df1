"""Segmentation of several data sets, each with a linear layer of its own (official PPT-v1m2)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


class ConditionHeads(nn.Module):
    """One linear layer per condition (data set), which has its own classes.

    Args:
        in_chans: channels of the features.
        classes: condition -> number of its classes.
    """

    def __init__(self, in_chans: int, classes: Mapping[str, int]) -> None:
        super().__init__()
        self.classes = dict(classes)
        self.linear = nn.ModuleList(nn.Linear(in_chans, number) for number in classes.values())

    def forward(self, feat: Tensor, condition: str) -> Tensor:
        """(N, in_chans) -> (N, number of classes of the condition)."""
        if condition not in self.classes:
            raise ValueError(f"Unknown condition '{condition}'; this head has classes for {list(self.classes)}.")
        return self.linear[list(self.classes).index(condition)](feat)
