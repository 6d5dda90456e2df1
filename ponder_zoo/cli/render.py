"""The command `render`: images and meshes out of a pre-trained model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._common import Subparsers, access, add_command, add_model_options, model_name, pick_device, say

if TYPE_CHECKING:
    from torch import nn

    from ..data.scene import Scene
    from ..report.previews import PreviewView
    from ..structures import FeatureVolume

ROOM = "room"  # the input that needs no file


def add_commands(commands: Subparsers) -> None:
    parser = add_command(
        commands,
        "render",
        render,
        "Render colour, depth and normals with a pre-trained model. The input is a scan, a folder of posed RGB-D "
        "frames (some are read, and some of the others rendered, beside what the camera saw), or a built-in room.",
        "ponder-zoo render runs/pretrain room renders --orbit 4 --mesh renders/room.ply",
    )
    parser.add_argument("model", help="run folder, or export: a folder, local-dir:FOLDER or hf-hub:org/name[@revision]")
    parser.add_argument("input", help=f"scan file, folder of posed RGB-D frames, or '{ROOM}' for a built-in room")
    parser.add_argument("out", help="folder for the images; made if absent")
    parser.add_argument("--views", type=int, default=4, help="recorded cameras to render (default: 4)")
    parser.add_argument("--frames", type=int, default=7, help="frames to read as the input (default: 7)")
    parser.add_argument("--orbit", type=int, default=0, help="cameras inside the scene to render (scans: 4, else 0)")
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), default=(120, 160), help="default: 120 160")
    parser.add_argument(
        "--volume", type=int, nargs=3, metavar=("X", "Y", "Z"), help="cells (default: as in the run, or 48 48 24)"
    )
    parser.add_argument("--mesh", metavar="OUT.ply", help="also write the surface (.ply, .obj or .glb)")
    add_model_options(parser)


def render(options: Any) -> int:
    import torch

    import ponder_zoo as pz

    from ..data.model_input import volume_input
    from ..render.mesh import extract_mesh
    from ..report.mesh import FORMATS, write_mesh

    if options.mesh and Path(options.mesh).suffix.lower() not in FORMATS:
        raise ValueError(f"Expected --mesh to end in {', '.join(FORMATS)}, got '{options.mesh}'. Rename it.")
    if min(*options.size, options.frames) < 1 or min(options.views, options.orbit) < 0:
        raise ValueError("Expected --size and --frames of at least 1, --views and --orbit of at least 0.")
    name, device, out = model_name(options.model), pick_device(options.device), Path(options.out)
    arguments = {"backend": options.backend} | ({"condition": options.condition} if options.condition else {})
    ponder: Any = pz.create_pretrainer(name, pretrained=True, encoder_args=arguments, **access(options))
    ponder = ponder.to(device).eval()
    settings = _run_settings(options.model)
    shape = tuple(options.volume or settings.get("volume_shape", (48, 48, 24)))
    scene = _read_input(options)
    with torch.no_grad():
        # The statistics of norms depend on the density: the points are thinned as in training.
        margin, dropout = float(settings.get("margin", 0.3)), float(settings.get("dropout", 0.0))
        scene, item, shift = volume_input(scene, ponder.encoder, shape, margin=margin, dropout=dropout)
        volume = ponder.volume_encoder(item.to(device))
        orbit = options.orbit or (4 if scene.views is None else 0)
        views = [*_recorded(ponder, volume, scene, options.views), *_orbit(ponder, volume, scene, orbit, options.size)]
        out.mkdir(parents=True, exist_ok=True)
        for label, images, _ in views:
            _write_images(out, label, images)
        say(f"{_write_overview(out / 'overview.png', scene, views)}: {len(views)} views of {scene.name}")
        if options.mesh:
            mesh = extract_mesh(ponder.renderer.field, volume, scene.coord)
            path = write_mesh(replace(mesh, vertices=(mesh.vertices + shift).astype("float32")), options.mesh)
            say(f"{path}: {len(mesh.vertices):,} vertices, {len(mesh.faces):,} triangles")
    return 0


# Inputs


def _run_settings(name: str) -> dict[str, Any]:
    """Of the run's config.yaml, where a run was named."""
    from ..train.config import saved_values

    folder = Path(str(name).removeprefix("local-dir:")).expanduser()
    file = next((path / "config.yaml" for path in (folder, folder.parent) if (path / "config.yaml").is_file()), None)
    return {} if file is None else dict(saved_values(file))


def _read_input(options: Any) -> Scene:
    """A scene of points; with `views`, those to render."""
    import numpy as np

    from ..data.unproject import select_views, unproject

    path = Path(options.input).expanduser()
    if path.is_dir():
        from ..data.rgbd_sequence import RGBDOptions, RGBDSequence

        sequence = RGBDSequence(path, RGBDOptions(image_size=tuple(options.size)))
        usable = [index for index in range(len(sequence)) if sequence.is_usable(index)]
        inputs, targets = _split(usable, options.frames, options.views)
        scene = unproject(sequence.views(inputs), name=sequence.name)
        return replace(scene, views=sequence.views(targets) if targets else None)
    if options.input == ROOM:
        from ..data.synthetic import SyntheticRooms

        count = options.frames + options.views
        room = SyntheticRooms("test", num_scenes=1, num_views=count, image_size=tuple(options.size))[0]
        assert room.views is not None
        inputs, targets = _split(list(range(count)), options.frames, options.views)
        scene = unproject(select_views(room.views, np.array(inputs)), name=room.name)
        return replace(scene, views=select_views(room.views, np.array(targets)) if targets else None)
    from ..data.readers import read_scene

    return read_scene(path)


def _split(frames: list[int], inputs: int, targets: int) -> tuple[list[int], list[int]]:
    """Frames to read and frames to render, both spread evenly and none in both; the last ones render what is read."""
    import numpy as np

    if not frames:
        raise ValueError("None of the frames has depth in enough of its pixels. Check the depth scale.")
    chosen = np.linspace(0, len(frames) - 1, min(inputs + targets, len(frames))).round().astype(int)
    chosen = [frames[position] for position in chosen]
    count = min(targets, len(chosen) - 1) if len(chosen) > 1 else 0
    held = {int(position) for position in np.linspace(0, len(chosen) - 1, count + 2).round()[1:-1]}
    rendered = [frame for position, frame in enumerate(chosen) if position in held]
    return [frame for position, frame in enumerate(chosen) if position not in held], rendered


# Views


View = tuple[str, dict[str, Any], "PreviewView | None"]


def _render(ponder: nn.Module, volume: FeatureVolume, camera: Any, size: tuple[int, int]) -> dict[str, Any]:
    import torch

    from ..render.image import render_image

    intrinsics, pose = (torch.as_tensor(value).float() for value in (camera.intrinsics, camera.cam_to_world))
    images = render_image(ponder.renderer, volume, intrinsics, pose, size)  # type: ignore[arg-type]
    return {key: value.float().cpu().numpy() for key, value in images.items()}


def _recorded(ponder: nn.Module, volume: FeatureVolume, scene: Scene, count: int) -> Iterator[View]:
    """The cameras of the frames, with what they saw."""
    from ..report.previews import PreviewView
    from ..report.splat import Camera

    views = scene.views
    for v in range(0 if views is None else min(count, len(views))):
        assert views is not None
        size = views.depth.shape[1], views.depth.shape[2]
        camera = Camera(views.intrinsics[v], views.cam_to_world[v], size)
        images = _render(ponder, volume, camera, size)
        reference = views.color[v], images["rgb"].clip(0, 1), images["depth"], views.depth[v], images["normal"]
        normal = None if views.normal is None else views.normal[v]
        drawn = (camera, scene.coord, scene.color, f"view {v}")
        yield f"view_{v:02}", images, PreviewView(*reference, normal, images["opacity"], *drawn)


def _orbit(ponder: nn.Module, volume: FeatureVolume, scene: Scene, count: int, size: Any) -> Iterator[View]:
    for number, camera in enumerate(inside_cameras(scene.coord, count=count, image_size=tuple(size))):
        yield f"orbit_{number:02}", _render(ponder, volume, camera, tuple(size)) | {"camera": camera}, None


def inside_cameras(coord: Any, *, count: int, image_size: tuple[int, int], field_of_view: float = 80.0) -> list[Any]:
    """Cameras inside a cloud with z up, on an ellipse about its middle, looking across it and slightly down.

    From outside one would see the backs of the walls.

    Args:
        coord: (N, 3) metres.
        count: cameras, at equal angles.
        image_size: (H, W) pixels.
        field_of_view: horizontal, degrees.
    """
    import numpy as np

    from ..data.normals import room_viewpoint
    from ..report.splat import Camera

    low, high = np.percentile(coord, [2, 98], axis=0)
    middle, half = room_viewpoint(coord), 0.5 * (high - low)
    focal = 0.5 * image_size[1] / np.tan(np.radians(field_of_view / 2))
    intrinsics = np.array([[focal, 0, (image_size[1] - 1) / 2], [0, focal, (image_size[0] - 1) / 2], [0, 0, 1.0]])
    cameras = []
    for angle in np.pi / 4 + 2 * np.pi * np.arange(count) / max(count, 1):
        away = np.array([np.cos(angle) * half[0], np.sin(angle) * half[1], 0.0])
        forward = -1.2 * away + [0.0, 0.0, -0.35 * half[2]]
        forward = forward / max(float(np.linalg.norm(forward)), 1e-9)
        right = np.cross(forward, [0.0, 0.0, 1.0])
        right /= max(float(np.linalg.norm(right)), 1e-9)
        pose = np.eye(4)
        pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], -1)
        pose[:3, 3] = middle + 0.6 * away
        cameras.append(Camera(intrinsics, pose, image_size))
    return cameras


# Files


def _write_images(out: Path, label: str, images: dict[str, Any]) -> None:
    """Colour and normals with 8 bits, depth in millimetres with 16."""
    import numpy as np
    from PIL import Image

    from ..report.colors import normal_to_rgb

    empty = images["opacity"] < 0.05
    Image.fromarray((255 * images["rgb"].clip(0, 1)).round().astype(np.uint8)).save(out / f"{label}.color.png")
    millimetres = np.where(empty, 0, 1000 * images["depth"]).clip(0, 65535).round().astype(np.uint16)
    Image.fromarray(millimetres).save(out / f"{label}.depth.png")
    normal = np.where(empty[..., None], 0.0, images["normal"])
    Image.fromarray(normal_to_rgb(normal)).save(out / f"{label}.normal.png")


def _write_overview(path: Path, scene: Scene, views: list[View]) -> Path:
    """Recorded views beside what the camera saw, if there are any; else those of the orbit beside the points."""
    import numpy as np

    from ..report.colors import colorize, normal_to_rgb
    from ..report.grid import Bar, Grid, Tile, save_grid
    from ..report.previews import write_view_grid
    from ..report.splat import splat_points

    recorded = [preview for _, _, preview in views if preview is not None]
    if recorded:
        return write_view_grid(path, recorded, title=scene.name)
    if not views:
        raise ValueError("Nothing to render: no recorded view and --orbit 0. Raise --views or --orbit.")
    depths = np.concatenate([images["depth"].ravel() for _, images, _ in views])
    low, high = np.quantile(depths[depths > 0], [0.01, 0.99]) if (depths > 0).any() else (0.0, 1.0)
    color = np.full((len(scene.coord), 3), 200) if scene.color is None else scene.color
    rows = []
    for label, images, _ in views:
        opaque, camera = images["opacity"] >= 0.05, images["camera"]
        size = (320, round(320 * camera.image_size[0] / camera.image_size[1]))
        points, _ = splat_points(scene.coord, color, camera.resized((size[1], size[0])), point_size=0.06)
        normal = np.where(opaque[..., None], images["normal"], 0.0)
        pictures = (
            points,
            (255 * images["rgb"].clip(0, 1)).round().astype(np.uint8),
            colorize(images["depth"], "depth", low=low, high=high, valid=opaque),
            normal_to_rgb(normal),
        )
        rows.append([Tile(picture, size, label if number == 0 else "") for number, picture in enumerate(pictures)])
    bars = [Bar("Depth", "depth", f"{low:.3g} m", f"{high:.3g} m"), Bar("Nothing there", None, "", "")]
    return save_grid(Grid(["Input points", "Colour", "Depth", "Normal"], rows, scene.name, bars), path)
