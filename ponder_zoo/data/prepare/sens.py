"""ScanNet's recordings, `.sens` files of version 4: calibration, then one compressed colour and depth image per frame.

The layout is that of SensReader in github.com/ScanNet/ScanNet (MIT). All numbers are little-endian:

    uint32 version · uint64 length, sensor name · float32 (4, 4) intrinsics and extrinsics of colour, then of depth ·
    int32 compression of colour (0 raw, 1 PNG, 2 JPEG), of depth (0 raw, 1 zlib, 2 OCCI) · uint32 width, height of
    colour, of depth · float32 depth units per metre · uint64 number of frames · per frame: float32 (4, 4)
    camera-to-world · uint64 time of colour, of depth · uint64 bytes of colour, of depth · those bytes
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..files import image_size
from ..scene import Array

VERSION = 4
COLOR_RAW, COLOR_PNG, COLOR_JPEG = 0, 1, 2
DEPTH_RAW, DEPTH_ZLIB = 0, 1
FRAME_HEADER = struct.Struct("<16f4Q")
_LONGEST_NAME = 1 << 16  # bytes; a larger number means that this is no such file


@dataclass(frozen=True, eq=False)
class SensHeader:
    """What a recording says of all its frames."""

    sensor: str
    intrinsics_color: Array  # (4, 4) float32 pixels
    extrinsics_color: Array  # (4, 4)
    intrinsics_depth: Array  # (4, 4) pixels
    extrinsics_depth: Array  # (4, 4)
    color_compression: int
    depth_compression: int
    color_size: tuple[int, int]  # H, W
    depth_size: tuple[int, int]  # H, W
    depth_shift: float  # units of depth per metre
    num_frames: int


@dataclass(frozen=True, eq=False)
class SensFrame:
    """One frame, images encoded as common files."""

    color: bytes  # JPEG or PNG
    depth: bytes  # 16-bit PNG
    cam_to_world: Array  # (4, 4) float64


class SensFile:
    """A recording; only the frames that are asked for are read.

    `starts` has an entry per frame that is there in whole: fewer than `header.num_frames` if the file is truncated.

    Raises:
        ValueError: if the file is not such a recording.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = path.stat().st_size
        with path.open("rb") as file:
            self.header = _read_header(file, path)
            self.starts = self._index(file)

    def _index(self, file: BinaryIO) -> list[int]:
        """Walk from frame to frame without reading images."""
        starts: list[int] = []
        position = file.tell()
        while len(starts) < self.header.num_frames:
            head = file.read(FRAME_HEADER.size)
            if len(head) < FRAME_HEADER.size:
                break
            *_, color_bytes, depth_bytes = FRAME_HEADER.unpack(head)
            end = position + FRAME_HEADER.size + color_bytes + depth_bytes
            if end > self.size:
                break
            starts.append(position)
            position = end
            file.seek(position)
        return starts

    def frame(self, index: int) -> SensFrame:
        """Frame number `index`.

        Raises:
            ValueError: if its images are not as the header says.
        """
        with self.path.open("rb") as file:
            file.seek(self.starts[index])
            *numbers, _, _, color_bytes, depth_bytes = FRAME_HEADER.unpack(file.read(FRAME_HEADER.size))
            color, depth = file.read(color_bytes), file.read(depth_bytes)
        pose = np.array(numbers, dtype=np.float64).reshape(4, 4)
        return SensFrame(self._color(color), self._depth(depth), pose)

    def _color(self, content: bytes) -> bytes:
        H, W = self.header.color_size
        if self.header.color_compression == COLOR_RAW:
            if len(content) != H * W * 3:
                raise ValueError(f"expected {H * W * 3} bytes for a colour image of {W}x{H}, got {len(content)}")
            return _png(np.frombuffer(content, dtype=np.uint8).reshape(H, W, 3))
        if self.header.color_compression not in (COLOR_PNG, COLOR_JPEG):
            raise ValueError(f"expected raw, PNG or JPEG colour, got compression {self.header.color_compression}")
        size = image_size(content, "colour image")
        if size != (H, W):
            raise ValueError(f"colour image of {size[1]}x{size[0]} pixels, the header says {W}x{H}")
        return content

    def _depth(self, content: bytes) -> bytes:
        H, W = self.header.depth_size
        if self.header.depth_compression == DEPTH_ZLIB:
            try:
                content = zlib.decompress(content)
            except zlib.error as error:
                raise ValueError(f"depth image: expected zlib data; {error}") from error
        elif self.header.depth_compression != DEPTH_RAW:
            raise ValueError(f"expected raw or zlib depth, got compression {self.header.depth_compression}")
        if len(content) != H * W * 2:
            raise ValueError(f"depth image of {len(content)} bytes, the header says {W}x{H} pixels of 2 bytes")
        return _png(np.frombuffer(content, dtype="<u2").reshape(H, W))


def _read_header(file: BinaryIO, path: Path) -> SensHeader:
    try:
        version, length = struct.unpack("<IQ", file.read(12))
        if version != VERSION or length > _LONGEST_NAME:
            raise ValueError(f"version {version}")
        sensor = file.read(length).decode(errors="replace")
        matrices = np.frombuffer(file.read(4 * 64), dtype="<f4").reshape(4, 4, 4)
        kinds = struct.unpack("<2i4If", file.read(28))
        (num_frames,) = struct.unpack("<Q", file.read(8))
    except (struct.error, ValueError) as error:
        raise ValueError(f"{path}: expected a .sens file of version {VERSION}; {error}. Download it again.") from error
    color_kind, depth_kind, color_w, color_h, depth_w, depth_h, shift = kinds
    if not shift > 0:
        raise ValueError(
            f"{path}: expected a positive number of depth units per metre, got {shift}. Download it again."
        )
    color_in, color_ex, depth_in, depth_ex = matrices
    sizes = (color_h, color_w), (depth_h, depth_w)
    return SensHeader(sensor, color_in, color_ex, depth_in, depth_ex, color_kind, depth_kind, *sizes, shift, num_frames)


def _png(image: Array) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()
