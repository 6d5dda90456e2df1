"""Bounds on what a file from elsewhere may ask for, checked before anything of that size is allocated."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_logger = logging.getLogger(__name__)

MAX_JSON_BYTES = 4 << 20  # of a config.json; the largest published one has 10 kB
MAX_HEADER_BYTES = 16 << 20  # of a safetensors file; 200 bytes per tensor are usual
MAX_PARAMETERS = 1_000_000_000  # of a model built from a config file; the largest of this package has 47 million
MAX_MODULES = 20_000
MAX_CONFIG_NUMBER = 10**9
SLACK_PARAMETERS = 1 << 22  # that a model may have beyond twice its file: a new head, running counts
ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of bounded size, with bounded numbers and depth."""
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ValueError(
            f"{path} has {path.stat().st_size} bytes; a config has at most {MAX_JSON_BYTES}. It is not a model's "
            "config."
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise ValueError(
            f"{path} is not valid JSON ({type(error).__name__}: {error}). Export the model again."
        ) from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a JSON {type(values).__name__}, expected an object. Export the model again.")
    _check_values(values, path)
    return values


def _check_values(values: Any, path: Path) -> None:
    stack = [values]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            stack.extend(value.values())
        elif isinstance(value, list):
            stack.extend(value)
        elif isinstance(value, int | float) and not abs(value) <= MAX_CONFIG_NUMBER:
            raise ValueError(
                f"{path} holds the number {value:.4g}; sizes of models are below {MAX_CONFIG_NUMBER:.0e}. Do not use "
                "it unless you trust where it comes from and know why."
            )


def safetensors_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes in a safetensors file whose header agrees with the file's size; reads the header only.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the header is too long, no JSON, or names bytes that the file does not have.
    """
    if not path.is_file():
        raise FileNotFoundError(f"Expected weights at {path}; there is no such file. Check the path or export again.")
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(size - 8, MAX_HEADER_BYTES):
            raise _unreadable(path, size, f"its header would have {length} bytes")
        raw = file.read(length)
    try:
        header = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, size, f"its header is no JSON: {type(error).__name__}") from error
    if not isinstance(header, dict):
        raise _unreadable(path, size, "its header is no mapping")
    header.pop("__metadata__", None)
    shapes, spans = {}, []
    for name, entry in header.items():
        shapes[name], span = _check_entry(path, size, name, entry)
        spans.append(span)
    end = 0
    for begin, stop in sorted(spans):
        if begin != end:
            raise _unreadable(
                path, size, f"bytes {min(begin, end)} to {max(begin, end)} belong to two tensors or to none"
            )
        end = stop
    if 8 + length + end != size:
        raise _unreadable(path, size, f"its header describes {8 + length + end} bytes")
    return shapes


def _check_entry(path: Path, size: int, name: str, entry: Any) -> tuple[tuple[int, ...], tuple[int, int]]:
    try:
        shape, (begin, stop) = tuple(entry["shape"]), entry["data_offsets"]
        item = ITEM_BYTES[entry["dtype"]]
        plain = all(type(n) is int and n >= 0 for n in (*shape, begin, stop))
    except (KeyError, TypeError, ValueError) as error:
        raise _unreadable(path, size, f"the entry of '{name[:80]}' is malformed") from error
    if not plain or len(shape) > 16 or math.prod(shape) * item != stop - begin or stop > size:
        raise _unreadable(path, size, f"'{name[:80]}' claims shape {list(shape)[:16]} in bytes {begin} to {stop}")
    return shape, (begin, stop)


def _unreadable(path: Path, size: int, why: str) -> ValueError:
    return ValueError(
        f"{path} is not a readable safetensors file: {why}; the file has {size} bytes. It may be truncated or damaged: "
        "copy or download it again. Checkpoints in other formats (.pth, .bin) must be converted first."
    )


def parameter_limit(shapes: dict[str, tuple[int, ...]] | None) -> int:
    """How many parameters a config may ask for, given the shapes in the weights that come with it, if any."""
    if shapes is None:
        return MAX_PARAMETERS
    return min(MAX_PARAMETERS, 2 * sum(math.prod(shape) for shape in shapes.values()) + SLACK_PARAMETERS)


def check_size(build: Callable[[], nn.Module], limit: int, source: str) -> None:
    """Build once on the meta device, where tensors have no memory, and refuse more than `limit` parameters.

    Raises:
        ValueError: as soon as the limit is passed, however much more the config asks for.
    """
    try:
        with _counting(limit, source), torch.device("meta"), _NoInitialization():
            build()
    except NotImplementedError as error:  # a constructor that reads values of its own tensors
        _logger.warning("The size that %s asks for could not be checked before building it (%s).", source, error)


class _NoInitialization(TorchFunctionMode):
    """Leaves tensors without values as they are. The first random call on the meta device imports for 3 seconds."""

    RANDOM = frozenset(
        f"{name}_" for name in ("normal", "uniform", "trunc_normal", "random", "bernoulli", "orthogonal")
    ) | {f"{how}_{what}_" for how in ("kaiming", "xavier") for what in ("uniform", "normal")}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in self.RANDOM:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


@contextlib.contextmanager
def _counting(limit: int, source: str) -> Iterator[None]:
    """Count what modules built in this thread register; torch calls these hooks for every module."""
    from torch.nn.modules import module as hooks

    thread = threading.get_ident()
    count = {"parameters": 0, "modules": 0}

    def tensor_hook(_: nn.Module, name: str, value: Tensor | None) -> None:
        if threading.get_ident() == thread and value is not None:
            count["parameters"] += value.numel()
            if count["parameters"] > limit:
                raise ValueError(
                    f"{source} asks for more than {limit} parameters (at '{name}' of shape {tuple(value.shape)}). "
                    "The config does not go with its weights, or is hostile: nothing was allocated. If it is your own, "
                    "create the model by its architecture's name and load with checkpoint_path=..."
                )

    def module_hook(_: nn.Module, name: str, __: nn.Module | None) -> None:
        count["modules"] += threading.get_ident() == thread
        if count["modules"] > MAX_MODULES:
            raise ValueError(
                f"{source} asks for more than {MAX_MODULES} layers (at '{name}'). Its config is not usable."
            )

    handles = [
        hooks.register_module_parameter_registration_hook(tensor_hook),
        hooks.register_module_buffer_registration_hook(tensor_hook),
        hooks.register_module_module_registration_hook(module_hook),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
