from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ponder_zoo.metrics.surface import sample_mesh, surface_scores


def plane(height: float, size: float = 1.0, count: int = 21) -> np.ndarray:
    x, y = np.meshgrid(np.linspace(0, size, count), np.linspace(0, 1, 21))
    return np.stack([x, y, np.full_like(x, height)], -1).reshape(-1, 3)


@pytest.mark.parametrize(("shift", "expected"), [(0.0, 1.0), (0.04, 1.0), (0.06, 0.0)])
def test_shifted_planes_have_the_shift_as_distance(shift: float, expected: float) -> None:
    scores = surface_scores(plane(shift), plane(0.0), threshold=0.05)
    assert scores.accuracy == pytest.approx(shift) and scores.completeness == pytest.approx(shift)
    assert scores.chamfer == pytest.approx(shift)
    assert (scores.precision, scores.recall, scores.f_score) == (expected, expected, expected)
    assert math.isnan(scores.normal_consistency)


def test_half_a_surface_is_precise_but_not_complete() -> None:
    # The prediction covers x <= 0.5 of a plane of 21 columns 0.05 apart: 11 of them, 12 within one spacing.
    scores = surface_scores(plane(0.0, 0.5, 11), plane(0.0), threshold=0.0501)
    assert scores.precision == 1.0 and scores.accuracy == pytest.approx(0.0)
    assert scores.recall == pytest.approx(12 / 21)
    assert scores.completeness == pytest.approx(sum(0.05 * k for k in range(1, 11)) / 21)
    assert scores.f_score == pytest.approx(2 * (12 / 21) / (1 + 12 / 21))


def test_scores_change_sides_when_the_surfaces_do() -> None:
    a, b = plane(0.0, 0.5, 11), plane(0.03)
    first, second = surface_scores(a, b, threshold=0.04), surface_scores(b, a, threshold=0.04)
    assert (first.accuracy, first.precision) == (second.completeness, second.recall)
    assert first.f_score == pytest.approx(second.f_score)


@pytest.mark.parametrize("angle", [0.0, 60.0, 180.0])
def test_normals_agree_by_their_angle_whatever_their_sign_and_length(angle: float) -> None:
    points = plane(0.0)
    up = np.tile([0.0, 0.0, 1.0], (len(points), 1))
    turned = np.tile([0.0, 5 * math.sin(math.radians(angle)), 5 * math.cos(math.radians(angle))], (len(points), 1))
    scores = surface_scores(torch.from_numpy(points), points, predicted_normal=turned, true_normal=up)
    assert scores.normal_consistency == pytest.approx(abs(math.cos(math.radians(angle))))


def test_what_no_sensor_saw_need_not_be_found_but_is_not_wrong() -> None:
    truth, half = plane(0.0), plane(0.0, 0.5, 11)
    seen = truth[:, 0] < 0.51
    only_half = surface_scores(half, truth, threshold=0.01, seen=seen)
    assert only_half.completeness == pytest.approx(0.0) and only_half.f_score == 1.0
    assert surface_scores(truth, truth, threshold=0.01, seen=seen).f_score == 1.0  # as accurate beyond
    normal = np.tile([0.0, 0.0, 1.0], (len(truth), 1))
    tilted = np.where(seen[:, None], normal, [[0.0, 1.0, 0.0]])  # what is unseen counts where it was predicted only
    scores = surface_scores(truth, truth, predicted_normal=normal, true_normal=tilted, seen=seen)
    assert scores.normal_consistency == pytest.approx(0.5 * (seen.mean() + 1.0))
    for wrong in (seen[:3], seen.astype(int), np.zeros_like(seen)):
        with pytest.raises(ValueError, match="true somewhere"):
            surface_scores(half, truth, seen=wrong)


def test_nothing_predicted_scores_zero_and_nothing_true_is_refused() -> None:
    scores = surface_scores(np.zeros((0, 3)), plane(0.0))
    assert (scores.precision, scores.recall, scores.f_score) == (0.0, 0.0, 0.0) and math.isnan(scores.accuracy)
    with pytest.raises(ValueError, match="at least one true point"):
        surface_scores(plane(0.0), np.zeros((0, 3)))


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`predicted` \(N, 3\)"):
        surface_scores(np.zeros((4, 2)), plane(0.0))
    with pytest.raises(ValueError, match="3 are not finite"):
        surface_scores(np.full((1, 3), np.nan), plane(0.0))
    with pytest.raises(ValueError, match="one normal per point"):
        surface_scores(plane(0), plane(0), predicted_normal=np.ones((3, 3)), true_normal=np.ones((441, 3)))


def test_mesh_samples_lie_on_the_faces_in_proportion_to_area() -> None:
    vertices = np.array([[0.0, 0, 0], [2, 0, 0], [2, 2, 0], [0, 2, 0], [0, 0, 1], [1, 0, 1]])
    faces = np.array([[0, 1, 2], [0, 2, 3], [0, 1, 4]])  # a square of 4 on the floor, a wall of area 1 in y = 0
    points, normals = sample_mesh(vertices, faces, 20_000, rng=np.random.default_rng(0))
    floor = np.abs(normals[:, 2]) > 0.5
    assert floor.mean() == pytest.approx(0.8, abs=0.02)
    np.testing.assert_allclose(points[floor, 2], 0.0, atol=1e-12)
    np.testing.assert_allclose(points[~floor, 1], 0.0, atol=1e-12)
    np.testing.assert_allclose(points[floor].mean(0), [1, 1, 0], atol=0.03)
    np.testing.assert_allclose(points[~floor].mean(0), [2 / 3, 0, 1 / 3], atol=0.03)  # the triangle's centroid
    with pytest.raises(ValueError, match="some area"):
        sample_mesh(vertices, np.zeros((0, 3), int), 5, rng=np.random.default_rng(0))
