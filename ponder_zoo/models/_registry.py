"""Names: which models and renderers exist, in which pre-trained variants (`arch` or `arch.tag`)."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from torch import nn

from ._config import PretrainedCfg

Modality = Literal["points", "images", "renderer"]
EntryPoint = Callable[..., nn.Module]
Entry = TypeVar("Entry", bound=EntryPoint)


@dataclass(frozen=True)
class _Architecture:
    entry_point: EntryPoint
    modality: Modality
    cfgs: dict[str, PretrainedCfg]  # by tag; the first is the default


_architectures: dict[str, _Architecture] = {}


def generate_default_cfgs(cfgs: Mapping[str, PretrainedCfg]) -> dict[str, dict[str, PretrainedCfg]]:
    """Group `{"arch.tag": cfg}` into `{"arch": {"tag": cfg}}`; the first tag of an architecture is its default."""
    grouped: dict[str, dict[str, PretrainedCfg]] = {}
    for name, cfg in cfgs.items():
        architecture, tag = split_name(name)
        grouped.setdefault(architecture, {})[tag] = dataclasses.replace(cfg, architecture=architecture, tag=tag)
    return grouped


def split_name(name: str) -> tuple[str, str]:
    """Split `arch.tag` into its parts; the tag is empty where there is none."""
    architecture, _, tag = name.partition(".")
    return architecture, tag


def _register(entry_point: Entry, modality: Modality) -> Entry:
    name = entry_point.__name__
    module_cfgs = getattr(sys.modules[entry_point.__module__], "default_cfgs", {})
    cfgs = module_cfgs.get(name) or {"": PretrainedCfg(architecture=name)}
    _architectures[name] = _Architecture(entry_point, modality, dict(cfgs))
    return entry_point


def register_model(entry_point: Entry | None = None, *, modality: Modality = "points") -> Any:
    """Decorator: make a function `name(pretrained=False, **kwargs) -> nn.Module` known to `create_model`.

    Pre-trained variants come from the `default_cfgs` of the function's module. Registering a name again replaces it.

    Example:
        >>> @register_model
        ... def my_encoder(pretrained=False, **kwargs):
        ...     return build_model(MyEncoder, "my_encoder", pretrained, **kwargs)
    """
    if entry_point is None:
        return lambda function: _register(function, modality)
    return _register(entry_point, modality)


def register_renderer(entry_point: Entry) -> Entry:
    """Decorator: make a function `name(pretrained=False, **kwargs)` known to `create_renderer`."""
    return _register(entry_point, "renderer")


def _natural(name: str) -> list[Any]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name.lower())]


def list_models(
    filter: str | Sequence[str] = "", pretrained: bool = False, *, modality: Modality | None = None
) -> list[str]:
    """Names of models, naturally sorted; renderers only when asked for by `modality="renderer"`.

    Args:
        filter: shell-style wildcards; a name that matches any of them is listed. Empty lists all.
        pretrained: list `arch.tag` of the variants that have weights instead of architectures.
        modality: "points", "images" or "renderer"; None lists both kinds of encoders.
    """
    wanted = {modality} if modality is not None else {"points", "images"}
    names = []
    for architecture, entry in _architectures.items():
        if entry.modality not in wanted:
            continue
        if pretrained:
            names += [
                f"{architecture}.{tag}" if tag else architecture for tag, c in entry.cfgs.items() if c.has_weights
            ]
        else:
            names.append(architecture)
    patterns = [filter] if isinstance(filter, str) else list(filter)
    if any(patterns):
        names = [name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]
    return sorted(names, key=_natural)


def list_pretrained(filter: str | Sequence[str] = "") -> list[str]:
    """`arch.tag` of every encoder variant that has weights."""
    return list_models(filter, pretrained=True)


def list_renderers(filter: str | Sequence[str] = "") -> list[str]:
    """Names for `create_renderer`."""
    return list_models(filter, modality="renderer")


def is_model(name: str) -> bool:
    """Whether `create_model(name)` knows the architecture and the tag, if one is given."""
    architecture, tag = split_name(name)
    entry = _architectures.get(architecture)
    return entry is not None and entry.modality != "renderer" and (not tag or tag in entry.cfgs)


def get_pretrained_cfg(name: str) -> PretrainedCfg:
    """The config of `arch` (its default variant) or `arch.tag`.

    Raises:
        ValueError: for an unknown architecture or tag; the message names the nearest known ones.
    """
    return find_architecture(name)[1]


def find_architecture(name: str, renderer: bool = False) -> tuple[EntryPoint, PretrainedCfg]:
    """Entry point and config of `arch[.tag]` among the encoders, or among the renderers."""
    architecture, tag = split_name(name)
    kind, known = ("renderer", list_renderers()) if renderer else ("model", list_models())
    if architecture not in known:
        close = difflib.get_close_matches(architecture, known, n=3, cutoff=0.4)
        hint = f"Did you mean {' or '.join(close)}?" if close else f"Known ones: {', '.join(known)}."
        raise ValueError(f"Unknown {kind} '{architecture}'. {hint} ponder_zoo.list_{kind}s() lists all.")
    entry = _architectures[architecture]
    if not tag:
        return entry.entry_point, next(iter(entry.cfgs.values()))
    if tag not in entry.cfgs:
        tags = [t for t in entry.cfgs if t]
        close = difflib.get_close_matches(tag, tags, n=3, cutoff=0.4) or tags
        hint = f"It has {', '.join(close)}." if close else "It has no tags."
        raise ValueError(f"Unknown tag '{tag}' of {kind} '{architecture}'. {hint}")
    return entry.entry_point, entry.cfgs[tag]
