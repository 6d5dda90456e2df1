"""Heads that give each data set its own classes."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import ponder_zoo as pz

NARROW = dict(channels=(8,) * 8, depths=(1,) * 8, stem_channels=8)
HEADS = {"head": "per_condition", "head_classes": {"ScanNet": 20, "S3DIS": 13}, "condition": "ScanNet"}


def cloud(condition):
    points = pz.PointBatch(torch.rand(60, 3), torch.rand(60, 6), torch.tensor([60]))
    return dataclasses.replace(points, condition=condition)


def test_each_condition_has_its_own_classes_and_gradient():
    model = pz.create_model("sparseunet_tiny", num_classes=20, **NARROW, **HEADS)
    assert model(cloud("ScanNet")).shape == (60, 20) and model(cloud(None)).shape == (60, 20)
    model(cloud("S3DIS")).sum().backward()
    assert model(cloud("S3DIS")).shape == (60, 13)
    used = [head.weight.grad is not None for head in model.get_classifier().linear]
    assert used == [False, True]
    with pytest.raises(ValueError, match="Unknown condition"):
        model(cloud("Matterport"))
    with pytest.raises(ValueError, match="one condition for the batch"):
        model(cloud(("ScanNet", "S3DIS")))


def test_it_is_saved_and_can_be_replaced(tmp_path):
    model = pz.create_model("sparseunet_tiny", num_classes=20, **NARROW, **HEADS).eval()
    pz.save_for_hf(model, tmp_path)
    again = pz.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    points = cloud("S3DIS")
    assert torch.equal(again(points), model(points))
    assert pz.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=5)(points).shape == (60, 5)
    with pytest.raises(ValueError, match="head_classes"):
        pz.create_model("sparseunet_tiny", num_classes=20, head="per_condition", **NARROW)
