"""A stored input with its output, and replaying it: does this machine compute what the weights' author computed?"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..structures import PointBatch
from ..version import __version__
from ._config import PretrainedCfg

_logger = logging.getLogger(__name__)

FILE = "reference.safetensors"
TOLERANCE = 1e-3  # of the largest output; float32 on CPUs differs by 1e-5, reduced-precision GPU convolutions by 5e-4


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` found. `error` is max |here - stored| / max |stored|."""

    source: str
    error: float
    tolerance: float
    device: str
    backend: str
    stored_by: str  # version, torch and device that wrote the reference

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance

    def __str__(self) -> str:
        verdict = "agrees" if self.passed else "DISAGREES"
        return (
            f"{self.source} {verdict} with its reference: relative error {self.error:.2g} (limit "
            f"{self.tolerance:.2g}) on {self.device}, backend {self.backend}; reference by {self.stored_by}"
        )


def reference_points(cfg: PretrainedCfg, device: torch.device | str = "cpu") -> PointBatch:
    """A corner of a room, some 500 voxels in two scenes, with feature columns in [-1, 1]: small, and not symmetric."""
    generator = torch.Generator().manual_seed(20231012)
    grid_size = cfg.point_cfg.grid_size
    scenes = []
    for size in (12, 9):
        cells = torch.cartesian_prod(*[torch.arange(size)] * 3)
        walls = cells[(cells == 0).any(1) & (torch.rand(len(cells), generator=generator) < 0.8)]
        feat = torch.rand(len(walls), len(cfg.point_cfg.feature_columns), generator=generator) * 2 - 1
        scenes.append(
            {"coord": (walls + 0.5) * grid_size, "feat": feat, "grid_coord": walls, "condition": cfg.condition}
        )
    return PointBatch.from_list(scenes).to(torch.device(device))


def reference_pair(model: nn.Module, points: PointBatch | None) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """Tensors and metadata of `reference.safetensors`; None, with a warning, for a model that gives no finite tensor.

    The model is put into eval mode for the forward pass and back as it was.
    """
    cfg: PretrainedCfg = model.pretrained_cfg  # type: ignore[assignment]
    given = points is not None
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    points = (points if points is not None else reference_points(cfg)).to(device)
    try:
        output = _forward(model, points)
    except Exception as error:
        if given:
            raise
        _logger.warning("%s takes no point cloud (%s): no reference was written.", cfg.architecture, error)
        return None
    if not isinstance(output, Tensor) or not torch.isfinite(output).all():
        message = f"{cfg.architecture} gave no finite tensor: no reference was written."
        if given:
            raise ValueError(f"{message} Pass reference=False, or an input that it can take.")
        _logger.warning(message)
        return None
    tensors = {"input.coord": points.coord, "input.feat": points.feat, "input.offset": points.offset, "output": output}
    if points.grid_coord is not None:
        tensors["input.grid_coord"] = points.grid_coord
    condition = points.condition or ()
    conditions = (condition,) if isinstance(condition, str) else condition
    by = f"ponder_zoo {__version__}, torch {torch.__version__}, {device.type}"
    return tensors, {"condition": "\n".join(conditions), "stored_by": by}


def verify(
    name: str | Path,
    *,
    tolerance: float = TOLERANCE,
    backend: str = "auto",
    device: torch.device | str = "cpu",
    **source_args: Any,
) -> VerifyReport:
    """Replay the reference of a published folder on this machine.

    Args:
        name: a folder, `local-dir:FOLDER`, `hf-hub:org/repo[@revision]`, or a model whose weights are shipped.
        tolerance: largest error to pass, relative to the largest stored output.
        backend: of sparse convolutions, as for `create_model`.
        device: to compute on.
        source_args: `endpoint`, `token` and `cache_dir`, as for `create_model`.

    Returns:
        The report; print it, or check `.passed`.

    Raises:
        FileNotFoundError: if the folder has no reference.

    Example:
        >>> verify("local-dir:export", device="cuda").passed
        True
    """
    from ._download import ModelSource
    from ._factory import create_model
    from ._hub import read_config
    from ._pretrained import read_safetensors
    from ._registry import is_model
    from ._shipped import find_source

    named = ":" in str(name) or is_model(str(name))
    source = find_source(str(name), **source_args) if named else ModelSource(folder=Path(name))
    if source is None:
        raise ValueError(
            f"Expected a folder, 'hf-hub:org/repo' or a model whose weights are shipped; '{name}' is none of them."
        )
    read_config(source.file("config.json"))  # no folder, or another kind of folder, is said first; pins the commit
    path = source.file(FILE)
    if not path.is_file():
        raise FileNotFoundError(
            f"Expected {path}; {source} was exported without a reference. Export it again with "
            "save_for_hf(..., reference=True)."
        )
    tensors, metadata = read_safetensors(path), _metadata(path)
    missing = {"input.coord", "input.feat", "input.offset", "output"} - set(tensors)
    if missing:
        raise ValueError(f"{path} lacks {sorted(missing)}; it is no reference of this package. Export the model again.")
    conditions = tuple(line for line in metadata.get("condition", "").split("\n") if line)
    points = PointBatch(
        coord=tensors["input.coord"],
        feat=tensors["input.feat"],
        offset=tensors["input.offset"],
        grid_coord=tensors.get("input.grid_coord"),
        condition=conditions[0] if len(conditions) == 1 else conditions or None,
    )
    model = create_model(source.pinned, pretrained=True, backend=backend, **source_args).to(device)
    output = _forward(model, points.to(torch.device(device))).cpu().double()
    stored = tensors["output"].double()
    if output.shape != stored.shape:
        raise ValueError(
            f"{source} gives {tuple(output.shape)}, its reference is {tuple(stored.shape)}. Export it again."
        )
    error = ((output - stored).abs().max() / stored.abs().max().clamp(min=1e-12)).item()
    used = str(getattr(model, "backend", backend))
    return VerifyReport(str(source), error, tolerance, str(device), used, metadata.get("stored_by", "unknown"))


@torch.no_grad()
def _forward(model: nn.Module, points: PointBatch) -> Any:
    modes = {name: module.training for name, module in model.named_modules()}
    model.eval()
    try:
        return model(points)
    finally:
        for name, module in model.named_modules():
            module.training = modes[name]


def _metadata(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}
