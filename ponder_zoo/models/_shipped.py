"""Weights that come with the package or lie in its repository: their names, where they are, whether they are intact."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from ._config import PointCfg, PretrainedCfg
from ._download import ModelSource
from ._hub import read_config
from ._registry import find_architecture, is_model

PACKAGE = Path(__file__).resolve().parents[1]
Place = Literal["package", "release"]  # installed with the package; in the repository alone
FACTS = ("license", "description", "training_data", "training_data_license", "paper_ids")


def configs_folder(package: Path | None = None) -> Path:
    """Where the configs of published checkpoints are: inside an installed package, beside it in a clone."""
    package = PACKAGE if package is None else package
    inside = package / "hub_configs"
    return inside if inside.is_dir() else package.parent / "hub_configs"


def shipped_folder(name: str, place: Place, package: Path | None = None) -> Path:
    """Where the files of shipped weights belong."""
    package = PACKAGE if package is None else package
    return package / "weights" / name if place == "package" else package.parent / "release" / name


def shipped_config(name: str) -> dict[str, Any] | None:
    """The config.json of the shipped weights `arch.tag`, or None if there are none of that name."""
    path = configs_folder() / f"{name}.json"
    config = read_config(path) if path.is_file() else {}
    return config if "shipped" in config else None


def _shipped() -> Iterator[tuple[str, dict[str, Any]]]:
    """Names and configs, those in the package first: they are the defaults."""
    names = sorted(path.stem for path in configs_folder().glob("*.json"))
    found = [(name, config) for name in names if (config := shipped_config(name)) is not None]
    return iter(sorted(found, key=lambda entry: get_args(Place).index(entry[1]["shipped"]["in"])))


def shipped_cfgs(architecture: str) -> dict[str, PretrainedCfg]:
    """The shipped variants of an encoder, for its `default_cfgs`."""
    cfgs = {}
    for name, config in _shipped():
        if config["architecture"] == architecture:
            fields = {**config["pretrained_cfg"], "point_cfg": PointCfg.from_dict(config["point_cfg"])}
            fields |= {"model_args": config["model_args"], "file": _file(name, config, "model.safetensors")}
            cfgs[name] = PretrainedCfg.from_dict(fields)
    return cfgs


def shipped_renderer_cfgs() -> dict[str, PretrainedCfg]:
    """The renderers of shipped weights; the tag names the encoder that each was trained with."""
    cfgs = {}
    for name, config in _shipped():
        if "renderer" in config:
            block, facts = config["renderer"], config["pretrained_cfg"]
            fields = {key: facts[key] for key in FACTS if key in facts} | {"model_args": block["model_args"]}
            fields |= {"file": _file(name, config, "renderer.safetensors")}
            cfgs[f"{block['architecture']}.{name.replace('.', '_')}"] = PretrainedCfg.from_dict(fields)
    return cfgs


def _file(name: str, config: Mapping[str, Any], filename: str) -> str:
    return str(shipped_folder(name, config["shipped"]["in"]) / filename)


def shipped_source(cfg: PretrainedCfg) -> ModelSource | None:
    """The folder of a registered variant whose weights are shipped; None for weights from elsewhere.

    Raises:
        FileNotFoundError: if the files are not on this machine; the message says where to get them.
    """
    folder = None if cfg.file is None else Path(cfg.file).parent
    config = None if folder is None else shipped_config(folder.name)
    if folder is None or config is None:
        return None
    missing = [name for name in ("config.json", *config["shipped"]["sha256"]) if not (folder / name).is_file()]
    if missing and config["shipped"]["in"] == "package":
        raise FileNotFoundError(
            f"Expected {missing} in {folder}, which come with the package: the installation is incomplete. Install "
            "ponder_zoo again (pip install --force-reinstall --no-deps)."
        )
    if missing:
        raise FileNotFoundError(
            f"The weights '{folder.name}' are too large for the package and not on this machine: expected {missing} in "
            f"{folder}. Copy the folder release/{folder.name} of ponder_zoo's repository, and load it with "
            "'local-dir:PATH_OF_THE_COPY'."
        )
    return ModelSource(folder=folder)


def find_source(name: str, **access: Any) -> ModelSource | None:
    """The folder or repository that a name stands for, shipped weights included; None where it stands for none."""
    source = ModelSource.parse(name, **access)
    if source is None and is_model(name):
        source = shipped_source(find_architecture(name, pretrained=True)[1])
    return source


def weights_file(source: ModelSource, config: Mapping[str, Any], filename: str) -> Path:
    """A file of weights of a source, after comparing it with the digest in the source's config, if it has one.

    Raises:
        ValueError: if it is not the file that was shipped.
    """
    path = source.file(filename)
    expected = config.get("shipped", {}).get("sha256", {}).get(filename)
    if expected is not None and path.is_file() and (found := sha256(path)) != expected:
        raise ValueError(
            f"{path} is damaged: expected digest {expected[:12]}, got {found[:12]}. Install ponder_zoo again (pip "
            "install --force-reinstall --no-deps), or copy the folder from its repository again."
        )
    return path


def sha256(path: Path) -> str:
    """Digest of a file in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
