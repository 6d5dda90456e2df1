from __future__ import annotations

import math

import pytest

from ponder_zoo.report.figures import class_bars, key_figures, metric_style, readable


def test_constants_of_the_same_name_are_baselines() -> None:
    evaluation = {
        "psnr": 20.0,
        "psnr_constant": 12.5,
        "psnr_gain": 7.5,
        "depth_median": 0.1,
        "depth_median_constant": 0.5,
    }
    figures = key_figures(evaluation | {"depth_ratio": 0.2, "views": 3, "depth_rel": 0.05})
    assert [figure.label for figure in figures] == ["PSNR", "Median depth error", "Relative depth error"]
    assert [figure.comparisons[0].change for figure in figures[:2]] == ["+7.5 dB", "5.0 × smaller"]
    assert figures[2].text == "5.0 %" and figures[2].comparisons == ()


@pytest.mark.parametrize(("value", "good"), [(0.6, True), (0.4, False)])
def test_worse_than_the_baseline_is_marked_as_worse(value: float, good: bool) -> None:
    figure = key_figures({"metrics": {"mIoU": value}, "baselines": {"scratch": {"mIoU": 0.5}}})[0]
    assert figure.comparisons[0].good is good
    assert figure.comparisons[0].change == ("+10.0 points" if good else "−10.0 points")


def test_larger_errors_are_said_to_be_larger() -> None:
    figure = key_figures({"metrics": {"depth_abs": 1.2}, "baselines": {"b": {"depth_abs": 0.6}}})[0]
    assert (figure.text, figure.comparisons[0].text, figure.comparisons[0].change) == (
        "1.20 m",
        "60.0 cm",
        "2.0 × larger",
    )
    assert figure.comparisons[0].good is False


def test_zero_and_not_finite_baselines_do_not_divide() -> None:
    evaluation = {"metrics": {"depth_abs": 0.5, "psnr": math.nan}, "baselines": {"b": {"depth_abs": 0.0, "psnr": 3.0}}}
    assert [figure.comparisons[0].change for figure in key_figures(evaluation)] == ["", ""]


def test_qualified_names_keep_their_qualifier() -> None:
    assert metric_style("psnr").label == "PSNR" and metric_style("val/psnr_train").label == "Val · PSNR train"
    assert readable("free_space") == "Free space" and readable("mIoU") == "mIoU"


def test_class_bars_are_sorted_and_unknown_last() -> None:
    bars = class_bars({"iou": {"a": 0.1, "b": None, "c": 0.9, "d": {"iou": 0.5}}})
    assert [(bar.name, bar.percent) for bar in bars] == [("c", 90.0), ("d", 50.0), ("a", 10.0), ("b", None)]
    assert class_bars({"metrics": {}}) == []
    assert [bar.percent for bar in class_bars({"ap50": {"a": 0.25}}, "ap50")] == [25.0]
    assert class_bars({"per_class": {"a": 0.25}}, "ap50") == []
