"""All images of a room along a camera path."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..scene import Views
from ..unproject import pixel_directions, select_views, view_normals
from .cameras import draw_intrinsics, draw_path, draw_target, look_at
from .classes import Draw, Split, stream
from .layout import Room
from .materials import Materials, draw_materials
from .primitives import Float
from .sensor import SENSORS, SensorName, sense_color, sense_depth, sense_pose
from .shading import Lights, draw_lights, exposure, shade, to_display
from .tracing import local_hits, trace_view

NORMAL_SCALE = 32767  # normals are kept as int16


@dataclass(frozen=True, eq=False)
class Recording:
    """What a walk through a room with a depth camera gives, and the truth behind it. V views."""

    color: NDArray[np.uint8]  # (V, H, W, 3)
    depth: NDArray[np.float32]  # (V, H, W) measured z-depth, metres; 0 = none
    primitive: NDArray[np.int16]  # (V, H, W) index of the primitive seen, -1 = none
    normal: NDArray[np.int16]  # (V, H, W, 3) world normals estimated from `depth`, times NORMAL_SCALE; zero = unknown
    exact_normal: NDArray[np.int16]  # (V, H, W, 3) of the primitives, times NORMAL_SCALE
    intrinsics: NDArray[np.float32]  # (V, 3, 3)
    cam_to_world: NDArray[np.float32]  # (V, 4, 4) as estimated; equal to the true ones with sensor "off"
    segment_of: NDArray[np.int16]  # (P,) class of each primitive
    instance_of: NDArray[np.int32]  # (P,)


@dataclass(frozen=True, eq=False)
class ExactImages:
    """Images without a sensor. V views, metres, world frame."""

    radiance: NDArray[np.float32]  # (V, H, W, 3) linear
    depth: NDArray[np.float32]  # (V, H, W) z-depth, 0 = none
    primitive: NDArray[np.int32]  # (V, H, W)
    normal: NDArray[np.float32]  # (V, H, W, 3)
    cosine: NDArray[np.float32]  # (V, H, W) between normal and viewing ray
    shiny: NDArray[np.float32]  # (V, H, W) probability of no depth return


def record(
    room: Room, split: Split, scene: int, *, seed: int, num_views: int, image_size: tuple[int, int], sensor: SensorName
) -> Recording:
    """Walk through a room and record `num_views` posed RGB-D images."""
    held_out = split == "test"
    draw = Draw(stream(seed, split, scene, "materials"), held_out=held_out)
    materials = draw_materials(draw, room.primitives)
    lights = draw_lights(draw, room)
    camera_draw = Draw(stream(seed, split, scene, "cameras"), held_out=held_out)
    intrinsics = draw_intrinsics(camera_draw, image_size)
    poses, depth, primitive = _trace_path(camera_draw, room, intrinsics, num_views, image_size)
    exact = render(room, materials, lights, intrinsics, poses, depth=depth, primitive=primitive)
    color = to_display(exact.radiance, exposure(exact.radiance.reshape(-1, 3)))
    model = SENSORS[sensor]
    estimated = poses
    if model is not None:
        rng = stream(seed, split, scene, "sensor")
        depth = sense_depth(
            model, depth, cosine=exact.cosine, brightness=color.mean(-1) ** 2.2, shiny=exact.shiny, rng=rng
        )
        color = sense_color(model, color, rng)
        estimated = sense_pose(model, poses, rng)
    views = Views(
        color=np.round(color * 255).astype(np.uint8),
        depth=depth.astype(np.float32),
        intrinsics=np.repeat(intrinsics[None], num_views, 0).astype(np.float32),
        cam_to_world=estimated.astype(np.float32),
    )
    # One view at a time: its arrays fit the cache, which makes it several times faster.
    normal = np.concatenate([view_normals(select_views(views, np.array([k]))) for k in range(num_views)])
    return Recording(
        color=views.color,
        depth=views.depth,
        primitive=exact.primitive.astype(np.int16),
        normal=np.round(normal * NORMAL_SCALE).astype(np.int16),
        exact_normal=np.round(exact.normal * NORMAL_SCALE).astype(np.int16),
        intrinsics=views.intrinsics,
        cam_to_world=views.cam_to_world,
        segment_of=room.segment.astype(np.int16),
        instance_of=room.primitives.instance.astype(np.int32),
    )


def _trace_path(
    draw: Draw, room: Room, intrinsics: Float, num_views: int, image_size: tuple[int, int]
) -> tuple[Float, NDArray[np.float32], NDArray[np.int32]]:
    """Poses (V, 4, 4) with their depth and primitives; a view that shows too little is turned elsewhere."""
    positions, targets, rolls = draw_path(draw, room, num_views)
    poses, depths, primitives = [], [], []
    for position, target, roll in zip(positions, targets, rolls, strict=True):
        best: tuple[float, Float, NDArray[np.float32], NDArray[np.int32]] | None = None
        for _ in range(5):
            # Poses are float32 from here on, so that stored poses are the ones that were rendered.
            pose = look_at(position, target, roll).astype(np.float32).astype(float)
            depth, primitive = trace_view(room.primitives, pose, intrinsics, image_size)
            quality = view_quality(depth, room.segment[primitive])
            if best is None or quality > best[0]:
                best = (quality, pose, depth, primitive)
            if quality >= 1.0:
                break
            target = draw_target(draw, room, position)
        assert best is not None
        poses.append(best[1])
        depths.append(best[2])
        primitives.append(best[3])
    return np.array(poses), np.array(depths), np.array(primitives)


def view_quality(depth: Float, segment: NDArray[np.integer]) -> float:
    """At least 1 where a view is worth keeping: most pixels at 0.6 to 6 m, and more in it than bare walls."""
    usable = float(((depth > 0.6) & (depth < 6.0)).mean()) / 0.7
    furnished = float((segment > 1).mean()) / 0.12  # neither wall, floor nor unlabelled
    return min(usable, furnished)


def render(
    room: Room,
    materials: Materials,
    lights: Lights,
    intrinsics: Float,
    cam_to_world: Float,
    *,
    depth: NDArray[np.float32],
    primitive: NDArray[np.int32],
) -> ExactImages:
    """Shade traced images: depth and primitive (V, H, W) of one camera at poses (V, 4, 4)."""
    V, H, W = depth.shape
    rays = pixel_directions(intrinsics[None], H, W)[0]  # (H, W, 3), z = 1
    stretch = np.linalg.norm(rays, axis=-1)
    radiance = np.zeros((V, H, W, 3), np.float32)
    normals = np.zeros((V, H, W, 3), np.float32)
    cosines = np.zeros((V, H, W), np.float32)
    for view in range(V):  # one at a time: the arrays of one view fit the cache
        seen = primitive[view] >= 0
        prim, z = primitive[view][seen], depth[view][seen]
        world_rays = rays[seen] @ cam_to_world[view, :3, :3].T.astype(np.float32)
        position = world_rays * z[:, None] + cam_to_world[view, :3, 3].astype(np.float32)
        _, normal = local_hits(room.primitives, position, prim)
        cosine = -(normal * world_rays).sum(1) / stretch[seen]
        footprint = z / np.float32(intrinsics[0, 0]) / np.sqrt(np.maximum(cosine, 0.05))
        radiance[view][seen] = shade(room, materials, lights, prim, position, normal, footprint)
        normals[view][seen], cosines[view][seen] = normal, cosine
    shiny = np.where(primitive >= 0, materials.shiny[materials.index[primitive]], 0).astype(np.float32)
    return ExactImages(radiance, depth, primitive, normals, cosines, shiny)
