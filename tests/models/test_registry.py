"""Deprecated names, and models of other packages."""

from __future__ import annotations

from pathlib import Path

import pytest

import ponder_zoo as pz
from ponder_zoo.models import _registry

pytestmark = pytest.mark.usefixtures("dummies")


@pytest.fixture(autouse=True)
def _restore(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_registry, "_deprecated", {})
    monkeypatch.setattr(_registry, "_plugins_loaded", False)


def test_a_deprecated_name_warns_works_and_is_not_listed() -> None:
    pz.register_model_deprecations({"old": "older_still", "older_still": "neighbour_encoder"})
    with pytest.warns(FutureWarning, match=r"'old(er_still)?' is deprecated; use") as caught:
        assert pz.create_model("old").num_features == 8
    assert len(caught) == 2
    assert "old" not in pz.list_models()


def test_a_removed_name_says_so() -> None:
    pz.register_model_deprecations({"gone": None})
    with pytest.raises(ValueError, match="'gone' was removed and has no successor"):
        pz.create_model("gone")


def plugin(folder: Path, name: str, code: str) -> None:
    """An installed package that declares its models."""
    (folder / f"{name}.py").write_text(code)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[ponder_zoo.models]\nmodels = {name}\n")


def test_models_of_installed_packages_are_found_when_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    code = (
        "import ponder_zoo as pz, zoo_dummies\n"
        "@pz.register_model\ndef plugged_encoder(pretrained=False, **kwargs):\n"
        "    return zoo_dummies.build_model(zoo_dummies.NeighbourEncoder, 'plugged_encoder', pretrained, **kwargs)\n"
        "@pz.register_model\ndef other_encoder(pretrained=False, **kwargs):\n    return None\n"
    )
    plugin(tmp_path, "a_plugin_for_tests", code)
    plugin(tmp_path, "a_broken_plugin_for_tests", "raise RuntimeError('broken')")
    monkeypatch.syspath_prepend(tmp_path)
    assert pz.create_model("neighbour_encoder").num_features == 8  # a known name: nothing else is imported
    assert not _registry._plugins_loaded
    assert pz.is_model("plugged_encoder") and "plugged_encoder" in pz.list_models()
    assert pz.create_model("plugged_encoder", width=3).num_features == 3
    assert "'a_broken_plugin_for_tests' are not available: importing it raised RuntimeError('broken')" in caplog.text
    assert "'a_plugin_for_tests' replaces the models ['other_encoder']" in caplog.text
