"""A small encoder and renderer for tests of the zoo's mechanism, registered by the fixture `dummies`."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

import ponder_zoo as pz
from ponder_zoo.models._builder import build_model, build_renderer


class NeighbourEncoder(nn.Module):
    """A submanifold stem by brute force (kernel 3, so the number of neighbours varies) and a linear trunk."""

    stem_weight_name = "stem"

    def __init__(
        self,
        in_chans: int,
        num_classes: int = 0,
        *,
        grid_size: float,
        width: int = 8,
        append_one: bool = False,
        backend: str = "auto",
    ):
        super().__init__()
        self.in_chans, self.num_classes, self.num_features = in_chans, num_classes, width
        self.append_one, self.backend = append_one, backend
        self.stem = nn.Parameter(torch.randn(width, 3, 3, 3, in_chans + append_one))
        self.norm = nn.BatchNorm1d(width)
        self.trunk = nn.Linear(width, width)
        self.reset_classifier(num_classes)

    def reset_classifier(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward_features(self, points: pz.PointBatch) -> pz.PointBatch:
        feat = points.feat
        if self.append_one:
            feat = torch.cat([feat, torch.ones_like(feat[:, :1])], 1)
        cell, batch = points.grid_coord, points.batch
        assert cell is not None
        step = cell[None] - cell[:, None]  # (N, N, 3): from each point to each other
        near = (step.abs() <= 1).all(-1) & (batch[None] == batch[:, None])
        here, there = near.nonzero(as_tuple=True)
        x, y, z = (step[here, there] + 1).long().unbind(1)
        terms = torch.einsum("noc,nc->no", self.stem[:, x, y, z].movedim(0, 1), feat[there])
        total = terms.new_zeros(len(feat), self.num_features).index_add(0, here, terms)
        return dataclasses.replace(points, feat=self.trunk(torch.relu(self.norm(total))))

    def forward(self, points: pz.PointBatch) -> Tensor:
        return self.head(self.forward_features(points).feat)


class SmallRenderer(nn.Module):
    def __init__(self, in_chans: int, *, hidden_dim: int = 4) -> None:
        super().__init__()
        self.field = nn.Linear(in_chans, hidden_dim)


def neighbour_encoder(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    return build_model(NeighbourEncoder, "neighbour_encoder", pretrained, **kwargs)


def other_encoder(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    return build_model(NeighbourEncoder, "other_encoder", pretrained, **{"width": 5, **kwargs})


def small_renderer(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    return build_renderer(SmallRenderer, "small_renderer", **kwargs)
