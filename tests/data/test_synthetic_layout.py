"""Rooms: reproducible to the bit of a tenth of a millimetre, plausible, and different in the held-out factors."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest

from ponder_zoo.data.synthetic import CLASSES, GENERATOR_VERSION, Room, draw_room
from ponder_zoo.data.synthetic.classes import CLASS_INDEX, Draw, stream
from ponder_zoo.data.synthetic.geometry import signed_distance
from ponder_zoo.data.synthetic.materials import draw_materials
from ponder_zoo.data.synthetic.placement import _overlap
from ponder_zoo.data.synthetic.plan import _trace_walls, draw_plan


@pytest.fixture(scope="module")
def rooms() -> list[Room]:
    return [draw_room("train", scene) for scene in range(60)]


def layout_digest(room: Room) -> str:
    p = room.primitives
    digest = hashlib.sha256(repr((room.kind, p.slot, [i.name for i in room.instances])).encode())
    for values in (p.center, p.rotation, p.half):
        digest.update(np.round(values * 1e4).astype("<i8").tobytes())
    digest.update(p.kind.astype("<i8").tobytes() + p.instance.astype("<i8").tobytes())
    return digest.hexdigest()[:16]


def test_golden_layouts() -> None:
    """Fails on any change of the layout: then raise GENERATOR_VERSION and put the new digests here."""
    found = {(split, scene): layout_digest(draw_room(split, scene)) for split, scene in GOLDEN}
    assert GENERATOR_VERSION == 1
    assert found == GOLDEN


def test_a_change_of_seed_split_or_scene_changes_the_room() -> None:
    digests = {
        layout_digest(draw_room(s, k, seed=seed))
        for s, k, seed in (("train", 0, 0), ("train", 1, 0), ("val", 0, 0), ("train", 0, 1))
    }
    assert len(digests) == 4


def test_streams_of_different_purposes_differ() -> None:
    values = {stream(0, "train", 0, purpose).random() for purpose in ("layout", "materials", "cameras", "sensor")}
    assert len(values) == 4


def test_walls_close_the_room_with_the_inside_on_their_left() -> None:
    for rectangles in (
        [[-2, -1, 2, 1]],
        [[-2, -1, 2, 1], [0, 1, 2, 2]],
        [[-2, -1, 2, 1], [-1, 1, 1, 2], [2, -0.5, 3, 0.5]],
    ):
        walls = _trace_walls(np.array(rectangles, float))
        area = sum(np.cross(np.append(w.point(0), 0), np.append(w.point(w.length), 0))[2] for w in walls) / 2
        expected = sum((r[2] - r[0]) * (r[3] - r[1]) for r in rectangles)
        assert area == pytest.approx(expected)
        assert sum(w.convex[0] for w in walls) - sum(not w.convex[0] for w in walls) == 4
        for wall, following in zip(walls, [*walls[1:], walls[0]], strict=True):
            np.testing.assert_allclose(wall.point(wall.length), following.point(0))


def test_a_shrunk_plan_contains_exactly_the_points_with_that_distance_to_the_walls() -> None:
    plan = draw_plan(Draw(np.random.default_rng(0)), (3.0, 5.0), wings=2)
    points = np.random.default_rng(1).uniform(-4, 4, (2000, 2))
    inside = plan.contains(points)
    from_wall = np.min(
        [
            np.maximum(
                np.abs((points - w.point(w.length / 2)) @ w.along) - w.length / 2,
                np.abs((points - w.origin) @ w.inward),
            )
            for w in plan.walls
        ],
        axis=0,
    )
    # Chebyshev distance to each wall segment is the larger of the distances along and across it.
    clear = np.abs(from_wall - 0.4) > 0.02
    np.testing.assert_array_equal(plan.contains(points, 0.4)[clear], (inside & (from_wall > 0.4))[clear])


def test_rooms_have_the_specified_number_of_objects_and_primitives(rooms: list[Room]) -> None:
    objects = [sum(i.name not in ("wall", "floor", "ceiling") for i in room.instances) for room in rooms]
    assert 8 <= min(objects) and max(objects) <= 55 and 15 <= np.median(objects) <= 35
    assert 60 <= min(len(room.primitives) for room in rooms) and max(len(room.primitives) for room in rooms) <= 320


def test_solid_objects_on_the_floor_do_not_overlap_much(rooms: list[Room]) -> None:
    """Chairs may reach under tables, and the box around a lean object is larger than it; little else overlaps."""
    total = overlapping = 0
    for room in rooms:
        boxes = [
            i
            for i in room.instances
            if 0 <= i.segment and i.name not in ("wall", "floor", "rug", "door", "window", "curtain")
        ]
        boxes = [
            i
            for i in boxes
            if i.center[2] - i.size[2] / 2 < 0.1 and i.name not in ("base units", "vanity unit", "worktop")
        ]
        for k, a in enumerate(boxes):
            for b in boxes[:k]:
                corners = []
                for i in (a, b):
                    flat = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * (i.size[:2] / 2 - 0.01)
                    c, s = np.cos(i.yaw), np.sin(i.yaw)
                    corners.append(flat @ np.array([[c, s], [-s, c]]) + i.center[:2])
                total += 1
                overlapping += _overlap(*corners) and not {a.segment, b.segment} & {CLASS_INDEX["chair"]}
    assert overlapping / total < 0.005


def test_objects_stay_inside_the_walls(rooms: list[Room]) -> None:
    for room in rooms:
        for instance in room.instances:
            if instance.name not in ("wall", "floor", "ceiling", "beam"):
                assert room.plan.contains(instance.center[None, :2], -0.16)[0], (room.name, instance.name)
                assert -0.05 < instance.center[2] < room.plan.height + 0.05


def test_every_class_occurs_with_a_long_tail_and_types_of_rooms_differ(rooms: list[Room]) -> None:
    counts: Counter[str] = Counter()
    by_kind: dict[str, Counter[str]] = {}
    for room in rooms:
        names = [CLASSES[i.segment] for i in room.instances if i.segment >= 0]
        counts.update(names)
        by_kind.setdefault(room.kind, Counter()).update(names)
    assert set(counts) == set(CLASSES)
    assert max(counts.values()) > 20 * min(counts.values())
    assert by_kind["bathroom"]["toilet"] > 0 and by_kind["bathroom"]["bed"] == 0
    assert by_kind["bedroom"]["bed"] > 0 and by_kind["bedroom"]["toilet"] == 0


def test_the_test_split_has_larger_rooms_other_hues_and_styles_that_train_never_draws() -> None:
    import colorsys

    area = {split: [draw_room(split, k).plan.rectangles[0] for k in range(12)] for split in ("train", "test")}
    sides = {split: np.array([r[2:] - r[:2] for r in rectangles]) for split, rectangles in area.items()}
    assert sides["test"].min() > 3.5 and sides["train"].max() < 6.3 and sides["test"].mean() > sides["train"].mean() + 1

    def hues(split: str) -> np.ndarray:
        room = draw_room("train", 0)
        finishes = [
            draw_materials(Draw(stream(k, "train", 0, "materials"), held_out=split == "test"), room.primitives)
            for k in range(5)
        ]
        colors = np.concatenate([f.base[f.pattern == 0] for f in finishes]) ** (1 / 2.2)
        hsv = np.array([colorsys.rgb_to_hsv(*c) for c in colors])
        return hsv[(hsv[:, 1] > 0.29) & (hsv[:, 1] < 0.81)][:, 0]

    assert not ((hues("train") > 0.2) & (hues("train") < 0.24)).any() and not (hues("train") > 0.72).any()
    assert (hues("test") > 0.72).any()

    never, always = Draw(np.random.default_rng(0)), Draw(np.random.default_rng(0), held_out=True)
    assert {never.style(("a",), ("b",)) for _ in range(200)} == {"a"}
    assert {always.style(("a",), ("b",)) for _ in range(200)} == {"a", "b"}


def test_cameras_have_room_around_them() -> None:
    from ponder_zoo.data.synthetic.cameras import CLEARANCE, draw_path

    for scene in range(12):
        room = draw_room("train", scene)
        positions, targets, rolls = draw_path(Draw(stream(0, "train", scene, "cameras")), room, 12)
        assert (signed_distance(room.primitives, positions) >= CLEARANCE - 1e-9).all(), room.name
        assert room.plan.contains(positions[:, :2]).all()
        assert ((positions[:, 2] > 1.0) & (positions[:, 2] < 1.8)).all()
        assert np.isfinite(targets).all() and np.abs(rolls).max() < 0.06


GOLDEN = {
    ("train", 0): "5b6671ece4f71aec",
    ("train", 7): "53356f94e63e6d26",
    ("val", 3): "833f7c76d788a266",
    ("test", 1): "1475c369b8cc0974",
}
