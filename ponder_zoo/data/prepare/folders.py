"""Finding the parts of a download that may lie a few folders deep."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path


def find_folders(root: Path, pattern: re.Pattern[str], *, depth: int = 2) -> Iterator[Path]:
    """Folders whose whole name matches, in `root` and `depth` levels below; not inside of each other."""
    for child in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
        if pattern.fullmatch(child.name):
            yield child
        elif depth:
            yield from find_folders(child, pattern, depth=depth - 1)
