"""What every entry point calls: resolve the config, build the class, load the weights."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from torch import Tensor, nn

from ._columns import ColumnMap, map_columns
from ._config import PointCfg, PretrainedCfg
from ._download import HubRepo
from ._pretrained import FilterFn, load_weights, read_weights, write_tensors
from ._registry import find_architecture

_logger = logging.getLogger(__name__)

_told: set[str] = set()  # terms of weights that were logged
RUNTIME_ARGS = ("backend",)  # how to compute, not what: never written into config.json


def build_model(
    model_cls: type[nn.Module],
    architecture: str,
    pretrained: bool = False,
    *,
    pretrained_cfg: PretrainedCfg | None = None,
    pretrained_cfg_overlay: Mapping[str, Any] | None = None,
    checkpoint_path: str | Path | None = None,
    checkpoint_filter_fn: FilterFn | None = None,
    cache_dir: str | Path | None = None,
    endpoint: str | None = None,
    token: str | bool | None = None,
    feature_columns: Sequence[str] | None = None,
    column_proxies: Mapping[str, Sequence[str]] | None = None,
    in_chans: int | None = None,
    num_classes: int | None = None,
    grid_size: float | None = None,
    condition: str | None = None,
    **model_args: Any,
) -> nn.Module:
    """Build an encoder and, if asked, load its weights. Entry points call this; users call `create_model`.

    Args:
        model_cls: takes `in_chans`, `num_classes`, `grid_size` and `model_args`. If its attribute `stem_weight_name`
            names the one weight that reads the columns (input channels last), weights for other columns are adapted;
            if it also takes `append_one`, so are those whose dropped columns are not zero at their fill value.
        architecture: the registered name.
        pretrained: load the weights that the config names; having none is an error.
        pretrained_cfg: config of the variant; default: the architecture's own, or with `pretrained` its weights'.
        pretrained_cfg_overlay: fields of the config to replace.
        checkpoint_path: load this safetensors file instead of the config's source.
        checkpoint_filter_fn: turns foreign key names into the model's.
        cache_dir: of the Hub client.
        endpoint: of the Hub; default: the client's.
        token: for the Hub; default: the client's.
        feature_columns: names of the input columns, in order; default: the config's.
        column_proxies: new column -> the columns of the weights whose mean stands for it.
        in_chans: number of input columns; takes the config's first ones. Prefer `feature_columns`.
        num_classes: of the head; 0 for none. Default: the config's.
        grid_size: metres; default: the config's.
        condition: data set whose norms to use when the input names none; default: the config's.
        model_args: passed to `model_cls`.

    Returns:
        The model in train mode, with `pretrained_cfg`, `load_report` and what is needed to build it again.
    """
    cfg = pretrained_cfg if pretrained_cfg is not None else find_architecture(architecture, pretrained=pretrained)[1]
    if pretrained_cfg_overlay:
        cfg = PretrainedCfg.from_dict({**cfg.to_dict(), **pretrained_cfg_overlay})
    point_cfg = _point_cfg(cfg.point_cfg, feature_columns, in_chans, grid_size)
    args = {
        "in_chans": len(point_cfg.feature_columns),
        "num_classes": cfg.num_classes if num_classes is None else num_classes,
        "grid_size": point_cfg.grid_size,
        **model_args,
    }
    condition = condition if condition is not None else cfg.condition
    if condition is not None:
        args["condition"] = condition
    columns = None
    loads = pretrained or checkpoint_path is not None
    if loads and point_cfg.feature_columns != cfg.point_cfg.feature_columns:
        proxies = {name: tuple(sources) for name, sources in (column_proxies or {}).items()}
        columns = map_columns(cfg.point_cfg, point_cfg, proxies)
        if columns.needs_ones:
            args["append_one"] = True
            _check_appends_one(model_cls, architecture, columns)
    if args.get("backend") == "auto" and "backend" not in _argument_names(model_cls):
        del args["backend"]  # create_model's default, which a model without sparse convolutions need not know
    _check_arguments(model_cls, architecture, args)
    if loads:  # before building: a missing file must not cost the time of building
        state_dict, source = _read_source(cfg, checkpoint_path, architecture, HubAccess(endpoint, token, cache_dir))
        model = model_cls(**args)
        load_pretrained(model, state_dict, source=source, filter_fn=checkpoint_filter_fn, columns=columns)
        _tell_terms(cfg, source)
    else:
        model = model_cls(**args)
    label_names = cfg.label_names if args["num_classes"] == cfg.num_classes else ()
    model.pretrained_cfg = dataclasses.replace(  # type: ignore[assignment]
        cfg, point_cfg=point_cfg, num_classes=args["num_classes"], label_names=label_names, condition=condition
    )
    derived = ("in_chans", "num_classes", "grid_size", "condition")  # config.json has them elsewhere
    model.model_args = {k: v for k, v in args.items() if k not in (*derived, *RUNTIME_ARGS)}  # type: ignore[assignment]
    return model


def build_renderer(renderer_cls: type[nn.Module], architecture: str, **args: Any) -> nn.Module:
    """Build a renderer for its entry point, recording what is needed to build it again."""
    _check_arguments(renderer_cls, architecture, args)
    renderer = renderer_cls(**args)
    renderer.architecture = architecture  # type: ignore[assignment]
    renderer.model_args = dict(args)  # type: ignore[assignment]
    return renderer


def load_pretrained(
    model: nn.Module,
    state_dict: Mapping[str, Tensor],
    *,
    source: str,
    filter_fn: FilterFn | None = None,
    columns: ColumnMap | None = None,
) -> None:
    """Load weights of the same architecture whose head may have another number of classes, and stem other columns."""
    state_dict = dict(state_dict)
    if filter_fn is not None:
        state_dict = filter_fn(state_dict, model)
    adapted = {}
    if columns is not None:
        state_dict, adapted = _adapt_stem(model, state_dict, columns, source)
    head = f"{classifier_name(model)}."
    own = {key: value for key, value in model.state_dict().items() if key.startswith(head)}
    theirs = {key: value for key, value in state_dict.items() if key.startswith(head)}
    same = own.keys() == theirs.keys() and all(own[key].shape == theirs[key].shape for key in own)
    if not same:
        adapted |= {key: "dropped, it belongs to another head" for key in theirs}
        adapted |= {key: "new head, keeps its initialization" for key in own}
        state_dict = {key: value for key, value in state_dict.items() if key not in theirs}
    words = {} if columns is None else columns.words
    allowed = () if same else (head,)
    load_weights(model, state_dict, source=source, adapted=adapted, allow_missing=allowed, columns=words)


def _adapt_stem(
    model: nn.Module, state_dict: dict[str, Tensor], columns: ColumnMap, source: str
) -> tuple[dict[str, Tensor], dict[str, str]]:
    name = getattr(model, "stem_weight_name", None)
    if not isinstance(name, str):
        raise ValueError(
            f"The weights from {source} read other columns, and {type(model).__name__} does not say which of its "
            "weights reads them (`stem_weight_name`). Give the model the columns of the weights (`create_transform` "
            "fills absent ones), or create it with pretrained=False."
        )
    if name not in state_dict:
        return state_dict, {}  # strict loading reports it
    if all(what.startswith(("new", "dropped")) for what in columns.words.values()):
        _logger.warning("No column of the weights from %s is among the model's: its stem starts at zero.", source)
    appends_one = bool(getattr(model, "append_one", False))
    state_dict = {**state_dict, name: columns.apply(state_dict[name], appends_one)}
    return state_dict, {name: "; ".join(f"{column} {what}" for column, what in columns.words.items())}


def _check_appends_one(model_cls: type[nn.Module], architecture: str, columns: ColumnMap) -> None:
    if "append_one" not in _argument_names(model_cls):
        folded = ", ".join(f"{name} ({what})" for name, what in columns.words.items() if "folded" in what)
        raise ValueError(
            f"'{architecture}' cannot drop columns whose fill value is not zero after normalization: {folded}. Keep "
            "them in feature_columns: `create_transform` fills absent columns."
        )


def classifier_name(model: nn.Module) -> str:
    """Attribute path of the module that `model.get_classifier()` returns."""
    classifier = model.get_classifier()  # type: ignore[operator]
    return next(name for name, module in model.named_modules(remove_duplicate=False) if module is classifier)


def _point_cfg(
    cfg: PointCfg, feature_columns: Sequence[str] | None, in_chans: int | None, grid_size: float | None
) -> PointCfg:
    if grid_size is not None:
        cfg = dataclasses.replace(cfg, grid_size=grid_size)
    if feature_columns is not None:
        if in_chans is not None and in_chans != len(feature_columns):
            raise ValueError(
                f"in_chans={in_chans} contradicts the {len(feature_columns)} feature_columns {list(feature_columns)}. "
                "Give only feature_columns."
            )
        return cfg.select(tuple(feature_columns))
    if in_chans is None or in_chans == len(cfg.feature_columns):
        return cfg
    if in_chans < 1:
        raise ValueError(
            f"Expected in_chans >= 1, got {in_chans}. For no colour or normals give coordinates as columns."
        )
    names = (*cfg.feature_columns[:in_chans], *(f"extra_{i}" for i in range(in_chans - len(cfg.feature_columns))))
    _logger.warning("in_chans=%d is read as the columns %s; say so with feature_columns=[...].", in_chans, list(names))
    return cfg.select(names)


@dataclass(frozen=True)
class HubAccess:
    """How to reach the Hub; None leaves it to the client."""

    endpoint: str | None = None
    token: str | bool | None = None
    cache_dir: str | Path | None = None


def _read_source(
    cfg: PretrainedCfg, checkpoint_path: str | Path | None, architecture: str, access: HubAccess
) -> tuple[dict[str, Tensor], str]:
    if checkpoint_path is not None:
        return read_weights(checkpoint_path), str(checkpoint_path)
    hub = None
    if cfg.hf_hub_id is not None:
        repo = HubRepo.parse(cfg.hf_hub_id, **dataclasses.asdict(access))
        hub = dataclasses.replace(repo, revision=cfg.hf_hub_revision)
    if cfg.file is not None:
        return read_weights(cfg.file), f"{hub}/{Path(cfg.file).name}" if hub else cfg.file
    if hub is not None:
        path, hub = hub.file(cfg.hf_hub_filename)
        return _read_converted(path, access), f"{hub}/{cfg.hf_hub_filename}"
    name = f"{architecture}.{cfg.tag}" if cfg.tag else architecture
    raise ValueError(
        f"pretrained=True, but '{name}' has no published weights. ponder_zoo.list_pretrained() lists the variants that "
        "have some; your own come from `local-dir:FOLDER` or checkpoint_path=FILE."
    )


def _read_converted(path: Path, access: HubAccess) -> dict[str, Tensor]:
    """Weights of a downloaded file; those of a foreign one are kept as safetensors under the digest of the original."""
    digest = path.resolve().name
    if path.suffix == ".safetensors" or len(digest) != 64:
        return read_weights(path)
    from huggingface_hub import constants

    folder = Path(access.cache_dir if access.cache_dir is not None else constants.HF_HOME) / "ponder_zoo"
    converted = folder / f"{digest}.safetensors"
    if not converted.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(converted, read_weights(path))
    return read_weights(converted)


def _tell_terms(cfg: PretrainedCfg, source: str) -> None:
    """Say once per process what using the weights is subject to, beside their own licence."""
    if cfg.training_data_license not in (None, cfg.license, *_told):
        _told.add(cfg.training_data_license)
        _logger.warning("Terms of the training data of the weights from %s: %s", source, cfg.training_data_license)


def _check_arguments(model_cls: type[nn.Module], architecture: str, args: Mapping[str, Any]) -> None:
    known = _argument_names(model_cls)
    for name in args:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"Did you mean '{close[0]}'?" if close else f"It takes {', '.join(known)}."
            raise TypeError(f"'{architecture}' takes no argument '{name}'. {hint}")


def _argument_names(model_cls: type[nn.Module]) -> list[str]:
    """What a constructor takes by name; `**options: Unpack[SomeTypedDict]` counts with the names of the dictionary."""
    names: list[str] = []
    for name, parameter in inspect.signature(model_cls).parameters.items():
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD:
            names.append(name)
            continue
        for typed_dict in get_args(get_type_hints(model_cls.__init__).get(name)):
            names += get_type_hints(typed_dict)
    return names
