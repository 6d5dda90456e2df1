"""Labels of the points of a pre-training batch stay with their points."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ponder_zoo.data.catalog import DataConfig, open_views, pretrain_dataset
from ponder_zoo.data.class_tables import CLASSES, UNIVERSAL
from ponder_zoo.data.collate import PretrainCollate
from ponder_zoo.data.pretrain import PretrainDataset
from ponder_zoo.data.semantics import SemanticConfig, label_spaces, make_semantics

NAMES = "synthetic:ScanNet,synthetic:S3DIS"
CONFIG = DataConfig(name=NAMES, scenes=2, views=3, image_size=(24, 32), cache=None)


def dataset(number: int) -> PretrainDataset:
    options = {"volume_shape": (8, 8, 8), "rays_per_view": 8, "input_views": 2, "margin": 0.3}
    return pretrain_dataset(open_views(CONFIG, "train")[number], "train", grid_size=0.1, dropout=0.3, **options)


def test_the_labels_of_a_batch_are_those_of_its_points_in_their_order() -> None:
    items = [dataset(1)[0, 0], dataset(1)[0, 1]]
    batch = PretrainCollate()(items)
    assert batch.segment is not None and batch.segment.dtype == torch.int64
    assert batch.scene.points.condition == "S3DIS" and dataset(1).classes == CLASSES["S3DIS"]
    scenes = [dataset(1).prepare((0, index))[0] for index in (0, 1)]
    assert batch.segment.tolist() == np.concatenate([scene.segment for scene in scenes]).tolist()
    assert len(batch.segment) == len(batch.scene.points)
    floor = batch.segment == CLASSES["S3DIS"].index("floor")
    wall = batch.segment == CLASSES["S3DIS"].index("wall")
    assert batch.scene.points.coord[floor, 2].mean() < batch.scene.points.coord[wall, 2].mean() - 0.5, "metres"


def test_points_of_a_scene_without_labels_are_unlabelled() -> None:
    first, second = dataset(0)[0, 0], dataset(0)[0, 1]
    batch = PretrainCollate()([replace(first, segment=None), second])
    assert batch.segment is not None and first.segment is not None
    assert (batch.segment[: len(first.segment)] == -1).all()
    assert torch.equal(batch.segment[len(first.segment) :], second.segment)
    assert PretrainCollate()([replace(first, segment=None)]).segment is None


def test_one_hot_rows_are_shared_by_classes_of_one_name() -> None:
    sources = open_views(CONFIG, "train")
    config = SemanticConfig(targets="labels", table="one-hot")
    semantics = make_semantics(config, sources, weights={"loss.semantic": 0.1})
    assert semantics.table is not None and semantics.rows is not None and semantics.dim == 36
    assert torch.equal(semantics.table, torch.eye(36))
    for condition in ("ScanNet", "S3DIS"):
        assert [UNIVERSAL[row] for row in semantics.rows[condition]] == list(CLASSES[condition])
    assert semantics.head == {
        "embed_dim": 36,
        "num_embeddings": 36,
        "classes": {condition: list(semantics.rows[condition]) for condition in ("ScanNet", "S3DIS")},
    }  # the scale is the head's own


def test_the_official_table_has_its_rows_and_its_ensemble(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def embeddings(names: tuple[str, ...], **options: str) -> torch.Tensor:
        asked.update(options, names=names)
        return torch.zeros(len(names), 4)

    monkeypatch.setattr("ponder_zoo.data.semantics.class_embeddings", embeddings)
    sources = open_views(CONFIG, "train")
    for table, ensemble, first in (("official", "official", "wall"), ("clip", "class", "ceiling")):
        config = SemanticConfig(targets="labels", table=table)
        semantics = make_semantics(config, sources, weights={"ppt_loss_weight": 1.0})
        assert asked["ensemble"] == ensemble and asked["names"] == UNIVERSAL and semantics.rows is not None
        assert UNIVERSAL[semantics.rows["S3DIS"][0]] == first


def test_label_spaces_that_do_not_fit_are_explained() -> None:
    scannet, s3dis = open_views(CONFIG, "train")
    assert list(label_spaces([scannet, s3dis])) == ["ScanNet", "S3DIS"]
    s3dis.condition = "ScanNet"
    with pytest.raises(ValueError, match=r"same classes in all sets of the condition 'ScanNet'; synthetic:S3DIS"):
        label_spaces([scannet, s3dis])
    s3dis.scenes = []
    s3dis.condition = "S3DIS"
    assert label_spaces([scannet, s3dis])["S3DIS"] == (), "sets without labels may take part"
    with pytest.raises(ValueError, match=r"\['synthetic:S3DIS'\] have none.*targets=clusters or features"):
        label_spaces([s3dis])


@pytest.mark.parametrize(
    ("targets", "weights", "message"),
    [
        (
            "labels",
            {},
            r"targets=labels with a weight for \['loss\.semantic', 'ppt_loss_weight'\], got one for nothing",
        ),
        (
            "none",
            {"ppt_loss_weight": 1.0},
            r"targets=none with a weight for nothing, got one for \['ppt_loss_weight'\]",
        ),
        ("features", {"loss.semantic": 1.0, "loss.feature": 1.0}, r"targets=features"),
    ],
)
def test_weights_must_belong_to_the_targets(targets: str, weights: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_semantics(SemanticConfig(targets=targets), [], weights=weights)  # type: ignore[arg-type]
