"""The built-in rooms with the labels of other data sets: what an object is called there decides its class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..class_tables import CLASSES as LABELS
from .classes import CLASSES
from .placement import Instance
from .sensor import SensorName


class LabelSpace(NamedTuple):
    """How objects are labelled: by their own name, then by their ScanNet class; and how such a set is recorded."""

    seed: int  # of the rooms, so that no two sets share one
    sensor: SensorName  # the kind of camera behind the real data set
    objects: dict[str, str]
    classes: dict[str, str]
    rest: str | None  # class of everything else; None: unlabelled


SPACES: dict[str, LabelSpace] = {
    "ScanNet": LabelSpace(1, "kinect", {}, {name: name for name in CLASSES}, None),
    "S3DIS": LabelSpace(
        2,
        "tof",
        {"ceiling": "ceiling", "beam": "beam", "column": "column"},
        {name: name for name in ("wall", "floor", "chair", "sofa", "table", "door", "window")}
        | {"desk": "table", "bookshelf": "bookcase"},
        "clutter",
    ),
    "Structured3D": LabelSpace(
        3,
        "off",  # its images are rendered
        {name: name for name in ("ceiling", "nightstand", "television", "lamp")}
        | {"chest": "dresser", "ceiling lamp": "lamp", "beam": "otherstructure", "column": "otherstructure"}
        | {"radiator": "otherstructure", "hob": "otherfurniture"},
        {name: name for name in CLASSES if name in LABELS["Structured3D"] and name != "otherfurniture"}
        | {"bookshelf": "shelves", "shower curtain": "curtain"}
        | dict.fromkeys(("counter", "toilet", "bathtub"), "otherfurniture"),
        "otherprop",
    ),
}


def instance_classes(instances: Sequence[Instance], space: str) -> NDArray[np.int16]:
    """Class index of each object in a label space, -1 = unlabelled: (I,)."""
    rule, index = SPACES[space], {name: number for number, name in enumerate(LABELS[space])}

    def label(instance: Instance) -> int:
        scannet = CLASSES[instance.segment] if instance.segment >= 0 else ""
        name = rule.objects.get(instance.name, rule.classes.get(scannet, rule.rest))
        return -1 if name is None else index[name]

    return np.array([label(instance) for instance in instances], np.int16)
