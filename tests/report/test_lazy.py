from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "ponder_zoo"
FILES = sorted([*(PACKAGE / "report").glob("*.py"), PACKAGE / "doctor.py", PACKAGE / "ops" / "marching_cubes.py"])


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_optional_packages_are_imported_where_they_are_used(file: Path) -> None:
    tree = ast.parse(file.read_text())
    names = [alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names]
    names += [str(node.module) for node in tree.body if isinstance(node, ast.ImportFrom) and node.level == 0]
    outside = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)
    assert outside <= {"numpy", "torch"}


def test_the_templates_lie_in_the_package() -> None:
    assert {path.name for path in (PACKAGE / "report" / "templates").iterdir()} == {
        "report.css",
        "report.html.j2",
        "report.js",
    }
