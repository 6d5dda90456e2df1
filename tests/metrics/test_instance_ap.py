"""Average precision against the official numbers and closed forms."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ponder_zoo.metrics.instance import OVERLAPS, InstanceAP, average_precision
from ponder_zoo.structures import Instances


def from_masks(masks, label, score) -> Instances:
    index, point = (torch.as_tensor(masks) != 0).nonzero().T
    size = torch.bincount(index, minlength=len(masks))
    return Instances(point, size.cumsum(0), torch.as_tensor(label), torch.as_tensor(score))


def scenes_of(tensors):
    for name in sorted({key.partition(".")[0] for key in tensors}):
        found = from_masks(*(tensors[f"{name}.pred_{key}"] for key in ("masks", "classes", "scores")))
        yield found, tensors[f"{name}.segment"].numpy(), tensors[f"{name}.instance"].numpy()


def test_scores_are_the_official_ones(shared_dir):
    expected = json.loads((shared_dir / "parity/k_instance_ap.json").read_text())
    assert np.allclose(OVERLAPS, expected["overlaps"])
    metric = InstanceAP(expected["num_classes"], min_points=expected["min_region_size"])
    for scene in scenes_of(load_file(shared_dir / "parity/k_instance_ap.safetensors")):
        metric.update(*scene)
    scores = metric.compute()
    for ours, official in (("AP", "ap"), ("AP50", "ap50"), ("AP25", "ap25")):
        assert scores[ours] == pytest.approx(expected[official], rel=1e-9)
    for name, values in expected["classes"].items():
        label = int(name[1:])
        assert [scores[key][label] for key in ("ap", "ap50", "ap25")] == pytest.approx(list(values.values()), rel=1e-9)
    assert math.isnan(scores["ap"][0])


def test_processes_add_up(shared_dir):
    scenes = list(scenes_of(load_file(shared_dir / "parity/k_instance_ap.safetensors")))
    whole, first, second = InstanceAP(5), InstanceAP(5), InstanceAP(5)
    for scene in scenes:
        whole.update(*scene)
    first.update(*scenes[0])
    for scene in scenes[1:]:
        second.update(*scene)
    first.scenes += second.scenes
    assert first.compute()["AP"] == whole.compute()["AP"]


def row(sizes, labels, scores, *, of, min_points=1, ignored=(0, 1)):
    """Scores of one scene in which instance i of class 2 has points `of[i]`; a prediction is a list of points."""
    total = max((max(points) for points in [*of, *sizes] if points), default=0) + 1
    segment, instance = np.full(total, 2), np.full(total, -1)
    for i, points in enumerate(of):
        instance[list(points)] = i
    masks = np.zeros((len(sizes), total))
    for i, points in enumerate(sizes):
        masks[i, list(points)] = 1
    metric = InstanceAP(4, min_points=min_points, ignored_classes=ignored)
    metric.update(from_masks(masks, np.array(labels, np.int64), np.array(scores, np.float32)), segment, instance)
    return metric.compute()


def test_perfect_predictions_have_1_and_none_has_0():
    truth = [range(10), range(10, 20)]
    scores = row(truth, [2, 2], [0.9, 0.8], of=truth)
    assert (scores["AP"], scores["AP50"], scores["AP25"]) == (1.0, 1.0, 1.0)
    assert math.isnan(scores["ap"][3]), "class 3 does not occur"
    scores = row([], [], [], of=truth)
    assert scores["AP25"] == 0.0
    assert row(truth, [3, 3], [0.9, 0.8], of=truth)["AP25"] == 0.0, "another class"


@pytest.mark.parametrize(("shared", "ap50"), [(5, 0.0), (6, 1.0)])
def test_an_overlap_of_exactly_one_half_is_not_enough(shared, ap50):
    """Ten true points, of which the prediction has some and no others: the overlap is a tenth of them."""
    assert row([range(shared)], [2], [0.5], of=[range(10)])["AP50"] == ap50


def test_a_second_prediction_of_an_instance_is_wrong():
    # Scores 0.9 (right) and 0.5 (a duplicate): recall is 1 at both thresholds, precision 1 and 1/2. With the curve's
    # end (recall 0) the weights are (1 - 1) / 2, (1 - 0) / 2, (1 - 0) / 2 from the lowest threshold.
    scores = row([range(10), range(9)], [2, 2], [0.9, 0.5], of=[range(10)])
    assert scores["AP50"] == pytest.approx(0.0 * 0.5 + 0.5 * 1.0 + 0.5 * 1.0)
    # The duplicate has the higher score: it takes the instance, the first one becomes wrong, and nothing changes.
    scores = row([range(9), range(10)], [2, 2], [0.5, 0.9], of=[range(10)])
    assert scores["AP50"] == pytest.approx(1.0)
    # Two instances, one found twice: recall 1/2 throughout.
    scores = row([range(10), range(9)], [2, 2], [0.9, 0.5], of=[range(10), range(10, 20)])
    assert scores["AP50"] == pytest.approx(0.25 + 0.25)


def test_a_false_positive_above_the_right_one_halves_the_precision():
    scores = row([range(10), range(20, 30)], [2, 2], [0.5, 0.9], of=[range(10)])
    # thresholds 0.5 (precision 1/2, recall 1), 0.9 (0, 0), end (1, 0); weights (1 - 0)/2, (1 - 0)/2, 0
    assert scores["AP50"] == pytest.approx(0.25)


def test_predictions_on_points_that_are_not_judged_do_not_count():
    segment, instance = np.array([2] * 10 + [-1] * 6 + [0] * 4 + [2] * 4), np.array([0] * 10 + [-1] * 14)
    masks = np.zeros((2, 24))
    masks[0, :10], masks[1, 10:24] = 1, 1  # the second: ten of 14 points are unlabelled or wall
    metric = InstanceAP(3, min_points=1)
    metric.update(from_masks(masks, np.array([2, 2]), np.array([0.5, 0.9], np.float32)), segment, instance)
    scores = metric.compute()
    assert scores["AP50"] == 1.0, "10/14 > 0.5 is ignored"
    assert scores["AP"] < 1.0, "10/14 < 0.75 is wrong"


def test_small_instances_and_predictions_are_left_out():
    truth = [range(10), range(10, 13)]
    assert row([range(10), range(10, 13)], [2, 2], [0.5, 0.9], of=truth, min_points=5)["AP"] == 1.0
    assert row([range(10), range(10, 16)], [2, 2], [0.5, 0.9], of=truth, min_points=5)["AP25"] == 1.0, "half is small"
    assert row([range(10)], [2], [0.5], of=truth, min_points=5)["AP"] == 1.0


def test_below_one_half_a_prediction_is_taken_by_the_first_instance_that_it_hits():
    scores = row([range(20)], [2], [0.5], of=[range(10), range(10, 20)])
    assert scores["AP50"] == 0.0
    assert scores["AP25"] == pytest.approx(0.25 + 0.25), "recall one half"


def test_the_area_is_that_of_the_convolution():
    rng = np.random.default_rng(0)
    for _ in range(50):
        count, missed = int(rng.integers(1, 30)), int(rng.integers(0, 4))
        score, right = rng.integers(0, 10, count) / 10, rng.random(count) < 0.5
        thresholds = np.unique(score)
        tp = np.array([(right & (score >= t)).sum() for t in thresholds])
        precision = np.append(tp / [(score >= t).sum() for t in thresholds], 1)
        recall = np.append(tp / max(right.sum() + missed, 1), 0)
        padded = np.concatenate([recall[:1], recall, [0]])
        expected = precision @ np.convolve(padded, [-0.5, 0, 0.5], "valid")
        assert average_precision(score, right, missed) == pytest.approx(expected)
    assert average_precision(np.zeros(0), np.zeros(0, bool), 3) == 0.0


def test_instances_of_other_points_are_an_error():
    with pytest.raises(ValueError, match="on_points"):
        InstanceAP(3).update(from_masks(np.ones((1, 5)), [2], [1.0]), np.zeros(4, int), np.zeros(4, int))
