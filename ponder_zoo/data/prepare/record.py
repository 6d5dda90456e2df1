"""What a reader of a raw data set gives: scenes with labels and posed images, still encoded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ..scene import Array, Scene

Skip = Callable[[str, str], None]  # (item, why it is left out)


@dataclass(frozen=True, eq=False)
class Frame:
    """One posed RGB-D image as files hold it; decoding waits until it is drawn.

    Camera axes are OpenCV's (x right, y down, z forward), pixel centres integer.
    """

    name: str
    color: bytes  # JPEG or PNG, RGB; of any size with the aspect of `depth`
    depth: bytes  # 16-bit PNG (H, W) of z-depth, 0 = none measured
    depth_scale: float  # metres per unit of `depth`
    intrinsics: Array  # (3, 3) float64 pixels, of the depth image
    cam_to_world: Array  # (4, 4) float64 metres
    segment: bytes | None = None  # PNG (H, W) of class index + 1, 0 = unlabelled


@dataclass(frozen=True, eq=False)
class PreparedScene:
    """A scene of a data set, complete: points with labels, images, and the split that it belongs to."""

    scene: Scene  # `views` is None: images are in `frames`
    split: str  # train, val or test; S3DIS has Area_1 to Area_6
    frames: tuple[Frame, ...] = ()
    labels: Mapping[str, Array] = field(default_factory=dict)  # further label sets, name -> (N,) int64, -1 = ignored


class RawDataset(Protocol):
    """The raw download of a data set. Cheap to make, picklable, and never written to."""

    name: str
    classes: Mapping[str, Sequence[str]]  # "segment" and names of further label sets -> class names in label order

    def scenes(self) -> list[str]:
        """Names of all scenes, sorted."""
        ...

    def read(self, scene: str, skip: Skip) -> PreparedScene:
        """One scene. Calls `skip` for parts that are left out.

        Raises:
            ValueError: if the scene cannot be used at all.
        """
        ...
