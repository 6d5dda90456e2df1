"""Files for the ScanNet benchmark's evaluation server: one line per vertex of the scan, in its order.

The server's formats, for a semantic and for an instance submission, as a folder to be zipped:

    scene0707_00.txt                         class id of each vertex
    scene0707_00.txt                         lines "predicted_masks/scene0707_00_000.txt CLASS_ID SCORE"
    predicted_masks/scene0707_00_000.txt     1 for each vertex of the instance, else 0
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ponder_zoo.structures import Instances

from ..files import write_atomic
from .prepare.scannet_labels import NYU40_IDS
from .prepare.table_files import read_table


def benchmark_ids(source: Any) -> tuple[int, ...]:
    """Id on the server of each label of a data set with the 20 classes of ScanNet or the 200 of ScanNet200."""
    if len(source.classes) == len(NYU40_IDS):
        return NYU40_IDS
    if len(source.classes) == 200:
        return tuple(read_table("scannet200")["ids"])
    raise ValueError(
        f"Expected a data set with the benchmark's 20 or 200 classes; got {len(source.classes)}. Submissions are for "
        "ScanNet and ScanNet200."
    )


def write_semantic(folder: str | Path, scene: str, label: NDArray[np.integer], ids: Sequence[int]) -> Path:
    """Write the file of one scene: label (N,) class index of each vertex, ids of the classes."""
    return write_atomic(Path(folder) / f"{scene}.txt", _lines(np.asarray(ids)[label]))


def write_instances(folder: str | Path, scene: str, found: Instances, vertices: int, ids: Sequence[int]) -> Path:
    """Write the files of one scene; the list of its instances comes last, when all of their masks are there.

    Args:
        folder: of the submission.
        scene: its name.
        found: instances as lists of its vertices.
        vertices: of the scene.
        ids: of the classes.
    """
    lines = []
    ends, point = found.offset.tolist(), found.point.cpu().numpy()
    for i, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):  # a file each
        name = f"predicted_masks/{scene}_{i:03d}.txt"
        mask = np.zeros(vertices, dtype=np.int64)
        mask[point[start:end]] = 1
        write_atomic(Path(folder) / name, _lines(mask))
        lines.append(f"{name} {ids[int(found.label[i])]} {float(found.score[i]):.6f}\n")
    return write_atomic(Path(folder) / f"{scene}.txt", "".join(lines))


def _lines(numbers: NDArray[np.integer]) -> str:
    return "\n".join(map(str, numbers.tolist())) + "\n"
