"""The figures at the head of a report: what `eval.json` says, in words, beside what it had to beat."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class MetricStyle:
    """How a number is shown: `scale` times the value with `digits` decimals and a unit."""

    label: str
    unit: str = ""
    scale: float = 1.0
    digits: int = 3
    better: Literal["higher", "lower", ""] = ""

    def text(self, value: float) -> str:
        if not math.isfinite(value):
            return "not finite"
        if self.unit == "m" and abs(value) < 1.0:
            return f"{100 * value:.1f} cm"
        number = f"{self.scale * value:,.{self.digits}f}"
        return f"{number}{self.unit}" if self.unit == "°" else f"{number} {self.unit}".rstrip()


# First match wins; searched in the lower-case name.
_STYLES: tuple[tuple[str, MetricStyle], ...] = (
    (r"psnr", MetricStyle("PSNR", "dB", digits=1, better="higher")),
    (r"ssim", MetricStyle("SSIM", digits=3, better="higher")),
    (r"miou|mean_iou", MetricStyle("mIoU", "%", 100.0, 1, "higher")),
    (r"macc|mean_acc", MetricStyle("Mean class accuracy", "%", 100.0, 1, "higher")),
    (r"all_?acc|overall_acc|^acc", MetricStyle("Accuracy", "%", 100.0, 1, "higher")),
    (r"f_?score", MetricStyle("F-score", "%", 100.0, 1, "higher")),
    (r"delta|within", MetricStyle("", "%", 100.0, 1, "higher")),
    (r"rel", MetricStyle("Relative depth error", "%", 100.0, 1, "lower")),
    (r"median.*depth|depth.*median", MetricStyle("Median depth error", "m", digits=2, better="lower")),
    (r"depth_abs", MetricStyle("Mean depth error", "m", digits=2, better="lower")),
    (r"depth", MetricStyle("", "m", digits=2, better="lower")),
    (r"normal|angle", MetricStyle("", "°", digits=1, better="lower")),
    (r"loss|error|mae|mse", MetricStyle("", digits=4, better="lower")),
    (r"iou|acc|recall|precision|^ap", MetricStyle("", "%", 100.0, 1, "higher")),
)


CONSTANT = "_constant"
_ACRONYMS = {
    "psnr": "PSNR", "ssim": "SSIM", "miou": "mIoU", "iou": "IoU", "macc": "mAcc", "rgb": "RGB", "sdf": "SDF",
    "lr": "LR", "cpu": "CPU", "gpu": "GPU", "gpus": "GPUs", "cuda": "CUDA", "gib": "GiB", "ema": "EMA",
}  # fmt: skip


def metric_style(name: str) -> MetricStyle:
    """Label, unit and direction of a metric by its name; an unknown one is shown as it is."""
    for pattern, style in _STYLES:
        if re.search(pattern, name.lower()):
            # A qualified name (val/psnr, psnr_train) must stay distinguishable from the plain one.
            plain = style.label and re.sub(r"[^a-z]", "", name.lower()) in _plain_names(style.label)
            label = style.label if plain else readable(name)
            return MetricStyle(label, style.unit, style.scale, style.digits, style.better)
    return MetricStyle(readable(name))


def _plain_names(label: str) -> set[str]:
    letters = re.sub(r"[^a-z]", "", label.lower())
    more = {"PSNR": ("psnrdb",), "Median depth error": ("depthmedianerror", "mediandeptherror", "depthmedian",
            "depthmedianerrorm", "mediandeptherrorm", "depthmedianm"), "Mean depth error": ("depthabs",),
            "Relative depth error": ("depthrel",), "Mean class accuracy": ("macc",),
            "Accuracy": ("allacc", "overallaccuracy", "acc")}  # fmt: skip
    return {letters, *more.get(label, ())}


def readable(name: str) -> str:
    """`val/free_space` -> `Val · free space`, `psnr` -> `PSNR`."""
    words = re.sub(r"[a-zA-Z]+", lambda word: _ACRONYMS.get(word[0].lower(), word[0]), name)
    words = words.replace("_", " ").replace("/", " · ").strip()
    return words[:1].upper() + words[1:] if words[:4] != "mIoU" else words


@dataclass(frozen=True)
class Comparison:
    baseline: str  # its name
    text: str  # the baseline's value
    change: str  # such as "+8.2 dB" or "0.14 ×"
    good: bool | None  # None: no direction known


@dataclass(frozen=True)
class Figure:
    label: str
    text: str
    comparisons: tuple[Comparison, ...]


def key_figures(evaluation: Mapping[str, Any], *, limit: int = 8) -> list[Figure]:
    """The numbers of `eval.json` with their baselines, those that have one first.

    Besides `baselines`, a number `x_constant` is the baseline of `x` that `metrics.render` computes.
    """
    metrics = evaluation.get("metrics")
    metrics = metrics if isinstance(metrics, Mapping) else evaluation
    baselines = evaluation.get("baselines")
    baselines = dict(baselines) if isinstance(baselines, Mapping) else {}
    constant = {name.removesuffix(CONSTANT): value for name, value in metrics.items() if name.endswith(CONSTANT)}
    if constant:
        baselines["best constant per image"] = constant
    figures = []
    for name, value in metrics.items():
        if (
            not _is_figure(name, compared=bool(constant))
            or isinstance(value, bool)
            or not isinstance(value, (int, float))
        ):
            continue
        style = metric_style(name)
        compared = [
            _compare(str(label), float(value), float(other[name]), style)
            for label, other in baselines.items()
            if isinstance(other, Mapping) and isinstance(other.get(name), (int, float))
        ]
        figures.append(Figure(style.label, style.text(float(value)), tuple(compared)))
    return sorted(figures, key=lambda figure: not figure.comparisons)[:limit]


def _is_figure(name: str, *, compared: bool) -> bool:
    if name in ("step", "seed", "views", "scenes", "seconds") or name.endswith(CONSTANT):
        return False
    return not (compared and name.endswith(("_gain", "_ratio")))  # the comparison says it already


def _compare(label: str, value: float, other: float, style: MetricStyle) -> Comparison:
    if not (math.isfinite(value) and math.isfinite(other)):
        return Comparison(label, style.text(other), "", None)
    good = None if not style.better else (value > other if style.better == "higher" else value < other)
    if style.better == "lower":  # errors: how many times smaller
        change = _times(value, other)
    elif style.unit == "%":
        change = f"{style.scale * (value - other):+.{style.digits}f} points"
    else:
        change = f"{style.scale * (value - other):+.{style.digits}f} {style.unit}".rstrip()
    return Comparison(label, style.text(other), change.replace("-", "−"), good)


def _times(value: float, other: float) -> str:
    if not (math.isfinite(value) and math.isfinite(other) and value > 0 and other > 0):
        return ""
    return f"{other / value:.1f} × smaller" if value <= other else f"{value / other:.1f} × larger"


@dataclass(frozen=True)
class ClassBar:
    name: str
    percent: float | None  # None: the class does not occur


def class_bars(evaluation: Mapping[str, Any], score: str = "iou") -> list[ClassBar]:
    """A per-class score of `eval.json` (`iou`, `ap50`), best first, classes that do not occur last."""
    table = evaluation.get(score, evaluation.get("per_class") if score == "iou" else None)
    if not isinstance(table, Mapping):
        return []
    bars = []
    for name, value in table.items():
        value = value.get("iou") if isinstance(value, Mapping) else value
        percent = 100.0 * value if isinstance(value, (int, float)) and math.isfinite(value) else None
        bars.append(ClassBar(str(name), percent))
    return sorted(bars, key=lambda bar: math.inf if bar.percent is None else -bar.percent)
