"""What the writers of miniature raw data sets share: a room of the generator with exact images and labels."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ponder_zoo.data.synthetic import CLASSES, Room, SyntheticRooms
from ponder_zoo.data.synthetic.rendering import Recording
from ponder_zoo.data.synthetic.tracing import intersect

STRUCTURE = ("ceiling", "beam", "column")  # which ScanNet's 20 classes leave unlabelled


@dataclass(frozen=True, eq=False)
class RawRoom:
    """A room, its images, and the name of each primitive's class."""

    room: Room
    images: Recording
    class_names: tuple[str, ...]
    color: NDArray[np.uint8]  # (I, 3) of each instance

    @classmethod
    def draw(cls, index: int, *, num_views: int, image_size: tuple[int, int]) -> RawRoom:
        """Room `index`; the images are exact, so that points land where they say."""
        rooms = SyntheticRooms(
            num_scenes=index + 1, num_views=num_views, image_size=image_size, sensor="off", normals="exact"
        )
        room = rooms.room(index)
        names = [instance.name for instance in room.instances]
        classes = [
            names[i] if names[i] in STRUCTURE else CLASSES[s] if s >= 0 else "otherprop"
            for i, s in zip(room.primitives.instance, room.segment, strict=True)
        ]
        color = np.random.default_rng(index).integers(0, 256, (len(names), 3)).astype(np.uint8)
        return cls(room, rooms.recording(index), tuple(classes), color)

    def trace(self, position: NDArray[Any], ray: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Distance to what unit rays (..., 3) meet first, inf for nothing, and its primitive: (...)."""
        primitives = self.room.primitives
        distance, hit = np.full(ray.shape[:-1], np.inf), np.full(ray.shape[:-1], -1)
        for p in range(len(primitives)):
            turn = primitives.rotation[p]
            origin = ((position - primitives.center[p]) @ turn).reshape(3, *[1] * (ray.ndim - 1))
            enter, _ = intersect(int(primitives.kind[p]), primitives.half[p], origin, np.moveaxis(ray @ turn, -1, 0))
            closer = enter < distance - 1e-5
            distance, hit = np.where(closer, enter, distance), np.where(closer, p, hit)
        return distance, hit


def png(image: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(file, format="PNG")
    return file.getvalue()
