"""Names: which models and renderers exist, in which pre-trained variants (`arch` or `arch.tag`)."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import logging
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from torch import nn

from ._config import PretrainedCfg

_logger = logging.getLogger(__name__)

Modality = Literal["points", "images", "renderer"]
EntryPoint = Callable[..., nn.Module]
Entry = TypeVar("Entry", bound=EntryPoint)


@dataclass(frozen=True)
class _Architecture:
    entry_point: EntryPoint
    modality: Modality
    cfgs: dict[str, PretrainedCfg]  # by tag; "" is the architecture without weights; the first is the default


_architectures: dict[str, _Architecture] = {}
_deprecated: dict[str, str | None] = {}  # old name -> the one to use, or None
_plugins_loaded = False
PLUGIN_GROUP = "ponder_zoo.models"  # entry points of other packages whose import registers models


def generate_default_cfgs(cfgs: Mapping[str, PretrainedCfg]) -> dict[str, dict[str, PretrainedCfg]]:
    """Group `{"arch.tag": cfg}` into `{"arch": {"tag": cfg}}`; the first tag of an architecture is its default.

    A first entry `"arch"` without a tag is for the architecture without weights; `pretrained=True` then takes the first
    that has some. With it, an untrained model does not depend on which weights there are.
    """
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


def register_model(entry_point: EntryPoint | None = None, *, modality: Modality = "points") -> Any:
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


def register_model_deprecations(names: Mapping[str, str | None]) -> None:
    """Keep old names working, with a warning, while hiding them from `list_models`.

    Args:
        names: old `arch` or `arch.tag` -> its replacement, or None where there is none, which makes it an error.

    Example:
        >>> register_model_deprecations({"old_encoder": "my_encoder.tag"})
    """
    _deprecated.update(names)


def load_plugins() -> None:
    """Import what installed packages declare under the entry-point group `ponder_zoo.models`, once per process.

    Happens when names are listed or one is unknown, not on import. A package that cannot be imported is reported and
    left out.
    """
    global _plugins_loaded
    if _plugins_loaded:
        return
    _plugins_loaded = True
    from importlib.metadata import entry_points

    for plugin in entry_points(group=PLUGIN_GROUP):
        before = dict(_architectures)
        try:
            plugin.load()
        except Exception as error:  # whatever another package raises must not take this one's models away
            _logger.warning("The models of '%s' are not available: importing it raised %r.", plugin.value, error)
        replaced = [name for name, entry in before.items() if _architectures[name] is not entry]
        if replaced:
            _logger.warning("'%s' replaces the models %s.", plugin.value, replaced)


def _current_name(name: str) -> str:
    """The name to use instead of a deprecated one."""
    if name not in _deprecated:
        return name
    new = _deprecated[name]
    if new is None:
        raise ValueError(f"The model '{name}' was removed and has no successor. ponder_zoo.list_models() lists others.")
    warnings.warn(f"The model name '{name}' is deprecated; use '{new}'.", FutureWarning, stacklevel=4)
    return _current_name(new)


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
    load_plugins()
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
    if architecture not in _architectures:
        load_plugins()
    entry = _architectures.get(architecture)
    return entry is not None and entry.modality != "renderer" and (not tag or tag in entry.cfgs)


def get_pretrained_cfg(name: str) -> PretrainedCfg:
    """The config of `arch` (its default weights, if it has any) or `arch.tag`.

    Raises:
        ValueError: for an unknown architecture or tag; the message names the nearest known ones.
    """
    return find_architecture(name, pretrained=True)[1]


def find_architecture(
    name: str, renderer: bool = False, *, pretrained: bool = False
) -> tuple[EntryPoint, PretrainedCfg]:
    """Entry point and config of `arch[.tag]` among the encoders, or among the renderers.

    Without a tag, the config is the first one; with `pretrained` the first one that has weights, if any has.
    """
    architecture, tag = split_name(_current_name(name))
    kind = "renderer" if renderer else "model"
    entry = _architectures.get(architecture)
    if entry is None or (entry.modality == "renderer") is not renderer:
        known = list_renderers() if renderer else list_models()  # with those of other packages
        entry = _architectures.get(architecture) if architecture in known else None
    if entry is None:
        close = difflib.get_close_matches(architecture, known, n=3, cutoff=0.4)
        hint = f"Did you mean {' or '.join(close)}?" if close else f"Known ones: {', '.join(known)}."
        raise ValueError(f"Unknown {kind} '{architecture}'. {hint} ponder_zoo.list_{kind}s() lists all.")
    if not tag:
        cfgs = list(entry.cfgs.values())
        return entry.entry_point, next((cfg for cfg in cfgs if pretrained and cfg.has_weights), cfgs[0])
    if tag not in entry.cfgs:
        tags = [t for t in entry.cfgs if t]
        close = difflib.get_close_matches(tag, tags, n=3, cutoff=0.4) or tags
        hint = f"It has {', '.join(close)}." if close else "It has no tags."
        raise ValueError(f"Unknown tag '{tag}' of {kind} '{architecture}'. {hint}")
    return entry.entry_point, entry.cfgs[tag]
