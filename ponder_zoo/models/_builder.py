"""What every entry point calls: resolve the config, build the class, load the weights."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ._config import PointCfg, PretrainedCfg
from ._pretrained import FilterFn, load_weights, read_safetensors
from ._registry import find_architecture

_logger = logging.getLogger(__name__)

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
    feature_columns: Sequence[str] | None = None,
    in_chans: int | None = None,
    num_classes: int | None = None,
    grid_size: float | None = None,
    condition: str | None = None,
    **model_args: Any,
) -> nn.Module:
    """Build an encoder and, if asked, load its weights. Entry points call this; users call `create_model`.

    Args:
        model_cls: takes `in_chans`, `num_classes`, `grid_size` and `model_args`.
        architecture: the registered name.
        pretrained: load the weights that the config names; having none is an error.
        pretrained_cfg: config of the variant; default: the architecture's first.
        pretrained_cfg_overlay: fields of the config to replace.
        checkpoint_path: load this safetensors file instead of the config's source.
        checkpoint_filter_fn: turns foreign key names into the model's.
        cache_dir: of the Hub client.
        feature_columns: names of the input columns, in order; default: the config's.
        in_chans: number of input columns; takes the config's first ones. Prefer `feature_columns`.
        num_classes: of the head; 0 for none. Default: the config's.
        grid_size: metres; default: the config's.
        condition: data set whose norms to use when the input names none; default: the config's.
        model_args: passed to `model_cls`.

    Returns:
        The model in train mode, with `pretrained_cfg`, `load_report` and what is needed to build it again.
    """
    cfg = pretrained_cfg if pretrained_cfg is not None else find_architecture(architecture)[1]
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
    _check_arguments(model_cls, architecture, args)
    model = model_cls(**args)
    if pretrained or checkpoint_path is not None:
        state_dict, source = _read_source(cfg, checkpoint_path, cache_dir, architecture)
        if point_cfg.feature_columns != cfg.point_cfg.feature_columns:
            raise ValueError(
                f"The weights of {architecture} from {source} read the columns {list(cfg.point_cfg.feature_columns)}; "
                f"asked for {list(point_cfg.feature_columns)}. Give the model those columns (`create_transform` fills "
                "absent ones), or create it with pretrained=False."
            )
        load_pretrained(model, state_dict, source=source, filter_fn=checkpoint_filter_fn)
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
    model: nn.Module, state_dict: Mapping[str, Tensor], *, source: str, filter_fn: FilterFn | None = None
) -> None:
    """Load weights of the same architecture whose head may have another number of classes, and nothing else."""
    state_dict = dict(state_dict)
    if filter_fn is not None:
        state_dict = filter_fn(state_dict, model)
    head = f"{classifier_name(model)}."
    own = {key: value for key, value in model.state_dict().items() if key.startswith(head)}
    theirs = {key: value for key, value in state_dict.items() if key.startswith(head)}
    same = own.keys() == theirs.keys() and all(own[key].shape == theirs[key].shape for key in own)
    adapted = {}
    if not same:
        adapted = {key: "dropped, it belongs to another head" for key in theirs}
        adapted |= {key: "new head, keeps its initialization" for key in own}
        state_dict = {key: value for key, value in state_dict.items() if key not in theirs}
    load_weights(model, state_dict, source=source, adapted=adapted, allow_missing=() if same else (head,))


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


def _read_source(
    cfg: PretrainedCfg, checkpoint_path: str | Path | None, cache_dir: str | Path | None, architecture: str
) -> tuple[dict[str, Tensor], str]:
    path = checkpoint_path if checkpoint_path is not None else cfg.file
    if path is not None:
        return read_safetensors(path), str(path)
    if cfg.hf_hub_id is not None:
        from huggingface_hub import hf_hub_download

        path = hf_hub_download(cfg.hf_hub_id, cfg.hf_hub_filename, cache_dir=cache_dir)
        return read_safetensors(path), f"{cfg.hf_hub_id}/{cfg.hf_hub_filename}"
    name = f"{architecture}.{cfg.tag}" if cfg.tag else architecture
    raise ValueError(
        f"pretrained=True, but '{name}' has no published weights. ponder_zoo.list_pretrained() lists the variants that "
        "have some; your own come from `local-dir:FOLDER` or checkpoint_path=FILE."
    )


def _check_arguments(model_cls: type[nn.Module], architecture: str, args: Mapping[str, Any]) -> None:
    known = [name for name in inspect.signature(model_cls).parameters if name != "self"]
    for name in args:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"Did you mean '{close[0]}'?" if close else f"It takes {', '.join(known)}."
            raise TypeError(f"'{architecture}' takes no argument '{name}'. {hint}")
