"""PCD files of the Point Cloud Library: ascii, binary and binary_compressed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_KEYS = ("VERSION", "FIELDS", "SIZE", "TYPE", "COUNT", "WIDTH", "HEIGHT", "VIEWPOINT", "POINTS", "DATA")
_KINDS = {"F": "f", "U": "u", "I": "i"}


def read_pcd(file: Path) -> dict[str, NDArray[Any]]:
    """Read the fields of a PCD file: name -> (N,). Packed `rgb` or `rgba` becomes red, green and blue (uint8).

    Raises:
        ValueError: if the file is not PCD or is truncated.
    """
    data = file.read_bytes()
    header, start = _header(file, data)
    dtype, number = _layout(file, header)
    kind = header["DATA"][0]
    body = data[start:]
    if kind == "ascii":
        columns = _ascii(file, body, dtype, number)
    elif kind == "binary":
        columns = _columns(np.frombuffer(_exactly(file, body, dtype.itemsize * number), dtype))
    else:
        columns = _compressed(file, body, dtype, number)
    for packed in ("rgb", "rgba"):
        if packed in columns:
            columns |= _unpacked(columns.pop(packed))
    return columns


def _header(file: Path, data: bytes) -> tuple[dict[str, list[str]], int]:
    header: dict[str, list[str]] = {}
    start = 0
    while "DATA" not in header:
        end = data.find(b"\n", start)
        if end < 0 or end - start > 65536:
            got = f"{sorted(header)} in {len(data)} bytes"
            raise ValueError(
                f"{file}: expected a PCD header with {list(_KEYS)}, ending with DATA; got {got}. "
                "The file is truncated or of another format: copy or export it again."
            )
        words = data[start:end].decode("ascii", errors="replace").split()
        start = end + 1
        if not words or words[0].startswith("#"):
            continue
        if words[0] not in _KEYS or len(words) < 2:
            raise ValueError(
                f"{file}: expected a PCD header line beginning with one of {list(_KEYS)}; got {words[:3]}. "
                "Check what the file is, and give it the suffix of its format."
            )
        header[words[0]] = words[1:]
    return header, start


def _layout(file: Path, header: dict[str, list[str]]) -> tuple[np.dtype[Any], int]:
    """Type of one point, and the number of points."""
    try:
        names = header["FIELDS"]
        counts = [int(c) for c in header.get("COUNT", ["1"] * len(names))]
        kinds = [f"<{_KINDS[t]}{int(s)}" for t, s in zip(header["TYPE"], header["SIZE"], strict=True)]
        # Padding may repeat the name "_"; its fields are renamed, since a structured type needs distinct names.
        unique = [f"_{i}" if name == "_" else name for i, name in enumerate(names)]
        fields = [(n, k, (c,)) for n, k, c in zip(unique, kinds, counts, strict=True)]
        number = int(header["POINTS"][0]) if "POINTS" in header else int(header["WIDTH"][0]) * int(header["HEIGHT"][0])
        if number < 0 or header["DATA"][0] not in ("ascii", "binary", "binary_compressed"):
            raise ValueError(f"POINTS {number}, DATA {header['DATA'][0]}")
        return np.dtype(fields), number
    except (KeyError, ValueError, TypeError) as error:
        raise ValueError(
            f"{file}: expected FIELDS, SIZE, TYPE (F, U, I) and POINTS that agree, and DATA ascii, binary or "
            f"binary_compressed; got {header} ({error}). Export the file again."
        ) from error


def _exactly(file: Path, body: bytes, size: int) -> bytes:
    if len(body) < size:
        raise ValueError(
            f"{file}: expected {size} bytes of points, as the header says; the file ends after {len(body)}. "
            "It is truncated or damaged: copy or export it again."
        )
    return body[:size]


def _columns(rows: NDArray[Any]) -> dict[str, NDArray[Any]]:
    return {name: rows[name][:, 0] for name in rows.dtype.names or () if rows[name].shape[1] == 1}


def _ascii(file: Path, body: bytes, dtype: np.dtype[Any], number: int) -> dict[str, NDArray[Any]]:
    words = body.split()
    width = sum(dtype[name].shape[0] for name in dtype.names or ())
    if len(words) < width * number:
        raise ValueError(
            f"{file}: expected {number} points of {width} numbers, as the header says; the file ends after "
            f"{len(words)} numbers. It is truncated or damaged: copy or export it again."
        )
    try:
        values = np.array(words[: width * number], dtype=np.bytes_).astype(np.float64).reshape(number, width)
    except ValueError as error:
        raise ValueError(f"{file}: expected numbers; {error}. Export the file again, as binary.") from error
    columns: dict[str, NDArray[Any]] = {}
    first = 0
    for name in dtype.names or ():
        field = dtype[name]
        if field.shape[0] == 1:
            columns[name] = values[:, first].astype(field.base)
        first += field.shape[0]
    return columns


def _compressed(file: Path, body: bytes, dtype: np.dtype[Any], number: int) -> dict[str, NDArray[Any]]:
    """Two sizes, then LZF: all values of the first field, all values of the second, ..."""
    packed, size = (int(v) for v in np.frombuffer(_exactly(file, body, 8), "<u4"))
    if size != dtype.itemsize * number:
        raise ValueError(
            f"{file}: expected {dtype.itemsize * number} bytes of uncompressed points, as the header says; got {size}. "
            "Export the file again."
        )
    try:
        data = lzf_decompress(_exactly(file, body[8:], packed), size)
    except IndexError as error:
        raise ValueError(f"{file}: expected LZF data; it is damaged. Copy or export the file again.") from error
    columns: dict[str, NDArray[Any]] = {}
    start = 0
    for name in dtype.names or ():
        field = dtype[name]
        if field.shape[0] == 1:
            columns[name] = np.frombuffer(data, field.base, number, start)
        start += field.itemsize * number
    return columns


def lzf_decompress(data: bytes, size: int) -> bytes:
    """Undo LibLZF's compression. Raises IndexError where the data cannot have come from it.

    A control byte below 32 announces that many plus one literal bytes; any other holds the length of a copy (3 bits,
    7 means that one more byte is added) and the high bits of how far back it starts.
    """
    out = bytearray()
    at = 0
    while at < len(data):
        control = data[at]
        at += 1
        if control < 32:
            if at + control + 1 > len(data):
                raise IndexError("literal run beyond the end")
            out += data[at : at + control + 1]
            at += control + 1
        else:
            length = control >> 5
            if length == 7:
                length += data[at]
                at += 1
            back = ((control & 31) << 8) + data[at] + 1
            at += 1
            _copy(out, back, length + 2)
        if len(out) > size:
            raise IndexError("more data than announced")
    if len(out) != size:
        raise IndexError("less data than announced")
    return bytes(out)


def _copy(out: bytearray, back: int, length: int) -> None:
    start = len(out) - back
    if start < 0:
        raise IndexError("copy from before the start")
    piece = out[start : start + length]  # shorter than `length` where the copy overlaps what it writes
    out += (piece * (length // len(piece) + 1))[:length]


def _unpacked(packed: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Bytes 0xRRGGBB of a float or integer of 4 bytes."""
    is_float = packed.dtype.kind == "f"
    bits = np.ascontiguousarray(packed, dtype="<f4").view("<u4") if is_float else packed.astype(np.uint32)
    return {name: ((bits >> shift) & 255).astype(np.uint8) for name, shift in (("red", 16), ("green", 8), ("blue", 0))}
