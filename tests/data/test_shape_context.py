"""What surrounds a point: counted by brute force, and blind to what should not matter."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from ponder_zoo.data.pretrain import PretrainDataset
from ponder_zoo.data.scene import Scene, Views
from ponder_zoo.data.shape_context import (
    CELL,
    CHANNELS,
    RINGS,
    SLAB,
    SLABS,
    ContextLabels,
    Surroundings,
    context_clusters,
    ring_means,
)
from ponder_zoo.data.synthetic import SyntheticRooms
from ponder_zoo.data.transforms import RandomFlip, RandomRotate, pretrain_transforms
from ponder_zoo.data.unproject import select_views


@pytest.fixture(scope="module")
def rooms() -> SyntheticRooms:
    return SyntheticRooms("train", num_scenes=3, num_views=4, image_size=(24, 32), sensor="off")


def test_ring_means_are_those_of_a_loop() -> None:
    maps = np.random.default_rng(0).random((2, 27, 19), dtype=np.float32)
    X, Y = np.meshgrid(np.arange(27), np.arange(19), indexing="ij")
    wide = np.mgrid[-60:61, -60:61] * CELL  # the whole ring, which reaches beyond the map
    expected = np.zeros((len(RINGS), 2, 27, 19))
    for number, (inner, outer) in enumerate(RINGS):
        size = np.hypot(*wide).round(6)
        cells = ((size <= outer) & ((size > inner) | (inner == 0))).sum()
        for x in range(27):
            for y in range(19):
                distance = np.hypot((X - x) * CELL, (Y - y) * CELL).round(6)
                ring = (distance <= outer) & ((distance > inner) | (inner == 0))
                expected[number, :, x, y] = maps[:, ring].sum(1) / cells
    np.testing.assert_allclose(ring_means(maps), expected.reshape(-1, 27, 19), atol=1e-5)


def test_a_post_is_seen_by_who_stands_at_its_distance_and_height() -> None:
    """One upright voxel at 1 m height: in the ring of 0.6 to 1 m of a place 0.8 m away, in slab 4, and nowhere else."""
    floor = np.array([[x, y, 0.0] for x in (0.04, 4.04) for y in (0.04, 4.04)], np.float32)
    post = np.array([[2.04, 2.04, 1.0]], np.float32)
    normal = np.array([[0, 0, 1]] * 4 + [[1, 0, 0]], np.float32)
    around = Surroundings.of(Scene("post", np.concatenate([floor, post]), normal=normal))
    described = around.describe(np.array([[2.84, 2.04, 0.5]], np.float32))[0]
    counts, height = described[: len(RINGS) * SLABS * 2].reshape(len(RINGS), SLABS, 2), described[-SLABS:]
    assert np.argwhere(counts > 1e-4).tolist() == [[3, int(1.0 // SLAB), 0]]
    assert height.argmax() == int(0.5 // SLAB) and height.sum() == 1.0 and len(described) == CHANNELS


def test_turning_and_mirroring_a_room_change_little_and_another_place_changes_much(rooms: SyntheticRooms) -> None:
    scene, rng = rooms[0], np.random.default_rng(0)
    before = Surroundings.of(scene).describe(scene.coord)
    quarter = RandomRotate(angle=(np.pi / 2, np.pi / 2), p=1.0)(RandomFlip(p=1.0)(scene, rng), rng)
    after = Surroundings.of(quarter).describe(quarter.coord)
    other = before[rng.permutation(len(before))]
    change, distance = np.abs(before - after).mean(), np.abs(before - other).mean()
    assert change < 0.2 * distance, (change, distance)  # cells are cut elsewhere


def test_each_cell_and_slab_has_the_nearest_centre(rooms: SyntheticRooms) -> None:
    scene = rooms[0]
    centres = context_clusters([rooms[i] for i in range(3)], 12, per_scene=300)
    around = Surroundings.of(scene)
    described = around.describe(scene.coord)
    expected = np.square(described[:, None] - centres).sum(-1).argmin(1)
    np.testing.assert_array_equal(around.nearest(centres).of(scene.coord), expected)
    assert len(np.unique(expected)) > 6
    np.testing.assert_array_equal(context_clusters([rooms[i] for i in range(3)], 12, per_scene=300), centres)


def test_points_and_pixels_of_one_place_have_one_label_whichever_views_are_input(rooms: SyntheticRooms) -> None:
    centres = context_clusters([rooms[0]], 8, per_scene=300)
    labelled = ContextLabels(rooms, centres)
    assert labelled.classes == tuple(f"context {number}" for number in range(8)) and len(labelled) == len(rooms)
    scene = labelled[0]
    assert scene.views is not None and scene.views.segment is not None and scene.segment is not None
    seen = scene.views.depth > 0
    np.testing.assert_array_equal(scene.views.segment[seen], scene.segment)
    again, other = labelled[0], labelled[1]  # whose labels are kept, and those of another room
    np.testing.assert_array_equal(again.segment, scene.segment)
    np.testing.assert_array_equal(other.segment, ContextLabels(rooms, centres)[1].segment)
    assert (scene.views.segment[~seen] == -1).all()
    options: dict[str, Any] = {"volume_shape": (8, 8, 8), "rays_per_view": 20, "input_views": 1, "target_views": 2}
    augmented, _ = PretrainDataset(labelled, transform=pretrain_transforms(0.1), **options).prepare((0, 0))
    assert augmented.views is not None and augmented.views.segment is not None
    maps = [each.tobytes() for each in scene.views.segment]
    assert all(each.tobytes() in maps for each in augmented.views.segment)
    assert augmented.segment is not None and (augmented.segment >= 0).all()


def test_views_in_files_are_labelled_when_they_are_read(rooms: SyntheticRooms) -> None:
    @dataclass
    class Stored:
        views: Views

        def __len__(self) -> int:
            return len(self.views)

        def read(self, index: np.ndarray, /) -> Views:
            return select_views(self.views, index)

    whole = rooms[0]
    assert whole.views is not None
    centres = context_clusters([whole], 8, per_scene=300)
    direct = ContextLabels([whole], centres)[0]
    stored = ContextLabels([replace(whole, views=None, stored_views=Stored(whole.views))], centres)[0].stored_views
    assert stored is not None and len(stored) == 4 and direct.views is not None and direct.views.segment is not None
    np.testing.assert_array_equal(stored.read(np.array([2, 0])).segment, direct.views.segment[[2, 0]])  # type: ignore[arg-type]


def test_what_is_missing_is_explained_or_left_out(rooms: SyntheticRooms) -> None:
    scene = rooms[0]
    with pytest.raises(ValueError, match=r"semantic\.clusters between 2 and the 50 points"):
        context_clusters([scene], 300, per_scene=50)
    for wrong, message in ((scene.coord * 1000, "extent|span"), (scene.coord * np.float32(np.nan), "finite|NaN")):
        with pytest.raises(ValueError, match=message):
            ContextLabels([replace(scene, coord=wrong)], np.zeros((2, CHANNELS), np.float32))[0]
    bare = replace(scene, normal=None)
    assert np.isfinite(Surroundings.of(bare).describe(bare.coord)).all()
