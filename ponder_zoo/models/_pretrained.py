"""Loading weights: strictly, from safetensors, with a report of what happened to every key."""

from __future__ import annotations

import json
import logging
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from ..files import write_atomic
from ._foreign import read_checkpoint, state_dict_of
from ._safety import safetensors_shapes

_logger = logging.getLogger(__name__)

FilterFn = Callable[[dict[str, Tensor], nn.Module], dict[str, Tensor]]
WRAPPER_PREFIXES = ("module.", "_orig_mod.")  # DistributedDataParallel and torch.compile


@dataclass(frozen=True)
class LoadReport:
    """What a load did. `missing` and `unexpected` are empty unless the caller allowed them by name."""

    source: str
    loaded: tuple[str, ...] = ()
    adapted: Mapping[str, str] = field(default_factory=dict)  # key -> what was done to it, in words
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict)  # input column -> what became of it, where columns differ

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} tensors loaded from {self.source}"]
        parts += [f"{key}: {what}" for key, what in self.adapted.items()]
        for name in ("missing", "unexpected"):
            keys = getattr(self, name)
            if keys:
                parts.append(f"{len(keys)} {name}: {_shorten(keys)}")
        return "; ".join(parts)


def _shorten(keys: Iterable[str], most: int = 6) -> str:
    keys = list(keys)
    return ", ".join(keys[:most]) + (f" and {len(keys) - most} more" if len(keys) > most else "")


def read_safetensors(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, on the CPU.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is truncated, corrupted or not safetensors; nothing in it is executed.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path)
    safetensors_shapes(path)  # before the library maps the file: clearer messages and our own bounds
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a readable safetensors file ({error}). Copy or download it again.") from error


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, or of a foreign `.pth`, `.pt` or `.bin` checkpoint without unpickling code."""
    if Path(path).suffix in (".pth", ".pt", ".bin", ".ckpt"):
        return state_dict_of(read_checkpoint(path), path)
    return read_safetensors(path)


def write_tensors(path: Path, state_dict: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file atomically, the same bytes for the same tensors; those that share memory apart."""
    from safetensors.torch import save

    tensors = {key: value.detach().to("cpu", copy=False).contiguous() for key, value in state_dict.items()}
    shared = {key: value.clone() for key, value in tensors.items() if value.untyped_storage().nbytes() != value.nbytes}
    write_atomic(path, _sorted_header(save({**tensors, **shared}, metadata={"format": "pt", **(metadata or {})})))


def _sorted_header(content: bytes) -> bytes:
    """The same file with the keys of its header in order: the library writes the metadata in a random one."""
    end = 8 + struct.unpack("<Q", content[:8])[0]
    header = json.dumps(json.loads(content[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the tensors start at a multiple of 8 bytes
    return struct.pack("<Q", len(header)) + header + content[end:]


def strip_wrappers(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefixes that wrappers put before every key, where all keys carry them."""
    result = dict(state_dict)
    for prefix in WRAPPER_PREFIXES:
        if result and all(key.startswith(prefix) for key in result):
            result = {key[len(prefix) :]: value for key, value in result.items()}
    return result


def load_weights(
    model: nn.Module,
    state_dict: Mapping[str, Tensor],
    *,
    source: str,
    adapted: Mapping[str, str] | None = None,
    allow_missing: tuple[str, ...] = (),
    columns: Mapping[str, str] | None = None,
) -> LoadReport:
    """Copy `state_dict` into `model`; every key must match but those that the caller names.

    Args:
        model: receives the weights in place, and the report as `model.load_report`.
        state_dict: already with this model's key names.
        source: where the weights come from, for messages.
        adapted: keys that the caller changed or dropped on purpose, and how.
        allow_missing: prefixes of model keys that may be absent (a new head).
        columns: what became of each input column, for the report.

    Raises:
        ValueError: for missing or unexpected keys or shapes that differ. The model is left untouched.
    """
    state_dict = strip_wrappers(state_dict)
    own = model.state_dict()
    wrong_shape = [
        f"{key}: file {tuple(state_dict[key].shape)}, model {tuple(value.shape)}"
        for key, value in own.items()
        if key in state_dict and state_dict[key].shape != value.shape
    ]
    missing = tuple(key for key in own if key not in state_dict)
    unexpected = tuple(key for key in state_dict if key not in own)
    forbidden = [key for key in missing if not key.startswith(allow_missing)] if allow_missing else list(missing)
    if wrong_shape or forbidden or unexpected:
        problems = [f"{len(keys)} {name} ({_shorten(keys)})" for name, keys in (
            ("missing keys", forbidden), ("unexpected keys", unexpected), ("tensors of another shape", wrong_shape)
        ) if keys]  # fmt: skip
        raise ValueError(
            f"The weights from {source} do not fit {type(model).__name__}: {'; '.join(problems)}. Nothing was loaded. "
            "Create the model with the architecture and arguments that the weights were saved with."
        )
    with torch.no_grad():
        for key, value in own.items():
            if key in state_dict:
                value.copy_(state_dict[key])
    loaded = tuple(key for key in own if key in state_dict)
    report = LoadReport(source, loaded, dict(adapted or {}), missing, columns=dict(columns or {}))
    model.load_report = report  # type: ignore[assignment]
    _logger.info("%s", report)
    return report
