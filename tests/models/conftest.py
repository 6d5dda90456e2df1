"""Fixtures of the zoo's tests."""

from __future__ import annotations

import pytest
import zoo_dummies

from ponder_zoo.models import _registry


@pytest.fixture
def dummies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registers the small encoder and renderer, for one test."""
    monkeypatch.setattr(_registry, "_architectures", dict(_registry._architectures))
    _registry.register_model(zoo_dummies.neighbour_encoder)
    _registry.register_model(zoo_dummies.other_encoder)
    _registry.register_renderer(zoo_dummies.small_renderer)
