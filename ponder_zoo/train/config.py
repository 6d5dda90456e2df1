"""A recipe's settings: a dataclass, then YAML files, then `key=value`. A key that does not exist is an error."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import sys
import textwrap
import typing
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from ..files import write_atomic

T = TypeVar("T")


class ConfigError(ValueError):
    """A setting that a user can correct."""


def parse_config(
    cls: type[T],
    arguments: Sequence[str] | None = None,
    *,
    description: str | None = None,
    base: Mapping[str, Any] | None = None,
) -> T:
    """Build the dataclass `cls` from the command line, or end the program with help or a message.

    Args:
        cls: a dataclass whose fields are scalars, tuples, dicts, `Literal`s or further dataclasses. The comment behind
            a field is its documentation.
        arguments: `--help`, `--config FILE` (may repeat; later files win) and `key=value` (wins over files). A file may
            name others that it changes: `base: other.yaml`, or a list, relative to itself.
        description: text above the keys in `--help`.
        base: defaults from elsewhere, such as `saved_values` of another run; keys that `cls` does not have are skipped.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if any(argument in ("-h", "--help", "help") for argument in arguments):
        print(describe_config(cls, description))
        raise SystemExit(0)
    try:
        return load_config(cls, arguments, base=base)
    except ConfigError as error:
        raise SystemExit(f"error: {error}") from None


def load_config(
    cls: type[T],
    arguments: Sequence[str] = (),
    *,
    base: Mapping[str, Any] | None = None,
    values: Mapping[str, Any] | None = None,
) -> T:
    """The same as `parse_config`, raising `ConfigError`; takes the arguments that it is given.

    `values` are nested settings of a caller: as a file's, but ones that `cls` does not have are errors like any other.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Config:
        ...     lr: float = 0.1  # peak
        >>> load_config(Config, ["lr=0.2"])
        Config(lr=0.2)
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    files, pairs = _split(arguments)
    config = OmegaConf.structured(cls)
    known = list(_keys(cls))
    layers: list[tuple[str, Any]] = [("the saved settings", _known_values(base or {}, known))]
    layers += [layer for file in files for layer in file_layers(file)]
    layers.append(("the given values", dict(values or {})))
    for source, overrides in [*layers, ("the command line", pairs)]:
        try:
            values = OmegaConf.from_dotlist(overrides) if isinstance(overrides, list) else OmegaConf.create(overrides)
        except Exception as error:  # whatever YAML's parser raises
            raise ConfigError(f"Cannot read the values of {source}: {error}") from error
        _check_keys(OmegaConf.to_container(values), known, source)
        try:
            config = OmegaConf.merge(config, values)
        except OmegaConfBaseException:
            config = _merge_one_by_one(config, values, cls, source)
    try:
        return typing.cast(T, OmegaConf.to_object(config))
    except OmegaConfBaseException as error:
        raise ConfigError(
            _value_message(error, cls, getattr(error, "full_key", None) or "?", "the settings")
        ) from error
    except ConfigError:
        raise
    except (ValueError, TypeError) as error:  # from a dataclass' own checks
        raise ConfigError(str(error)) from error


def _merge_one_by_one(config: Any, values: Any, cls: type, source: str) -> Any:
    """The same merge, slowly: only some of OmegaConf's errors say which key they are about."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    for key, value in _flatten(OmegaConf.to_container(values)):
        single = OmegaConf.create({})
        OmegaConf.update(single, key, _as_word(value, _hint(cls, key)), force_add=True)
        try:
            config = OmegaConf.merge(config, single)
        except OmegaConfBaseException as error:
            raise ConfigError(_value_message(error, cls, key, source)) from error
    return config


def _hint(cls: type, key: str) -> Any:
    """The type of a setting by its dotted key."""
    hint: Any = cls
    for name in key.split("."):
        hint = typing.get_type_hints(hint).get(name) if dataclasses.is_dataclass(hint) else None
    return hint


def _as_word(value: Any, hint: Any) -> Any:
    """YAML reads `no`, `off`, `yes` and `on` as booleans; where one of these words is a choice, it is meant."""
    if isinstance(value, bool) and typing.get_origin(hint) is typing.Literal:
        meant = ("yes", "on") if value else ("no", "off")
        return next((word for word in typing.get_args(hint) if word in meant), value)
    return value


def config_to_dict(config: Any) -> dict[str, Any]:
    """The settings as plain dicts, lists and scalars, ready for JSON or a tracker."""
    from omegaconf import OmegaConf

    return _plain(OmegaConf.to_container(OmegaConf.structured(config), resolve=True))


def save_config(config: Any, file: Path) -> None:
    """Write the resolved settings as YAML; `load_config(cls, ["--config", file])` reads them back."""
    from omegaconf import OmegaConf

    write_atomic(file, OmegaConf.to_yaml(OmegaConf.structured(config), resolve=True))


def changed_keys(config: Any, file: Path) -> dict[str, tuple[Any, Any]]:
    """What differs between a saved file and the settings: key -> (saved value, value now)."""
    before, now = dict(_flatten(saved_values(file))), dict(_flatten(config_to_dict(config)))
    pairs = {key: (before.get(key, "(absent)"), now.get(key, "(absent)")) for key in [*before, *now]}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def check_same_run(config: Any, file: Path, *, free: Sequence[str] = ()) -> None:
    """Settings that a run is continued with must be those that it was started with (`file`, its config.yaml).

    Args:
        config: the settings now.
        file: the settings then.
        free: keys that may differ, or the beginning of several (`data.workers`, `log_`).

    Raises:
        ConfigError: naming the keys that differ.
    """
    changed = {key: pair for key, pair in changed_keys(config, file).items() if not key.startswith(tuple(free))}
    if changed:
        listed = ", ".join(f"{key}: {before!r} then, {now!r} now" for key, (before, now) in changed.items())
        raise ConfigError(
            f"{file.parent} was started with other settings ({listed}). Give them as they were to go on, or start "
            "another run with `output=PATH`."
        )


def describe_config(cls: type, description: str | None = None) -> str:
    """The text of `--help`: each key with its type, default and documentation."""
    lines = [inspect.cleandoc(description or cls.__doc__ or ""), "", "Settings (--config FILE.yaml and key=value):"]
    rows = [(f"{key}={_show(default)}", kind, doc) for key, kind, default, doc in _fields(cls)]
    for setting, kind, doc in rows:
        lines.append(f"  {setting}")
        lines.extend(textwrap.wrap(f"{doc} [{kind}]".strip(), 110, initial_indent=" " * 6, subsequent_indent=" " * 6))
    return "\n".join(lines)


def _split(arguments: Sequence[str]) -> tuple[list[Path], list[str]]:
    files, pairs, rest = [], [], list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument == "--config" and rest:
            files.append(Path(rest.pop(0)))
        elif argument.startswith("--config="):
            files.append(Path(argument.partition("=")[2]))
        elif "=" in argument and not argument.startswith("-"):
            pairs.append(argument)
        else:
            name = argument.lstrip("-").partition("=")[0]
            raise ConfigError(
                f"Expected `--config FILE` or `key=value`, got {argument!r}. "
                f"Write `{name}=VALUE`; `--help` lists the keys."
            )
    return files, pairs


def saved_values(file: Path) -> dict[str, Any]:
    """The content of a configuration file, unchecked."""
    from omegaconf import OmegaConf

    try:
        values = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    except OSError as error:
        raise ConfigError(f"Cannot read the configuration file {file}: {error.strerror}. Check the path.") from error
    except Exception as error:  # whatever YAML's parser raises
        raise ConfigError(f"{file} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"Expected {file} to hold `key: value` lines; it holds a {type(values).__name__}.")
    return typing.cast(dict[str, Any], values)


def file_layers(file: Path, *, inside: Sequence[Path] = ()) -> list[tuple[str, dict[str, Any]]]:
    """Names and contents of a configuration file and of those that its `base` names, from the bottom up."""
    if file.resolve() in inside:
        raise ConfigError(f"{file} is its own base, by way of {[path.name for path in inside]}. Break the circle.")
    values = saved_values(file)
    base = values.pop("base", [])
    names = [base] if isinstance(base, str) else base
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"`base` in {file} expects the name of a file or a list of names, got {base!r}.")
    below = [file_layers(file.parent / name, inside=[*inside, file.resolve()]) for name in names]
    return [*(layer for layers in below for layer in layers), (str(file), values)]


def _known_values(values: Mapping[str, Any], known: list[str]) -> dict[str, Any]:
    """The part of nested values whose keys exist."""
    free = tuple(key.removesuffix("*") for key in known if key.endswith(".*"))
    result: dict[str, Any] = {}
    for key, value in _flatten(values):
        if key in known or key.startswith(free):
            *groups, last = key.split(".")
            place = result
            for group in groups:
                place = place.setdefault(group, {})
            place[last] = value
    return result


def _check_keys(values: Any, known: list[str], source: str) -> None:
    """Every key must be known, or lie below a free-form dict."""
    free = tuple(key + "." for key in known if key.endswith(".*"))
    for key, _ in _flatten(values):
        if key in known or any(key.startswith(prefix[:-2]) for prefix in free):
            continue
        names = [name.removesuffix(".*") for name in known]
        last = {name.rpartition(".")[2]: name for name in reversed(names)}
        near = difflib.get_close_matches(key, names, n=1, cutoff=0.6)
        near = near or [last[name] for name in difflib.get_close_matches(key.rpartition(".")[2], last, n=1, cutoff=0.6)]
        if any(name.startswith(key + ".") for name in names):
            hint = f"`{key}` is a group of keys; set one of {[name for name in names if name.startswith(key + '.')]}."
        else:
            hint = f"Did you mean `{near[0]}`?" if near else "`--help` lists the keys."
        raise ConfigError(f"Unknown key `{key}` in {source}. {hint}")


def _value_message(error: Exception, cls: type, key: str, source: str) -> str:
    kinds = {name: kind for name, kind, _, _ in _fields(cls)}
    text = str(error).splitlines()[0].replace("$VALUE_TYPE", "that type").replace("'$VALUE'", "the value")
    return f"`{key}` in {source} expects {kinds.get(key, 'another type')}: {text}. Correct the value."


def _plain(values: Any) -> Any:
    """Tuples as lists, as YAML and JSON give them back."""
    if isinstance(values, dict):
        return {key: _plain(value) for key, value in values.items()}
    return [_plain(value) for value in values] if isinstance(values, tuple | list) else values


def _flatten(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _keys(cls: type) -> Iterator[str]:
    for key, kind, _, _ in _fields(cls):
        yield key
        if kind.startswith("dict"):
            yield f"{key}.*"


def _fields(cls: type, prefix: str = "", default: Any = None) -> Iterator[tuple[str, str, Any, str]]:
    """(dotted key, type as text, default, documentation) of every setting."""
    hints, docs = typing.get_type_hints(cls), _comments(cls)
    default = cls() if default is None else default
    for field in dataclasses.fields(cls):
        hint, value = hints[field.name], getattr(default, field.name)
        if dataclasses.is_dataclass(hint):
            yield from _fields(typing.cast(type, hint), f"{prefix}{field.name}.", value)
        else:
            yield f"{prefix}{field.name}", _type_name(hint), value, docs.get(field.name, "")


def _type_name(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return " | ".join(str(choice) for choice in typing.get_args(hint))
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint).replace("typing.", "")


def _show(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, tuple | list):
        return "[" + ",".join(_show(item) for item in value) + "]"
    return str(value).lower() if isinstance(value, bool) else str(value)


@lru_cache(maxsize=32)
def _comments(cls: type) -> dict[str, str]:
    """The comment behind each field, so that settings are documented where they stand."""
    try:
        lines = textwrap.dedent(inspect.getsource(cls)).splitlines()
        body = typing.cast(ast.ClassDef, ast.parse("\n".join(lines)).body[0]).body
    except (OSError, TypeError, SyntaxError, IndexError):  # no source at hand, as in a frozen application
        return {}
    docs = {}
    for node in body:
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
            continue
        line, column = typing.cast(int, node.end_lineno) - 1, typing.cast(int, node.end_col_offset)
        docs[node.target.id] = lines[line].encode()[column:].decode().strip().lstrip("#").strip()
    return docs
