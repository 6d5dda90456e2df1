"""Self-checks that real recordings pass: poses, depth, labels and colours of the generated views agree."""

from __future__ import annotations

import numpy as np
import pytest

from ponder_zoo.data.scene import Scene, Views
from ponder_zoo.data.synthetic import Room, SyntheticRooms
from ponder_zoo.data.synthetic.classes import stream
from ponder_zoo.data.synthetic.geometry import sample_surface, signed_distance
from ponder_zoo.data.synthetic.sensor import SENSORS, SensorModel, sense_depth, sense_pose

INDICES = (0, 5, 11)


@pytest.fixture(scope="module")
def exact() -> list[tuple[Room, Scene]]:
    rooms = SyntheticRooms("train", num_scenes=20, num_views=8, image_size=(90, 120), sensor="off", normals="exact")
    return [(rooms.room(i), rooms[i]) for i in INDICES]


@pytest.fixture(scope="module")
def sensed() -> dict[str, list[Views]]:
    result = {}
    for sensor in ("kinect", "tof"):
        rooms = SyntheticRooms("train", num_scenes=20, num_views=3, image_size=(60, 80), sensor=sensor)  # type: ignore[arg-type]
        result[sensor] = [rooms[i].views for i in range(8)]
    return result


def unproject(views: Views, k: int) -> np.ndarray:
    """World points (H, W, 3) of view `k`, written independently of the package: u, v, z -> K^-1 -> pose."""
    H, W = views.depth.shape[1:]
    v, u = np.meshgrid(np.arange(H), np.arange(W), indexing="ij")
    K, pose, z = views.intrinsics[k].astype(float), views.cam_to_world[k].astype(float), views.depth[k].astype(float)
    camera = np.stack([(u - K[0, 2]) / K[0, 0] * z, (v - K[1, 2]) / K[1, 1] * z, z], -1)
    return camera @ pose[:3, :3].T + pose[:3, 3]


def project(views: Views, k: int, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixel (N, 2) and depth (N,) of world points in view `k`."""
    pose, K = views.cam_to_world[k].astype(float), views.intrinsics[k].astype(float)
    camera = (points - pose[:3, 3]) @ pose[:3, :3]
    pixel = camera @ K.T
    return pixel[:, :2] / pixel[:, 2:], camera[:, 2]


def overlapping(views: Views, a: int, b: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of view `b` that view `a` sees as well, and where: rows (N,) of the flattened b, indices (N,) of a."""
    H, W = views.depth.shape[1:]
    points = unproject(views, b).reshape(-1, 3)
    pixel, z = project(views, a, points)
    near = np.round(pixel).astype(int)
    inside = (z > 0.1) & (near >= 0).all(1) & (near[:, 0] < W) & (near[:, 1] < H)
    rows = np.flatnonzero(inside)
    target = near[rows, 1] * W + near[rows, 0]
    same = np.abs(views.depth[a].ravel()[target] - z[rows]) < 0.01 + 0.02 * z[rows]
    return rows[same], target[same]


def bilinear(image: np.ndarray, pixel: np.ndarray) -> np.ndarray:
    """Values (N,) of an image (H, W) at sub-pixel positions (N, 2) u, v."""
    from scipy.ndimage import map_coordinates

    return map_coordinates(image, [pixel[:, 1], pixel[:, 0]], order=1, mode="nearest")


def test_every_ray_hits_something(exact: list[tuple[Room, Scene]]) -> None:
    for _, scene in exact:
        assert scene.views is not None and scene.views.instance is not None
        assert (scene.views.depth > 0).all() and (scene.views.instance >= 0).all()


def test_pixels_lie_on_the_exact_surface(exact: list[tuple[Room, Scene]]) -> None:
    for room, scene in exact:
        rows = np.linspace(0, len(scene) - 1, 4000).astype(int)
        assert np.abs(signed_distance(room.primitives, scene.coord[rows])).max() < 1e-4


def test_overlapping_views_agree_on_where_surfaces_are(exact: list[tuple[Room, Scene]]) -> None:
    """The pose check of real data: one frame's points have close neighbours in the next. Inverse poses fail."""
    from scipy.spatial import cKDTree

    distances, wrong = [], []
    for _, scene in exact:
        views = scene.views
        assert views is not None
        for a, b in zip(range(len(views) - 1), range(1, len(views)), strict=True):
            rows, _ = overlapping(views, a, b)
            if len(rows) < 300:
                continue
            cloud, other = unproject(views, a).reshape(-1, 3), unproject(views, b).reshape(-1, 3)[rows[::5]]
            pitch = views.depth[a].mean() / views.intrinsics[a, 0, 0]
            distances.append(np.median(cKDTree(cloud).query(other)[0]) / pitch)
            inverse = np.linalg.inv(views.cam_to_world[b].astype(float))
            camera = (
                unproject(views, b).reshape(-1, 3)[rows[::5]] - views.cam_to_world[b, :3, 3]
            ) @ views.cam_to_world[b, :3, :3]
            wrong.append(np.median(cKDTree(cloud).query(camera @ inverse[:3, :3].T + inverse[:3, 3])[0]))
    assert len(distances) > 8
    # At 90 x 120 pixels neighbouring points are 2-3 cm apart, so the distance is stated in pixel pitches.
    assert np.median(distances) < 0.5
    assert np.median(wrong) > 0.1


def test_reprojected_depth_agrees_with_the_image_it_falls_on(exact: list[tuple[Room, Scene]]) -> None:
    """Away from edges and after correcting for the slope of the surface, to better than 5 mm."""
    for _, scene in exact:
        views = scene.views
        assert views is not None and views.normal is not None
        errors = []
        for a, b in zip(range(len(views) - 1), range(1, len(views)), strict=True):
            rows, target = overlapping(views, a, b)
            points = unproject(views, b).reshape(-1, 3)[rows]
            there = unproject(views, a).reshape(-1, 3)[target]
            normal = views.normal[a].reshape(-1, 3)[target]
            errors.append(np.abs(((points - there) * normal).sum(1)))
        assert np.median(np.concatenate(errors)) < 1e-4 and np.quantile(np.concatenate(errors), 0.95) < 5e-3


def test_labels_of_surface_samples_equal_those_of_the_pixels_they_project_to(exact: list[tuple[Room, Scene]]) -> None:
    agreeing = total = 0
    for index, (room, scene) in zip(INDICES, exact, strict=True):
        views = scene.views
        assert views is not None and views.segment is not None
        samples = sample_surface(room.primitives, room.plan, 4000, stream(0, "train", index, "samples"))
        label = room.segment[samples.primitive]
        H, W = views.depth.shape[1:]
        for k in range(len(views)):
            pixel, z = project(views, k, samples.coord)
            near = np.round(pixel).astype(int)
            rows = np.flatnonzero((z > 0.1) & (near >= 1).all(1) & (near[:, 0] < W - 1) & (near[:, 1] < H - 1))
            u, v = near[rows].T
            patch = np.stack([views.segment[k][v + dv, u + du] for dv in (-1, 0, 1) for du in (-1, 0, 1)])
            depths = np.stack([views.depth[k][v + dv, u + du] for dv in (-1, 0, 1) for du in (-1, 0, 1)])
            clean = (patch == patch[4]).all(0) & (np.ptp(depths, axis=0) < 0.1)
            seen = clean & (np.abs(views.depth[k][v, u] - z[rows]) < 0.02)
            agreeing += (patch[4] == label[rows])[seen].sum()
            total += seen.sum()
    assert total > 2000 and agreeing / total > 0.99


def test_overlapping_views_agree_in_colour(exact: list[tuple[Room, Scene]]) -> None:
    """Grey values of the same surface correlate above 0.97 without exposure jitter, and less when shifted."""
    aligned, shifted = [], []
    for _, scene in exact:
        views = scene.views
        assert views is not None
        grey = views.color.astype(float).mean(-1)
        for a, b in zip(range(len(views) - 1), range(1, len(views)), strict=True):
            rows, _ = overlapping(views, a, b)
            if len(rows) < 1500:
                continue
            values, points = grey[b].ravel()[rows], unproject(views, b).reshape(-1, 3)[rows]
            pixel, _ = project(views, a, points)
            aligned.append(np.corrcoef(values, bilinear(grey[a], pixel))[0, 1])
            shifted.append(np.corrcoef(values, bilinear(grey[a], pixel + np.array([4.0, 0.0])))[0, 1])
    assert len(aligned) >= 6
    assert np.median(aligned) > 0.97 and np.median(shifted) < np.median(aligned) - 0.05


def test_the_sensor_loses_as_much_as_real_ones(sensed: dict[str, list[Views]]) -> None:
    """Shares of valid depth: 0.88 in a Kinect sequence (7-Scenes), 0.65 in a time-of-flight one (HoloLens)."""
    valid = {name: np.mean([(v.depth > 0).mean() for v in views]) for name, views in sensed.items()}
    assert valid["kinect"] == pytest.approx(0.88, abs=0.06)
    assert valid["tof"] == pytest.approx(0.65, abs=0.08)


def test_depth_noise_on_a_wall_has_the_stated_size() -> None:
    flat = np.ones((4, 60, 80), np.float32)
    for z in (1.0, 2.5, 4.0):
        model = SensorModel()
        noisy = sense_depth(model, z * flat, cosine=flat, brightness=flat, shiny=0 * flat, rng=np.random.default_rng(0))
        assert (noisy > 0).mean() > 0.99
        assert noisy[noisy > 0].std() == pytest.approx(0.0012 + 0.0019 * (z - 0.4) ** 2, rel=0.1)
    kinect = SENSORS["kinect"]
    assert kinect is not None
    noisy = sense_depth(kinect, 4 * flat, cosine=flat, brightness=flat, shiny=0 * flat, rng=np.random.default_rng(0))
    levels = np.unique(noisy[noisy > 0])
    assert np.median(np.diff(levels)) == pytest.approx(0.00287 * 16, rel=0.05), (
        "1/8 pixel of disparity at 4 m is 4.6 cm"
    )


def test_grazing_far_shiny_and_shadowed_surfaces_give_no_depth() -> None:
    kinect = SENSORS["kinect"]
    assert kinect is not None
    flat = np.ones((1, 40, 160), np.float32)
    ramp = np.where(np.arange(160) < 80, 3.0, 1.0).astype(np.float32) * flat
    common = {"brightness": flat, "rng": np.random.default_rng(0)}
    assert (sense_depth(kinect, 2 * flat, cosine=0.1 * flat, shiny=0 * flat, **common) == 0).all()
    assert (sense_depth(kinect, 7 * flat, cosine=flat, shiny=0 * flat, **common) == 0).all()
    shiny = sense_depth(kinect, 2 * flat, cosine=flat, shiny=flat, **common)
    assert 0.6 < (shiny == 0).mean() < 0.95
    edge = sense_depth(kinect, ramp, cosine=flat, shiny=0 * flat, **common)
    band = int(585 / 640 * 160 * 0.075 * (1 - 1 / 3))  # disparity difference across the edge, in pixels
    hidden = (edge[0] == 0).mean(0)
    # The projector sits to the right of the camera: what it cannot reach is on the far surface, left of a near one.
    assert hidden[80 - band + 1 : 80].mean() > 0.9
    assert hidden[: 80 - 2 * band].mean() < 0.1 and hidden[82:].mean() < 0.1


def test_pose_noise_has_the_stated_size() -> None:
    poses = np.repeat(np.eye(4)[None], 4000, 0)
    noisy = sense_pose(SensorModel(), poses, np.random.default_rng(0))
    shift = np.sqrt((noisy[:, :3, 3] ** 2).sum(1).mean())
    angle = np.arccos(np.clip((np.trace(noisy[:, :3, :3], axis1=1, axis2=2) - 1) / 2, -1, 1))
    assert shift == pytest.approx(0.005, rel=0.05)
    assert np.degrees(np.sqrt((angle**2).mean())) == pytest.approx(0.3, rel=0.05)
    np.testing.assert_array_equal(poses, np.repeat(np.eye(4)[None], 4000, 0))


def test_images_are_reproducible_within_a_tolerance() -> None:
    """Fails on any visible change of images, materials, cameras or sensor: then raise GENERATOR_VERSION."""
    views = SyntheticRooms("train", num_scenes=1, num_views=3, image_size=(30, 40), sensor="kinect")[0].views
    assert views is not None and views.segment is not None
    found = {
        "color": views.color.reshape(3, -1, 3).mean(1).round(2).tolist(),
        "depth": [round(float(d[d > 0].mean()), 3) for d in views.depth],
        "valid": [int((d > 0).sum()) for d in views.depth],
        "position": views.cam_to_world[:, :3, 3].round(3).tolist(),
    }
    np.testing.assert_allclose(found["color"], GOLDEN["color"], atol=0.5)
    np.testing.assert_allclose(found["depth"], GOLDEN["depth"], atol=2e-3)
    np.testing.assert_allclose(found["valid"], GOLDEN["valid"], atol=4)
    np.testing.assert_allclose(found["position"], GOLDEN["position"], atol=2e-3)


GOLDEN: dict[str, list] = {
    "color": [[148.23, 140.4, 121.11], [157.4, 130.5, 108.89], [134.12, 120.87, 98.54]],
    "depth": [2.338, 2.344, 1.861],
    "valid": [1082, 1066, 1020],
    "position": [[-0.701, -1.057, 1.431], [1.105, 0.051, 1.431], [-0.586, 0.41, 1.327]],
}
