"""Checkpoints of the official PonderV2 code as folders of this package. Sizes are read off the tensors.

The six released files, and others of their layouts: pre-training (`PonderIndoor`), segmentation by Point Prompt
Training (`PPT`), the same with a linear head (`DefaultSegmentor`), PointGroup, and the bare encoders `SpUNet-v1m1` and
`-v1m3`.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from ._config import COLOR_NORMAL
from ._factory import create_model, create_pretrainer
from ._hub import write_folder
from ._official import CLASS_NAMES, CLASSES, CONDITIONS, LABELS, TERMS, URL, text_head
from ._pretrained import load_weights, read_weights, strip_wrappers
from .pointgroup import checkpoint_filter_fn as rename_pointgroup
from .ponder import checkpoint_filter_fn as rename_ponder
from .sparse_unet import checkpoint_filter_fn as rename_encoder
from .sparse_unet import encoder_entries

_logger = logging.getLogger(__name__)
HEADS = ("head.", "encoder.head.", "offset_head.")


@dataclass(frozen=True)
class ConversionReport:
    """Where every number of a checkpoint went. Counts are of elements, buffers included."""

    directory: Path
    architecture: str
    layout: str  # "pretrain", "text segmentation", "segmentation", "pointgroup" or "encoder"
    counts: Mapping[str, int]  # encoder, head, renderer
    left_out: Mapping[str, str] = field(default_factory=dict)  # official key -> why

    def __str__(self) -> str:
        parts = [f"{count} numbers to {name}" for name, count in self.counts.items() if count]
        parts += [f"left out {key}: {why}" for key, why in self.left_out.items()]
        return f"{self.directory}: {self.architecture} from a {self.layout} checkpoint; {'; '.join(parts)}"


def convert(
    path: str | Path,
    out_dir: str | Path,
    *,
    condition: str | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> ConversionReport:
    """Convert an official checkpoint, without unpickling code, to a folder for `create_model("local-dir:...")`.

    The folder gets `config.json`, `model.safetensors`, a card and a reference, and `renderer.safetensors` with the
    dense U-Net where the checkpoint has them. A pre-training checkpoint's text-aligned head (which the official code
    does not train) is kept in `model.safetensors`, for `create_model(..., head="text", num_classes=20)`; by default the
    model gives features.

    Args:
        path: a `.pth` file, or safetensors with the official keys.
        out_dir: made if absent.
        condition: default data set of the result; default: the one in the file's name, else the first.
        metadata: for the card, as for `save_for_hf`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is no such checkpoint, is hostile, or holds keys that nothing here stands for.
    """
    state = strip_wrappers(read_weights(path))
    layout = _layout(state, path)
    encoder = encoder_entries(state)
    args = encoder_args(encoder, path)
    architecture = "sparseunet_ponderv2" if args["norm"] == "prompt" else "sparseunet34"
    if layout == "pointgroup":
        architecture = "pointgroup"
    condition = _condition(args, path, condition)
    head = _head_args(state, encoder, layout, condition)
    classes = head.pop("num_classes")
    columns = COLOR_NORMAL if args["in_chans"] == 6 else None
    shape = {k: v for k, v in args.items() if k != "in_chans"} | ({"condition": condition} if condition else {})
    size = {"in_chans": args["in_chans"]} if columns is None else {"feature_columns": columns}
    full = create_model(architecture, num_classes=classes, **size, **shape, **head)
    rename = rename_pointgroup if layout == "pointgroup" else rename_encoder
    load_weights(full, rename(state, full), source=str(path))
    model, extra = full, {}
    if layout == "pretrain":  # features by default; the untrained head stays in the file
        quiet = {**head, "head": "linear"} if head else {}
        model = create_model(architecture, **size, **shape, **quiet)
        load_weights(model, {k: v for k, v in full.state_dict().items() if not k.startswith("head.")}, source=str(path))
        extra = {k: v for k, v in full.state_dict().items() if k.startswith("head.")}
    ponder, left_out = _ponder(state, model) if layout == "pretrain" else (None, {})
    facts = {**_facts(path, condition, int(cast(int, model.num_classes))), **(metadata or {})}
    directory = write_folder(model, out_dir, ponder, facts, extra=extra)
    report = _account(state, model, extra, ponder, left_out, path)
    report = dataclasses.replace(report, directory=directory, architecture=architecture, layout=layout)
    _logger.info("%s", report)
    return report


def encoder_args(encoder: Mapping[str, Tensor], source: str | Path) -> dict[str, Any]:
    """Arguments of the SparseUNet whose official weights these are (no prefixes)."""
    prompt = "conv_input.conv.weight" in encoder
    conv = "conv" if prompt else "0"
    try:
        stem = encoder[f"conv_input.{conv}.weight"]
        down = [encoder[f"down.{s}.{conv}.weight"].shape[0] for s in range(4)]
        up = [encoder[f"up.{s}.{conv}.weight"].shape[0] for s in reversed(range(4))]
    except KeyError as error:
        raise ValueError(
            f"{source} lacks {error}: it holds no official SpUNet-v1m1 or -v1m3. Expected a checkpoint of PonderV2 or "
            "Pointcept with that encoder."
        ) from error
    depths = [_count(encoder, rf"enc\.{s}\.block(\d+)\.") for s in range(4)]
    depths += [_count(encoder, rf"dec\.{s}\.block(\d+)\.") for s in reversed(range(4))]
    args: dict[str, Any] = {
        "in_chans": stem.shape[-1],
        "channels": [*down, *up],
        "depths": depths,
        "stem_channels": stem.shape[0],
        "norm": "prompt" if prompt else "batch",
    }
    if not prompt:
        return args
    count = _count(encoder, r"conv_input\.bn\.bns\.(\d+)\.")
    modulation, table = encoder.get("conv_input.bn.modulation.1.weight"), encoder.get("embedding_table.weight")
    if modulation is None or table is None or not count:
        raise ValueError(
            f"{source} holds prompt-driven norms without embedding_table.weight, bns or modulation. Expected those of "
            "the released configuration (decoupled and adaptive). Convert the checkpoint of the whole model."
        )
    released = count == len(CONDITIONS)
    args["conditions"] = list(CONDITIONS) if released else [f"condition_{i}" for i in range(count)]
    args["context_dim"] = modulation.shape[1]
    args["affine"] = "conv_input.bn.bns.0.weight" in encoder
    return args


def renderer_args(renderer: Mapping[str, Tensor], in_chans: int) -> dict[str, Any]:
    """Arguments of `neus_ponderv2` for official weights (no prefix) that read a volume of `in_chans` channels."""
    first, last = renderer["field.sdf_decoder.lin0.weight"], _count(renderer, r"field\.sdf_decoder\.lin(\d+)\.") - 1
    args: dict[str, Any] = {
        "hidden_dim": first.shape[1],
        "geo_dim": renderer[f"field.sdf_decoder.lin{last}.weight"].shape[0] - 1,
        "num_blocks": last,
        "rgb_blocks": _count(renderer, r"field\.rgb_decoder\.lin(\d+)\.") - 1,
        "share_volume": renderer["field.sdf_decoder.fc_c.0.weight"].shape[1] == in_chans,
        "semantic_dim": None,
    }
    last = _count(renderer, r"field\.semantic_decoder\.lin(\d+)\.") - 1
    if last >= 0:
        args["semantic_dim"] = renderer[f"field.semantic_decoder.lin{last}.weight"].shape[0]
        args["semantic_blocks"] = last
    return args


def _layout(state: Mapping[str, Tensor], source: str | Path) -> str:
    has = lambda prefix: any(key.startswith(prefix) for key in state)  # noqa: E731
    if has("volume_encoder.") or "stem.conv.weight" in state:
        raise ValueError(f"{source} has this package's names already. Load it with checkpoint_path=...")
    if has("proj_net.") and has("renderer."):
        return "pretrain"
    if has("bias_head."):
        return "pointgroup"
    if has("proj_head."):
        return "text segmentation"
    return "segmentation" if any(key.endswith("final.weight") for key in state) else "encoder"


def _condition(args: Mapping[str, Any], path: str | Path, asked: str | None) -> str | None:
    names: Sequence[str] = args.get("conditions", ())
    if asked is not None or not names:
        return asked
    # "ft-semseg-s3dis" was tuned for S3DIS; a name with several data sets is of pre-training and decides nothing
    in_name = [name for name in names if name.lower() in Path(path).name.lower()]
    return in_name[0] if len(in_name) == 1 else names[0]


def _head_args(
    state: Mapping[str, Tensor], encoder: Mapping[str, Tensor], layout: str, condition: str | None
) -> dict[str, Any]:
    table = state.get("class_embedding")
    if table is not None and len(table) == len(CLASS_NAMES) and condition in CLASSES:
        return {"num_classes": len(CLASSES[condition]), "head": "text", "text_head": text_head(table.shape[1])}
    if layout == "pointgroup":
        return {"num_classes": state["seg_head.weight"].shape[0]}
    final = encoder.get("final.weight")
    return {"num_classes": 0 if final is None else final.shape[0]}


def _ponder(state: Mapping[str, Tensor], model: nn.Module) -> tuple[nn.Module, dict[str, str]]:
    """The pre-training model around `model` with the checkpoint's dense U-Net and renderer."""
    inside = {k.removeprefix("renderer."): v for k, v in state.items() if k.startswith("renderer.")}
    levels = _count(state, r"proj_net\.encoders\.(\d+)\.")
    width = state["proj_net.final_conv.weight"].shape[0]
    ponder = create_pretrainer(
        model,
        "neus_ponderv2",
        volume_channels=width,
        unet_channels=[state[f"proj_net.encoders.{i}.basic_module.conv.weight"].shape[0] for i in range(levels)],
        unet_shortcut=False,
        mask_ratio=0.8 if "mtoken" in state else None,
        cells="official",
        renderer_args={**renderer_args(inside, width), "in_chans": width},
    )
    load_weights(ponder, rename_ponder(state, ponder), source="the checkpoint")
    volsdf = [key for key in state if key.startswith("renderer.field.laplace_density.")]
    return ponder, dict.fromkeys(volsdf, "a parameter of VolSDF that the official code stores beside those of NeuS")


def _facts(path: str | Path, condition: str | None, num_classes: int) -> dict[str, Any]:
    labels = LABELS.get(condition or "", ())
    facts: dict[str, Any] = {"label_names": labels} if len(labels) == num_classes and num_classes else {}
    if Path(path).name.startswith("ponderv2-ppt-"):  # the names of the released files
        facts["training_data"] = "ScanNet, S3DIS and Structured3D"
        facts["training_data_license"] = TERMS
        facts["description"] = f"Converted from `{Path(path).name}` of {URL}."
    return facts


def _account(
    state: Mapping[str, Tensor],
    model: nn.Module,
    extra: Mapping[str, Tensor],
    ponder: nn.Module | None,
    left_out: dict[str, str],
    path: str | Path,
) -> ConversionReport:
    """Check that every number of the checkpoint is somewhere, and say where."""
    own = model.state_dict()
    size = lambda tensors: sum(value.numel() for value in tensors)  # noqa: E731
    counts = {
        "encoder": size(v for k, v in own.items() if not k.startswith(HEADS)),
        "head": size(v for k, v in own.items() if k.startswith(HEADS)) + size(extra.values()),
        "renderer": 0 if ponder is None else size(ponder.state_dict().values()) - size(own.values()),
    }
    lost = size(state.values()) - sum(counts.values()) - size(state[key] for key in left_out)
    if lost:
        raise ValueError(
            f"{path}: {lost} of its {size(state.values())} numbers have no place in the converted model. It is of a "
            "layout that this version does not know; please report its list of keys."
        )
    return ConversionReport(Path(), "", "", counts, left_out)


def _count(entries: Mapping[str, Tensor], pattern: str) -> int:
    """One more than the highest number at the pattern's group."""
    found = (re.match(pattern, key) for key in entries)
    return max((int(match[1]) for match in found if match), default=-1) + 1
