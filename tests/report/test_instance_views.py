from __future__ import annotations

import numpy as np
import pytest

from ponder_zoo.report.instance_views import match_instances, write_instance_views


def test_a_prediction_finds_the_instance_that_it_shares_most_with():
    truth = np.array([0] * 10 + [1] * 10 + [-1] * 5)
    prediction = np.array([0] * 6 + [1] * 10 + [-1] * 4 + [2] * 5)
    # 0: six of ten; 1: four points of 0 and six of 1, 6 / 14; 2: on nothing
    assert match_instances(prediction, truth).tolist() == [0, -1, -1]
    assert match_instances(truth, truth).tolist() == [0, 1]
    assert match_instances(np.full(3, -1), np.zeros(3, np.int64)).tolist() == []


def test_the_picture_shows_found_instances_in_their_colour(tmp_path):
    from PIL import Image

    rng = np.random.default_rng(0)
    coord = rng.uniform(0, 2, (4000, 3))
    truth = np.where(coord[:, 0] < 1, 7, -1)
    right = write_instance_views(tmp_path / "right.png", coord, truth, truth, color=coord * 100)
    wrong = write_instance_views(tmp_path / "wrong.png", coord, np.full(4000, -1), truth)

    def count(file, rgb):
        return (np.asarray(Image.open(file).convert("RGB")) == rgb).all(-1).sum()

    red = (244, 67, 84)
    assert count(wrong, red) > 20 * count(right, red), "only the legend's chip is red where all is right"
    with pytest.raises(ValueError, match="per point"):
        write_instance_views(tmp_path / "x.png", coord, truth[:5], truth)
