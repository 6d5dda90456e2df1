"""Cross entropy and Lovasz-softmax against the official numbers, brute force and each other."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from ponder_zoo.losses.segmentation import cross_entropy, cross_entropy_lovasz, lovasz_softmax


@pytest.fixture
def official(shared_dir):
    return load_file(shared_dir / "parity" / "h_losses_metrics.safetensors")


def total(logits, target):
    return sum(cross_entropy_lovasz(logits, target).values())


@pytest.mark.parametrize(("prefix", "loss"), [("ce", cross_entropy), ("lovasz", lovasz_softmax), ("ce_lovasz", total)])
def test_values_and_gradients_are_the_official_ones(official, prefix, loss):
    logits = official["in.logits"].requires_grad_()
    value = loss(logits, official["in.target"])
    value.backward()
    torch.testing.assert_close(value.reshape(1), official[f"{prefix}.loss"].reshape(1), rtol=1e-6, atol=1e-7)
    expected = official[f"{prefix}.grad"]
    assert (logits.grad - expected).abs().max() <= 1e-5 * expected.abs().max()


def jaccard_of_rounded_sets(probabilities, target, num_classes):
    """Lovasz extension by its definition: the Jaccard loss of each prefix of the sorted errors, one point at a time."""
    losses = []
    for label in range(num_classes):
        truth = target == label
        if not truth.any():
            continue
        errors = (truth.double() - probabilities[:, label]).abs()
        order = errors.argsort(descending=True)
        wrong, previous, loss = torch.zeros_like(truth), 0.0, 0.0
        for row in order:
            wrong[row] = True
            predicted = truth ^ wrong
            jaccard = 1.0 - (truth & predicted).sum().item() / (truth | predicted).sum().item()
            loss, previous = loss + errors[row] * (jaccard - previous), jaccard
        losses.append(loss)
    return torch.stack(losses).mean()


@pytest.mark.parametrize("seed", range(4))
def test_lovasz_is_the_extension_of_the_jaccard_loss(seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(40, 4, generator=generator, dtype=torch.float64)
    target = torch.randint(0, 3, (40,), generator=generator)  # class 3 is absent
    expected = jaccard_of_rounded_sets(logits.softmax(-1), target, 4)
    torch.testing.assert_close(lovasz_softmax(logits, target).double(), expected, rtol=1e-5, atol=1e-6)


def test_ignored_points_change_nothing():
    logits, target = torch.randn(30, 5), torch.randint(0, 5, (30,))
    target[::3] = -1
    kept = target >= 0
    for loss in (cross_entropy, lovasz_softmax):
        both, alone = logits.clone().requires_grad_(), logits[kept].clone().requires_grad_()
        first, second = loss(both, target), loss(alone, target[kept])
        torch.testing.assert_close(first, second)
        first.backward()
        second.backward()
        torch.testing.assert_close(both.grad[kept], alone.grad)
        assert both.grad[~kept].abs().max() == 0


def test_a_batch_without_labels_gives_zero_loss_and_zero_gradient():
    logits = torch.randn(6, 3, requires_grad=True)
    loss = total(logits, torch.full((6,), -1))
    loss.backward()
    assert loss.item() == 0 and logits.grad.abs().max() == 0


def test_a_perfect_prediction_has_no_lovasz_loss_and_the_opposite_has_one():
    target = torch.tensor([0, 1, 1, 0])
    right = torch.nn.functional.one_hot(target, 2) * 60.0
    assert lovasz_softmax(right, target) < 1e-6
    torch.testing.assert_close(lovasz_softmax(-right, target), torch.tensor(1.0))


def test_weights_keep_their_digits_at_a_million_points():
    target = (torch.arange(1_000_000) % 1000 == 0).long()
    logits = torch.randn(1_000_000, 2, generator=torch.Generator().manual_seed(1))
    logits.requires_grad_()
    lovasz_softmax(logits, target).backward()
    double = logits.detach().double()
    foreground = torch.stack([target == 0, target == 1]).double()
    errors, order = (foreground - double.softmax(-1).t()).abs().sort(dim=1, descending=True)
    truth = foreground.gather(1, order)
    size = truth.sum(1, keepdim=True)
    jaccard = 1 - (size - truth.cumsum(1)) / (size + (1 - truth).cumsum(1))
    steps = torch.diff(jaccard, dim=1, prepend=torch.zeros(2, 1).double())
    expected = (errors * steps).sum(1).mean()
    torch.testing.assert_close(lovasz_softmax(logits, target).double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("logits", "target", "error"),
    [
        (torch.zeros(4, 3), torch.zeros(5, dtype=torch.int64), ValueError),
        (torch.zeros(4, 3, 2), torch.zeros(4, dtype=torch.int64), ValueError),
        (torch.zeros(4, 3), torch.zeros(4, dtype=torch.int32), TypeError),
    ],
)
def test_wrong_shapes_and_types_are_named(logits, target, error):
    with pytest.raises(error, match="Expected"):
        cross_entropy_lovasz(logits, target)
