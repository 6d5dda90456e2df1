"""Data flows one way: who may import whom is a rule, and this enforces it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "ponder_zoo"
ALLOWED = {
    "structures": set(),
    "ops": {"structures"},
    "sparse": {"files", "ops", "structures"},
    "layers": {"sparse", "ops", "structures"},
    "volume": {"layers", "sparse", "ops", "structures"},
    "render": {"layers", "sparse", "ops", "structures"},
    "heads": {"layers", "sparse", "ops", "structures"},
    "models": {"files", "volume", "render", "heads", "layers", "sparse", "ops", "structures", "version"},
    "losses": {"ops", "structures"},
    "metrics": {"ops", "structures"},
    "data": {"ops", "structures", "files", "version"},
    "report": {"files", "ops", "structures", "version"},
    "train": {"files", "version"},
    "cli": {"models", "render", "report", "data", "train", "ops", "structures", "files", "version"},
}


def imported_folders(file: Path) -> set[str]:
    """Sub-packages of ponder_zoo that a file imports, at any depth of its code."""
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts  # ("ponder_zoo", "data", "scene")
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom):
            base = list(parts[: len(parts) - node.level]) if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("ponder_zoo.")}
    return found


@pytest.mark.parametrize("folder", sorted(ALLOWED))
def test_a_folder_imports_only_what_lies_to_its_right(folder: str) -> None:
    for file in (PACKAGE / folder).rglob("*.py"):
        wrong = imported_folders(file) - ALLOWED[folder] - {folder}
        assert not wrong, f"{file.relative_to(PACKAGE)} imports {sorted(wrong)}"


def test_every_folder_has_a_place_in_the_order() -> None:
    folders = {path.parent.relative_to(PACKAGE).parts[0] for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE}
    assert folders <= set(ALLOWED)
