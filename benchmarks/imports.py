"""Import and model-creation time, each in a fresh process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

from .harness import Call, Case, Seconds
from .machine import ROOT, device

_TIMED = "import time; {before}start = time.perf_counter(); {measured}; print(time.perf_counter() - start)"


def cases() -> Iterator[Case]:
    """The package alone and beyond torch, and the first model."""
    if device().type != "cpu":
        return
    yield Case(
        name="imports/beyond_torch",
        peer="none; seconds",
        ours=lambda: _child("import ponder_zoo", before="import torch"),
        done=0.25,
        aim=0.1,
        target_seconds=True,
    )
    yield Case(name="imports/package", peer="none", ours=lambda: _child("import ponder_zoo"))
    yield Case(name="imports/torch", peer="none", ours=lambda: _child("import torch"))
    for name in ("sparseunet34", "sparseunet_ponderv2"):
        yield Case(
            name=f"imports/create_{name}",
            peer="none",
            ours=lambda name=name: _child(f"ponder_zoo.create_model('{name}')", before="import ponder_zoo"),
        )


def _child(measured: str, before: str = "") -> Call:
    """Seconds of a statement in a fresh process, after another one that is not measured."""
    code = _TIMED.format(before=before and before + "; ", measured=measured)

    def call() -> Seconds:
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        return Seconds(done.stdout.split()[-1])

    return call
