"""The factories: from a name to a module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ._config import PretrainedCfg
from ._features import FeatureList
from ._hub import cfg_from_config, read_config
from ._pretrained import load_weights, read_safetensors
from ._registry import find_architecture

LOCAL = "local-dir:"


def create_model(
    model_name: str,
    pretrained: bool = False,
    pretrained_cfg: PretrainedCfg | Mapping[str, Any] | None = None,
    pretrained_cfg_overlay: Mapping[str, Any] | None = None,
    checkpoint_path: str | Path | None = None,
    cache_dir: str | Path | None = None,
    in_chans: int | None = None,
    feature_columns: Sequence[str] | None = None,
    num_classes: int | None = None,
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
    backend: str = "auto",
    **model_args: Any,
) -> nn.Module:
    """Create an encoder by name.

    Args:
        model_name: `arch`, `arch.tag`, or `local-dir:FOLDER` as written by `save_for_hf`.
        pretrained: load weights. Having none to load is an error.
        pretrained_cfg: replaces the registered config.
        pretrained_cfg_overlay: replaces single fields of it.
        checkpoint_path: a safetensors file with the model's own keys; implies loading.
        cache_dir: of the Hub client.
        in_chans: number of input columns; prefer `feature_columns`.
        feature_columns: names of the input columns in their order.
        num_classes: of the segmentation head; 0 for features. Default: the config's.
        features_only: return a module whose output is a list of intermediate `PointBatch`es.
        out_indices: which of them; default all.
        backend: of sparse convolutions: "auto", "torch" or "spconv".
        model_args: passed on; None means the default, so that command-line flags can be handed through.

    Returns:
        The model, in train mode as torch modules are built; `model.load_report` says what was loaded.

    Raises:
        ValueError: for an unknown name or tag, weights that do not fit, or `pretrained=True` without weights.

    Example:
        >>> model = create_model("sparseunet_ponderv2_tiny", num_classes=20, condition="ScanNet")
    """
    if model_name.startswith(LOCAL):
        folder = _folder(model_name)
        config = read_config(folder)
        entry_point, _ = find_architecture(config["architecture"])
        model_args = {**config["model_args"], **{k: v for k, v in model_args.items() if v is not None}}
        pretrained_cfg = pretrained_cfg or cfg_from_config(config, folder / "model.safetensors")
    else:
        _check_name(model_name)
        entry_point, cfg = find_architecture(model_name)
        pretrained_cfg = pretrained_cfg or cfg
    if isinstance(pretrained_cfg, Mapping):
        pretrained_cfg = PretrainedCfg.from_dict(pretrained_cfg)
    optional = {
        "pretrained_cfg_overlay": pretrained_cfg_overlay,
        "checkpoint_path": checkpoint_path,
        "cache_dir": cache_dir,
        "in_chans": in_chans,
        "feature_columns": feature_columns,
        "num_classes": num_classes,
        **model_args,
    }
    optional = {key: value for key, value in optional.items() if value is not None}
    model = entry_point(pretrained=pretrained, pretrained_cfg=pretrained_cfg, backend=backend, **optional)
    return FeatureList(model, out_indices) if features_only else model


def create_renderer(renderer_name: str, pretrained: bool = False, **renderer_args: Any) -> nn.Module:
    """Create a renderer, a module `(RayBundle, FeatureVolume) -> RenderOutput` that knows no encoder.

    Args:
        renderer_name: "neus", "volsdf" or "unisurf", or `local-dir:FOLDER` of a pre-training export.
        pretrained: load the renderer's weights from that folder.
        renderer_args: passed on (`in_chans`: channels of the volume it reads).

    Raises:
        ValueError: for an unknown name, or `pretrained=True` without weights.
    """
    if not renderer_name.startswith(LOCAL):
        _check_name(renderer_name)
        entry_point, cfg = find_architecture(renderer_name, renderer=True)
        if pretrained and not cfg.has_weights:
            raise ValueError(
                f"pretrained=True, but renderer '{renderer_name}' has no published weights. A renderer's weights go "
                "with the encoder they were trained with: create_renderer('local-dir:FOLDER', pretrained=True)."
            )
        return entry_point(pretrained=pretrained, **renderer_args)
    folder = _folder(renderer_name)
    block = _renderer_block(read_config(folder), folder)
    entry_point, _ = find_architecture(block["architecture"], renderer=True)
    renderer = entry_point(**{**block["model_args"], **renderer_args})
    if pretrained:
        path = folder / "renderer.safetensors"
        prefix = "renderer."
        state = {k.removeprefix(prefix): v for k, v in read_safetensors(path).items() if k.startswith(prefix)}
        load_weights(renderer, state, source=str(path))
    return renderer


def create_pretrainer(
    encoder: str | nn.Module = "sparseunet_ponderv2",
    renderer: str | nn.Module = "neus",
    *,
    pretrained: bool = False,
    volume_channels: int | None = None,
    unet_channels: Sequence[int] | None = None,
    mask_ratio: float | None = None,
    mask_block: int | None = None,
    encoder_args: Mapping[str, Any] | None = None,
    renderer_args: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Create the pre-training model: encoder, dense U-Net and renderer. `.encoder` and `.renderer` detach.

    Args:
        encoder: a name for `create_model`, a `local-dir:FOLDER` of a pre-training export (then all of its parts are
            rebuilt from there), or a module with `forward_features` and `num_features`.
        renderer: a name for `create_renderer`, or a module.
        pretrained: load the encoder's weights, and those of the other parts where the folder has them.
        volume_channels: channels of the volume that the renderer reads; default 128 (official).
        unet_channels: widths of the dense U-Net's levels; default (32, 64, 128, 256) (official).
        mask_ratio: share of blocks of voxels whose features a learnable token replaces; default 0, none.
        mask_block: edge of those blocks in voxels; default 8.
        encoder_args: for `create_model`.
        renderer_args: for `create_renderer`.

    Returns:
        A `Ponder`.
    """
    from ..volume.encoders import PointVolumeEncoder
    from ..volume.mask import BlockMask
    from ..volume.unet3d import UNet3D
    from .ponder import Ponder

    given = {
        "volume_channels": volume_channels,
        "unet_channels": unet_channels,
        "mask_ratio": mask_ratio,
        "mask_block": mask_block,
    }
    parts: dict[str, Any] = {
        "volume_channels": 128,
        "unet_channels": (32, 64, 128, 256),
        "mask_ratio": 0.0,
        "mask_block": 8,
    }
    folder = _folder(encoder) if isinstance(encoder, str) and encoder.startswith(LOCAL) else None
    block = None
    if folder is not None:
        config = read_config(folder)
        block = _renderer_block(config, folder)
        parts.update(config.get("pretrainer_args", {}))
    parts.update({key: value for key, value in given.items() if value is not None})
    if isinstance(encoder, str):
        encoder = create_model(encoder, pretrained, num_classes=0, **(encoder_args or {}))
    if isinstance(renderer, str):
        args = {**(block["model_args"] if block else {}), **(renderer_args or {}), "in_chans": parts["volume_channels"]}
        renderer = create_renderer(block["architecture"] if block else renderer, **args)
    unet = UNet3D(encoder.num_features, parts["volume_channels"], channels=tuple(parts["unet_channels"]))  # type: ignore[arg-type]
    mask = None
    if parts["mask_ratio"] > 0:
        mask = BlockMask(encoder.in_chans, ratio=parts["mask_ratio"], block=parts["mask_block"])  # type: ignore[arg-type]
    ponder = Ponder(PointVolumeEncoder(encoder, unet, mask=mask), renderer)
    ponder.pretrainer_args = {**parts, "unet_channels": list(parts["unet_channels"])}  # type: ignore[assignment]
    if pretrained and folder is not None:
        path = folder / "renderer.safetensors"
        encoder_prefix = f"{next(name for name, module in ponder.named_modules() if module is encoder)}."
        own = {k: v for k, v in ponder.state_dict().items() if k.startswith(encoder_prefix)}
        load_weights(ponder, {**own, **read_safetensors(path)}, source=str(path))
    return ponder


def _folder(name: str) -> Path:
    folder = Path(name.removeprefix(LOCAL)).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(
            f"'{name}' names no folder ({folder.resolve()}). Give the folder that save_for_hf wrote."
        )
    return folder


def _check_name(name: str) -> None:
    scheme, colon, rest = name.partition(":")
    if colon:
        raise ValueError(
            f"Unknown scheme '{scheme}:' in '{name}'. Known: 'local-dir:FOLDER'. For a folder: '{LOCAL}{rest}'."
        )
    if "/" in name or "\\" in name:
        raise ValueError(f"'{name}' is no model name. For a folder on this machine write '{LOCAL}{name}'.")


def _renderer_block(config: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
    if "renderer" not in config or not (folder / "renderer.safetensors").is_file():
        raise ValueError(
            f"{folder} holds an encoder without a renderer. Export with save_for_hf(model, directory, renderer=ponder)."
        )
    return config["renderer"]
