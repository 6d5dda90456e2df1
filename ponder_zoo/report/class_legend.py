"""Colours and legend of rendered classes, by name: views of several data sets may have several label spaces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .colors import class_palette

if TYPE_CHECKING:
    from .previews import PreviewView


def class_colors(views: Sequence[PreviewView]) -> dict[str, tuple[int, int, int]]:
    """A colour for each class name: views with other label spaces share those of the names that they share.

    Names that occur in the references come first: of the palette's colours the first ones differ most.
    """
    seen = [
        view.class_names[int(index)]
        for view in views
        if view.reference_segment is not None
        for index in np.unique(view.reference_segment)
        if index >= 0
    ]
    names = dict.fromkeys([*seen, *(name for view in views for name in view.class_names)])
    return {
        name: (int(row[0]), int(row[1]), int(row[2]))
        for name, row in zip(names, class_palette(len(names)), strict=True)
    }


def class_chips(views: Sequence[PreviewView]) -> list[tuple[str, tuple[int, int, int]]]:
    """The legend of the classes that occur."""
    present: set[str] = set()
    for view in views:
        for image in (view.reference_segment, view.rendered_segment):
            index = np.unique(np.asarray(-1 if image is None else image))
            present |= {view.class_names[int(i)] for i in index[index >= 0]}
    return [(name, color) for name, color in class_colors(views).items() if name in present]
