"""Features through captured graphs; on a CPU the recorded function is called again on the padded tensors."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_sparse_unet import PROMPT, make_model, make_points

from ponder_zoo.models import CapturedFeatures

DEVICES = [("cpu", "torch"), pytest.param("cuda", "triton", marks=[pytest.mark.cuda, pytest.mark.triton])]


@pytest.mark.parametrize(("device", "backend"), DEVICES)
def test_features_are_those_of_the_model_for_every_batch_and_condition(device: str, backend: str) -> None:
    model = make_model(5, **PROMPT, backend=backend).eval().to(device)
    captured = CapturedFeatures(model)
    for counts, condition in (((150, 100), "A"), ((150, 100), "B"), ((90, 120), "A"), ((400, 1), "A"), ((250,), "B")):
        points = replace(make_points(counts, seed=len(counts)), condition=condition).to(torch.device(device))
        with torch.no_grad():
            expected = model.forward_features(points)
        found = captured(points)
        torch.testing.assert_close(found.feat, expected.feat, atol=2e-5, rtol=1e-4)
        assert found.coord is points.coord and found.condition == condition


def test_weights_that_change_in_place_are_followed() -> None:
    model = make_model(**PROMPT, condition="A").eval()
    captured, points = CapturedFeatures(model), make_points()
    for _ in range(3):  # the first call is an ordinary one, the second captures, the third replays
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.1)
            torch.testing.assert_close(captured(points).feat, model.forward_features(points).feat)


def test_what_cannot_be_captured_is_an_error() -> None:
    model = make_model(**PROMPT)
    with pytest.raises(ValueError, match=r"Call model.eval\(\)"):
        CapturedFeatures(model)(replace(make_points(), condition="A"))
    with pytest.raises(ValueError, match="Pass scenes of one condition at a time"):
        CapturedFeatures(model.eval())(replace(make_points(), condition=("A", "C")))
