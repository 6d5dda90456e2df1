"""Miniature raw data sets in their genuine formats, by the name that `ponder_zoo.data.prepare` knows.

`raw_NAME.py` beside this file has `write_NAME(root)`, and `OPTIONS` for the reader where its defaults do not suit.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ponder_zoo.data.prepare import READERS
from ponder_zoo.data.prepare.runner import prepare

NAMES = [name for name in READERS if find_spec(f"data.raw_{name}") is not None]


def write_raw(name: str, root: Path) -> Path:
    """Write a miniature raw data set and return its folder."""
    getattr(import_module(f"data.raw_{name}"), f"write_{name}")(root)
    return root


def prepare_miniature(name: str, raw: Path, out: Path, **settings: Any) -> dict[str, Any]:
    """Prepare a miniature; the manifest."""
    options = getattr(import_module(f"data.raw_{name}"), "OPTIONS", {})
    return prepare(READERS[name].load(), raw, out, options=options, progress=False, **settings)
