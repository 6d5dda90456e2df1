"""Folders of published models: `config.json`, `model.safetensors`, `renderer.safetensors` and a card."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..files import write_atomic
from ..structures import PointBatch
from ..version import __version__
from ._card import CARD_MARK, UNPUBLISHED, model_card
from ._config import FORMAT_VERSION, PointCfg, PretrainedCfg
from ._download import HubRepo, ModelSource, check_repo_id, explained
from ._pretrained import write_tensors
from ._reference import reference_pair
from ._safety import read_json

# no facts about the weights, or elsewhere in config.json
SOURCE_FIELDS = ("file", "hf_hub_id", "hf_hub_revision", "hf_hub_filename", "point_cfg", "model_args")
CALLERS_ARGS = {
    *("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "checkpoint_filter_fn", "cache_dir"),
    *("endpoint", "token", "column_proxies", "feature_columns", "in_chans", "num_classes", "features_only"),
    *("out_indices", "backend"),
}
FILES = (
    "config.json",
    "model.safetensors",
    "renderer.safetensors",
    "reference.safetensors",
    "preview.png",
    "README.md",
)


def save_for_hf(
    model: nn.Module,
    directory: str | Path,
    renderer: nn.Module | None = None,
    *,
    metadata: Mapping[str, Any] | None = None,
    reference: PointBatch | bool = True,
    preview: str | Path | None = None,
) -> Path:
    """Write what `create_model("local-dir:DIRECTORY")` reads and the Hub expects. Every file is replaced atomically.

    Args:
        model: an encoder from `create_model`.
        directory: made if absent. A `renderer.safetensors` of an earlier export stays there when `renderer` is None,
            but the new config.json does not name it.
        renderer: the pre-training model around `model` (from `create_pretrainer`) or a renderer from
            `create_renderer`; all of its parameters but the encoder's go to `renderer.safetensors`.
        metadata: for the card and config.json: `license`, `training_data` and `training_data_license`, `metrics`
            (name -> value, or value with the ends of its interval), `description`, `label_names`, `training` (what is
            needed to do it again: name -> text; "command" is shown as one), `scene_args` (`volume_shape`, `margin` and
            `dropout` of pre-training, for rendering); for the card alone: `known_failures`, `base_model` (a Hub id).
        reference: input whose output in eval mode goes to `reference.safetensors`, for `verify`; True takes a small
            built-in room, False writes none.
        preview: a PNG for the card.

    Returns:
        The directory.

    Raises:
        ValueError: if the model was not built by a factory, or an argument cannot be written as JSON.

    Example:
        >>> save_for_hf(model, "export", renderer=ponder, metadata={"license": "mit", "metrics": {"mIoU": 0.5}})
    """
    return write_folder(model, directory, renderer, metadata, reference, preview)


def push_to_hf_hub(
    model: nn.Module,
    repo_id: str,
    renderer: nn.Module | None = None,
    *,
    endpoint: str | None = None,
    token: str | bool | None = None,
    private: bool = False,
    revision: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    reference: PointBatch | bool = True,
    preview: str | Path | None = None,
    commit_message: str | None = None,
) -> str:
    """Publish what `save_for_hf` writes, in one commit, for `create_model("hf-hub:org/name", pretrained=True)`.

    The repository is made if it does not exist. A README that was edited there (its first-line mark removed) is kept,
    and a renderer or reference of an earlier export that this one does not replace is deleted: they do not fit the new
    weights.

    Args:
        model: an encoder from `create_model`.
        repo_id: "org/name".
        renderer: as for `save_for_hf`.
        endpoint: address of the Hub; default: HF_ENDPOINT or huggingface.co.
        token: with write access; default: HF_TOKEN or the stored login.
        private: only for a repository that does not exist yet.
        revision: branch to commit to, made from the main one if absent; default: main.
        metadata: as for `save_for_hf`.
        reference: as for `save_for_hf`.
        preview: as for `save_for_hf`.
        commit_message: default: names the architecture and this package's version.

    Returns:
        The id of the commit, for `hf-hub:org/name@COMMIT`.

    Raises:
        ValueError: for a malformed name, or a model that was not built by a factory.
        PermissionError: without write access.
        ConnectionError: if the Hub cannot be reached.
    """
    check_repo_id(repo_id)
    with tempfile.TemporaryDirectory() as folder:
        write_folder(model, folder, renderer, metadata, reference, preview, repo_id=repo_id)
        message = commit_message or f"Add {model.pretrained_cfg.architecture} (ponder_zoo {__version__})"  # type: ignore[union-attr]
        return _commit(Path(folder), HubRepo(repo_id, revision, endpoint, token), private=private, message=message)


def push_folder(
    directory: str | Path,
    repo_id: str,
    *,
    endpoint: str | None = None,
    token: str | bool | None = None,
    private: bool = False,
    revision: str | None = None,
    commit_message: str | None = None,
) -> str:
    """Publish a folder that `save_for_hf` or `convert` wrote, its tensors untouched; otherwise as `push_to_hf_hub`.

    Raises:
        FileNotFoundError: without the folder, its config.json or its weights.
        ValueError: for a malformed name or config; others as for `push_to_hf_hub`.
    """
    check_repo_id(repo_id)
    directory = Path(directory)
    config = read_config(directory)
    if not (directory / "model.safetensors").is_file():
        raise FileNotFoundError(
            f"Expected {directory / 'model.safetensors'}; there is no such file. Export the model again."
        )
    with tempfile.TemporaryDirectory() as folder:
        for name in FILES:
            if (directory / name).is_file():
                Path(folder, name).symlink_to((directory / name).resolve())
        card = Path(folder, "README.md")
        if card.is_file() and CARD_MARK in (text := card.read_text(encoding="utf-8")):
            card.unlink()
            card.write_text(text.replace(UNPUBLISHED, f"hf-hub:{repo_id}"), encoding="utf-8")
        message = commit_message or f"Add {config['architecture']} (ponder_zoo {__version__})"
        return _commit(Path(folder), HubRepo(repo_id, revision, endpoint, token), private=private, message=message)


def _commit(folder: Path, repo: HubRepo, *, private: bool, message: str) -> str:
    """All files of a folder in one commit, in place of an earlier export's; its id."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi(endpoint=repo.endpoint, token=repo.token, library_name="ponder_zoo", library_version=__version__)
    repo_id, revision = repo.repo_id, repo.revision
    with explained(repo):
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        there = set(api.list_repo_files(repo_id, revision=revision))
        names = {path.name for path in folder.iterdir()}
        if "README.md" in there:
            card = api.hf_hub_download(repo_id, "README.md", revision=revision, local_dir=folder / "there")
            if CARD_MARK not in Path(card).read_text(encoding="utf-8"):
                names.discard("README.md")
        add = [CommitOperationAdd(name, folder / name) for name in sorted(names)]
        stale = (there & set(FILES)) - names - {"README.md"}
        operations = [*add, *(CommitOperationDelete(name) for name in sorted(stale))]
        return api.create_commit(repo_id, operations, commit_message=message, revision=revision).oid


def write_folder(
    model: nn.Module,
    directory: str | Path,
    renderer: nn.Module | None,
    metadata: Mapping[str, Any] | None,
    reference: PointBatch | bool = True,
    preview: str | Path | None = None,
    repo_id: str | None = None,
    extra: Mapping[str, Tensor] | None = None,
    matrix_dtype: torch.dtype | None = None,
) -> Path:
    """What `save_for_hf` and `push_to_hf_hub` do.

    `extra` tensors go to `model.safetensors` beside the model's own; `matrix_dtype` is what weights are stored in that
    are no vectors (default: as they are). Loading copies them into the model's own type.
    """
    metadata = dict(metadata or {})
    config = model_config(model, renderer, metadata)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "reference.safetensors").unlink(missing_ok=True)  # of an earlier export: it fits other weights
    write_tensors(directory / "model.safetensors", _stored({**model.state_dict(), **(extra or {})}, matrix_dtype))
    if renderer is not None:
        write_tensors(directory / "renderer.safetensors", _stored(renderer_state_dict(renderer), matrix_dtype))
    write_atomic(directory / "config.json", json.dumps(config, indent=2) + "\n")
    if preview is not None:
        write_atomic(directory / "preview.png", Path(preview).read_bytes())
    if reference is not False:
        pair = reference_pair(model, None if reference is True else reference)
        if pair is not None:
            write_tensors(directory / "reference.safetensors", *pair)
    card = directory / "README.md"
    if not card.exists() or CARD_MARK in card.read_text(encoding="utf-8"):
        files = {path.name for path in directory.iterdir()}
        write_atomic(card, model_card(config, metadata, files, repo_id))
    return directory


def is_matrix(value: Tensor) -> bool:
    """Whether a tensor is what most of a model's weights are: floating point, and no vector."""
    return value.is_floating_point() and value.ndim > 1


def _stored(state_dict: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    return {key: value.to(dtype) if dtype and is_matrix(value) else value for key, value in state_dict.items()}


def model_config(model: nn.Module, renderer: nn.Module | None, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The content of `config.json`."""
    cfg = getattr(model, "pretrained_cfg", None)
    if not isinstance(cfg, PretrainedCfg):
        raise ValueError(
            f"{type(model).__name__} does not say how to build it again. Save models that come from create_model."
        )
    named = ("license", "training_data", "training_data_license", "description")
    if not hasattr(model, "load_report"):  # untrained or trained from scratch: the config's facts are of other weights
        cfg = dataclasses.replace(cfg, **dict.fromkeys((*named, "origin_url")))
    provenance = {key: metadata[key] for key in named if key in metadata}
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
    config |= {key: dict(metadata[key]) for key in ("metrics", "training", "scene_args") if metadata.get(key)}
    try:
        return json.loads(json.dumps(config))
    except TypeError as error:
        raise ValueError(f"config.json can hold numbers, strings, lists and mappings only: {error}.") from error


def read_config(path: str | Path) -> dict[str, Any]:
    """The checked content of a `config.json`, or of the one in a folder.

    Raises:
        FileNotFoundError: without the folder or the file.
        ValueError: for invalid JSON, a missing key, a newer format or numbers that no model has.
    """
    path = Path(path)
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(
            f"Expected {path}; there is no such file. A model folder has config.json and model.safetensors, as "
            "ponder_zoo.save_for_hf writes them."
        )
    config = read_json(path)
    if "format_version" in config and config["format_version"] not in range(1, FORMAT_VERSION + 1):
        raise ValueError(
            f"{path} has format_version {config['format_version']}; this ponder_zoo {__version__} reads up to "
            f"{FORMAT_VERSION}. Upgrade ponder_zoo."
        )
    kinds = {"format_version": int, "architecture": str, "model_args": dict, "pretrained_cfg": dict}
    missing = [key for key, kind in kinds.items() if not isinstance(config.get(key), kind)]
    if missing:
        raise ValueError(f"{path} lacks {missing}; it is not a ponder_zoo config. Export the model again.")
    # Where to load from, and how, is the caller's to say: a config with another `endpoint` would receive their token.
    chosen = [name for name in config["model_args"] if name in CALLERS_ARGS]
    if chosen:
        raise ValueError(
            f"{path} sets {chosen} in model_args, which only the caller may choose. Do not use this config."
        )
    renderer = config.get("renderer", {"architecture": "", "model_args": {}})
    if (
        not isinstance(renderer, dict)
        or not isinstance(renderer.get("model_args"), dict)
        or "architecture" not in renderer
    ):
        raise ValueError(f"{path} has a 'renderer' without architecture and model_args. Export the model again.")
    shipped = config.get("shipped", {"in": "", "sha256": {}})
    if not isinstance(shipped, dict) or "in" not in shipped or not isinstance(shipped.get("sha256"), dict):
        raise ValueError(f"{path} has a 'shipped' without place and digests. Copy the folder of the weights again.")
    return config


def cfg_from_config(config: Mapping[str, Any], source: ModelSource, weights: Path | None) -> PretrainedCfg:
    """The PretrainedCfg of a model folder; `weights` is its `model.safetensors` where that is to be loaded."""
    fields = dict(config["pretrained_cfg"])
    if "point_cfg" in config:
        fields["point_cfg"] = PointCfg.from_dict(config["point_cfg"])
    if weights is None and source.folder is not None:
        weights = source.folder / "model.safetensors"
    return dataclasses.replace(
        PretrainedCfg.from_dict(fields),
        architecture=config["architecture"],
        model_args=config["model_args"],
        file=None if weights is None else str(weights),
        hf_hub_id=None if source.repo is None else source.repo.repo_id,
        hf_hub_revision=None if source.repo is None else source.repo.commit,
        hf_hub_filename="model.safetensors",
    )


def renderer_state_dict(renderer: nn.Module) -> dict[str, Tensor]:
    """All of a pre-training model but its encoder, or a bare renderer under the prefix it has in one."""
    encoder = getattr(renderer, "encoder", None)
    if encoder is None:
        return {f"renderer.{key}": value for key, value in renderer.state_dict().items()}
    encoder_prefix = f"{next(name for name, module in renderer.named_modules() if module is encoder)}."
    return {key: value for key, value in renderer.state_dict().items() if not key.startswith(encoder_prefix)}
