"""Writing the weights that come with the package: from the export of a pre-training run to a folder of few bytes."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..files import write_atomic
from ._card import UNPUBLISHED
from ._factory import create_pretrainer
from ._hub import is_matrix, read_config, write_folder
from ._reference import reference_pair
from ._registry import find_architecture, split_name
from ._shipped import PACKAGE, Place, configs_folder, sha256, shipped_folder
from .sparse_unet import SparseUNet, fill_untrained_conditions

MAX_BYTES: dict[Place, int] = {"package": 8_000_000, "release": 40_000_000}  # of all files of a folder
MATRIX_DTYPE = torch.float16  # half the bytes; norms, biases and other vectors stay as they are


@dataclass(frozen=True)
class ShipReport:
    """What `ship` wrote. `rounding` is max |after - before| / max |before| of features on the reference points."""

    name: str
    folder: Path
    size: int  # bytes of all files
    rounding: float
    filled: tuple[str, ...]  # conditions without data, see `fill_untrained_conditions`

    def __str__(self) -> str:
        text = f"{self.folder}: {self.size / 1e6:.2f} MB; rounding to half precision changes features by at most "
        text += f"{self.rounding:.2g} of the largest"
        if self.filled:
            text += f"; no data of {', '.join(self.filled)}: copies of the norms of a trained condition"
        return text


def ship(
    export: str | Path,
    name: str,
    *,
    metadata: Mapping[str, Any],
    place: Place = "package",
    package: Path | None = None,
) -> ShipReport:
    """Write the folder and the config of shipped weights. The same export gives the same bytes.

    Args:
        export: folder that a pre-training run exported, with its renderer.
        name: `arch.tag` that the weights get.
        metadata: as for `save_for_hf`; `license` and `training_data` must be there.
        place: "package": `ponder_zoo/weights/NAME`, installed with the package; "release": `release/NAME`.
        package: the package's folder in a clone; default: where this one lies.

    Raises:
        FileNotFoundError: without the export.
        ValueError: if the export is of another architecture, does not say what it was trained on, has values that half
            precision cannot hold, or the folder would be too large; or outside a clone.
    """
    package = PACKAGE if package is None else package
    configs = package.parent / "hub_configs"
    if configs_folder(package) != configs or not configs.is_dir():
        raise ValueError(
            f"Expected a clone of ponder_zoo's repository around {package}, with hub_configs. Run it there."
        )
    lacking = [key for key in ("license", "training_data") if not metadata.get(key)]
    if lacking:
        raise ValueError(f"Shipped weights must say their {' and '.join(lacking)}; metadata has {sorted(metadata)}.")
    ponder: Any = create_pretrainer(f"local-dir:{export}", pretrained=True)
    encoder: Any = ponder.encoder
    encoder.pretrained_cfg = _named(encoder, name)
    filled = fill_untrained_conditions(encoder) if isinstance(encoder, SparseUNet) else ()
    exact = _features(encoder)
    _round(ponder)
    rounding = ((_features(encoder) - exact).abs().max() / exact.abs().max()).item()
    if filled:
        note = f"No data of {' and '.join(filled)}: they have copies of the norms and the context of another condition."
        metadata = {**metadata, "description": f"{metadata.get('description', '')} {note}".strip()}
    with tempfile.TemporaryDirectory() as temporary:
        folder = write_folder(encoder, temporary, ponder, metadata, matrix_dtype=MATRIX_DTYPE)
        config = read_config(folder)
        digests = {path.name: sha256(path) for path in sorted(folder.glob("*.safetensors"))}
        config["shipped"] = {"in": place, "sha256": digests}
        write_atomic(folder / "config.json", json.dumps(config, indent=2) + "\n")
        if place == "package":
            card = (folder / "README.md").read_text(encoding="utf-8")
            write_atomic(folder / "README.md", card.replace(UNPUBLISHED, name))
        files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    size = sum(map(len, files.values()))
    if size > MAX_BYTES[place]:
        raise ValueError(
            f"'{name}' has {size / 1e6:.2f} MB; the {place} holds at most {MAX_BYTES[place] / 1e6:.0f} MB per model. "
            + ("Ship it with place='release'." if place == "package" else "Publish it on the Hub.")
        )
    target = shipped_folder(name, place, package)
    for filename, content in files.items():
        write_atomic(target / filename, content)
    write_atomic(configs / f"{name}.json", files["config.json"])
    return ShipReport(name, target, size, rounding, filled)


def _named(encoder: nn.Module, name: str) -> Any:
    architecture, tag = split_name(name)
    find_architecture(architecture)  # says which ones there are
    cfg: Any = encoder.pretrained_cfg
    if not tag or cfg.architecture != architecture:
        raise ValueError(f"Expected a name '{cfg.architecture}.TAG' for these weights, got '{name}'.")
    return dataclasses.replace(cfg, tag=tag)


def _features(encoder: nn.Module) -> Tensor:
    pair = reference_pair(encoder, None)
    if pair is None:
        raise ValueError(f"{type(encoder).__name__} gives no finite features for the reference points. Train it again.")
    return pair[0]["output"]


@torch.no_grad()
def _round(model: nn.Module) -> None:
    """Give matrices the values that they will have when they are loaded."""
    for key, value in model.state_dict().items():
        if is_matrix(value):
            rounded = value.to(MATRIX_DTYPE).to(value.dtype)
            if not torch.isfinite(rounded).all():
                raise ValueError(
                    f"'{key}' has values up to {value.abs().max():.3g}, which half precision cannot hold (largest: "
                    f"{torch.finfo(MATRIX_DTYPE).max:.5g}). Publish these weights on the Hub."
                )
            value.copy_(rounded)
