"""Reading images and matrices, with errors that name the file and what to do about it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image


def image_size(file: Path | bytes, name: str | None = None) -> tuple[int, int]:
    """(H, W) of an image, without decoding it. `name` stands for bytes in errors."""
    with _opened(file, name) as image:
        return image.size[1], image.size[0]


def read_image(file: Path | bytes, name: str | None = None) -> NDArray[Any]:
    """The numbers of an image as stored: (H, W) for grey and palette images (the indices), else (H, W, channels)."""
    with _opened(file, name) as image:
        return np.asarray(image)


def read_depth(file: Path | bytes, name: str | None = None) -> NDArray[np.integer]:
    """Read a 16-bit depth image: (H, W) integers, raw units. `name` stands for bytes in errors."""
    raw = read_image(file, name)
    if raw.ndim != 2 or raw.dtype == np.uint8:
        raise ValueError(
            f"{name or file}: expected a 16-bit grey image; got {raw.dtype} of shape {raw.shape}. "
            "Store depth as 16-bit PNG, in raw units per metre given by depth_scale."
        )
    return raw


def read_label(file: Path | bytes, name: str | None = None) -> NDArray[np.integer]:
    """Read an image of 8-bit or 16-bit numbers: (H, W). `name` stands for bytes in errors."""
    label = read_image(file, name)
    if label.ndim != 2:
        raise ValueError(f"{name or file}: expected a grey image of numbers; got shape {label.shape}. Export it again.")
    return label


def read_color(file: Path | bytes, size: tuple[int, int], name: str | None = None) -> NDArray[np.uint8]:
    """Read a colour image at a size (H, W): (H, W, 3) uint8. Averages over the pixels that fall together."""
    with _opened(file, name) as image:
        width_height = (size[1], size[0])
        image.draft("RGB", width_height)  # JPEG only: decodes at 1/2, 1/4 or 1/8 of the size, which is also faster
        return np.asarray(image.convert("RGB").resize(width_height, resample=4))  # PIL.Image.Resampling.BOX


@contextmanager
def _opened(file: Path | bytes, name: str | None = None) -> Iterator[Image]:
    """Open an image; whatever Pillow raises until it is closed becomes a ValueError that names the file."""
    from PIL import Image  # imported here: `import ponder_zoo.data` must not cost Pillow

    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            yield image
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(
            f"{name or file}: expected a readable image; {error}. Copy the file again, or remove this frame's files."
        ) from error


def read_matrix(file: Path) -> NDArray[np.float64]:
    """Read rows of numbers separated by blanks."""
    try:
        rows = [[float(word) for word in line.split()] for line in file.read_text().splitlines() if line.strip()]
        return np.array(rows, dtype=np.float64)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{file}: expected rows of numbers separated by blanks; {error}. Write the file again."
        ) from error
