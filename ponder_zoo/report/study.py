"""What a study of label efficiency found: means with intervals as a table, and curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .chart import Curve, Panel, Point, write_chart
from .markdown import markdown_table

KINDS = {
    "scenes": "Share of the scenes that is labelled",
    "points": "Labelled points of each scene",
    "linear": "Linear head on the frozen encoder, share of the scenes",
    "real": "Labelled scans, rooms left out in turn",
}
# Of pre-training, with the digits that are shown
RENDERED = {("psnr_gain", 1): "PSNR above constant images, dB", ("depth_ratio", 3): "depth ratio"}


class Score(NamedTuple):
    """Of several seeds."""

    mean: float
    half: float | None  # of the 95 % interval of the mean; None with one seed


def interval(values: Sequence[float]) -> Score:
    """Mean and half width of its 95 % interval by Student's t, which is wide for few values: 2.5 deviations for three.

    Args:
        values: of independent seeds, at least one.
    """
    from scipy.stats import t

    count = len(values)
    mean = sum(values) / count
    if count == 1:
        return Score(mean, None)
    deviation = (sum((value - mean) ** 2 for value in values) / (count - 1)) ** 0.5
    return Score(mean, float(t.ppf(0.975, count - 1)) * deviation / count**0.5)


def collect(scores: Sequence[Mapping[str, Any]]) -> dict[str, dict[float, dict[str, dict[int, float]]]]:
    """Scores by kind, amount of labels, arm and seed."""
    found: dict[str, dict[float, dict[str, dict[int, float]]]] = {}
    for row in scores:
        amounts = found.setdefault(row["kind"], {})
        amounts.setdefault(row["amount"], {}).setdefault(row["arm"], {})[row["seed"]] = row["mIoU"]
    return found


def study_table(scores: Sequence[Mapping[str, Any]], baselines: Mapping[str, float], *, reference: str) -> str:
    """Markdown: mIoU in percent for each kind and amount of labels, and what each arm gains over the reference arm.

    Args:
        scores: rows with `kind`, `amount`, `arm`, `seed` and `mIoU` in [0, 1]; those of a study that goes on may lack
            arms and seeds.
        baselines: mIoU of what knows no shapes, by name.
        reference: arm that the others are compared with, seed by seed.
    """
    arms = list(dict.fromkeys(row["arm"] for row in scores))
    others = [arm for arm in arms if arm != reference]
    heads = ["labels", *arms, *(f"{arm} - {reference}" for arm in others)]
    rows = []
    for kind, amounts in collect(scores).items():
        rows.append([f"**{KINDS[kind]}**"])
        for amount, found in sorted(amounts.items()):
            gains = [_gain(found, arm, reference) for arm in others]
            rows.append([amount_text(kind, amount), *(_percent(found, arm) for arm in arms), *gains])
    return markdown_table(heads, [*rows, *_baseline_rows(baselines)])


def arms_table(
    scores: Sequence[Mapping[str, Any]],
    baselines: Mapping[str, float],
    *,
    reference: str,
    pretraining: Sequence[Mapping[str, Any]],
) -> str:
    """Markdown for many arms and one amount of labels: a row for each arm, with the quality of what it renders.

    Args:
        scores: as in `study_table`.
        baselines: the same.
        reference: the same.
        pretraining: rows with `arm` and `validation`, what pretrain.py measured on views that it did not see.
    """
    ((kind, amounts),) = collect(scores).items()
    ((amount, found),) = amounts.items()
    heads = [f"{KINDS[kind]}: {amount_text(kind, amount)}", "mIoU", f"- {reference}", *RENDERED.values()]
    rows = []
    for arm in found:
        seen = [row["validation"] for row in pretraining if row["arm"] == arm]
        rendered = [_text([metrics[name] for metrics in seen], digits=digits) for name, digits in RENDERED]
        rows.append([arm, _percent(found, arm), "" if arm == reference else _gain(found, arm, reference), *rendered])
    return markdown_table(heads, [*rows, *_baseline_rows(baselines)])


def _baseline_rows(baselines: Mapping[str, float]) -> list[list[str]]:
    return [[f"nearest neighbours by {name}", f"{100 * value:.1f}"] for name, value in baselines.items()]


def _percent(scores: Mapping[str, Mapping[int, float]], arm: str) -> str:
    return _text([100 * value for value in scores.get(arm, {}).values()])


def _gain(scores: Mapping[str, Mapping[int, float]], arm: str, reference: str) -> str:
    """Over the seeds that both have."""
    values, base = scores.get(arm, {}), scores.get(reference, {})
    return _text([100 * (values[seed] - base[seed]) for seed in base if seed in values], sign="+")


def amount_text(kind: str, amount: float) -> str:
    return f"{amount:g}" if kind == "points" else f"{100 * amount:g} %"


def _text(values: Sequence[float], sign: str = "", digits: int = 1) -> str:
    if not values:
        return ""
    score = interval(values)
    return f"{score.mean:{sign}z.{digits}f}" + ("" if score.half is None else f" ± {score.half:.{digits}f}")


def write_study_chart(path: Path, scores: Sequence[Mapping[str, Any]]) -> Path:
    """Curves of the mean mIoU over the amount of labels, with 95 % intervals, of the kinds with several amounts."""
    panels = []
    for kind, amounts in collect(scores).items():
        if len(amounts) < 2:
            continue
        arms = dict.fromkeys(arm for found in amounts.values() for arm in found)
        curves = []
        for arm in arms:
            points = []
            for amount, found in sorted(amounts.items()):
                if arm not in found:
                    continue
                mean, half = interval([100 * value for value in found[arm].values()])
                points.append(Point(amount, mean, *(() if half is None else (mean - half, mean + half))))
            curves.append(Curve(arm.replace("_", " "), points))
        labels = [(amount, amount_text(kind, amount)) for amount in sorted(amounts)]
        panels.append(Panel(f"mIoU on rooms of the test split: {kind}", KINDS[kind], "%", curves, labels=labels))
    return write_chart(path, panels, label="mIoU over the amount of labels, pre-trained and from scratch")
