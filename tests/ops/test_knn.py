"""Nearest neighbours: both implementations against sorting all distances."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ponder_zoo.ops.knn import knn, knn_tree


def test_both_agree_with_sorting_all_distances() -> None:
    query, support = torch.rand(37, 3) + 1000.0, torch.rand(101, 3) + 1000.0  # far away: squares would cancel
    expected = torch.cdist(query.double(), support.double()).sort(dim=1)
    distance, index = knn(query, support, 5, chunk=500)
    torch.testing.assert_close(distance, expected.values[:, :5].float(), rtol=1e-4, atol=1e-4)
    tree_distance, tree_index = knn_tree(query.numpy(), support.numpy(), 5)
    np.testing.assert_allclose(tree_distance, expected.values[:, :5].numpy(), rtol=1e-9)
    assert torch.equal(index, expected.indices[:, :5]) and np.array_equal(tree_index, index.numpy())


def test_neighbours_come_from_the_same_scene() -> None:
    query, support = torch.zeros(2, 3), torch.tensor([[0.0, 0, 1], [0, 0, 2], [0, 0, 0.5]])
    distance, index = knn(query, support, 2, query_batch=torch.tensor([0, 1]), support_batch=torch.tensor([0, 0, 1]))
    assert index.tolist() == [[0, 1], [2, -1]]
    assert distance.tolist() == [[1.0, 2.0], [0.5, float("inf")]]


def test_missing_neighbours_are_marked() -> None:
    distance, index = knn(torch.zeros(1, 3), torch.ones(2, 3), 4)
    assert index[0, 2:].tolist() == [-1, -1] and distance[0, 2:].isinf().all()
    tree_distance, tree_index = knn_tree(np.zeros((1, 3)), np.ones((2, 3)), 4)
    assert tree_index[0, 2:].tolist() == [-1, -1] and np.isinf(tree_distance[0, 2:]).all()
    assert knn(torch.zeros(0, 3), torch.ones(2, 3), 1)[1].shape == (0, 1)


def test_no_support_is_an_error() -> None:
    with pytest.raises(ValueError, match="support points"):
        knn(torch.zeros(1, 3), torch.zeros(0, 3), 1)
    with pytest.raises(ValueError, match="both"):
        knn(torch.zeros(1, 3), torch.zeros(1, 3), 1, query_batch=torch.zeros(1))
