"""The README and the pages of docs/: their Python runs, the names and messages that they quote exist."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import ponder_zoo as pz
from ponder_zoo.data.synthetic import SyntheticRooms
from ponder_zoo.models import _registry
from ponder_zoo.models.ponder import checkpoint_filter_fn
from ponder_zoo.report.pointcloud_io import write_ply
from ponder_zoo.train.config import load_config

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^( *)```(\w+)([^\n]*)\n(.*?)^\1```$", flags=re.DOTALL | re.MULTILINE)
NOT_RUN = re.compile(r'title="Not run in the tests: [^"]{5,}"')  # shown above the block on the site
MODULE = re.compile(r'title="(\w+)\.py"')  # a block that is a file, to be imported by a later one


class Block(NamedTuple):
    page: Path
    line: int
    language: str
    options: str
    code: str


def blocks(page: Path, language: str) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = [
        Block(page, text.count("\n", 0, match.start()) + 2, match[2], match[3], match[4])
        for match in FENCE.finditer(text)
    ]
    return [block for block in found if block.language == language]


def table(page: str, heading: str) -> list[list[str]]:
    """Cells of the rows of all tables below a heading of a page, up to the next one of any level."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    section = re.split(r"^#+ ", text, flags=re.MULTILINE)
    (body,) = (part for part in section if part.splitlines()[:1] == [heading])
    rows = [re.split(r"(?<!\\)\|", line.strip())[1:-1] for line in body.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in row] for row in rows]
    return [
        row
        for row, following in zip(cells, [*cells[1:], []], strict=False)
        if not _is_rule(row) and not _is_rule(following)
    ]


def _is_rule(row: list[str]) -> bool:
    """Whether a row is the line under the head of a table."""
    return bool(row) and all(set(cell) <= set("-: ") for cell in row)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as after a pre-training run, with a scan, and labelled ones in PATH, as the pages take for granted."""
    model = pz.create_model("sparseunet_tiny", channels=(8,) * 8, stem_channels=8, grid_size=0.2)
    ponder = pz.create_pretrainer(
        model, "neus", volume_channels=8, unet_channels=(8, 8), renderer_args={"hidden_dim": 16, "geo_dim": 8}
    )
    pz.save_for_hf(model, tmp_path / "runs/pretrain/export", renderer=ponder)
    write_labelled(tmp_path / "PATH")
    rng = np.random.default_rng(0)
    write_ply(tmp_path / "scan.ply", rng.random((3000, 3)) * [3, 2, 0.1], color=rng.integers(0, 256, (3000, 3)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def write_labelled(folder: Path) -> None:
    folder.mkdir()
    rooms = SyntheticRooms("train", num_scenes=2, num_views=2, image_size=(30, 40), sensor="off")
    ids = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16, 24, 28, 33, 34, 36, 39]
    names = {"scannet20_nyu40_ids": ids, "scannet20_names": list(rooms.classes)}
    (folder / "classes.json").write_text(json.dumps(names))
    for index in range(2):
        scene = rooms[index]
        assert scene.color is not None and scene.segment is not None
        label = np.where(scene.segment < 0, 0, np.array(ids)[scene.segment])
        np.savez(
            folder / f"scene{index:04d}_00.npz", xyz=scene.coord, rgb=scene.color.astype(np.uint8), semantic_nyu40=label
        )


# Blocks


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.stem)
def test_the_python_of_a_page_runs_from_top_to_bottom(
    page: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(workplace))
    monkeypatch.setattr(_registry, "_architectures", dict(_registry._architectures))  # a page may register a model
    namespace: dict[str, Any] = {"__name__": "page"}
    for block in blocks(page, "python"):
        if module := MODULE.search(block.options):
            (workplace / f"{module[1]}.py").write_text(block.code, encoding="utf-8")
            monkeypatch.setitem(sys.modules, module[1], None)  # so that it is removed after the test
            del sys.modules[module[1]]
        elif not NOT_RUN.search(block.options):
            # Empty lines in front, so that a traceback has the line numbers of the page.
            exec(compile("\n" * (block.line - 1) + block.code, str(page), "exec"), namespace)


def test_few_blocks_are_not_run_and_each_says_why() -> None:
    titled = [block for page in PAGES for block in blocks(page, "python") if block.options.strip()]
    marked = [block for block in titled if not MODULE.search(block.options)]
    assert all(NOT_RUN.search(block.options) for block in marked)
    assert len(marked) <= 4


def test_the_fine_tuning_loop_is_short() -> None:
    (loop,) = (block.code for block in blocks(ROOT / "README.md", "python") if "num_classes=20" in block.code)
    assert len([line for line in loop.splitlines() if line.strip()]) < 15


def recipe_commands() -> Iterator[tuple[str, list[str]]]:
    for page in PAGES:
        for block in blocks(page, "bash"):
            for line in block.code.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                scripts = [word for word in words if re.fullmatch(r"recipes/\w+\.py", word)]
                if scripts:
                    yield Path(scripts[0]).stem, words[words.index(scripts[0]) + 1 :]


def test_commands_of_recipes_have_keys_that_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    monkeypatch.chdir(ROOT)
    commands = list(recipe_commands())
    assert len(commands) > 8
    for recipe, arguments in commands:
        load_config(importlib.import_module(recipe).Config, arguments)


# Messages


def source_texts() -> list[str]:
    """Every string of the package and the recipes; what an f-string fills in is a NUL."""
    texts = []
    for folder in ("ponder_zoo", "recipes"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.append(node.value)
                elif isinstance(node, ast.JoinedStr):
                    parts = [str(v.value) if isinstance(v, ast.Constant) else "\0" for v in node.values]
                    texts.append("".join(parts))
    return texts


def quoted_messages() -> list[str]:
    text = (ROOT / "docs/errors.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.*)$", text, flags=re.MULTILINE)
    rows = [row for heading in headings for row in table("errors.md", heading)]
    rows += table("hub.md", "Errors") + table("datasets.md", "Errors")
    return [message for row in rows for message in re.findall(r"`([^`]+)`", row[0])]


def test_every_message_of_the_catalogue_is_in_the_source() -> None:
    texts, messages = source_texts(), quoted_messages()
    assert len(messages) > 60
    gone = [m for m in messages if not any(all(part in text for part in m.split("...")) for text in texts)]
    assert not gone, f"docs/errors.md or docs/hub.md quotes messages that no code says: {gone}"


# Names


def ours(page: str, heading: str) -> list[str]:
    return [name for row in table(page, heading) for name in re.findall(r"`([^`]+)`", row[1])]


def find(name: str) -> Any:
    """What a dotted name stands for: `pz.x` is of the package, other names begin at one of its modules."""
    parts = name.removesuffix("()").removeprefix("pz.").split(".")
    for count in range(len(parts), -1, -1):
        try:
            found: Any = importlib.import_module(".".join(["ponder_zoo", *parts[:count]]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[count:]:
            fields = getattr(found, "__dataclass_fields__", {})
            found = fields[attribute] if attribute in fields else getattr(found, attribute)
        return found
    raise AssertionError(name)


@pytest.mark.parametrize("heading", ["Modules", "Transforms", "Data and batches", "Losses and metrics"])
def test_our_names_in_the_migration_tables_exist(heading: str) -> None:
    names = ours("migration.md", heading)
    assert len(names) >= 5
    for name in names:
        if pz.is_model(name) or name in pz.list_renderers():
            continue
        find(name)


def test_our_settings_in_the_migration_table_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    settings = ours("migration.md", "Settings")
    assert len(settings) > 12
    for setting in settings:
        recipe, _, rest = setting.partition(" ")
        load_config(importlib.import_module(recipe).Config, [rest])


def test_checkpoint_keys_are_converted_as_the_migration_table_says() -> None:
    model = pz.create_pretrainer(
        "sparseunet_ponderv2_tiny",
        "neus_ponderv2",
        volume_channels=8,
        unet_channels=(8, 8),
        mask_ratio=0.5,
        encoder_args={"channels": (8,) * 8, "stem_channels": 8, "context_dim": 4, "condition": "ScanNet"},
    )
    state = model.state_dict()
    rows = table("migration.md", "Checkpoint keys")
    assert len(rows) > 12
    for row in rows:
        (official,), (own,) = re.findall(r"`([^`]+)`", row[0]), re.findall(r"`([^`]+)`", row[1])
        shape = (8, 1, 1, 1, 8) if "proj_conv" in official else (3, 4) if "embedding" in official else (1,)
        assert list(checkpoint_filter_fn({official: torch.zeros(shape)}, model)) == [own]
        assert own in state


# The site


def test_links_between_pages_lead_to_files() -> None:
    for page in PAGES:
        text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
            assert "://" in link or (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_site_lists_every_page() -> None:
    listed = re.findall(r"[\w/]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert sorted(listed) == sorted(page.name for page in PAGES if page.parent.name == "docs")


def test_commands_in_the_table_exist(capsys: pytest.CaptureFixture[str]) -> None:
    from ponder_zoo.cli import main

    for command in re.findall(r"`(\w+)`", " ".join(row[0] for row in table("cli.md", "Command line"))):
        with pytest.raises(SystemExit) as end:
            main([command, "--help"])
        assert end.value.code == 0, command
