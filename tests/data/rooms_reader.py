"""A raw data set for tests of what all data sets share: analytic rooms, as a reader would give them."""

from __future__ import annotations

import io
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from ponder_zoo.data.prepare.record import Frame, PreparedScene, Skip
from ponder_zoo.data.scene import Views
from ponder_zoo.data.unproject import unproject


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def frames_of(views: Views, scale: float = 0.001) -> list[Frame]:
    """Views as a reader gives them: encoded, depth in steps of `scale` metres."""
    assert views.segment is not None
    return [
        Frame(
            name=f"{v:06d}",
            color=png(views.color[v]),
            depth=png(np.rint(views.depth[v] / scale).astype(np.uint16)),
            depth_scale=scale,
            intrinsics=views.intrinsics[v].astype(np.float64),
            cam_to_world=views.cam_to_world[v].astype(np.float64),
            segment=png((views.segment[v] + 1).astype(np.uint8)),
        )
        for v in range(len(views))
    ]


@dataclass(frozen=True)
class Rooms:
    """Rooms of a list; every third is for validation.

    The raw folder holds `NAME.npz` with views; `NAME.bad` makes a scene unusable.
    """

    raw: Path
    pause: float = 0.0
    label_names: int = 6

    name = "rooms"

    @property
    def classes(self) -> dict[str, tuple[str, ...]]:
        return {"segment": tuple(f"class {i}" for i in range(self.label_names)), "halves": ("low", "high")}

    def scenes(self) -> list[str]:
        return sorted(file.stem for file in Path(self.raw).glob("*.npz"))

    def read(self, scene: str, skip: Skip) -> PreparedScene:
        if (Path(self.raw) / f"{scene}.bad").exists():
            raise ValueError("there is no mesh")
        time.sleep(self.pause)
        with np.load(Path(self.raw) / f"{scene}.npz") as arrays:
            views = Views(**arrays)
        points = unproject(views, name=scene)
        halves = (points.coord[:, 2] > 1.0).astype(np.int64)
        frames = frames_of(views)
        if (Path(self.raw) / f"{scene}.label").exists():
            skip("labels", "the label file is empty")
        split = "val" if int(scene[-2:]) % 3 == 2 else "train"
        return PreparedScene(replace(points, views=None), split, tuple(frames), {"halves": halves})
