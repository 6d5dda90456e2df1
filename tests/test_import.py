"""Importing the package costs torch and nothing else."""

from __future__ import annotations

import subprocess
import sys

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
)


def test_import_and_listing_pull_in_no_heavy_package() -> None:
    code = (
        "import sys, torch; before = set(sys.modules)\n"
        "import ponder_zoo; ponder_zoo.list_models(); ponder_zoo.list_renderers()\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules and name not in before])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
