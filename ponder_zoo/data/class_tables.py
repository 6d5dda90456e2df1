"""Label spaces by name, and the one list of class names that data sets with different label spaces share.

A *table* holds one embedding per name; a data set's labels are rows of it. Names decide which: "wall" of ScanNet and
"wall" of S3DIS are one row.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

_LISTS = json.loads((Path(__file__).parent / "prepare/tables/classes.json").read_text())
CLASSES: dict[str, tuple[str, ...]] = {name: tuple(names) for name, names in _LISTS.items() if name != "source"}

# Point Prompt Training's 36 names, in the order of the rows of the official table.
UNIVERSAL: tuple[str, ...] = (
    *("wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "bookcase"),
    *("picture", "counter", "desk", "shelves", "curtain", "dresser", "pillow", "mirror", "ceiling", "refrigerator"),
    *("television", "shower curtain", "nightstand", "toilet", "sink", "lamp", "bathtub", "garbagebin", "board", "beam"),
    *("column", "clutter", "otherstructure", "otherfurniture", "otherprop"),
)
# The official rows of S3DIS's labels ascend instead of following its label order: ceiling has the row of "wall", wall
# that of "chair", and so on. Only floor and clutter are right. Released weights were trained with them.
OFFICIAL_S3DIS = (0, 1, 4, 5, 6, 7, 8, 10, 19, 29, 30, 31, 32)


def universal_index(condition: str, official: bool = False) -> tuple[int, ...]:
    """The row of `UNIVERSAL` for each label of a data set, in label order.

    Args:
        condition: a key of `CLASSES`.
        official: S3DIS as in the official code, whose rows are in another order than its labels.

    Raises:
        ValueError: for an unknown data set, or one with classes that are not among the 36.

    Example:
        >>> [UNIVERSAL[row] for row in universal_index("S3DIS")][:3]
        ['ceiling', 'floor', 'wall']
    """
    if condition not in CLASSES:
        raise ValueError(f"Expected a data set among {sorted(CLASSES)}, got {condition!r}.")
    names, rows = class_table({condition: CLASSES[condition]}, official=official)
    if len(names) > len(UNIVERSAL):
        more = names[len(UNIVERSAL) :]
        raise ValueError(
            f"{condition} has {len(more)} classes that are not among the 36 universal names, such as {more[0]!r}. "
            "Use class_table, whose table grows with the names."
        )
    return rows[condition]


def class_table(
    classes: Mapping[str, Sequence[str]], *, official: bool = False
) -> tuple[tuple[str, ...], dict[str, tuple[int, ...]]]:
    """One list of names for several label spaces, and the row of it that each label has.

    Args:
        classes: condition -> names of its labels in order.
        official: the 13 classes of S3DIS get the rows of the official code.

    Returns:
        The 36 universal names followed by those that are not among them, and condition -> rows.

    Example:
        >>> names, rows = class_table({"mine": ("wall", "robot")})
        >>> names[-1], rows["mine"]
        ('robot', (0, 36))
    """
    names = list(UNIVERSAL)
    row = {_plain(name): index for index, name in enumerate(names)}
    for name in (name for labels in classes.values() for name in labels):
        if _plain(name) not in row:
            row[_plain(name)] = len(names)
            names.append(name)
    rows = {condition: tuple(row[_plain(name)] for name in labels) for condition, labels in classes.items()}
    if official and tuple(classes.get("S3DIS", ())) == CLASSES["S3DIS"]:
        rows["S3DIS"] = OFFICIAL_S3DIS
    return tuple(names), rows


def _plain(name: str) -> str:
    """Names that differ in blanks and capitals are one: "other furniture" is "otherfurniture"."""
    return "".join(name.lower().split())
