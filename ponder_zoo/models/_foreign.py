"""Checkpoints of other code (`.pth`, `.bin`) without running anything in them.

A torch checkpoint is a zip archive with a pickle program that says how to rebuild its objects, and one record of raw
bytes per storage. A pickle can name any function of any module and call it. Here the program is read three times: as a
list of instructions, of which only those that plain state dicts need are known; with inert stand-ins, which compares
every size it names with the bytes that are there; and then by `torch.load(weights_only=True)`. The middle pass is
needed because torch (2.14) neither compares a storage's stated size with its record nor bounds the strings and numbers
of the program.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

MAX_FILE_BYTES = 16 << 30
MAX_PICKLE_BYTES = 4 << 20  # of the program; a checkpoint with 10,000 tensors and an optimizer has 2 MB
MAX_DIMENSIONS = 64
MAX_RECORDS = 100_000

_OPCODES = {
    *("PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "DUP", "MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"),
    *("GET", "BINGET", "LONG_BINGET", "NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2"),
    *("LONG1", "FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "EMPTY_LIST", "APPEND", "APPENDS", "LIST", "EMPTY_TUPLE"),
    *("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_DICT", "DICT", "SETITEM", "SETITEMS"),
    *("GLOBAL", "REDUCE", "BUILD", "BINPERSID"),
}
_STORAGES = {
    "DoubleStorage": 8, "LongStorage": 8, "FloatStorage": 4, "IntStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2,
    "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1, "BoolStorage": 1,
}  # fmt: skip
_NUMPY_SCALARS = ("numpy.core.multiarray scalar", "numpy._core.multiarray scalar")  # names before and since numpy 2


def read_checkpoint(path: str | Path) -> Any:
    """The objects of a torch checkpoint, on the CPU: mappings, lists, numbers, strings and tensors, nothing else.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is no zip checkpoint, is damaged, needs anything but plain tensors and containers, or
            claims sizes that it does not have. Nothing in the file is executed and nothing large is allocated.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"Expected a checkpoint at {path}; there is no such file. Check the path.")
    try:
        program, records = _open_archive(path)
        _scan(program)
        _DryRun(program, records).load()
    except _RefusalError as refusal:
        raise ValueError(
            f"{path} is refused: {refusal}. Expected a file written by torch.save with tensors, numbers and strings "
            "only; nothing in it was executed. Ask its author for safetensors, or save its state_dict again with "
            "torch.save."
        ) from refusal
    try:
        allowed: list[Any] = [(_number, name.replace(" ", ".")) for name in _NUMPY_SCALARS] + [(_Dtype, "numpy.dtype")]
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about typed storages of old files
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and its zip reader raise many kinds for damaged files
        raise ValueError(f"{path} cannot be read as a torch checkpoint ({error}). It may be damaged.") from error


def state_dict_of(checkpoint: Any, path: str | Path) -> dict[str, Tensor]:
    """The mapping from names to tensors in what `read_checkpoint` gave: the whole, or under `state_dict` or `model`."""
    for key in ("state_dict", "model", "model_state_dict", "module"):
        if isinstance(checkpoint, dict) and isinstance(checkpoint.get(key), dict):
            checkpoint = checkpoint[key]
    if not isinstance(checkpoint, dict) or not checkpoint:
        raise ValueError(f"{path} holds a {type(checkpoint).__name__}, expected a state_dict. Save model.state_dict().")
    wrong = [key for key, value in checkpoint.items() if not isinstance(key, str) or not isinstance(value, Tensor)]
    if wrong:
        raise ValueError(f"{path} holds entries that are no tensors: {wrong[:5]}. Expected a state_dict. Remove them.")
    return dict(checkpoint)


class _RefusalError(Exception):
    """Why a file is not read."""


def _open_archive(path: Path) -> tuple[bytes, dict[str, int]]:
    """The pickle program and the size of every record by name."""
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise _RefusalError(f"it has {size} bytes, more than {MAX_FILE_BYTES}")
    with path.open("rb") as file:
        file.seek(max(size - 22, 0))
        # The end record must be the last 22 bytes, as torch writes it: two zip readers then agree on what is inside.
        if size < 22 or not file.read().startswith(b"PK\5\6"):
            raise _RefusalError("it is no zip archive, as torch.save has written since torch 1.6, or it is truncated")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            names = [entry.filename for entry in entries]
            if len(entries) > MAX_RECORDS or len(set(names)) != len(names):
                raise _RefusalError(f"it has {len(entries)} records, or two of one name")
            for entry in entries:
                parts = entry.filename.replace("\\", "/").split("/")
                if entry.filename != entry.orig_filename or any(part in ("", "..") or ":" in part for part in parts):
                    raise _RefusalError(f"a record is named '{entry.orig_filename[:80]}', which leaves the archive")
                # Torch stores records as they are; nothing may grow when it is read.
                if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
                    raise _RefusalError(f"record '{entry.filename[:80]}' is compressed")
            if sum(entry.file_size for entry in entries) > size:
                raise _RefusalError("its records overlap: together they are larger than the file")
            programs = [name for name in names if name.endswith("data.pkl")]
            if len(programs) != 1 or any(name.endswith("constants.pkl") for name in names):
                raise _RefusalError(f"it has {len(programs)} data.pkl, expected one, and no TorchScript code")
            root = programs[0].removesuffix("data.pkl")
            if archive.getinfo(programs[0]).file_size > MAX_PICKLE_BYTES:
                raise _RefusalError(f"its data.pkl has more than {MAX_PICKLE_BYTES} bytes")
            records = {e.filename.removeprefix(f"{root}data/"): e.file_size for e in entries}
            return archive.read(programs[0]), records
    except (zipfile.BadZipFile, OSError, NotImplementedError, EOFError, RuntimeError) as error:
        raise _RefusalError(f"it is a damaged zip archive ({error})") from error


def _scan(program: bytes) -> None:
    """Refuse instructions and names that no plain checkpoint has, before any pickle machine runs."""
    try:
        for opcode, argument, _ in pickletools.genops(program):
            if opcode.name not in _OPCODES:
                raise _RefusalError(f"its pickle uses {opcode.name}, which a plain checkpoint does not need")
            if opcode.name == "GLOBAL" and argument not in _GLOBALS:
                raise _RefusalError(f"its pickle asks for '{str(argument)[:80]}'")
            if opcode.name in ("PUT", "LONG_BINPUT") and int(argument or 0) > len(program):
                raise _RefusalError(
                    "its pickle numbers more objects than it can hold"
                )  # a memo of that length is allocated
    except _RefusalError:
        raise
    except Exception as error:  # genops raises many kinds for malformed programs
        raise _RefusalError(f"its pickle is malformed ({type(error).__name__}: {error})") from error


class _DryRun(pickle.Unpickler):
    """Runs the program with stand-ins that allocate nothing and compare sizes with the records."""

    def __init__(self, program: bytes, records: dict[str, int]) -> None:
        super().__init__(io.BytesIO(program), encoding="utf-8")
        self.records = records
        self.total = 0

    def load(self) -> Any:
        try:
            return super().load()
        except _RefusalError:
            raise
        except Exception as error:  # the C machine raises many kinds for malformed programs
            raise _RefusalError(f"its pickle is malformed ({type(error).__name__}: {error})") from error

    def find_class(self, module: str, name: str) -> Any:
        if f"{module} {name}" not in _GLOBALS:
            raise _RefusalError(f"its pickle asks for '{module} {name}'")
        return _GLOBALS[f"{module} {name}"]

    def persistent_load(self, key: Any) -> _Storage:
        match key:
            case ("storage", _StorageKind() as kind, str() as name, str(), int() as count):
                have = self.records.get(name)
                if have is None or count < 0 or count * kind.item_bytes != have:
                    raise _RefusalError(
                        f"storage '{name[:40]}' claims {count} x {kind.item_bytes} bytes and has {have}"
                    )
                return _Storage(count)
        raise _RefusalError(f"it refers to something that is no storage: {str(key)[:80]}")


class _Inert:
    """An object whose state cannot be set."""

    __slots__ = ()

    def __setstate__(self, _: Any) -> None:
        raise _RefusalError("its pickle sets the state of an object that has none")


class _Function(_Inert):
    """What a name stands for. Wrapped, so that the program cannot set attributes of a function of this module."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)


class _StorageKind(_Inert):
    __slots__ = ("item_bytes",)

    def __init__(self, item_bytes: int) -> None:
        self.item_bytes = item_bytes


class _Storage(_Inert):
    __slots__ = ("count",)

    def __init__(self, count: int) -> None:
        self.count = count


class _Tensor(_Inert):
    """Stands for a tensor or a parameter."""

    __slots__ = ()


def _check_tensor(
    storage: Any, offset: Any, shape: Any, stride: Any, requires_grad: Any, hooks: Any, *rest: Any
) -> _Tensor:
    if type(storage) is not _Storage or not _are_sizes(shape) or not _are_sizes(stride) or not _are_sizes((offset,)):
        raise _RefusalError("a tensor is not described by a storage, a shape and strides")
    if len(shape) != len(stride):
        raise _RefusalError("a tensor has a shape and strides of different lengths")
    if type(requires_grad) is not bool or type(hooks) is not OrderedDict or len(hooks) or rest not in ((), (None,)):
        raise _RefusalError("a tensor carries hooks or extra state")
    count = math.prod(shape)
    last = offset + sum((n - 1) * s for n, s in zip(shape, stride, strict=True)) if count else offset
    # An expanded tensor (stride 0) has few bytes and becomes huge in the first operation on it.
    if last >= storage.count + (count == 0) or count > storage.count:
        raise _RefusalError(
            f"a tensor of shape {list(shape)[:8]} does not lie in its storage of {storage.count} elements"
        )
    return _Tensor()


def _check_parameter(data: Any, requires_grad: Any, hooks: Any) -> _Tensor:
    if type(data) is not _Tensor or type(hooks) is not OrderedDict or len(hooks):
        raise _RefusalError("a parameter is no plain tensor, or carries hooks")
    return data


def _are_sizes(values: Any) -> bool:
    if type(values) is not tuple or len(values) > MAX_DIMENSIONS:
        return False
    return all(type(n) is int and 0 <= n < 2**62 for n in values)


def _check_size(shape: Any = ()) -> tuple[int, ...]:
    if not _are_sizes(shape):
        raise _RefusalError("a torch.Size holds something other than sizes")
    return shape


def _check_order() -> OrderedDict[Any, Any]:
    """Only without arguments, as Python has pickled it since 3.5: copying a long list again and again takes memory."""
    return OrderedDict()


def _encode(text: Any, codec: Any) -> bytes:
    """How the bytes of a number are written in old pickles; nothing else is a checkpoint's business."""
    if type(text) is not str or codec != "latin1" or len(text) > 16:
        raise _RefusalError(f"its pickle encodes text as {str(codec)[:20]}")
    return text.encode("latin1")


class _Dtype:
    """Stands for `numpy.dtype`; only its code ('f8') matters, and numpy itself is never asked."""

    def __init__(self, code: str, align: bool = False, copy: bool = True) -> None:
        if not isinstance(code, str) or code not in (
            "f8",
            "f4",
            "f2",
            "i8",
            "i4",
            "i2",
            "i1",
            "u8",
            "u4",
            "u2",
            "u1",
            "b1",
        ):
            raise _RefusalError(f"a number has the numpy type {str(code)[:20]}")
        self.code = code

    def __setstate__(self, state: Any) -> None:
        """Byte order and the like: nothing is taken over but a check that it is little-endian."""
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", "|", "="):
            raise _RefusalError("a number has an unusual byte order")


def _number(dtype: Any, data: Any) -> float | int | bool:
    """Stands for numpy's function that rebuilds one number, such as the best metric in a checkpoint."""
    if type(dtype) is not _Dtype or type(data) is not bytes or len(data) != int(dtype.code[1]):
        raise _RefusalError("a number is not made of a type and its bytes")
    import numpy as np

    return np.frombuffer(data, f"<{dtype.code}")[0].item()


_GLOBALS: dict[str, _Inert] = {
    "collections OrderedDict": _Function(_check_order),
    "torch._utils _rebuild_tensor_v2": _Function(_check_tensor),
    "torch._utils _rebuild_parameter": _Function(_check_parameter),
    "torch Size": _Function(_check_size),
    "_codecs encode": _Function(_encode),
    "numpy dtype": _Function(_Dtype),
    **{name: _Function(_number) for name in _NUMPY_SCALARS},
    **{f"torch {name}": _StorageKind(size) for name, size in _STORAGES.items()},
}
