"""Point clouds and meshes from files, by suffix: `read_scene(path) -> Scene`."""

from __future__ import annotations

import difflib
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ponder_zoo.ops.marching_cubes import vertex_normals

from .checks import check_scene
from .pcd import read_pcd
from .ply import read_ply
from .scene import Scene

MESHES = (".obj", ".glb", ".gltf", ".stl", ".off")
SUFFIXES = (".ply", ".pcd", ".npy", ".npz", ".bin", ".las", ".laz", *MESHES)
MAX_COORDINATE = 16384.0  # metres; beyond it neighbouring float32 numbers are more than 1 mm apart

_AXES = {
    "coord": (("x", "y", "z"),),
    "color": (("red", "green", "blue"), ("r", "g", "b"), ("diffuse_red", "diffuse_green", "diffuse_blue")),
    "normal": (("nx", "ny", "nz"), ("normal_x", "normal_y", "normal_z")),
    "intensity": (("intensity",), ("strength",), ("reflectance",), ("scalar_Intensity",)),
}
_NAMES = {
    "coord": ("coord", "xyz", "points", "coords"),
    "color": ("color", "rgb", "colors"),
    "normal": ("normal", "normals"),
    "intensity": ("intensity", "strength"),
}


def read_scene(
    path: str | Path,
    *,
    unit: float = 1.0,
    recenter: bool = False,
    drop_invalid: bool = False,
    bin_columns: int | None = None,
    max_extent: float = 1000.0,
    condition: str | None = None,
) -> Scene:
    """Read a point cloud, or the vertices of a mesh.

    Formats: .ply, .pcd, .npy and .npz (see `scene_from_arrays`), .bin (KITTI), .las and .laz (needs laspy), .obj, .glb,
    .stl and .off (vertices, with the mesh's normals). A .ply with faces but no normals gets normals from its faces.

    Args:
        path: the file.
        unit: metres per unit of the file; 0.001 for millimetres.
        recenter: subtract the lowest coordinates (in whole metres), for georeferenced scans.
        drop_invalid: leave out points with NaN or infinite coordinates, which organised clouds hold.
        bin_columns: float32 numbers per point in a .bin: x, y, z, intensity, and ignored ones. None: 5 for
            `.pcd.bin` (nuScenes), else 4 (KITTI).
        max_extent: metres; a larger cloud is taken to be in other units.
        condition: name of the data set, for models with norms per data set.

    Returns:
        A scene in metres; colours 0 to 255, normals of unit length (zero where unknown), intensity as in the file.

    Raises:
        ValueError: if the file is truncated, lacks coordinates, or holds what cannot be right.
        ImportError: if the format needs a package that is not installed.

    Example:
        scene = read_scene("scan.ply")
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{file}: expected a file; there is none. Check the path.")
    suffix = file.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(
            f"{file}: expected one of {list(SUFFIXES)}; got {suffix or 'no suffix'!r}. Convert the file, or read it "
            "yourself and pass its arrays."
        )
    scene = scene_from_arrays(_read(file, suffix, bin_columns), name=file.stem, source=str(file))
    scene = _cleaned(replace(scene, condition=condition), drop_invalid)
    scene = _in_metres(scene, unit, recenter)
    check_scene(scene, max_extent=max_extent)
    return scene


def scene_from_arrays(
    arrays: Mapping[str, Any] | NDArray[Any], *, name: str = "scene", source: str | None = None
) -> Scene:
    """A scene from named arrays, or from columns. Coordinates stay float64 if they are.

    Args:
        arrays: `coord` (N, 3) and optionally `color` (uint8, or floats in [0, 1] or [0, 255]), `normal` (N, 3),
            `intensity` (N,), `segment` (N,), `instance` (N,), `condition`, `name`; `xyz`, `rgb` and plurals are
            understood. Or columns (N, 3): x y z; (N, 4): and intensity; (N, 6): and colours, or normals if they all
            have unit length; (N, 9): and colours and normals.
        name: of the scene, where the arrays have none.
        source: what error messages say it came from.
    """
    where = source or f"Scene {name!r}"
    found = _split_columns(arrays, where) if not isinstance(arrays, Mapping) else _by_field(arrays, where)
    coord = _table(found.pop("coord"), "coord", where)
    columns: dict[str, Any] = {"name": found.pop("name", name), "condition": found.pop("condition", None)}
    for field, value in found.items():
        if field == "color":
            columns[field] = as_color(_table(value, field, where), where)
        elif field == "normal":
            columns[field] = _unit(_table(value, field, where))
        elif field == "intensity":
            columns[field] = np.asarray(value, dtype=np.float32).reshape(-1, 1)
        else:
            columns[field] = np.asarray(value).astype(np.int64)
    if coord.dtype.kind != "f" or coord.dtype.itemsize < 4:
        coord = coord.astype(np.float64)
    return Scene(coord=np.ascontiguousarray(coord, coord.dtype.newbyteorder("=")), **columns)


def as_color(values: NDArray[Any], where: str) -> NDArray[np.float32]:
    """Colours as float32 in [0, 255]: from 8 or 16 bits, or from floats in [0, 1] or [0, 255]."""
    if values.dtype.kind in "iu":
        scale = 1 / 257 if values.dtype.itemsize > 1 and values.max(initial=0) > 255 else 1.0
    else:
        scale = 255.0 if values.max(initial=0.0) <= 1.0 else 1.0
    color = values.astype(np.float32) * np.float32(scale)
    if color.min(initial=0.0) < 0 or color.max(initial=0.0) > 255:
        raise ValueError(
            f"{where}: expected colours in [0, 255] or [0, 1]; got {values.min():.4g} to {values.max():.4g}. "
            "Undo their normalization, or leave them out."
        )
    return color


def _read(file: Path, suffix: str, bin_columns: int | None) -> Mapping[str, Any] | NDArray[Any]:
    if suffix == ".ply":
        return _read_ply(file)
    if suffix == ".pcd":
        return _from_axes(read_pcd(file), file)
    if suffix in (".npy", ".npz"):
        return _read_numpy(file)
    if suffix == ".bin":
        return _read_bin(file, bin_columns or (5 if file.name.lower().endswith(".pcd.bin") else 4))
    return _read_las(file) if suffix in (".las", ".laz") else _read_mesh(file)


def _read_ply(file: Path) -> dict[str, Any]:
    ply = read_ply(file)
    arrays = _from_axes(ply.vertex, file)
    if ply.faces is not None and len(ply.faces) and "normal" not in arrays:
        arrays["normal"] = vertex_normals(arrays["coord"], ply.faces)
    return arrays


def _read_numpy(file: Path) -> Mapping[str, Any] | NDArray[Any]:
    try:
        with file.open("rb") as stream:  # numpy leaves a file open that it fails to read
            content = np.load(stream, allow_pickle=False)
            if isinstance(content, np.ndarray):
                return content
            return {name: content[name] for name in content.files if _field_of(name) is not None}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"{file}: expected arrays of numbers; {error}. The file is truncated, damaged or pickled: save it again "
            "with numpy.save or numpy.savez."
        ) from error


def _read_bin(file: Path, columns: int) -> dict[str, Any]:
    size = file.stat().st_size
    if columns < 3 or size % (4 * columns):
        raise ValueError(
            f"{file}: expected a multiple of {4 * columns} bytes, {columns} float32 numbers per point; got {size}. "
            "If points have another number of columns, pass bin_columns (nuScenes: 5); else the file is truncated."
        )
    rows = np.fromfile(file, dtype="<f4").reshape(-1, columns)
    if columns == 3:
        return {"coord": rows}
    if (rows[:, 3] < 0).any():
        raise ValueError(
            f"{file}: expected the intensity in column 4 of {columns}, at least 0; got {rows[:, 3].min():.4g}. "
            "The points probably have another number of columns: pass bin_columns (nuScenes: 5)."
        )
    return {"coord": rows[:, :3], "intensity": rows[:, 3]}


def _read_las(file: Path) -> dict[str, Any]:
    try:
        import laspy  # pyright: ignore[reportMissingImports]  # an extra
    except ImportError as error:
        raise ImportError(
            f"{file}: reading LAS and LAZ uses laspy, which is not installed. Run: pip install 'laspy[lazrs]'"
        ) from error
    try:
        las = laspy.read(file)
        arrays: dict[str, Any] = {"coord": np.stack([las.x, las.y, las.z], axis=1)}
        names = set(las.point_format.dimension_names)
        if {"red", "green", "blue"} <= names:
            arrays["color"] = np.stack([las.red, las.green, las.blue], axis=1)
        if "intensity" in names:
            arrays["intensity"] = np.asarray(las.intensity)
    except Exception as error:  # laspy and its decoders raise many kinds, also for truncated files
        raise ValueError(
            f"{file}: expected a readable LAS or LAZ file; {type(error).__name__}: {error}. Copy it again; .laz also "
            "needs a decoder: pip install 'laspy[lazrs]'."
        ) from error
    if "color" in arrays and not arrays["color"].any():
        del arrays["color"]  # point formats with colour are often written without any
    return arrays


def _read_mesh(file: Path) -> dict[str, Any]:
    try:
        import trimesh
    except ImportError as error:
        raise ImportError(
            f"{file}: reading meshes uses trimesh, which is not installed. Run: pip install trimesh"
        ) from error
    try:
        mesh: Any = trimesh.load(file, force="mesh", process=False)
        coord = np.asarray(mesh.vertices)
        arrays: dict[str, Any] = {"coord": coord, "normal": np.asarray(mesh.vertex_normals)}
        if mesh.visual.kind == "vertex":
            arrays["color"] = np.asarray(mesh.visual.vertex_colors)[:, :3]
    except Exception as error:  # each loader of trimesh raises its own kinds
        raise ValueError(
            f"{file}: expected a readable mesh; {type(error).__name__}: {error}. Export it again, for example as .ply."
        ) from error
    return arrays


def _from_axes(columns: Mapping[str, NDArray[Any]], file: Path) -> dict[str, Any]:
    """Named scalars (N,) of a file as coord, color, normal and intensity."""
    arrays: dict[str, Any] = {}
    for field, choices in _AXES.items():
        names = next((names for names in choices if all(name in columns for name in names)), None)
        if names is not None:
            arrays[field] = np.stack([columns[name] for name in names], axis=1)
    if "coord" not in arrays:
        raise ValueError(
            f"{file}: expected the columns x, y and z; got {sorted(columns)}. Rename them, or export the file again."
        )
    return arrays


def _field_of(name: str) -> str | None:
    """The field of a scene that an array's name stands for."""
    known = ("segment", "instance", "condition", "name")
    return next((field for field, names in _NAMES.items() if name in names), name if name in known else None)


def _by_field(arrays: Mapping[str, Any], where: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in arrays.items():
        field = _field_of(name)
        if field is None or field in found:
            names = [name for names in _NAMES.values() for name in names]
            near = difflib.get_close_matches(str(name), [*names, "segment", "instance"], 1)
            raise ValueError(
                f"{where}: expected arrays named coord, color, normal, intensity, segment or instance, each once; got "
                f"{sorted(map(str, arrays))}. Leave out {name!r}" + (f", or call it {near[0]!r}." if near else ".")
            )
        if value is not None:
            found[field] = value
    if "coord" not in found:
        raise ValueError(
            f"{where}: expected an array 'coord' (or 'xyz', 'points') of shape (N, 3); got {sorted(map(str, arrays))}. "
            "Save the coordinates under that name."
        )
    shape = np.shape(found["coord"])
    if len(shape) == 2 and shape[1] != 3 and len(found) == 1:
        return _split_columns(found["coord"], where)
    return found


def _split_columns(values: Any, where: str) -> dict[str, Any]:
    table = np.asarray(values)
    if table.ndim != 2 or table.shape[1] not in (3, 4, 6, 9) or table.dtype.kind not in "fiu":
        raise ValueError(
            f"{where}: expected columns (N, 3) x y z, (N, 4) and intensity, (N, 6) and colours or normals, or (N, 9) "
            f"and both; got shape {table.shape} of {table.dtype}. Pass named arrays instead: coord, color, normal."
        )
    found: dict[str, Any] = {"coord": table[:, :3]}
    if table.shape[1] == 4:
        found["intensity"] = table[:, 3]
    elif table.shape[1] == 9:
        found |= {"color": table[:, 3:6], "normal": table[:, 6:]}
    elif table.shape[1] == 6:
        is_normal = len(table) > 0 and np.allclose(
            np.linalg.norm(table[:, 3:].astype(np.float64), axis=1), 1, atol=0.01
        )
        found["normal" if is_normal else "color"] = table[:, 3:]
    return found


def _table(value: Any, field: str, where: str) -> NDArray[Any]:
    table = np.asarray(value)
    if table.ndim != 2 or table.shape[1] != 3 or table.dtype.kind not in "fiu":
        raise ValueError(
            f"{where}: expected {field} of shape (N, 3), numbers; got {table.shape} of {table.dtype}. "
            "Put each quantity into its own array."
        )
    return table


def _unit(normal: NDArray[Any]) -> NDArray[np.float32]:
    """Unit length; zero where there is no direction."""
    values = normal.astype(np.float64)
    length = np.linalg.norm(values, axis=1, keepdims=True)
    return np.divide(values, length, out=np.zeros_like(values), where=length > 1e-12).astype(np.float32)


def _cleaned(scene: Scene, drop_invalid: bool) -> Scene:
    valid = np.asarray(np.isfinite(scene.coord).all(1))
    if valid.all():
        return scene
    if not drop_invalid:
        raise ValueError(
            f"Scene {scene.name!r}: expected finite coordinates; {(~valid).sum()} of {len(scene)} points are "
            f"NaN or infinite (first: row {np.flatnonzero(~valid)[0]}). Pass drop_invalid=True to leave them out."
        )
    names = ("coord", "color", "normal", "intensity", "segment", "instance")
    kept = {name: value[valid] for name in names if (value := getattr(scene, name)) is not None}
    return replace(scene, **kept)


def _in_metres(scene: Scene, unit: float, recenter: bool) -> Scene:
    if not unit > 0:
        raise ValueError(f"Expected unit in metres per unit of the file, above 0; got {unit}. Millimetres: unit=0.001.")
    coord = scene.coord if unit == 1.0 else scene.coord.astype(np.float64) * unit
    if recenter and len(coord):
        coord = coord - np.floor(coord.min(0))
    furthest = float(np.abs(coord).max(initial=0.0))
    if furthest > MAX_COORDINATE:
        raise ValueError(
            f"Scene {scene.name!r}: expected coordinates within {MAX_COORDINATE:g} m of the origin, where float32 "
            f"resolves millimetres; got up to {furthest:.6g} m. Pass recenter=True for a georeferenced scan, or "
            "unit=0.001 if the file is in millimetres."
        )
    return replace(scene, coord=coord.astype(np.float32))
