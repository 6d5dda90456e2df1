from __future__ import annotations

import math

import pytest
import torch

from ponder_zoo.metrics.render import class_scores, depth_errors, mean_scores, psnr, view_scores


def test_psnr_of_a_uniform_error_is_closed_form():
    assert psnr(torch.full((4, 5, 3), 0.6), torch.full((4, 5, 3), 0.5)).item() == pytest.approx(20.0, abs=1e-4)
    assert psnr(torch.full((2, 2, 3), 0.5), torch.full((2, 2, 3), 0.5)).item() == pytest.approx(100.0)


def test_depth_errors_count_measured_pixels_only():
    reference = torch.tensor([2.0, 4.0, 0.0, 1.0])
    errors = depth_errors(torch.tensor([3.0, 4.0, 9.0, 1.5]), reference)
    assert errors["depth_abs"].item() == pytest.approx(0.5)
    assert errors["depth_median"].item() == pytest.approx(0.5)
    assert errors["depth_rel"].item() == pytest.approx((0.5 + 0.0 + 0.5) / 3)
    assert depth_errors(reference, torch.zeros(4))["depth_abs"].isnan()


def test_no_constant_image_beats_the_baselines():
    generator = torch.Generator().manual_seed(0)
    rgb, depth = torch.rand(6, 7, 3, generator=generator), 1 + torch.rand(6, 7, generator=generator)
    depth[0] = 0.0
    scores = view_scores(rgb, depth, rgb, depth)
    assert scores["psnr"] == pytest.approx(100.0) and scores["depth_abs"] == 0.0
    for _ in range(200):
        colour = torch.rand(3, generator=generator).expand(6, 7, 3)
        constant = (1 + torch.rand(1, generator=generator)).expand(6, 7)
        other = view_scores(colour, constant, rgb, depth)
        assert other["psnr"] <= scores["psnr_constant"] + 1e-5
        assert other["depth_abs"] >= scores["depth_abs_constant"] - 1e-6


def test_means_skip_views_without_depth_and_state_the_gain():
    rgb = torch.rand(4, 4, 3)
    depth = torch.arange(16.0).reshape(4, 4)
    views = [view_scores(rgb, depth, rgb, depth), view_scores(rgb * 0, depth, rgb, torch.zeros(4, 4))]
    scores = mean_scores(views)
    assert scores["views"] == 2 and scores["depth_abs"] == 0.0 and scores["depth_ratio"] == 0.0
    assert scores["psnr_gain"] == pytest.approx(scores["psnr"] - scores["psnr_constant"])
    assert not math.isnan(scores["depth_median_constant"])
    with pytest.raises(ValueError, match="at least one view"):
        mean_scores([])


def test_classes_are_scored_where_labelled_beside_the_most_frequent_one():
    reference = torch.tensor([[0, 0, 0, 1], [2, -1, -1, -1]])
    scores = class_scores(torch.tensor([[0, 0, 1, 1], [0, 0, 0, 0]]), reference)
    assert scores == {"class_accuracy": pytest.approx(3 / 5), "class_accuracy_constant": pytest.approx(3 / 5)}
    assert math.isnan(class_scores(reference, torch.full((2, 4), -1))["class_accuracy"])
    rgb, depth = torch.rand(4, 4, 3), torch.ones(4, 4)
    views = [view_scores(rgb, depth, rgb, depth) | scores, view_scores(rgb, depth, rgb, depth)]
    assert mean_scores(views)["class_accuracy"] == pytest.approx(3 / 5), "a view without classes does not count"
    assert mean_scores(views)["rgb_abs"] == 0.0 < mean_scores(views)["rgb_abs_constant"]
