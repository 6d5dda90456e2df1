"""The prepared form: per scene one Parquet file with its points and labels, and one with its images.

`scenes/SPLIT/*/NAME.parquet` has a single row. `frames/SPLIT/*/NAME.parquet` has a row per image, each a row group
of its own, so that a few images of a scene are read without the others. One scene per file makes a shuffle of the
files a shuffle of the scenes, and a finished scene a finished file.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..scene import Array, Scene
from .record import Frame, PreparedScene

FORMAT_VERSION = 1  # bump on any change of what the files hold

_POINT_COLUMNS = {
    "coord": pa.float32(),  # (N, 3), flat
    "color": pa.uint8(),  # (N, 3), flat
    "normal": pa.float32(),  # (N, 3), flat
    "instance": pa.int32(),  # (N,)
}
_LABEL = pa.int16()
_FRAME = pa.struct(
    {
        "name": pa.string(),
        "depth_scale": pa.float64(),
        "intrinsics": pa.list_(pa.float64()),  # (3, 3), flat
        "cam_to_world": pa.list_(pa.float64()),  # (4, 4), flat
    }
)
_IMAGES = pa.schema(
    {"name": pa.string(), "color": pa.binary(), "depth": pa.binary(), "segment": pa.binary()},
)


@dataclass(frozen=True, eq=False)
class FrameTable:
    """What is known of V images without reading them."""

    names: tuple[str, ...]
    depth_scale: Array  # (V,) float64 metres per unit
    intrinsics: Array  # (V, 3, 3) float64 pixels
    cam_to_world: Array  # (V, 4, 4) float64 metres


def scene_file(prepared: PreparedScene, label_sets: Sequence[str]) -> bytes:
    """The file of a scene's points and labels.

    Args:
        prepared: what a reader gave.
        label_sets: names of all label sets of the data set, so that all files have the same columns.
    """
    scene = prepared.scene
    labels = {"segment": scene.segment} | dict(prepared.labels)
    color = None if scene.color is None else np.rint(scene.color)
    points = {"coord": scene.coord, "color": color, "normal": scene.normal, "instance": scene.instance}
    columns: dict[str, Any] = {"name": pa.array([scene.name]), "split": pa.array([prepared.split])}
    columns |= {name: _list(points[name], kind) for name, kind in _POINT_COLUMNS.items()}
    columns |= {name: _list(labels.get(name), _LABEL) for name in label_sets}
    columns["frames"] = pa.array([[_frame_row(frame) for frame in prepared.frames]], pa.list_(_FRAME))
    return _parquet([pa.table(columns)], compression="zstd")


def frames_file(frames: Sequence[Frame]) -> bytes:
    """The file of a scene's images. They are compressed already: Parquet stores them as they are."""
    rows = [
        pa.table({name: pa.array([getattr(frame, name)], kind) for name, kind in _columns(_IMAGES)}) for frame in frames
    ]
    return _parquet(rows or [_IMAGES.empty_table()], compression="none")


def read_scene(source: Any, label_set: str = "segment") -> tuple[Scene, FrameTable]:
    """Points of a scene, labelled by one of its label sets, and what is known of its images.

    Args:
        source: the bytes, or an open file.
        label_set: column with the labels.
    """
    row = pq.ParquetFile(source, pre_buffer=True).read(use_threads=False).slice(0, 1)
    coord = _array(row, "coord", np.float32, 3)
    assert coord is not None
    scene = Scene(
        name=row["name"][0].as_py(),
        coord=coord,
        color=_array(row, "color", np.float32, 3),
        normal=_array(row, "normal", np.float32, 3),
        segment=_array(row, label_set, np.int64),
        instance=_array(row, "instance", np.int64),
    )
    frames = row["frames"][0].as_py()
    table = FrameTable(
        names=tuple(frame["name"] for frame in frames),
        depth_scale=np.array([frame["depth_scale"] for frame in frames]),
        intrinsics=np.array([frame["intrinsics"] for frame in frames]).reshape(-1, 3, 3),
        cam_to_world=np.array([frame["cam_to_world"] for frame in frames]).reshape(-1, 4, 4),
    )
    return scene, table


def read_images(source: Any, index: Sequence[int]) -> list[dict[str, Any]]:
    """Encoded images of the given frames: mappings with name, color, depth, segment. Others are not read."""
    file = pq.ParquetFile(source, pre_buffer=True)  # one read per image where there would be one per column
    return [file.read_row_group(number, use_threads=False).to_pylist()[0] for number in index]


def _frame_row(frame: Frame) -> dict[str, Any]:
    return {
        "name": frame.name,
        "depth_scale": float(frame.depth_scale),
        "intrinsics": np.asarray(frame.intrinsics, dtype=np.float64).ravel().tolist(),
        "cam_to_world": np.asarray(frame.cam_to_world, dtype=np.float64).ravel().tolist(),
    }


def _columns(schema: pa.Schema) -> list[tuple[str, pa.DataType]]:
    return [(field.name, field.type) for field in schema]


def _list(values: Array | None, kind: pa.DataType) -> pa.Array:
    """One row that holds all values, or null."""
    if values is None:
        return pa.nulls(1, pa.list_(kind))
    flat = pa.array(np.ascontiguousarray(values, dtype=kind.to_pandas_dtype()).ravel())
    return pa.ListArray.from_arrays(pa.array([0, len(flat)], pa.int32()), flat)


def _array(row: pa.Table, name: str, dtype: Any, width: int | None = None) -> Array | None:
    value = row[name][0]
    if not value.is_valid:
        return None
    flat = value.values.to_numpy(zero_copy_only=False).astype(dtype)  # a copy: the buffer may be a mapped file
    return flat if width is None else flat.reshape(-1, width)


def _parquet(tables: Sequence[pa.Table], *, compression: str) -> bytes:
    """One row group per table. Statistics and dictionaries of images and coordinates would be dead weight."""
    file = io.BytesIO()
    options: dict[str, Any] = {"compression": compression, "use_dictionary": False, "write_statistics": False}
    with pq.ParquetWriter(file, tables[0].schema, **options) as writer:
        for table in tables:
            writer.write_table(table)
    return file.getvalue()
