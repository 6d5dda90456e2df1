"""The tables beside this file: class lists, ids and splits of data sets, each with its `source`."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any


@lru_cache(maxsize=8)
def read_table(name: str) -> dict[str, Any]:
    """The content of tables/NAME.json."""
    return json.loads((Path(__file__).parent / "tables" / f"{name}.json").read_text(encoding="utf-8"))
