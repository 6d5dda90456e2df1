"""PLY files: the vertices' scalar properties, and the faces, in ascii and both byte orders."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

_TYPES = {
    **{"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4"},
    **{"float": "f4", "double": "f8", "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2"},
    **{"int32": "i4", "uint32": "u4", "float32": "f4", "float64": "f8"},
}
_ORDERS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
_LONGEST_HEADER = 1 << 20  # bytes; a file without `end_header` is not searched to its end


@dataclass(frozen=True)
class _Property:
    name: str
    dtype: str
    count_dtype: str | None = None  # of a list; None: a scalar


@dataclass
class _Element:
    name: str
    count: int
    properties: list[_Property] = field(default_factory=list)

    @property
    def has_lists(self) -> bool:
        return any(p.count_dtype is not None for p in self.properties)


@dataclass(frozen=True)
class PlyData:
    """What a PLY file holds that matters here."""

    vertex: dict[str, NDArray[Any]]  # scalar property -> (N,)
    faces: NDArray[np.int64] | None  # (F, 3) triangles (polygons are split into fans); None: no faces in the file


def read_ply(file: Path) -> PlyData:
    """Read vertices and faces; other elements and list properties of vertices are skipped.

    Raises:
        ValueError: if the file is not PLY, is truncated, or its faces name vertices that do not exist.
    """
    data = file.read_bytes()
    elements, order, start = _header(file, data)
    body = _Ascii(file, data[start:]) if order == "" else _Binary(file, data, start, order)
    vertex: dict[str, NDArray[Any]] | None = None
    faces = None
    for element in elements:
        columns, lists = body.read(element)
        if element.name == "vertex":
            vertex = columns
        elif element.name == "face":
            faces = _triangles(lists.get("vertex_indices", lists.get("vertex_index")))
        if vertex is not None and (faces is not None or all(e.name != "face" for e in elements)):
            break
    if vertex is None:
        names = [element.name for element in elements]
        raise ValueError(f"{file}: expected an element 'vertex'; got {names}. Export the points as vertices.")
    number = len(next(iter(vertex.values()), ()))
    if faces is not None and len(faces) and not 0 <= faces.min() <= faces.max() < number:
        raise ValueError(
            f"{file}: expected faces among {number} vertices; got indices {faces.min()} to {faces.max()}. "
            "Export the mesh again."
        )
    return PlyData(vertex, faces)


def _header(file: Path, data: bytes) -> tuple[list[_Element], str, int]:
    """Elements, byte order ("" for ascii), and where the data start."""
    if not data.startswith(b"ply"):
        raise ValueError(
            f"{file}: expected a PLY file, which begins with 'ply'; got {data[:8]!r}. "
            "Check what the file is, and give it the suffix of its format."
        )
    end = data.find(b"end_header", 0, _LONGEST_HEADER)
    newline = data.find(b"\n", end) if end >= 0 else -1
    if newline < 0:
        raise ValueError(
            f"{file}: expected a header closed by 'end_header'; the file ends or goes on without ({len(data)} bytes). "
            "It is truncated or damaged: copy it again."
        )
    order: str | None = None
    elements: list[_Element] = []
    for line in data[:end].decode("ascii", errors="replace").splitlines()[1:]:
        words = line.split()
        try:
            if not words or words[0] in ("comment", "obj_info"):
                continue
            if words[0] == "format":
                order = _ORDERS[words[1]]
            elif words[0] == "element":
                elements.append(_Element(words[1], int(words[2])))
                if elements[-1].count < 0:
                    raise ValueError("negative count")
            elif words[0] == "property" and words[1] == "list":
                elements[-1].properties.append(_Property(words[4], _TYPES[words[3]], _TYPES[words[2]]))
            elif words[0] == "property":
                elements[-1].properties.append(_Property(words[2], _TYPES[words[1]]))
            else:
                raise ValueError(words[0])
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(
                f"{file}: expected 'format', 'element', 'property' or 'comment' with known types in the header; got "
                f"{line!r}. Export the file again as plain PLY."
            ) from error
    if order is None:
        raise ValueError(f"{file}: expected a line 'format ...' in the header; got none. Export the file again.")
    return elements, order, newline + 1


_Read = tuple[dict[str, NDArray[Any]], dict[str, list[NDArray[Any]] | NDArray[Any]]]  # scalars, lists by property


class _Binary:
    """Reads one element after another from the bytes."""

    def __init__(self, file: Path, data: bytes, start: int, order: str) -> None:
        self.file, self.data, self.position, self.order = file, data, start, order

    def read(self, element: _Element) -> _Read:
        if not element.has_lists:
            rows = self._take(np.dtype([(p.name, self.order + p.dtype) for p in element.properties]), element)
            return {p.name: rows[p.name] for p in element.properties}, {}
        return self._equal_lists(element) or self._any_lists(element)

    def _equal_lists(self, element: _Element) -> _Read | None:
        """All rows at once if every list is as long as in the first row (a mesh of triangles); None if not."""
        position = self.position
        try:
            lengths = self._row(element, position)[1] if element.count else {}
        except IndexError:
            _truncated(self.file, element, 0)
        fields: list[Any] = []
        for p in element.properties:
            if p.count_dtype is not None:
                fields.append((f"{p.name} count", self.order + p.count_dtype))
                fields.append((p.name, self.order + p.dtype, (len(lengths.get(p.name, ())),)))
            else:
                fields.append((p.name, self.order + p.dtype))
        dtype = np.dtype(fields)
        if element.count * dtype.itemsize > len(self.data) - position:
            return None
        rows = np.frombuffer(self.data, dtype, element.count, position)
        named = [p.name for p in element.properties if p.count_dtype is not None]
        if any((rows[f"{name} count"] != len(lengths[name])).any() for name in named if element.count):
            return None
        self.position = position + element.count * dtype.itemsize
        scalars = {p.name: rows[p.name] for p in element.properties if p.count_dtype is None}
        return scalars, {name: rows[name] for name in named}

    def _any_lists(self, element: _Element) -> _Read:
        scalars: dict[str, list[Any]] = {p.name: [] for p in element.properties if p.count_dtype is None}
        lists: dict[str, list[NDArray[Any]]] = {p.name: [] for p in element.properties if p.count_dtype is not None}
        for index in range(element.count):
            try:
                one, many, self.position = self._row(element, self.position)
            except IndexError:
                _truncated(self.file, element, index)
            for name, value in one.items():
                scalars[name].append(value)
            for name, values in many.items():
                lists[name].append(values)
        return {name: np.array(values) for name, values in scalars.items()}, dict(lists)

    def _row(self, element: _Element, position: int) -> tuple[dict[str, Any], dict[str, NDArray[Any]], int]:
        one: dict[str, Any] = {}
        many: dict[str, NDArray[Any]] = {}
        for p in element.properties:
            if p.count_dtype is None:
                values, position = self._values(p.dtype, 1, position)
                one[p.name] = values[0]
            else:
                count, position = self._values(p.count_dtype, 1, position)
                many[p.name], position = self._values(p.dtype, int(count[0]), position)
        return one, many, position

    def _values(self, dtype: str, count: int, position: int) -> tuple[NDArray[Any], int]:
        size = np.dtype(dtype).itemsize * count
        if count < 0 or position + size > len(self.data):
            raise IndexError
        return np.frombuffer(self.data, self.order + dtype, count, position), position + size

    def _take(self, dtype: np.dtype[Any], element: _Element) -> NDArray[Any]:
        if element.count * dtype.itemsize > len(self.data) - self.position:
            _truncated(self.file, element, (len(self.data) - self.position) // dtype.itemsize)
        rows = np.frombuffer(self.data, dtype, element.count, self.position)
        self.position += element.count * dtype.itemsize
        return rows


class _Ascii:
    """Reads one element after another from the words."""

    def __init__(self, file: Path, body: bytes) -> None:
        self.file, self.words, self.position = file, body.split(), 0

    def read(self, element: _Element) -> _Read:
        try:
            return self._lists(element) if element.has_lists else (self._table(element), {})
        except ValueError as error:
            if "truncated" in str(error):
                raise
            raise ValueError(
                f"{self.file}: expected numbers for the {element.count} rows of {element.name!r}; {error}. "
                "Export the file again, as binary."
            ) from error

    def _table(self, element: _Element) -> dict[str, NDArray[Any]]:
        width = len(element.properties)
        left = len(self.words) - self.position
        if element.count * width > left:
            _truncated(self.file, element, left // width)
        words = self.words[self.position : self.position + element.count * width]
        self.position += element.count * width
        values = np.array(words, dtype=np.bytes_).astype(np.float64).reshape(element.count, width)
        return {p.name: values[:, i].astype(p.dtype) for i, p in enumerate(element.properties)}

    def _lists(self, element: _Element) -> _Read:
        scalars: dict[str, list[float]] = {p.name: [] for p in element.properties if p.count_dtype is None}
        lists: dict[str, list[NDArray[Any]]] = {p.name: [] for p in element.properties if p.count_dtype is not None}
        for index in range(element.count):
            for p in element.properties:
                count = 1 if p.count_dtype is None else int(self._next(1, element, index)[0])
                values = np.array([float(word) for word in self._next(count, element, index)]).astype(p.dtype)
                if p.count_dtype is None:
                    scalars[p.name].append(float(values[0]))
                else:
                    lists[p.name].append(values)
        return {p.name: np.array(scalars[p.name], p.dtype) for p in element.properties if p.name in scalars}, dict(
            lists
        )

    def _next(self, count: int, element: _Element, index: int) -> list[bytes]:
        if count < 0 or self.position + count > len(self.words):
            _truncated(self.file, element, index)
        self.position += count
        return self.words[self.position - count : self.position]


def _truncated(file: Path, element: _Element, rows: int) -> NoReturn:
    raise ValueError(
        f"{file}: expected {element.count} rows of {element.name!r}, as the header says; the file ends after {rows}. "
        "It is truncated or damaged: copy or export it again."
    )


def _triangles(polygons: list[NDArray[Any]] | NDArray[Any] | None) -> NDArray[np.int64]:
    """Corners of polygons, each split into a fan: (F, 3)."""
    if polygons is None or len(polygons) == 0:
        return np.zeros((0, 3), dtype=np.int64)
    groups: dict[int, list[NDArray[Any]]] = {}
    if isinstance(polygons, np.ndarray):
        groups[polygons.shape[1]] = [polygons]
    else:
        for polygon in polygons:
            groups.setdefault(len(polygon), []).append(polygon[None])
    fans = [np.zeros((0, 3), dtype=np.int64)]
    for size, rows in groups.items():
        corners = np.concatenate(rows).astype(np.int64)
        fans += [corners[:, [0, i, i + 1]] for i in range(1, size - 1)]
    return np.concatenate(fans)
