"""Per-class IoU and accuracy from one confusion matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

EPSILON = 1e-10  # the official denominators, so that a class that never occurs gets 0 / EPSILON = 0


class ConfusionMatrix:
    """Counts of (label, prediction) pairs; a sum over processes is a sum of `matrix`.

    Example:
        >>> confusion = ConfusionMatrix(2)
        >>> confusion.update(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0]))
        >>> confusion.compute()["iou"]
        [0.5, 0.5]
    """

    def __init__(self, num_classes: int, *, ignore_index: int = -1, device: torch.device | str = "cpu") -> None:
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.matrix = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)  # (label, prediction)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Count one set of points.

        Args:
            prediction: (N,) int64 class of each point, or (N, K) logits.
            target: (N,) int64; points labelled `ignore_index` do not count, whatever is predicted there.
        """
        K = self.num_classes
        prediction = prediction.argmax(-1) if prediction.ndim == 2 else prediction
        if prediction.shape != target.shape or target.ndim != 1:
            raise ValueError(
                f"Expected one prediction and one label per point; got {tuple(prediction.shape)} and "
                f"{tuple(target.shape)}. Map predictions to the labelled points first (`forward_point_features`)."
            )
        pair = (target * K + prediction).where(target != self.ignore_index, K * K)  # spare last cell: not counted
        counts = torch.zeros(K * K + 1, dtype=torch.int64, device=target.device)
        counts.index_add_(0, pair, torch.ones_like(pair))  # no sync, unlike bincount
        self.matrix += counts[:-1].view(K, K).to(self.matrix.device)

    def dump(self, classes: Sequence[str]) -> dict[str, Any]:
        """The counts as JSON-ready values, for `add_confusions`."""
        return {"classes": list(classes), "matrix": self.matrix.tolist()}

    def compute(self) -> dict[str, Any]:
        """Scores as plain numbers: `mIoU, mAcc, allAcc, mIoU_present, mAcc_present, iou, accuracy, count`.

        `mIoU` and `mAcc` are the official means over *all* classes, in which a class that never occurs counts zero.
        `mIoU_present` and `mAcc_present` are means over the classes that occur in the labels: use them for sets too
        small to show every class. `iou`, `accuracy` and `count` (labelled points) have one entry per class.
        """
        matrix = self.matrix.double().cpu()
        intersection, target = matrix.diagonal(), matrix.sum(1)
        union = target + matrix.sum(0) - intersection
        iou, accuracy = intersection / (union + EPSILON), intersection / (target + EPSILON)
        present = target > 0
        return {
            "mIoU": iou.mean().item(),
            "mAcc": accuracy.mean().item(),
            "allAcc": (intersection.sum() / (target.sum() + EPSILON)).item(),
            "mIoU_present": iou[present].mean().item() if present.any() else 0.0,
            "mAcc_present": accuracy[present].mean().item() if present.any() else 0.0,
            "iou": iou.tolist(),
            "accuracy": accuracy.tolist(),
            "count": self.matrix.sum(1).tolist(),
        }


def add_confusions(folds: Sequence[Mapping[str, Any]]) -> ConfusionMatrix:
    """One confusion matrix of several folds: scores of a cross-validation are those of the sum, no mean of scores.

    Args:
        folds: each with `classes` (names) and `matrix` (rows: label, columns: prediction), as `ConfusionMatrix.dump`.

    Raises:
        ValueError: if there is no fold, or their classes differ.
    """
    classes = [list(fold["classes"]) for fold in folds]
    if not folds or any(names != classes[0] for names in classes):
        raise ValueError(
            f"Expected folds with the same classes; got {len(folds)} folds with {[len(names) for names in classes]} "
            "classes. Evaluate all of them on the same data set."
        )
    total = ConfusionMatrix(len(classes[0]))
    for fold in folds:
        total.matrix += torch.tensor(fold["matrix"], dtype=torch.int64)
    return total


def score_table(scores: dict[str, Any], classes: Sequence[str]) -> str:
    """A plain-text (and Markdown) table of the scores of each class, with their means below."""
    width = max(len(name) for name in (*classes, "mean of all"))
    lines = [f"| {'class':{width}} |   IoU |   acc |    points |", f"| {'-' * width} | ----- | ----- | --------- |"]
    for name, iou, accuracy, count in zip(classes, scores["iou"], scores["accuracy"], scores["count"], strict=True):
        shown = f"{100 * iou:5.1f} | {100 * accuracy:5.1f}" if count else "    - |     -"
        lines.append(f"| {name:{width}} | {shown} | {count:9d} |")
    total = sum(scores["count"])
    for name, suffix in (("mean of all", ""), ("present", "_present")):
        means = f"{100 * scores['mIoU' + suffix]:5.1f} | {100 * scores['mAcc' + suffix]:5.1f}"
        lines.append(f"| {name:{width}} | {means} | {total:9d} |")
    return "\n".join(lines)
