"""The command `features`: what an encoder makes of a scan, as colours."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._common import Subparsers, access, add_command, add_model_options, model_name, pick_device, say

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from ..data.scene import Scene

SUFFIXES = (".ply", ".npz", ".glb")
DEFAULT_MODEL = "sparseunet_ponderv2_tiny"


def add_commands(commands: Subparsers) -> None:
    parser = add_command(
        commands,
        "features",
        features,
        "Colour a scan by an encoder's features. Points with alike features get alike colours (the three main "
        "directions of variation become red, green and blue). Beside OUT goes a picture, OUT.png. The weights of the "
        "default model come with the package; a model without weights runs untrained, and the output says so.",
        "ponder-zoo features scan.ply features.ply --model runs/pretrain",
    )
    parser.add_argument("scan", help="file that data.readers.read_scene knows: .ply, .pcd, .npy, .npz, .bin, ...")
    parser.add_argument("out", help=f"{', '.join(SUFFIXES)}: .npz holds the features themselves, too")
    parser.add_argument("--model", default=DEFAULT_MODEL, help=f"name, folder or run folder (default: {DEFAULT_MODEL})")
    parser.add_argument("--untrained", action="store_true", help="do not load weights: for comparison")
    parser.add_argument("--grid-size", type=float, help="metres (default: the model's)")
    parser.add_argument("--estimate-normals", action="store_true", help="where the scan has none")
    parser.add_argument("--max-points", type=int, default=1_000_000, help="thin larger scans (default: 1000000)")
    parser.add_argument("--views", type=int, default=2, help="sides to draw it from (default: 2)")
    add_model_options(parser)


def features(options: Any) -> int:
    import numpy as np

    from ..data.motion import take_points
    from ..data.readers import read_scene
    from ..report.pca import pca_rgb

    out = Path(options.out)
    if out.suffix.lower() not in SUFFIXES:
        raise ValueError(f"Expected OUT to end in {', '.join(SUFFIXES)}, got '{options.out}'. Rename it.")
    if options.max_points < 1 or options.views < 1:
        raise ValueError(
            f"Expected --max-points and --views of at least 1, got {options.max_points} and {options.views}."
        )
    scene = read_scene(options.scan)
    if len(scene) > options.max_points:
        scene = take_points(scene, np.linspace(0, len(scene) - 1, options.max_points).round().astype(np.int64))
    model, trained = _open_model(options)
    values = _encode(model, scene, options).cpu()  # (N, C)
    rgb = np.round(255 * pca_rgb(values).numpy()).astype(np.uint8)
    _write_cloud(out, scene, rgb, values.numpy())
    picture = _write_picture(out, scene, rgb, options, title=_title(scene, options.model, model, trained))
    say(f"{out}: {len(scene):,} points, {values.shape[1]} features each")
    say(f"{picture}: the picture")
    if not trained:
        say("The model is UNTRAINED: the colours show random weights, not learned features.")
    return 0


def _open_model(options: Any) -> tuple[nn.Module, bool]:
    """The encoder in eval mode, and whether it has weights."""
    import ponder_zoo as pz

    name = model_name(options.model)
    trained = not options.untrained and (":" in name or pz.get_pretrained_cfg(name).has_weights)
    arguments = {"condition": options.condition, "grid_size": options.grid_size, "backend": options.backend}
    given = {key: value for key, value in arguments.items() if value is not None}
    model = pz.create_model(name, pretrained=trained, num_classes=0, **given, **access(options))
    return model.to(pick_device(options.device)).eval(), trained


def _encode(model: nn.Module, scene: Scene, options: Any) -> Tensor:
    """Features of the original points: (N, C) float32."""
    import torch

    import ponder_zoo as pz

    config = pz.resolve_model_data_config(model)  # type: ignore[arg-type]
    config["condition"] = options.condition or config["condition"]
    transform = pz.create_transform(**config, is_training=False, estimate_normals=options.estimate_normals)
    points = transform(scene).to(next(model.parameters()).device)
    with torch.no_grad():
        return model.forward_point_features(points).float()  # type: ignore[operator]


def _title(scene: Scene, asked: str, model: nn.Module, trained: bool) -> str:
    architecture = model.pretrained_cfg.architecture  # type: ignore[union-attr]
    return f"{scene.name} · {architecture}, {'trained' if trained else 'UNTRAINED: random weights'}"


# Files


def _write_cloud(path: Path, scene: Scene, rgb: NDArray[np.uint8], values: NDArray[np.float32]) -> None:
    import io

    import numpy as np

    from ..files import write_atomic
    from ..report.pointcloud_io import write_ply

    suffix = path.suffix.lower()
    if suffix == ".ply":
        write_ply(path, scene.coord, color=rgb, normal=scene.normal)
    elif suffix == ".npz":
        given = {"color": scene.color, "normal": scene.normal}
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
        np.savez_compressed(buffer, coord=scene.coord, features=values, feature_rgb=rgb, **arrays)
        write_atomic(path, buffer.getvalue())
    else:
        import trimesh

        # glTF's up axis is y
        cloud = trimesh.PointCloud(scene.coord[:, [0, 2, 1]] * np.array([1.0, 1.0, -1.0]), colors=rgb)
        data: Any = cloud.export(file_type="glb")
        write_atomic(path, data)


def _write_picture(path: Path, scene: Scene, rgb: NDArray[np.uint8], options: Any, *, title: str) -> Path:
    """Input beside features from a few sides, as `OUT.png`."""
    import numpy as np

    from ..report.colors import colorize
    from ..report.grid import Grid, Tile, save_grid
    from ..report.splat import splat_points

    coord = scene.coord
    low, high = np.quantile(coord[:, 2], [0.02, 0.98])
    color = colorize(coord[:, 2], "depth", low=low, high=high) if scene.color is None else scene.color
    header = "Input: colour" if scene.color is not None else "Input: height (it has no colour)"
    size = (720, 520)
    rows = []
    for camera in _cameras(scene, options.views, (size[1] * 2, size[0] * 2)):
        seen = _facing(scene, camera)
        point_size = _spacing(coord[seen], camera)
        drawn = [splat_points(coord[seen], values[seen], camera, point_size=point_size)[0] for values in (color, rgb)]
        rows.append([Tile(image, size) for image in drawn])
    return save_grid(Grid([header, "Features"], rows, title), path.with_name(f"{path.name}.png"))


def _cameras(scene: Scene, count: int, image_size: tuple[int, int]) -> list[Any]:
    """Cameras about the dense part of a cloud: all around it or, without normals, on the sensor's side.

    Points without normals come from a sensor, mostly at the origin, and from its other side one sees backs only.
    """
    import numpy as np

    from ..report.splat import orbit_cameras

    low, high = np.quantile(scene.coord, [0.04, 0.96], axis=0)
    inner = scene.coord[((scene.coord >= low) & (scene.coord <= high)).all(-1)]
    coord = inner if len(inner) > 0 else scene.coord
    if scene.normal is not None:
        return orbit_cameras(scene.coord, count=count, image_size=image_size)
    x, y = -np.median(coord[:, :2], axis=0)
    towards = float(np.degrees(np.arctan2(y, x)))
    turns = np.linspace(-30.0, 30.0, count) if count > 1 else [20.0]
    return [
        camera
        for turn in turns
        for camera in orbit_cameras(
            coord, count=1, image_size=image_size, elevation=30.0, azimuth=towards + float(turn)
        )
    ]


def _facing(scene: Scene, camera: Any) -> NDArray[np.bool_]:
    """Points to draw: without surfaces seen from behind, such as the near walls and the ceiling of a room."""
    import numpy as np

    if scene.normal is None:
        return np.ones(len(scene.coord), np.bool_)
    return ((camera.cam_to_world[:3, 3] - scene.coord) * scene.normal).sum(-1) >= 0


def _spacing(coord: NDArray[np.floating], camera: Any) -> float:
    """Diameter in metres with which neighbouring points just close the surface between them, for most of the cloud."""
    import numpy as np

    from ..ops.knn import knn_tree

    if len(coord) < 8:
        return 0.05
    some = coord[:: max(1, len(coord) // 5000)]
    distance, _ = knn_tree(some, coord, 5)
    return float(np.quantile(distance[:, -1], 0.8)) * 1.3
