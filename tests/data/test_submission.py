"""Submission files, read back as the server reads them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ponder_zoo.data.labelled import LabelledScans
from ponder_zoo.data.prepare.scannet_labels import NYU40_IDS
from ponder_zoo.data.submission import benchmark_ids, write_instances, write_semantic
from ponder_zoo.structures import Instances


def test_semantic_files_hold_one_id_per_vertex(tmp_path):
    label = np.array([0, 19, 12, 1])
    write_semantic(tmp_path, "scene0707_00", label, NYU40_IDS)
    assert np.loadtxt(tmp_path / "scene0707_00.txt", dtype=int).tolist() == [1, 39, 14, 2]


def test_instance_files_are_masks_with_class_and_score(tmp_path):
    found = Instances(torch.tensor([4, 0, 2]), torch.tensor([2, 3]), torch.tensor([2, 19]), torch.tensor([0.5, 0.25]))
    write_instances(tmp_path, "scene0707_00", found, 6, NYU40_IDS)
    lines = [line.split() for line in (tmp_path / "scene0707_00.txt").read_text().splitlines()]
    assert [(int(label), float(score)) for _, label, score in lines] == [(3, 0.5), (39, 0.25)]
    masks = [np.loadtxt(tmp_path / name, dtype=int).tolist() for name, _, _ in lines]
    assert masks == [[1, 0, 0, 0, 1, 0], [0, 0, 1, 0, 0, 0]]
    empty = Instances(*(torch.zeros(0, dtype=torch.int64) for _ in range(3)), torch.zeros(0))
    write_instances(tmp_path, "scene0708_00", empty, 6, NYU40_IDS)
    assert (tmp_path / "scene0708_00.txt").read_text() == ""


def test_ids_are_those_of_20_or_200_classes(shared_dir):
    def with_classes(number):
        return type("Source", (), {"classes": ("a",) * number})

    labelled = LabelledScans(shared_dir / "data/indoor/scannet_labelled", normals=False)
    assert benchmark_ids(with_classes(20)) == NYU40_IDS == tuple(labelled.nyu40_ids)
    ids = benchmark_ids(with_classes(200))
    assert len(set(ids)) == 200 and ids[:3] == (1, 2, 3) and ids[-1] == 1191
    with pytest.raises(ValueError, match="got 13"):
        benchmark_ids(with_classes(13))
