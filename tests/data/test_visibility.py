from __future__ import annotations

import numpy as np
import pytest

from ponder_zoo.data.scene import Views
from ponder_zoo.data.synthetic import SyntheticRooms, sample_surface
from ponder_zoo.data.visibility import seen_by_views

K = np.array([[20.0, 0, 9.5], [0, 20, 9.5], [0, 0, 1]], dtype=np.float32)


def one_view(depth: float) -> Views:
    """A camera at the origin that looks along z at a wall."""
    image = np.full((1, 20, 20), depth, dtype=np.float32)
    return Views(np.zeros((1, 20, 20, 3), np.uint8), image, K[None], np.eye(4, dtype=np.float32)[None])


@pytest.mark.parametrize(
    ("point", "normal", "seen"),
    [
        ((0, 0, 2), (0, 0, -1), True),
        ((0, 0, 2), (0, 0, 1), False),  # the back of the wall
        ((0, 0, 2.04), (0, 0, -1), True),  # within the tolerance
        ((0, 0, 2.06), (0, 0, -1), False),  # behind the wall
        ((0, 0, 1.5), (0, 0, -1), False),  # before it: the camera looks through
        ((0.9, 0, 2), (0, 0, -1), True),
        ((1.1, 0, 2), (0, 0, -1), False),  # beside the image
        ((0, 0, -2), (0, 0, 1), False),  # behind the camera
        ((0, 0, 0), (0, 0, -1), False),  # the camera itself
    ],
)
def test_a_wall_is_seen_from_its_front_within_the_image(point: tuple, normal: tuple, seen: bool) -> None:
    found = seen_by_views(one_view(2.0), np.array([point], float), np.array([normal], float), tolerance=0.05)
    assert found.tolist() == [seen]


def test_pixels_without_depth_show_nothing() -> None:
    assert not seen_by_views(one_view(0.0), np.array([[0, 0, 0.01]]), np.array([[0.0, 0, -1]])).any()


def test_of_a_room_the_views_see_what_their_points_are_near() -> None:
    rooms = SyntheticRooms("val", num_scenes=1, num_views=4, image_size=(48, 64), sensor="off")
    scene, room = rooms[0], rooms.room(0)
    assert scene.views is not None
    surface = sample_surface(room.primitives, room.plan, 4000, np.random.default_rng(0))
    seen = seen_by_views(scene.views, surface.coord, surface.normal)
    distance = np.linalg.norm(surface.coord[seen][:, None] - scene.coord[None, ::4], axis=-1).min(1)
    assert 0.2 < seen.mean() < 0.8 and np.quantile(distance, 0.95) < 0.3
    assert seen_by_views(scene.views, scene.coord, scene.normal, tolerance=1e-3).mean() > 0.95  # each its own pixel
