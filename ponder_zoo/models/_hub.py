"""Folders of published models: `config.json`, `model.safetensors`, `renderer.safetensors` and a card."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..version import __version__
from ._config import FORMAT_VERSION, PointCfg, PretrainedCfg

CARD_MARK = "<!-- written by ponder_zoo; remove this line to keep your edits when exporting again -->"
SOURCE_FIELDS = ("file", "hf_hub_id", "hf_hub_filename", "point_cfg")  # not facts about the weights, or elsewhere


def save_for_hf(
    model: nn.Module,
    directory: str | Path,
    renderer: nn.Module | None = None,
    *,
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Write what `create_model("local-dir:DIRECTORY")` reads and the Hub expects. Every file is replaced atomically.

    Args:
        model: an encoder from `create_model`.
        directory: made if absent.
        renderer: the pre-training model around `model` (from `create_pretrainer`) or a renderer from
            `create_renderer`; all of its parameters but the encoder's go to `renderer.safetensors`.
        metadata: `license`, `training_data`, `metrics` (name -> value), `description`, for the card and config.json.

    Returns:
        The directory.

    Raises:
        ValueError: if the model was not built by a factory, or an argument cannot be written as JSON.
    """
    metadata = dict(metadata or {})
    config = model_config(model, renderer, metadata)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    _write_tensors(directory / "model.safetensors", model.state_dict())
    if renderer is not None:
        _write_tensors(directory / "renderer.safetensors", renderer_state_dict(renderer))
    _write_atomic(directory / "config.json", (json.dumps(config, indent=2) + "\n").encode())
    card = directory / "README.md"
    if not card.exists() or CARD_MARK in card.read_text():
        _write_atomic(card, model_card(config, metadata).encode())
    return directory


def model_config(model: nn.Module, renderer: nn.Module | None, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The content of `config.json`."""
    cfg = getattr(model, "pretrained_cfg", None)
    if not isinstance(cfg, PretrainedCfg):
        raise ValueError(
            f"{type(model).__name__} does not say how to build it again. Save models that come from create_model."
        )
    provenance = {key: metadata[key] for key in ("license", "training_data", "description") if key in metadata}
    num_classes = int(model.num_classes)  # type: ignore[arg-type]
    label_names = cfg.label_names if len(cfg.label_names) == num_classes else ()
    label_names = tuple(metadata.get("label_names", label_names))
    cfg = dataclasses.replace(cfg, num_classes=num_classes, label_names=label_names, **provenance)
    config: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "library_name": "ponder_zoo",
        "library_version": __version__,
        "architecture": cfg.architecture,
        "num_classes": num_classes,
        "num_features": int(model.num_features),  # type: ignore[arg-type]
        "model_args": model.model_args,
        "point_cfg": cfg.point_cfg.to_dict(),
        "pretrained_cfg": {k: v for k, v in cfg.to_dict().items() if k not in SOURCE_FIELDS},
    }
    if renderer is not None:
        bare = getattr(renderer, "renderer", renderer)
        config["renderer"] = {"architecture": bare.architecture, "model_args": bare.model_args}
        if hasattr(renderer, "pretrainer_args"):
            config["pretrainer_args"] = renderer.pretrainer_args
    if metadata.get("metrics"):
        config["metrics"] = dict(metadata["metrics"])
    try:
        return json.loads(json.dumps(config))
    except TypeError as error:
        raise ValueError(f"config.json can hold numbers, strings, lists and mappings only: {error}.") from error


def read_config(directory: str | Path) -> dict[str, Any]:
    """The checked content of a folder's `config.json`.

    Raises:
        FileNotFoundError: without the folder or the file.
        ValueError: for invalid JSON, a missing key or a newer format.
    """
    path = Path(directory) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"Expected {path}; there is no such file. A model folder has config.json and model.safetensors, as "
            "ponder_zoo.save_for_hf writes them."
        )
    try:
        config = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}). Export the model again.") from error
    missing = [key for key in ("format_version", "architecture", "model_args", "pretrained_cfg") if key not in config]
    if missing:
        raise ValueError(f"{path} lacks {missing}; it is not a ponder_zoo config. Export the model again.")
    if not isinstance(config["format_version"], int) or config["format_version"] > FORMAT_VERSION:
        raise ValueError(
            f"{path} has format_version {config['format_version']}; this ponder_zoo {__version__} reads up to "
            f"{FORMAT_VERSION}. Upgrade ponder_zoo."
        )
    return config


def cfg_from_config(config: Mapping[str, Any], weights: Path) -> PretrainedCfg:
    """The PretrainedCfg of a model folder; `weights` is its `model.safetensors`."""
    fields = dict(config["pretrained_cfg"])
    if "point_cfg" in config:
        fields["point_cfg"] = PointCfg.from_dict(config["point_cfg"])
    return dataclasses.replace(PretrainedCfg.from_dict(fields), file=str(weights))


def renderer_state_dict(renderer: nn.Module) -> dict[str, Tensor]:
    """All of a pre-training model but its encoder, or a bare renderer under the prefix it has in one."""
    encoder = getattr(renderer, "encoder", None)
    if encoder is None:
        return {f"renderer.{key}": value for key, value in renderer.state_dict().items()}
    encoder_prefix = f"{next(name for name, module in renderer.named_modules() if module is encoder)}."
    return {key: value for key, value in renderer.state_dict().items() if not key.startswith(encoder_prefix)}


def model_card(config: Mapping[str, Any], metadata: Mapping[str, Any]) -> str:
    """Markdown with the front matter that the Hub reads."""
    point_cfg, cfg = config["point_cfg"], config["pretrained_cfg"]
    rendering = "renderer" in config
    tags = ["point-cloud", "3d", "sparse-convolution", *(["neural-rendering"] if rendering else [])]
    head = f"{config['num_classes']} classes" if config["num_classes"] else "none (features)"
    lines = ["---", "library_name: ponder_zoo"]
    lines += [f"license: {cfg['license']}"] if cfg.get("license") else []
    lines += ["tags:", *(f"- {tag}" for tag in tags), "---", CARD_MARK, f"# {config['architecture']}", ""]
    lines += [cfg["description"], ""] if cfg.get("description") else []
    lines += [
        "| | |", "|---|---|",
        f"| Input columns | {', '.join(point_cfg['feature_columns'])} |",
        f"| Grid size | {point_cfg['grid_size']} m |",
        f"| Features per point | {config['num_features']} |",
        f"| Head | {head} |",
        f"| Training data | {cfg.get('training_data') or 'not stated'} |",
        f"| License of the weights | {cfg.get('license') or 'not stated'} |",
        "", "## Use", "", "```python", "import ponder_zoo as pz", "",
        'model = pz.create_model("local-dir:PATH_TO_THIS_FOLDER", pretrained=True)',
        "features = model.forward_features(points)  # points: a pz.PointBatch",
    ]  # fmt: skip
    if "pretrainer_args" in config:
        lines.append('ponder = pz.create_pretrainer("local-dir:PATH_TO_THIS_FOLDER", pretrained=True)  # with renderer')
    lines += ["```", ""]
    if metadata.get("metrics"):
        lines += ["## Metrics", "", "| metric | value |", "|---|---|"]
        lines += [f"| {name} | {value:.4g} |" for name, value in metadata["metrics"].items()]
        lines.append("")
    lines += ["## Citation", "", "Method: PonderV2, " + ", ".join(cfg.get("paper_ids", ())) + ".", ""]
    return "\n".join(lines)


def _write_tensors(path: Path, state_dict: Mapping[str, Tensor]) -> None:
    from safetensors.torch import save

    tensors = {key: value.detach().to("cpu", copy=False).contiguous() for key, value in state_dict.items()}
    shared = {key: value.clone() for key, value in tensors.items() if value.untyped_storage().nbytes() != value.nbytes}
    with torch.no_grad():
        _write_atomic(path, save({**tensors, **shared}, metadata={"format": "pt"}))


def _write_atomic(path: Path, content: bytes) -> None:
    """Write aside, flush to disk, rename: a reader sees the old file or the new one, never a part."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
