"""A contact sheet of generated rooms: colour, depth and classes of a few views per scene, one scene per row.

`python -m ponder_zoo.data.synthetic.preview rooms.png --split test --scenes 6 --sensor tof`
"""

from __future__ import annotations

import argparse
import colorsys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..scene import Views
from .classes import CLASSES, SPLITS
from .dataset import SyntheticRooms
from .sensor import SENSORS

_FAR = 6.0  # metres shown as white


def class_colors() -> NDArray[np.uint8]:
    """A colour per class, and black for unlabelled pixels in the last row (index -1): (21, 3)."""
    hues = [(k * 0.618) % 1 for k in range(len(CLASSES))]
    colors = [colorsys.hsv_to_rgb(h, 0.45 + 0.2 * (k % 3), 0.55 + 0.2 * (k % 2)) for k, h in enumerate(hues)]
    return np.round(np.array([*colors, (0, 0, 0)]) * 255).astype(np.uint8)


def contact_row(views: Views, which: Sequence[int]) -> NDArray[np.uint8]:
    """Colour, depth and shaded classes of the chosen views side by side: (H, 3 * W * len(which), 3)."""
    if views.segment is None or views.normal is None:
        raise ValueError(
            "contact_row expected views with segment and normal, got none. Use the views of SyntheticRooms."
        )
    tiles = []
    for k in which:
        grey = np.clip(views.depth[k] / _FAR, 0, 1) * 255
        light = 0.6 + 0.4 * np.abs(views.normal[k] @ np.array([0.3, 0.5, 0.8]))
        tiles += [
            views.color[k],
            np.repeat(grey[..., None], 3, -1),
            class_colors()[views.segment[k]] * light[..., None],
        ]
    return np.concatenate(tiles, 1).astype(np.uint8)


def contact_sheet(rooms: SyntheticRooms, scenes: Sequence[int], which: Sequence[int]) -> NDArray[np.uint8]:
    """One row of views `which` per scene: (H', W', 3)."""
    rows = []
    for index in scenes:
        views = rooms[index].views
        assert views is not None
        rows.append(contact_row(views, which))
    return np.concatenate(rows)


def main() -> None:
    """Write the sheet as an image file."""
    from PIL import Image

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("output", help="image file to write")
    parser.add_argument("--split", default="train", choices=SPLITS)
    parser.add_argument("--sensor", default="kinect", choices=tuple(SENSORS))
    parser.add_argument("--first", type=int, default=0, help="first scene")
    parser.add_argument("--scenes", type=int, default=6)
    parser.add_argument("--views", type=int, nargs="+", default=[0, 6], help="which of 12 views")
    parser.add_argument("--height", type=int, default=120, help="pixels; the width is 4/3 of it")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    last = args.first + args.scenes
    size = (args.height, args.height * 4 // 3)
    rooms = SyntheticRooms(
        args.split, num_scenes=last, image_size=size, sensor=args.sensor, normals="exact", seed=args.seed
    )
    Image.fromarray(contact_sheet(rooms, range(args.first, last), args.views)).save(args.output)


if __name__ == "__main__":
    main()
