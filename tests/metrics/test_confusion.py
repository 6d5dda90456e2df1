from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from ponder_zoo.metrics.segmentation import ConfusionMatrix, add_confusions, score_table


def test_scores_are_the_official_ones(shared_dir):
    folder = shared_dir / "parity"
    tensors, expected = (
        load_file(folder / "h_losses_metrics.safetensors"),
        json.loads((folder / "h_losses_metrics.json").read_text()),
    )
    confusion = ConfusionMatrix(13)
    confusion.update(tensors["in.logits"], tensors["in.target"])
    scores = confusion.compute()
    assert confusion.matrix.diagonal().tolist() == expected["intersection"]
    union = confusion.matrix.sum(0) + confusion.matrix.sum(1) - confusion.matrix.diagonal()
    assert union.tolist() == expected["union"]
    assert scores["count"] == expected["target"]
    for key in ("mIoU", "mAcc", "allAcc"):
        assert scores[key] == pytest.approx(expected[key], rel=1e-9)


def test_the_two_means_differ_by_the_absent_class():
    confusion = ConfusionMatrix(3)
    confusion.update(torch.tensor([0, 0, 1, 2]), torch.tensor([0, 0, 1, -1]))
    scores = confusion.compute()
    assert scores["mIoU"] == pytest.approx(2 / 3)
    assert scores["mIoU_present"] == pytest.approx(1.0)
    assert scores["mAcc_present"] == pytest.approx(1.0)


def test_updates_and_processes_add_up():
    prediction, target = torch.randint(0, 4, (100,)), torch.randint(-1, 4, (100,))
    whole, first, second = ConfusionMatrix(4), ConfusionMatrix(4), ConfusionMatrix(4)
    whole.update(prediction, target)
    first.update(prediction[:30], target[:30])
    second.update(prediction[30:], target[30:])
    assert torch.equal(whole.matrix, first.matrix + second.matrix)
    assert whole.matrix.sum() == (target >= 0).sum()


def test_nothing_labelled_gives_zeros():
    assert ConfusionMatrix(3).compute()["mIoU_present"] == 0.0


def test_a_count_that_differs_from_the_labels_is_an_error():
    with pytest.raises(ValueError, match="one prediction and one label per point"):
        ConfusionMatrix(3).update(torch.zeros(4, dtype=torch.int64), torch.zeros(5, dtype=torch.int64))


def test_the_table_names_every_class_and_both_means():
    confusion = ConfusionMatrix(3)
    confusion.update(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]))
    table = score_table(confusion.compute(), ["wall", "floor", "chair"])
    assert "| wall        |  50.0 | 100.0 |         1 |" in table
    assert "| chair       |     - |     - |         0 |" in table
    assert "| mean of all |  33.3 |" in table and "| present     |  50.0 |" in table


def test_folds_are_summed_and_not_averaged():
    names = ["ceiling", "floor"]
    first, second = ConfusionMatrix(2), ConfusionMatrix(2)
    first.update(torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 0, 1]))  # IoU 1, 1
    second.update(torch.tensor([1]), torch.tensor([0]))  # IoU 0, 0
    folds = [json.loads(json.dumps(fold.dump(names))) for fold in (first, second)]
    assert add_confusions(folds).compute()["iou"] == pytest.approx([3 / 4, 1 / 2])
    with pytest.raises(ValueError, match="same classes"):
        add_confusions([first.dump(names), second.dump(["ceiling", "wall"])])
