"""PointGroup against the official numbers, brute force, and what its instances promise."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import ponder_zoo as pz
from ponder_zoo.data import SyntheticRooms, segmentation_test_transforms
from ponder_zoo.data.collate import LabelCollate
from ponder_zoo.heads.instances import propose_instances
from ponder_zoo.losses.instance import offset_losses
from ponder_zoo.losses.segmentation import cross_entropy
from ponder_zoo.metrics.instance import InstanceAP
from ponder_zoo.models.pointgroup import PointGroup, pointgroup_on
from ponder_zoo.structures import Instances, PointBatch

WIDTHS = dict(channels=(8,) * 7 + (10,), depths=(1,) * 8, stem_channels=8)


@pytest.fixture
def official(shared_dir):
    folder = shared_dir / "parity"
    config = json.loads((folder / "j_pointgroup.json").read_text())["config"]
    return load_file(folder / "j_pointgroup.safetensors"), config


def official_model(tensors: dict[str, Any], config: dict[str, Any], feat: torch.Tensor) -> PointGroup:
    """Our heads with the official weights, on features that are given, as in the parity case."""
    model = PointGroup(6, config["semantic_num_classes"], grid_size=config["voxel_size"], **WIDTHS)
    heads = {"bias_head.": model.offset_head, "seg_head.": model.get_classifier()}
    for prefix, head in heads.items():
        state = {key.removeprefix(f"state.{prefix}"): value for key, value in tensors.items() if prefix in key}
        head.load_state_dict(state)
    model.forward_features = lambda points: dataclasses.replace(points, feat=feat)  # type: ignore[method-assign]
    return model


def losses_of(model, points, tensors):
    logits, offset = model(points, return_offsets=True)
    args = (tensors["in.coord"], tensors["in.instance_centroid"], tensors["in.instance"])
    return {"seg_loss": cross_entropy(logits, tensors["in.segment"]), **offset_losses(offset, *args)}


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_losses_and_gradients_are_the_official_ones(official, mode):
    tensors, config = official
    feat = tensors["in.feat"].requires_grad_()
    model = official_model(tensors, config, feat).train(mode == "train")
    losses = losses_of(model, PointBatch(tensors["in.coord"], feat, tensors["in.offset"]), tensors)
    ours = {"bias_l1_loss": losses["offset_l1"], "bias_cosine_loss": losses["offset_direction"]}
    ours |= {"seg_loss": losses["seg_loss"], "loss": sum(losses.values())}
    for name, value in ours.items():
        torch.testing.assert_close(value.reshape(1), tensors[f"{mode}.{name}"], rtol=1e-5, atol=1e-6)
    if mode == "train":
        sum(losses.values()).backward()
        expected = tensors["grad.in.feat"]
        assert (feat.grad - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_instances_are_the_official_ones(official):
    tensors, config = official
    model = official_model(tensors, config, tensors["in.feat"]).eval()
    points = PointBatch(tensors["in.coord"], tensors["in.feat"], tensors["in.offset"])
    ignored = [label for label in config["segment_ignore_index"] if label >= 0]
    found = model.predict_instances(
        points, ignored_classes=ignored, radius=config["cluster_thresh"], min_points=config["cluster_propose_points"]
    )
    assert found.label.tolist() == tensors["eval.pred_classes"].tolist()
    torch.testing.assert_close(found.score, tensors["eval.pred_scores"], rtol=1e-5, atol=1e-6)
    masks = torch.zeros(len(found), len(points), dtype=torch.int32)
    masks[found.index, found.point] = 1
    assert torch.equal(masks, tensors["eval.pred_masks"])


def brute_force(coord, logits, batch, radius, ignored, min_points):
    """Breadth-first search point by point, as PointGroup describes it: [(points, class, score)]."""
    label, probability = logits.argmax(1).tolist(), logits.softmax(1)
    left = [i for i in range(len(coord)) if label[i] not in ignored]
    close = torch.cdist(coord.double(), coord.double()) < radius
    found, seen = [], set()
    for first in left:
        if first in seen:
            continue
        queue = [first]
        seen.add(first)
        for i in queue:
            new = [j for j in left if j not in seen and close[i, j] and label[j] == label[i] and batch[j] == batch[i]]
            seen.update(new)
            queue += new
        if len(queue) > min_points:
            found.append((sorted(queue), label[first], probability[queue, label[first]].mean().item()))
    return found


@pytest.mark.parametrize("seed", range(25))
def test_proposals_are_those_of_brute_force(seed):
    rng = np.random.default_rng(seed)
    count, classes = int(rng.integers(1, 250)), int(rng.integers(2, 5))
    centre = rng.uniform(0, 1, (int(rng.integers(1, 8)), 3))
    coord = centre[rng.integers(0, len(centre), count)] + rng.normal(0, rng.choice([0.01, 0.05]), (count, 3))
    coord, logits = torch.from_numpy(coord).float(), torch.from_numpy(rng.normal(0, 2, (count, classes))).float()
    batch = torch.from_numpy(np.sort(rng.integers(0, 3, count)))
    radius, ignored, min_points = float(rng.choice([0.03, 0.08, 0.2])), list(range(seed % 2)), int(rng.integers(0, 6))
    found = propose_instances(coord, logits, batch=batch, radius=radius, ignored_classes=ignored, min_points=min_points)
    expected = brute_force(coord, logits, batch, radius, ignored, min_points)
    lists = [found.point[found.index == i].tolist() for i in range(len(found))]
    assert lists == [points for points, _, _ in expected]
    assert found.label.tolist() == [label for _, label, _ in expected]
    torch.testing.assert_close(found.score, torch.tensor([score for _, _, score in expected]), rtol=1e-5, atol=1e-6)


def test_nothing_found_is_an_empty_list():
    points = PointBatch(torch.rand(50, 3), torch.rand(50, 6), torch.tensor([50]))
    model = pz.create_model("pointgroup", num_classes=5, context_dim=8, **WIDTHS).eval()
    found = model.predict_instances(points)
    assert len(found) == 0 and found.score.shape == (0,) and len(found.on_points(torch.arange(50))) == 0


def test_instances_on_original_points_are_the_points_of_their_cells():
    found = Instances(torch.tensor([3, 0, 3]), torch.tensor([2, 3]), torch.tensor([1, 2]), torch.rand(2))
    inverse = torch.tensor([0, 3, 2, 3, 0, 1])
    on_points = found.on_points(inverse)
    lists = [on_points.point[on_points.index == i].tolist() for i in range(2)]
    assert lists == [[1, 3, 0, 4], [1, 3]] and on_points.size.tolist() == [4, 2]


def test_offsets_without_instances_cost_nothing_and_have_no_gradient():
    offset = torch.zeros(4, 3, requires_grad=True)
    losses = offset_losses(offset, torch.rand(4, 3), torch.rand(4, 3), torch.full((4,), -1))
    sum(losses.values()).backward()
    assert all(value == 0 for value in losses.values()) and torch.equal(offset.grad, torch.zeros(4, 3))


def test_exact_offsets_have_the_lowest_loss():
    coord, center = torch.rand(5, 3), torch.rand(5, 3)
    losses = offset_losses(center - coord, coord, center, torch.arange(5))
    assert losses["offset_l1"].item() == pytest.approx(0, abs=1e-6)
    assert losses["offset_direction"].item() == pytest.approx(-1)
    with pytest.raises(ValueError, match="same order"):
        offset_losses(center, coord, center[:3], torch.arange(5))


@pytest.mark.parametrize("name", ["sparseunet_tiny", "sparseunet_ponderv2_tiny"])
def test_it_takes_over_an_encoder_and_is_saved_with_it(name, tmp_path):
    options = dict(WIDTHS, num_classes=7, grid_size=0.05) | ({"context_dim": 8} if "ponder" in name else {})
    encoder = pz.create_model(name, **options)
    points = PointBatch(torch.rand(200, 3), torch.rand(200, 6), torch.tensor([200]))
    model = pointgroup_on(encoder).eval()
    assert torch.equal(model(points), encoder.eval()(points))
    pz.save_for_hf(model, tmp_path)
    again = pz.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert isinstance(again, PointGroup) and again.grid_size == 0.05
    for ours, theirs in zip(again(points, return_offsets=True), model(points, return_offsets=True), strict=True):
        assert torch.equal(ours, theirs)


def test_a_network_that_is_always_right_has_an_average_precision_of_1():
    """From labels to targets, clusters, original points and scores."""
    scene = SyntheticRooms("train", num_scenes=1, num_views=3, image_size=(48, 64), sensor="off")[0]
    sampled = segmentation_test_transforms(0.02)(scene, np.random.default_rng(0))
    points, labels = LabelCollate(ignored_classes=(0, 1))([sampled])
    logits = 20.0 * torch.nn.functional.one_hot(labels.segment.clamp(min=0), 20).float()
    offset = torch.where(labels.instance[:, None] >= 0, labels.center - points.coord, 0.0)
    model = PointGroup(6, 20, grid_size=0.02, **WIDTHS)
    found = model.group_points(points, logits, offset, min_points=0)
    metric = InstanceAP(20, min_points=30)
    metric.update(found, scene.segment, scene.instance)
    assert len(found) >= 5 and metric.compute()["AP"] == 1.0
    shuffled = torch.randperm(len(logits), generator=torch.Generator().manual_seed(0))
    metric = InstanceAP(20, min_points=30)
    metric.update(model.group_points(points, logits[shuffled], offset, min_points=0), scene.segment, scene.instance)
    assert metric.compute()["AP"] < 0.1
