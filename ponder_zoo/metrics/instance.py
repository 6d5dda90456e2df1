"""Average precision of instances by the ScanNet benchmark's protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ponder_zoo.structures import Instances

OVERLAPS = (*(0.5 + 0.05 * i for i in range(9)), 0.25)  # of AP: the first nine, 0.50 to 0.90; AP50: the first; AP25
Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class SceneMatches:
    """What the scores need to know of one scene: P predictions, G true instances, E overlapping pairs of one class."""

    label: Array  # (P,) class of each prediction
    score: Array  # (P,)
    size: Array  # (P,) points
    void: Array  # (P,) points on which nothing is judged
    true_label: Array  # (G,)
    true_size: Array  # (G,)
    pair: Array  # (E, 2) prediction, true instance; in the order of the true instances
    shared: Array  # (E,) points of both


class InstanceAP:
    """AP, AP50 and AP25; the results of several processes are put together by adding up their lists `scenes`.

    A prediction is right if it shares more than a given part of the union of points with a true instance of its class
    that no earlier one has; AP is the area under the precision-recall curve over the scores.

    Args:
        num_classes: of the labels.
        ignored_classes: classes without instances. Their points, and points without a class, are not judged: a
            prediction with a larger part of its points there than the overlap asked for counts neither way.
        min_points: smaller predictions are dropped, smaller true instances are not judged.

    Example:
        >>> import torch
        >>> segment, instance = torch.tensor([0, 2, 2, 2]), torch.tensor([-1, 0, 0, 0])
        >>> found = Instances(torch.tensor([1, 2, 3]), torch.tensor([3]), torch.tensor([2]), torch.ones(1))
        >>> metric = InstanceAP(3, min_points=2)
        >>> metric.update(found, segment.numpy(), instance.numpy())
        >>> metric.compute()["AP"]
        1.0
    """

    def __init__(self, num_classes: int, *, ignored_classes: Sequence[int] = (0, 1), min_points: int = 100) -> None:
        self.classes = [label for label in range(num_classes) if label not in ignored_classes]
        self.num_classes = num_classes
        self.min_points = min_points
        self.scenes: list[SceneMatches] = []

    def update(self, found: Instances, segment: Array, instance: Array) -> None:
        """Compare one scene's predictions with its labels.

        Args:
            found: lists of the scene's points.
            segment: (N,) class index, negative = unknown.
            instance: (N,) negative = none. An instance has the class of its first point.
        """
        point, index = found.point.cpu().numpy(), found.index.cpu().numpy()
        if segment.shape != instance.shape or segment.ndim != 1 or point.max(initial=-1) >= len(segment):
            raise ValueError(
                f"Expected segment and instance (N,) and instances of these N points; got {segment.shape}, "
                f"{instance.shape}, and points up to {point.max(initial=-1)}. Map instances to the labelled points "
                "first (`Instances.on_points`)."
            )
        judged = np.isin(segment, self.classes)
        label, score, size = (value.cpu().numpy() for value in (found.label, found.score, found.size))
        void = np.bincount(index[~judged[point]], minlength=len(found))
        number, true_label, true_size = self._true_instances(segment, instance)
        kept = (size >= self.min_points) & np.isin(label, self.classes)
        inside = (number[point] >= 0) & kept[index]
        pair, shared = _count_pairs(index[inside], number[point[inside]], len(true_label))
        same = label[pair[:, 0]] == true_label[pair[:, 1]]
        row = np.cumsum(kept) - 1  # of each kept prediction
        pair = np.stack([row[pair[same, 0]], pair[same, 1]], axis=1)
        self.scenes.append(
            SceneMatches(label[kept], score[kept], size[kept], void[kept], true_label, true_size, pair, shared[same])
        )

    def _true_instances(self, segment: Array, instance: Array) -> tuple[Array, Array, Array]:
        """Number of each point's instance (N,), -1 = none; class and size of each instance (G,)."""
        _, first, number, size = np.unique(instance, return_index=True, return_inverse=True, return_counts=True)
        real = (instance[first] >= 0) & np.isin(segment[first], self.classes)
        renumbered = np.where(real, np.cumsum(real) - 1, -1)
        return renumbered[number], segment[first][real], size[real]

    def compute(self) -> dict[str, Any]:
        """Plain numbers: `AP, AP50, AP25`, and lists `ap, ap50, ap25` with one entry per class.

        A class without true instances has NaN and does not count in the means.
        """
        table = np.array([self._at_overlap(overlap) for overlap in OVERLAPS])  # (10, classes)
        full = np.full((len(OVERLAPS), self.num_classes), np.nan)
        full[:, self.classes] = table
        per_class = {"ap": full[:9].mean(0), "ap50": full[0], "ap25": full[9]}
        occurs = ~np.isnan(full[0])
        means = {
            name.upper(): float(value[occurs].mean()) if occurs.any() else 0.0 for name, value in per_class.items()
        }
        return means | {name: value.tolist() for name, value in per_class.items()}

    def _at_overlap(self, overlap: float) -> list[float]:
        """AP of each class in `classes`."""
        judged = [_judge(scene, overlap, self.min_points) for scene in self.scenes]
        label, score, right, missed = (np.concatenate([*(scene[k] for scene in judged), np.zeros(0)]) for k in range(4))
        result = []
        for k in self.classes:
            mine, misses = label == k, int((missed == k).sum())
            occurs = misses + right[mine].sum() > 0
            result.append(average_precision(score[mine], right[mine] > 0, misses) if occurs else float("nan"))
        return result


def _count_pairs(first: Array, second: Array, number: int) -> tuple[Array, Array]:
    """Distinct pairs (E, 2), ordered by the second and then the first entry, and how often each occurs (E,)."""
    key, count = np.unique(second * (first.max(initial=0) + 1) + first, return_counts=True)
    second, first = np.divmod(key, first.max(initial=0) + 1)
    return np.stack([first, second], axis=1), count


def _judge(scene: SceneMatches, overlap: float, min_points: int) -> tuple[Array, Array, Array, Array]:
    """Class and score of each judged prediction, whether it is right, and the classes of the instances it missed."""
    prediction, truth = scene.pair.T
    union = scene.true_size[truth] + scene.size[prediction] - scene.shared
    hit = scene.shared / union > overlap
    large = scene.true_size >= min_points
    best, wrong = _match(scene, np.flatnonzero(hit & large[truth]))
    matched = best > -np.inf
    # A prediction that hits nothing is wrong, unless most of it lies where nothing is judged.
    void = scene.void + np.bincount(prediction, scene.shared * ~large[truth], minlength=len(scene.size))
    lost = void / np.maximum(scene.size, 1) <= overlap
    lost[prediction[hit]] = False
    label = np.concatenate([scene.true_label[matched], scene.label[wrong], scene.label[lost]])
    score = np.concatenate([best[matched], scene.score[wrong], scene.score[lost]])
    right = np.arange(len(label)) < matched.sum()
    return label, score, right, scene.true_label[large & ~matched]


def _match(scene: SceneMatches, pairs: Array) -> tuple[Array, Array]:
    """Score of the prediction that each true instance (G,) gets, -inf for none; and surplus predictions.

    Of several predictions for one instance the best counts, and the others are wrong. Below an overlap of one half a
    prediction may hit two instances; the first one takes it. One step per hit, of which there are few.
    """
    best, wrong = np.full(len(scene.true_size), -np.inf), []
    holder, taken = np.full(len(scene.true_size), -1), np.zeros(len(scene.size), dtype=bool)
    for prediction, truth in scene.pair[pairs]:
        if taken[prediction]:
            continue
        if holder[truth] < 0:
            holder[truth], best[truth], taken[prediction] = prediction, scene.score[prediction], True
            continue
        loser = prediction
        if scene.score[prediction] > best[truth]:
            loser, holder[truth], best[truth] = holder[truth], prediction, scene.score[prediction]
        wrong.append(loser)
    return best, np.array(wrong, dtype=np.int64)


def average_precision(score: Array, right: Array, missed: int) -> float:
    """Area under the precision-recall curve of predictions, in the benchmark's way.

    Each different score is a threshold; its precision is weighted by half the recall between its neighbours. The curve
    ends at precision 1 and recall 0.

    Args:
        score: (P,).
        right: (P,) bool.
        missed: true instances without a prediction.
    """
    order = np.argsort(score, kind="stable")
    score, right = score[order], right[order]
    first = np.flatnonzero(np.diff(score, prepend=np.nan) != 0)  # of each different score, ascending
    positive = right[::-1].cumsum()[::-1][first] if len(first) else np.zeros(0)
    precision = np.append(positive / (len(score) - first), 1.0)
    recall = np.append(positive / max(right.sum() + missed, 1), 0.0)
    neighbours = np.concatenate([recall[:1], recall, [0.0]])
    return float(precision @ (neighbours[:-2] - neighbours[2:]) / 2)
