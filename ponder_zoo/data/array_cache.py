"""Arrays in a cache on disk: what is missing or damaged is computed again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..files import write_atomic
from .scene import Array


def read_arrays(file: Path) -> dict[str, Array] | None:
    """What a file of the cache holds; None if that is nothing, or damaged."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        return load(file.read_bytes())
    except (OSError, SafetensorError):
        return None


def write_arrays(file: Path, arrays: Mapping[str, Array]) -> None:
    """Keep arrays by their names."""
    from safetensors.numpy import save

    write_atomic(file, save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))
