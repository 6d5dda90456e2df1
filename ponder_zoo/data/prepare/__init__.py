"""From a raw download to the prepared form that training reads: `python -m ponder_zoo.data.prepare NAME --raw ...`."""

from __future__ import annotations

from importlib import import_module
from typing import Any, NamedTuple

from .record import RawDataset


class Reader(NamedTuple):
    """A reader of a raw data set, imported when it is used."""

    module: str
    class_name: str

    def load(self) -> type:
        return getattr(import_module(f".{self.module}", __name__), self.class_name)

    def __call__(self, raw: Any, **options: Any) -> RawDataset:
        return self.load()(raw, **options)


READERS: dict[str, Reader] = {
    "scannet": Reader("scannet", "ScanNet"),
    "s3dis": Reader("s3dis", "S3DIS"),
    "structured3d": Reader("structured3d", "Structured3D"),
}
