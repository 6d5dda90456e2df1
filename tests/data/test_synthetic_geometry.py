"""Distances, ray casting, surface samples and triangles of primitives, against closed forms and each other."""

from __future__ import annotations

import numpy as np
import pytest

from ponder_zoo.data.synthetic import Room, draw_room
from ponder_zoo.data.synthetic.classes import stream
from ponder_zoo.data.synthetic.geometry import distance_to, is_visible, sample_surface, signed_distance, triangulate
from ponder_zoo.data.synthetic.primitives import (
    BOX,
    CYLINDER,
    ELLIPSOID,
    Primitives,
    box,
    cylinder,
    ellipsoid,
    rotation_x,
    rotation_z,
    surface_normal,
)
from ponder_zoo.data.synthetic.tracing import intersect, lit, trace_view

KINDS = {"box": BOX, "cylinder": CYLINDER, "ellipsoid": ELLIPSOID}
HALF = {BOX: np.array([0.5, 0.2, 0.8]), CYLINDER: np.array([0.4, 0.4, 0.7]), ELLIPSOID: np.array([0.6, 0.25, 0.4])}


@pytest.fixture(scope="module")
def room() -> Room:
    return draw_room("train", 2)


def grid_surface(kind: int, count: int = 400) -> np.ndarray:
    """A dense set of points on the surface of the standard primitive of a kind."""
    half = HALF[kind]
    if kind == ELLIPSOID:
        a, b = np.meshgrid(np.linspace(0, 2 * np.pi, count), np.linspace(0, np.pi, count))
        return np.stack([np.cos(a) * np.sin(b), np.sin(a) * np.sin(b), np.cos(b)], -1).reshape(-1, 3) * half
    s, t = np.meshgrid(np.linspace(-1, 1, count), np.linspace(-1, 1, count))
    if kind == CYLINDER:
        side = np.stack([np.cos(np.pi * s), np.sin(np.pi * s), t], -1).reshape(-1, 3)
        r = (t + 1) / 2
        caps = [np.stack([r * np.cos(np.pi * s), r * np.sin(np.pi * s), np.full_like(s, z)], -1) for z in (-1, 1)]
        return np.concatenate([side, *[c.reshape(-1, 3) for c in caps]]) * half
    faces = []
    for axis in range(3):
        for sign in (-1, 1):
            faces.append(np.insert(np.stack([s, t], -1).reshape(-1, 2), axis, sign, axis=1))
    return np.concatenate(faces) * half


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_distance_equals_that_to_the_nearest_of_many_surface_points(kind: int) -> None:
    from scipy.spatial import cKDTree

    points = np.random.default_rng(0).uniform(-1.5, 1.5, (300, 3))
    expected, _ = cKDTree(grid_surface(kind)).query(points)
    np.testing.assert_allclose(np.abs(distance_to(kind, HALF[kind], points)), expected, atol=2e-4)


def test_distance_is_negative_inside_and_the_radius_for_a_sphere() -> None:
    points = np.random.default_rng(1).normal(size=(200, 3))
    expected = np.linalg.norm(points, axis=1) - 0.7
    np.testing.assert_allclose(distance_to(ELLIPSOID, np.full(3, 0.7), points), expected, atol=1e-9)
    assert distance_to(BOX, HALF[BOX], np.zeros((1, 3)))[0] == pytest.approx(-0.2)


def test_distance_of_a_room_is_the_minimum_over_its_primitives(room: Room) -> None:
    p = room.primitives
    points = np.random.default_rng(2).uniform((-2, -2, -1), (2, 2, 3), (150, 3))
    each = [distance_to(int(p.kind[k]), p.half[k], (points - p.center[k]) @ p.rotation[k]) for k in range(len(p))]
    np.testing.assert_allclose(signed_distance(p, points), np.min(each, axis=0), atol=1e-12)
    assert signed_distance(p, np.zeros((0, 3))).shape == (0,)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_rays_enter_where_the_distance_is_zero_and_miss_where_it_stays_positive(kind: int) -> None:
    rng = np.random.default_rng(3)
    origin = rng.normal(size=(500, 3))
    origin *= 2.5 / np.linalg.norm(origin, axis=1, keepdims=True)
    direction = rng.uniform(-0.8, 0.8, (500, 3)) - origin
    t, _ = intersect(kind, HALF[kind].astype(np.float32), origin.T.astype(np.float32), direction.T.astype(np.float32))
    hit = np.isfinite(t)
    assert 100 < hit.sum() < 450
    entry = origin[hit] + t[hit, None] * direction[hit]
    np.testing.assert_allclose(distance_to(kind, HALF[kind], entry), 0.0, atol=5e-6)
    before = origin[hit] + 0.999 * t[hit, None] * direction[hit]
    assert (distance_to(kind, HALF[kind], before) > 0).all(), "the first of the two crossings is the entry"
    along = origin[~hit, None] + np.linspace(0, 2, 400)[:, None] * direction[~hit, None]
    assert distance_to(kind, HALF[kind], along.reshape(-1, 3)).min() > -2e-3


def test_normals_are_the_gradient_of_the_distance() -> None:
    for kind, half in HALF.items():
        points = grid_surface(kind, 40)[::7]
        step = 1e-6 * np.eye(3)
        gradient = [(distance_to(kind, half, points + s) - distance_to(kind, half, points - s)) / 2e-6 for s in step]
        expected = np.stack(gradient, 1)
        smooth = np.abs(np.linalg.norm(expected, axis=1) - 1) < 1e-3  # not at the edges
        found = surface_normal(np.full(len(points), kind), points, np.broadcast_to(half, points.shape).copy())
        assert smooth.mean() > 0.6
        np.testing.assert_allclose(found[smooth], expected[smooth], atol=1e-3)


def test_an_image_of_a_sphere_has_its_analytic_depth() -> None:
    ball = Primitives.from_parts([ellipsoid((0.1, -0.2, 3.0), (0.7, 0.7, 0.7))], [0])
    K = np.array([[40.0, 0, 31.5], [0, 40.0, 23.5], [0, 0, 1]])
    depth, index = trace_view(ball, np.eye(4), K, (48, 64))
    v, u = np.meshgrid(np.arange(48), np.arange(64), indexing="ij")
    rays = np.stack([(u - 31.5) / 40, (v - 23.5) / 40, np.ones_like(u)], -1)
    center = np.array([0.1, -0.2, 3.0])
    a, b, c = (rays * rays).sum(-1), rays @ center, center @ center - 0.49
    discriminant = b * b - a * c
    expected = np.where(discriminant > 0, (b - np.sqrt(np.maximum(discriminant, 0))) / a, 0)
    np.testing.assert_array_equal(index >= 0, discriminant > 0)
    np.testing.assert_allclose(depth, expected, atol=1e-5)


def test_tracing_a_room_equals_brute_force_over_all_primitives_and_pixels(room: Room) -> None:
    from ponder_zoo.data.synthetic.cameras import look_at
    from ponder_zoo.data.unproject import pixel_directions

    p, K = room.primitives, np.array([[30.0, 0, 15.5], [0, 30.0, 11.5], [0, 0, 1]])
    for position, target in (((0.0, 0.0, 1.5), (1.5, 1.0, 0.5)), ((0.3, -0.2, 1.4), (-2.0, 0.5, 0.8))):
        pose = look_at(np.array(position), np.array(target), 0.03)
        depth, index = trace_view(p, pose, K, (24, 32))
        best = np.full((24, 32), np.inf)
        rays = pixel_directions(K[None], 24, 32).reshape(-1, 3) @ pose[:3, :3].T
        for k in range(len(p)):
            origin, direction = (pose[:3, 3] - p.center[k]) @ p.rotation[k], rays @ p.rotation[k]
            t, _ = intersect(int(p.kind[k]), p.half[k], origin[:, None], direction.T)
            best = np.minimum(best, t.reshape(24, 32))
        assert (index >= 0).all()
        np.testing.assert_allclose(depth, best, atol=3e-5)


def test_of_two_coinciding_surfaces_the_lower_index_is_seen() -> None:
    boards = [box((-1, -1, 2), (1, 1, 3)), box((-1, -1, 2), (1, 1, 2.5)), box((-1, -1, 2), (1, 1, 4))]
    K = np.array([[20.0, 0, 7.5], [0, 20.0, 7.5], [0, 0, 1]])
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        _, index = trace_view(Primitives.from_parts([boards[i] for i in order], order), np.eye(4), K, (16, 16))
        assert (index == 0).all()


def test_a_board_shadows_what_lies_behind_it_and_nothing_else() -> None:
    board = Primitives.from_parts([box((-0.5, -0.5, 1.0), (0.5, 0.5, 1.05)), cylinder((3, 0, 0.5), 0.1, 1.0)], [0, 1])
    x = np.linspace(-2, 2, 81)
    points = np.stack([x, np.zeros_like(x), np.zeros_like(x)], 1).astype(np.float32)
    lamp = np.array([0.0, 0.0, 2.0])
    expected = np.abs(x) > 0.5 * 2.0 / 1.0  # the upper edges of the board cast the shadow: x = 0.5 * 2 / (2 - 1.05)
    certain = np.abs(np.abs(x) - 1.025) > 0.03
    np.testing.assert_array_equal(lit(board, points, lamp)[certain], expected[certain])


def test_surface_samples_lie_on_the_surface_inside_the_room_and_are_seen_in_proportion_to_area(room: Room) -> None:
    samples = sample_surface(room.primitives, room.plan, 4000, stream(0, "train", 2, "samples"))
    assert samples.coord.shape == (4000, 3)
    assert np.abs(signed_distance(room.primitives, samples.coord)).max() < 1e-4
    assert is_visible(room.primitives, room.plan, samples.coord, samples.normal).all()
    ahead = signed_distance(room.primitives, samples.coord + 1e-3 * samples.normal)
    assert (np.abs(ahead - 1e-3) < 2e-4).mean() > 0.998, "but for corners, where another surface is nearer"
    floor = [k for k, i in enumerate(room.primitives.instance) if room.instances[i].name == "floor"]
    ceiling = [k for k, i in enumerate(room.primitives.instance) if room.instances[i].name == "ceiling"]
    counts = [np.isin(samples.primitive, which).sum() for which in (floor, ceiling)]
    assert counts[0] < counts[1], "furniture covers part of the floor"


def test_samples_of_a_stretched_ellipsoid_are_uniform_by_area() -> None:
    from ponder_zoo.data.synthetic.geometry import _local_samples

    shape = Primitives.from_parts([ellipsoid((0, 0, 0), (1.0, 1.0, 0.2))], [0])
    local = _local_samples(shape, np.zeros(40000, int), np.random.default_rng(0))
    # Area of a spheroid between the equator and height z, by numeric integration of the profile.
    z = np.linspace(0, 0.2, 2001)
    r = np.sqrt(np.maximum(1 - (z / 0.2) ** 2, 0))
    ring = (r[1:] + r[:-1]) / 2 * np.hypot(np.diff(z), np.diff(r))
    expected = ring[z[1:] <= 0.1].sum() / ring.sum()
    assert (np.abs(local[:, 2]) <= 0.1).mean() == pytest.approx(expected, abs=0.01)


def test_triangles_of_a_primitive_enclose_its_volume() -> None:
    turn = rotation_z(0.4) @ rotation_x(0.7)
    parts = [
        box((0, 0, 0), (1, 0.4, 2), rotation=turn),
        cylinder((2, 1, 1), 0.3, 1.5, axis="x"),
        ellipsoid((0, 3, 1), (0.5, 0.4, 0.2)),
    ]
    volumes = [0.8, np.pi * 0.09 * 1.5, 4 / 3 * np.pi * 0.04]
    for part, expected in zip(parts, volumes, strict=True):
        plan = draw_room("train", 0).plan
        vertex, face, _ = triangulate(Primitives.from_parts([part], [0]), plan, visible_only=False)
        a, b, c = vertex[face].transpose(1, 0, 2)
        volume = np.einsum("ni,ni->n", a, np.cross(b, c)).sum() / 6
        assert 0.94 * expected < volume <= expected * (1 + 1e-9)


def test_the_mesh_of_a_room_lies_on_its_surface_and_drops_what_nobody_sees(room: Room) -> None:
    vertex, face, owner = triangulate(room.primitives, room.plan)
    _, every_face, _ = triangulate(room.primitives, room.plan, visible_only=False)
    assert len(face) == len(owner) and 0.2 * len(every_face) < len(face) < 0.8 * len(every_face)
    assert face.max() < len(vertex)
    middle = vertex[face].mean(1)
    assert np.abs(signed_distance(room.primitives, middle)).max() < 0.01  # chords of round parts
    assert room.plan.contains(middle[:, :2], -0.16).all()
