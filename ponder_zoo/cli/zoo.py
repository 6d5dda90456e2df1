"""Commands that look: `list`, `info`, `doctor`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ._common import Subparsers, access, add_access, add_command, model_name, say, say_json, table

PROBED_CHANNELS = 64  # of the volume, for counting a renderer's parameters: they depend on it


def add_commands(commands: Subparsers) -> None:
    parser = add_command(
        commands,
        "list",
        list_names,
        "List the models of the zoo. A filter without wildcards matches anywhere in the name.",
        "ponder-zoo list tiny; ponder-zoo list --pretrained; ponder-zoo list --modality renderer",
    )
    parser.add_argument("filter", nargs="*", help="parts of names, or shell-style wildcards; any of them may match")
    parser.add_argument("--pretrained", action="store_true", help="the variants that have weights, as arch.tag")
    parser.add_argument("--modality", choices=("points", "images", "renderer"), help="default: all encoders")
    parser.add_argument("--json", action="store_true", help="for programs")

    parser = add_command(
        commands,
        "info",
        info,
        "Say all about a model: size, input, head, conditions, training data and its terms, metrics. Downloads no "
        "weights.",
        "ponder-zoo info sparseunet_ponderv2; ponder-zoo info local-dir:runs/pretrain/export",
    )
    parser.add_argument(
        "name", help="arch[.tag], a renderer, local-dir:FOLDER, a folder, or hf-hub:org/name[@revision]"
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    add_access(parser)

    parser = add_command(
        commands,
        "doctor",
        doctor,
        "Find what is usable on this machine, and the command that changes it. Exit status 1 if something is broken.",
        "ponder-zoo doctor",
    )
    parser.add_argument("--fast", action="store_true", help="take what is installed to work, without trying it")
    parser.add_argument("--json", action="store_true", help="for programs")


# list


def list_names(options: Any) -> int:
    import ponder_zoo as pz

    patterns = [part if any(c in part for c in "*?[") else f"*{part}*" for part in options.filter]
    names = pz.list_models(patterns, options.pretrained, modality=options.modality)
    if options.json:
        say_json([_row(name, renderer=options.modality == "renderer") for name in names])
        return 0 if names else 1
    if not names:
        wanted = " ".join(options.filter) or "these options"
        raise ValueError(f"No model matches {wanted}. `ponder-zoo list` has all; renderers need --modality renderer.")
    rows = [_row(name, renderer=options.modality == "renderer") for name in names]
    if options.modality == "renderer":
        say(table(["name", "parameters"], [[row["name"], _millions(row["parameters"])] for row in rows], right=[1]))
        return 0
    cells = [[r["name"], _millions(r["parameters"]), str(r["num_features"]), ", ".join(r["tags"])] for r in rows]
    if options.pretrained:
        header = ["name", "parameters", "features", "classes"]
        cells = [[*cell[:3], str(row["num_classes"] or "-")] for cell, row in zip(cells, rows, strict=True)]
        say(table(header, cells, right=[1, 2, 3]))
    else:
        say(table(["name", "parameters", "features", "weights"], cells, right=[1, 2]))
    return 0


def _row(name: str, *, renderer: bool) -> dict[str, Any]:
    model = _empty_model(name, renderer=renderer)
    if renderer:
        return {"name": name, "parameters": _count(model)}
    facts = {"name": name, "parameters": _count(model), "num_features": model.num_features}
    return {**facts, "num_classes": model.num_classes, "tags": _tags(name)}


# info


def info(options: Any) -> int:
    facts = model_facts(model_name(options.name), **access(options))
    if options.json:
        say_json(facts)
        return 0
    say(facts.pop("name"))
    rows = [(key, _readable(key, value)) for key, value in facts.items() if value not in (None, "", [], {}, ())]
    say(table(["", ""], [(f"  {key.replace('_', ' ')}", text) for key, text in rows]).lstrip("\n"))
    return 0


def model_facts(name: str, **source_args: Any) -> dict[str, Any]:
    """What is known of a model, of a folder or of a repository, without its weights."""
    import ponder_zoo as pz
    from ponder_zoo.models._registry import split_name

    if split_name(name)[0] in pz.list_renderers():
        return _renderer_facts(name)
    config, cfg, files = _config(name, **source_args)
    model = _empty_model(name, **source_args)
    point_cfg = cfg.point_cfg
    columns = zip(point_cfg.feature_columns, point_cfg.mean, point_cfg.std, point_cfg.fill, strict=True)
    of_a_tag = ":" in name or "." in name or bool(_tags(name))
    facts: dict[str, Any] = {
        "name": name,
        "description": cfg.description,
        "architecture": cfg.architecture or split_name(name)[0],
        "parameters": _count(model),
        "renderer": config.get("renderer", {}).get("architecture"),
        "renderer_parameters": files.get("renderer.safetensors"),
        "features_per_point": model.num_features,
        "classes": list(cfg.label_names) or model.num_classes or "none (features)",
        "grid_size": point_cfg.grid_size,
        "columns": [dict(zip(("name", "mean", "std", "fill"), values, strict=True)) for values in columns],
        "center": point_cfg.center,
        "conditions": list(getattr(model, "conditions", ())),
        "default_condition": getattr(model, "condition", None),
        "weights": _weights(name, cfg, files),
        "tags": [] if ":" in name else _tags(name),
        "license": cfg.license or ("not stated" if of_a_tag else None),
        "training_data": cfg.training_data or ("not stated" if of_a_tag else None),
        "terms_of_training_data": cfg.training_data_license or ("not stated" if of_a_tag else None),
        "metrics": dict(config.get("metrics", {})),
        "training": ", ".join(f"{name} {value}" for name, value in config.get("training", {}).items()),
        "origin": cfg.origin_url,
        "papers": list(cfg.paper_ids),
        "written_by": f"ponder_zoo {config['library_version']}" if "library_version" in config else None,
    }
    return facts


def _config(name: str, **source_args: Any) -> tuple[dict[str, Any], Any, dict[str, int]]:
    """config.json (empty for a registered name), the PretrainedCfg, and parameters of the folder's other files."""
    import ponder_zoo as pz
    from ponder_zoo.models._download import ModelSource
    from ponder_zoo.models._hub import cfg_from_config, read_config
    from ponder_zoo.models._safety import safetensors_shapes
    from ponder_zoo.models._shipped import shipped_config

    source = ModelSource.parse(name, **source_args)
    if source is None:
        cfg = pz.get_pretrained_cfg(name)
        return shipped_config(f"{cfg.architecture}.{cfg.tag}") or {}, cfg, {}
    config = read_config(source.file("config.json"))
    files = {}
    for path in () if source.folder is None else sorted(source.folder.glob("*.safetensors")):
        shapes = safetensors_shapes(path)
        files[path.name] = sum(math.prod(shape) for shape in shapes.values())
    return config, cfg_from_config(config, source, None), files


def _renderer_facts(name: str) -> dict[str, Any]:
    model = _empty_model(name, renderer=True)
    return {
        "name": name,
        "description": f"renderer; reads a volume of {model.field.in_chans} channels unless told otherwise (in_chans)",
        "parameters": _count(model),
    }


def _weights(name: str, cfg: Any, files: Mapping[str, int]) -> str:
    if files:
        return ", ".join(files) if "model.safetensors" in files else "none: the folder has no model.safetensors"
    if name.startswith("hf-hub:"):
        return "model.safetensors there"
    if not cfg.has_weights:
        return "none: untrained until you train it"
    return f"{cfg.hf_hub_id}: {cfg.hf_hub_filename}" if cfg.file is None else str(cfg.file)


def _readable(key: str, value: Any) -> str:
    if key.endswith("parameters"):
        return f"{value:,}"
    if key == "grid_size":
        return f"{value:g} m"
    if key == "columns":
        return "; ".join(_column(**column) for column in value)
    if key == "metrics":
        from ..models._card import number

        return ", ".join(f"{name} {number(metric)}" for name, metric in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _column(name: str, mean: float, std: float, fill: float | None) -> str:
    scaled = f"({name} - {mean:g}) / {std:g}" if (mean, std) != (0.0, 1.0) else name
    return f"{scaled}, needed" if fill is None else f"{scaled}, absent: {fill:g}"


# doctor


def doctor(options: Any) -> int:
    import dataclasses

    import ponder_zoo as pz

    diagnosis = pz.doctor(probe=not options.fast)
    if options.json:
        say_json({"ok": diagnosis.ok, **dataclasses.asdict(diagnosis)})
    else:
        say(f"{diagnosis}")
    return 0 if diagnosis.ok else 1


def _empty_model(name: str, *, renderer: bool = False, **source_args: Any) -> Any:
    """The model without memory for its tensors."""
    import torch

    import ponder_zoo as pz

    with torch.device("meta"):
        if not renderer:
            return pz.create_model(name, **source_args)
        try:
            return pz.create_renderer(name)
        except TypeError:  # its size is the caller's to say
            return pz.create_renderer(name, in_chans=PROBED_CHANNELS)


def _tags(name: str) -> list[str]:
    """Tags with weights of the architecture of a registered name."""
    import ponder_zoo as pz

    architecture = name.partition(".")[0]
    found = (variant.partition(".") for variant in pz.list_pretrained(f"{architecture}*"))
    return [tag for arch, _, tag in found if arch == architecture and tag]


def _count(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count >= 1e5 else f"{count / 1e6:.2g} M"
