"""Tables of figures as Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The first column names its row, the others hold numbers; rows that are too short get empty cells."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    lines += [[*row, *[""] * (len(heads) - len(row))] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
