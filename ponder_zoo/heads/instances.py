"""PointGroup's second half: from class scores and offsets to instances (arXiv:2004.01658, Sec. 3.3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..ops.cluster import radius_components
from ..ops.segment import segment_mean
from ..structures import Instances


def propose_instances(
    coord: Tensor,
    logits: Tensor,
    *,
    batch: Tensor,
    radius: float,
    ignored_classes: Sequence[int] = (),
    min_points: int = 100,
) -> Instances:
    """Points of one predicted class that lie close together are an instance.

    Clusters on the host (`ops.cluster`): it reads values, and is not differentiable.

    Args:
        coord: (N, 3) metres, each point moved by its predicted offset to where it takes the centre of its instance.
        logits: (N, K) class scores.
        batch: (N,) int64 scene of each point; instances lie in one scene.
        radius: metres; points closer than this belong together.
        ignored_classes: of which there are no instances, such as wall and floor.
        min_points: an instance has more.

    Returns:
        Instances in the order of their first points. Score: the mean probability of the class over the points.
    """
    probability = logits.float().softmax(-1)
    label = logits.argmax(-1)  # (N,)
    ignored = torch.tensor(list(ignored_classes), dtype=torch.int64, device=label.device)
    row = (~torch.isin(label, ignored)).nonzero()[:, 0]
    group = batch[row] * logits.shape[1] + label[row]
    part = radius_components(coord[row].float().cpu().numpy(), radius, group=group.cpu().numpy())
    component = torch.from_numpy(part).to(row.device)
    count = torch.bincount(component)
    kept = count > min_points
    number = torch.where(kept, kept.cumsum(0) - 1, len(count))[component]  # of the instance, in order
    order = number.argsort(stable=True)[: int(count[kept].sum())]
    point, size = row[order], count[kept]
    offset = size.cumsum(0)
    label_of = label[point[offset - size]]
    score = segment_mean(probability[point, label[point]], number[order], max(len(size), 1))[: len(size)]
    return Instances(point, offset, label_of, score)
