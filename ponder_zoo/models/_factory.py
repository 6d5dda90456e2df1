"""The factories: from a name to a module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import nn

from ._config import PretrainedCfg
from ._download import ModelSource
from ._features import FeatureList
from ._hub import cfg_from_config, read_config
from ._pretrained import load_weights, read_safetensors
from ._registry import find_architecture, split_name
from ._safety import check_size, parameter_limit, safetensors_shapes
from ._shipped import find_source, shipped_source, weights_file


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
    endpoint: str | None = None,
    token: str | bool | None = None,
    column_proxies: Mapping[str, Sequence[str]] | None = None,
    **model_args: Any,
) -> nn.Module:
    """Create an encoder by name.

    Args:
        model_name: `arch`, `arch.tag`, `local-dir:FOLDER` as written by `save_for_hf`, or `hf-hub:org/repo[@revision]`
            as written by `push_to_hf_hub`.
        pretrained: load weights: of the folder or repository, or those of the variant, which come with the package or
            are downloaded. Having none to load is an error.
        pretrained_cfg: replaces the registered config.
        pretrained_cfg_overlay: replaces single fields of it.
        checkpoint_path: a safetensors file with the model's own keys, or a `.pth` file of tensors; implies loading.
        cache_dir: of the Hub client; default: HF_HUB_CACHE.
        in_chans: number of input columns; prefer `feature_columns`.
        feature_columns: names of the input columns in their order. Weights for other columns are adapted by name:
            the same name is copied, a proxy ("intensity" for red, green and blue) gets the mean, a new column gets
            zeros, and a dropped one acts as if it always held its fill value; `model.load_report.columns` says what
            was done.
        num_classes: of the segmentation head; 0 for features. Default: the config's.
        features_only: return a module whose output is a list of intermediate `PointBatch`es.
        out_indices: which of them; default all.
        backend: of sparse convolutions: "auto", "torch", "triton" or "spconv".
        endpoint: address of the Hub; default: HF_ENDPOINT or huggingface.co.
        token: for private repositories; default: HF_TOKEN or the stored login. HF_HUB_OFFLINE=1 uses the cache alone.
        column_proxies: new column -> the columns of the weights whose mean stands for it.
        model_args: passed on; None means the default, so that command-line flags can be handed through.

    Returns:
        The model, in train mode as torch modules are built; `model.load_report` says what was loaded.

    Raises:
        ValueError: for an unknown name or tag, weights that do not fit or are damaged, a config that asks for more than
            its weights hold, or `pretrained=True` without weights.
        FileNotFoundError: if the folder, repository, revision or file does not exist, or weights are in the repository
            of ponder_zoo alone.
        PermissionError: if the Hub gives no access.
        ConnectionError: if the Hub cannot be reached and its cache lacks the file.

    Example:
        >>> model = create_model("sparseunet_ponderv2_tiny", num_classes=20, condition="ScanNet")
    """
    own_weights = pretrained and checkpoint_path is None and pretrained_cfg is None
    find = find_source if own_weights else ModelSource.parse
    source = find(model_name, endpoint=endpoint, token=token, cache_dir=cache_dir)
    if source is not None:
        config = read_config(source.file("config.json"))
        entry_point, _ = find_architecture(config["architecture"])
        weights = weights_file(source, config, "model.safetensors") if own_weights else None
        pretrained_cfg = pretrained_cfg or cfg_from_config(config, source, weights)
    else:
        weights = None
        entry_point, cfg = find_architecture(model_name, pretrained=pretrained)
        pretrained_cfg = pretrained_cfg or cfg
    if isinstance(pretrained_cfg, Mapping):
        pretrained_cfg = PretrainedCfg.from_dict(pretrained_cfg)
    model_args = {**pretrained_cfg.model_args, **{k: v for k, v in model_args.items() if v is not None}}
    what = {
        "pretrained_cfg_overlay": pretrained_cfg_overlay,
        "in_chans": in_chans,
        "feature_columns": feature_columns,
        "num_classes": num_classes,
        **model_args,
    }
    how = {
        "checkpoint_path": checkpoint_path,
        "cache_dir": cache_dir,
        "endpoint": endpoint,
        "token": token,
        "column_proxies": column_proxies,
    }
    what, how = ({k: v for k, v in group.items() if v is not None} for group in (what, how))
    if source is not None:
        limit = parameter_limit(None if weights is None else safetensors_shapes(weights))
        check_size(
            lambda: entry_point(False, pretrained_cfg=pretrained_cfg, backend=backend, **what), limit, f"{source}"
        )
    model = entry_point(pretrained=pretrained, pretrained_cfg=pretrained_cfg, backend=backend, **what, **how)
    return FeatureList(model, out_indices) if features_only else model


def create_renderer(
    renderer_name: str,
    pretrained: bool = False,
    *,
    cache_dir: str | Path | None = None,
    endpoint: str | None = None,
    token: str | bool | None = None,
    **renderer_args: Any,
) -> nn.Module:
    """Create a renderer, a module `(RayBundle, FeatureVolume) -> RenderOutput` that knows no encoder.

    Args:
        renderer_name: "neus", "volsdf" or "unisurf", with a tag for the renderer of certain weights (`list_models(
            pretrained=True, modality="renderer")`); or `local-dir:FOLDER` or `hf-hub:org/repo[@revision]` of a
            pre-training export.
        pretrained: load the renderer's weights. They go with the encoder and the dense U-Net that they were trained
            with, whose volume they read: `create_pretrainer` loads all of them.
        cache_dir: as for `create_model`, like `endpoint` and `token`.
        endpoint: of the Hub.
        token: for the Hub.
        renderer_args: passed on (`in_chans`: channels of the volume it reads).

    Raises:
        ValueError: for an unknown name, or `pretrained=True` without weights; others as `create_model`.

    Example:
        >>> renderer = create_renderer("neus", in_chans=16)
    """
    source = ModelSource.parse(renderer_name, endpoint=endpoint, token=token, cache_dir=cache_dir)
    if source is None:
        entry_point, cfg = find_architecture(renderer_name, renderer=True, pretrained=pretrained)
        if pretrained and not cfg.has_weights:
            raise ValueError(
                f"pretrained=True, but renderer '{renderer_name}' has no published weights. A renderer's weights go "
                "with the encoder they were trained with: create_renderer('local-dir:FOLDER', pretrained=True)."
            )
        source = shipped_source(cfg) if pretrained else None
        if source is None:
            return entry_point(pretrained=pretrained, **{**cfg.model_args, **renderer_args})
    config = read_config(source.file("config.json"))
    block = _renderer_block(config, source)
    entry_point, _ = find_architecture(block["architecture"], renderer=True)
    args = {**block["model_args"], **renderer_args}
    path = _renderer_weights(source, config) if pretrained else None
    limit = parameter_limit(None if path is None else safetensors_shapes(path))
    check_size(lambda: entry_point(**args), limit, f"{source}")
    renderer = entry_point(**args)
    if path is not None:
        prefix = "renderer."
        state = {k.removeprefix(prefix): v for k, v in read_safetensors(path).items() if k.startswith(prefix)}
        load_weights(renderer, state, source=f"{source}/{path.name}")
    return renderer


def create_pretrainer(
    encoder: str | nn.Module = "sparseunet_ponderv2",
    renderer: str | nn.Module = "neus",
    *,
    pretrained: bool = False,
    volume_channels: int | None = None,
    unet_channels: Sequence[int] | None = None,
    unet_shortcut: bool | None = None,
    mask_ratio: float | None = None,
    mask_block: int | None = None,
    cells: Literal["metric", "official"] | None = None,
    head: Mapping[str, Any] | None = None,
    encoder_args: Mapping[str, Any] | None = None,
    renderer_args: Mapping[str, Any] | None = None,
    cache_dir: str | Path | None = None,
    endpoint: str | None = None,
    token: str | bool | None = None,
) -> nn.Module:
    """Create the pre-training model: encoder, dense U-Net and renderer. `.encoder` and `.renderer` detach.

    Args:
        encoder: a name for `create_model`; a `local-dir:FOLDER` or `hf-hub:org/repo[@revision]` of a pre-training
            export (then all of its parts are rebuilt from there); or a module with `forward_features` and
            `num_features`.
        renderer: a name for `create_renderer`, or a module.
        pretrained: load the encoder's weights, and those of the other parts where the folder has them. Shipped weights
            have them: with the renderer that they were trained with, all parts are rebuilt as they were.
        volume_channels: channels of the volume that the renderer reads; default 128 (official).
        unet_channels: widths of the dense U-Net's levels; default (32, 64, 128, 256) (official).
        unet_shortcut: whether the dense U-Net adds its input to its result; default True (official: False).
        mask_ratio: share of blocks of voxels whose features a learnable token replaces; default 0, none.
        mask_block: edge of those blocks in voxels; default 8.
        cells: rule by which points fill the volume; default "metric". "official" is for released checkpoints.
        head: `embed_dim`, `num_embeddings` and `classes` of a `TextAlignedHead` on the encoder's features; its table of
            class embeddings is a buffer to be filled. Default: none.
        encoder_args: for `create_model`.
        renderer_args: for `create_renderer`.
        cache_dir: as for `create_model`, like `endpoint` and `token`.
        endpoint: of the Hub.
        token: for the Hub.

    Returns:
        A `Ponder`.
    """
    from ..heads.text import TextAlignedHead
    from ..volume.encoders import PointVolumeEncoder
    from ..volume.mask import BlockMask
    from ..volume.unet3d import UNet3D
    from .ponder import Ponder

    given = {
        "volume_channels": volume_channels,
        "unet_channels": unet_channels,
        "unet_shortcut": unet_shortcut,
        "mask_ratio": mask_ratio,
        "mask_block": mask_block,
        "cells": cells,
        "head": head,
    }
    parts: dict[str, Any] = {
        "volume_channels": 128,
        "unet_channels": (32, 64, 128, 256),
        "unet_shortcut": True,
        "mask_ratio": 0.0,
        "mask_block": 8,
        "cells": "metric",
        "head": None,
    }
    access = {"cache_dir": cache_dir, "endpoint": endpoint, "token": token}
    source = ModelSource.parse(encoder, **access) if isinstance(encoder, str) else None
    if source is None and pretrained and isinstance(encoder, str) and isinstance(renderer, str):
        source = _shipped_with(encoder, renderer)
    block, path = None, None
    if source is not None:
        config = read_config(source.file("config.json"))
        block = _renderer_block(config, source)
        parts.update(config.get("pretrainer_args", {}))
        path = _renderer_weights(source, config) if pretrained else None
    parts.update({key: value for key, value in given.items() if value is not None})
    if isinstance(encoder, str):
        name = source.pinned if source is not None else encoder
        encoder = create_model(name, pretrained, num_classes=0, **access, **(encoder_args or {}))
    if isinstance(renderer, str):
        renderer_args = {
            **(block["model_args"] if block else {}),
            **(renderer_args or {}),
            "in_chans": parts["volume_channels"],
        }
        renderer = block["architecture"] if block else renderer

    def build() -> nn.Module:
        around = create_renderer(renderer, **(renderer_args or {})) if isinstance(renderer, str) else renderer
        unet = UNet3D(
            encoder.num_features,  # type: ignore[arg-type]
            parts["volume_channels"],
            channels=tuple(parts["unet_channels"]),
            shortcut=parts["unet_shortcut"],
        )
        mask = None
        if parts["mask_ratio"] > 0:
            mask = BlockMask(encoder.in_chans, ratio=parts["mask_ratio"], block=parts["mask_block"])  # type: ignore[arg-type]
        grid_size = getattr(encoder, "grid_size", 0.02)
        volume_encoder = PointVolumeEncoder(encoder, unet, mask=mask, cells=parts["cells"], grid_size=grid_size)
        text = None if parts["head"] is None else TextAlignedHead(encoder.num_features, **parts["head"])  # type: ignore[arg-type]
        return Ponder(volume_encoder, around, text)  # type: ignore[arg-type]

    if source is not None:
        check_size(build, parameter_limit(None if path is None else safetensors_shapes(path)), f"{source}")
    ponder = build()
    ponder.pretrainer_args = {**parts, "unet_channels": list(parts["unet_channels"])}  # type: ignore[assignment]
    if path is not None:
        encoder_prefix = f"{next(name for name, module in ponder.named_modules() if module is encoder)}."
        own = {k: v for k, v in ponder.state_dict().items() if k.startswith(encoder_prefix)}
        load_weights(ponder, {**own, **read_safetensors(path)}, source=f"{source}/{path.name}")
    return ponder


def _renderer_block(config: Mapping[str, Any], source: ModelSource) -> Mapping[str, Any]:
    if "renderer" not in config:
        raise ValueError(
            f"{source} holds an encoder without a renderer. Export with save_for_hf(model, directory, renderer=ponder)."
        )
    return config["renderer"]


def _shipped_with(encoder: str, renderer: str) -> ModelSource | None:
    """The shipped weights of an encoder, if the renderer that they were trained with is the wanted one."""
    source = find_source(encoder)
    if source is None:
        return None
    block = read_config(source.file("config.json")).get("renderer", {})
    return source if block.get("architecture") == split_name(renderer)[0] else None


def _renderer_weights(source: ModelSource, config: Mapping[str, Any]) -> Path:
    path = weights_file(source, config, "renderer.safetensors")
    if not path.is_file():
        raise FileNotFoundError(f"{source}/config.json names a renderer; there is no {path}. Export the model again.")
    return path
