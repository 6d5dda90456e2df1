"""Importing the package costs nothing, and its models cost torch and nothing else."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import ponder_zoo

HEAVY = (
    *(
        "timm",
        "open_clip",
        "spconv",
        "triton",
        "datasets",
        "accelerate",
        "huggingface_hub",
        "safetensors",
        "torchvision",
    ),
    *("omegaconf", "plotly", "jinja2", "trimesh", "skimage", "scipy", "PIL", "tqdm"),
    *("torch._dynamo", "torch._inductor", "torch.onnx", "torch.distributed.tensor"),
)


def loaded_by(code: str, before: str = "import sys") -> list[str]:
    """Which of HEAVY and torch a statement imports, in a process of its own, beyond what `before` does."""
    program = (
        f"{before}\nimport sys; before = set(sys.modules)\n{code}\n"
        f"print([name for name in ('torch', *{HEAVY!r}) if name in sys.modules and name not in before])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return ast.literal_eval(done.stdout.splitlines()[-1])


def test_import_and_listing_pull_in_no_heavy_package() -> None:
    code = "import ponder_zoo; ponder_zoo.list_models(); ponder_zoo.list_renderers()"
    assert loaded_by(code, before="import torch") == []


def test_the_data_layer_pulls_in_no_heavy_package() -> None:
    assert loaded_by("import ponder_zoo.data, ponder_zoo.data.catalog", before="import torch") == []


def test_version_and_help_do_not_import_torch() -> None:
    help_text = "from ponder_zoo.cli import main\ntry: main(['render', '--help'])\nexcept SystemExit: pass"
    assert loaded_by(f"import ponder_zoo; ponder_zoo.__version__; ponder_zoo.doctor\n{help_text}") == []


def test_every_name_that_type_checkers_see_can_be_imported() -> None:
    tree = ast.parse(Path(ponder_zoo.__file__).read_text())
    seen = {
        alias.asname
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level
        for alias in node.names
    }
    assert len(seen) > 30
    for name in seen:
        assert name in dir(ponder_zoo) and getattr(ponder_zoo, name) is not None
    assert callable(ponder_zoo.doctor) and ponder_zoo.models.create_model is ponder_zoo.create_model
