"""Feature columns by name."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ponder_zoo.data.features import feature_matrix
from ponder_zoo.data.scene import Scene
from ponder_zoo.data.transforms import NormalizeColor


def test_official_columns_are_colour_in_minus_one_to_one_and_normal(room: Scene) -> None:
    feat = feature_matrix(room)
    assert feat.dtype == np.float32
    np.testing.assert_allclose(feat, np.hstack([room.color / 127.5 - 1, room.normal]), atol=1e-6)


def test_order_and_statistics_are_the_callers(room: Scene) -> None:
    feat = feature_matrix(room, ("z", "blue", "normal_x"), mean={"z": 1.0}, std={"z": 2.0, "blue": 255.0})
    np.testing.assert_allclose(feat[:, 0], (room.coord[:, 2] - 1) / 2, atol=1e-6)
    np.testing.assert_allclose(feat[:, 1], room.color[:, 2] / 255, atol=1e-6)
    np.testing.assert_allclose(feat[:, 2], room.normal[:, 0])


def test_absent_columns_need_a_declared_value(room: Scene) -> None:
    bare = replace(room, normal=None)
    with pytest.raises(ValueError, match=r"'room' has no \['normal'\].*fill="):
        feature_matrix(bare)
    feat = feature_matrix(bare, fill={"normal_x": 0.0, "normal_y": 0.0, "normal_z": 1.0})
    assert (feat[:, 3:] == [0, 0, 1]).all()


def test_unknown_names_and_colours_normalized_twice_are_errors(room: Scene) -> None:
    with pytest.raises(ValueError, match=r"\['curvature'\].*red"):
        feature_matrix(room, ("red", "curvature"))
    normalized = NormalizeColor()(room, np.random.default_rng(0))
    with pytest.raises(ValueError, match="NormalizeColor"):
        feature_matrix(normalized)
    np.testing.assert_allclose(feature_matrix(normalized, mean={}, std={}), feature_matrix(room), atol=1e-6)
