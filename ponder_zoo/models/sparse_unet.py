"""SparseUNet: the sparse convolutional U-Net that PonderV2 pre-trains indoors, plain or with prompt-driven norms.

Papers: PonderV2 (arXiv:2310.08586), Sec. 4.2.1; the network is SparseUNet-34 of Pointcept (MIT), the official code's
`SpUNet-v1m1` (norm="batch") and `SpUNet-v1m3` (norm="prompt", Point Prompt Training, arXiv:2308.09718).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any, Literal, TypedDict, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..heads.conditions import ConditionHeads
from ..heads.text import TextAlignedHead
from ..layers.blocks import ConvNorm, NormLayer, ResidualBlock
from ..layers.norm_relu import keep_activations, recomputed_cat
from ..layers.norms import BatchNorm, Prompt, PromptDrivenNorm, keep_statistics
from ..ops.grid_sample import grid_index
from ..ops.segment import segment_mean
from ..sparse import DownConv3d, SparseTensor, SubMConv3d, UpConv3d, coarsening
from ..structures import FeatureVolume, PointBatch, VolumeGrid
from ..volume.densify import densify
from ._builder import build_model
from ._columns import COLOR
from ._config import PretrainedCfg
from ._official import CONDITIONS as RELEASED_CONDITIONS
from ._official import HEAD_KEYS, released_cfgs
from ._official import TABLE_ORDER as _OFFICIAL_TABLE_ORDER
from ._pretrained import strip_wrappers
from ._registry import generate_default_cfgs, register_model
from ._shipped import shipped_cfgs

NUM_STAGES = 4  # resolutions below the input's; the decoder has as many


class EncoderStage(nn.Module):
    """Halve the resolution, then residual blocks."""

    def __init__(self, in_chans: int, out_chans: int, depth: int, *, norm_layer: NormLayer, backend: str) -> None:
        super().__init__()
        self.down = ConvNorm(DownConv3d(in_chans, out_chans, backend=backend), norm_layer(out_chans))
        self.blocks = nn.ModuleList(
            ResidualBlock(out_chans, out_chans, norm_layer=norm_layer, backend=backend) for _ in range(depth)
        )

    def forward(self, x: SparseTensor, prompt: Prompt | None) -> SparseTensor:
        x = self.down(x, prompt=prompt)
        for block in self.blocks:
            x = block(x, prompt)
        return x


class DecoderStage(nn.Module):
    """Double the resolution, append the encoder's features, then residual blocks."""

    def __init__(
        self, in_chans: int, skip_chans: int, out_chans: int, depth: int, *, norm_layer: NormLayer, backend: str
    ) -> None:
        super().__init__()
        self.up = ConvNorm(UpConv3d(in_chans, out_chans, backend=backend), norm_layer(out_chans))
        widths = [out_chans + skip_chans, *[out_chans] * depth]
        self.blocks = nn.ModuleList(
            ResidualBlock(widths[i], out_chans, norm_layer=norm_layer, backend=backend) for i in range(depth)
        )

    def forward(self, x: SparseTensor, skip: SparseTensor, prompt: Prompt | None) -> SparseTensor:
        x = self.up(x, skip, prompt=prompt)
        both = [x.feat, skip.feat.to(x.feat.dtype)]
        x = x.with_feat(torch.cat(both, dim=1))
        recompute = recomputed_cat(x.feat, *both)
        del both  # the first block needs the most memory
        with recompute:
            x = self.blocks[0](x, prompt)
        for block in islice(self.blocks, 1, None):
            x = block(x, prompt)
        return x


IntermediateFormat = Literal["sparse", "points", "dense"]
Intermediate = PointBatch | FeatureVolume


class SparseUNetArgs(TypedDict, total=False):
    """Arguments of `SparseUNet` without a head, which models around one pass on."""

    grid_size: float
    channels: Sequence[int]
    depths: Sequence[int]
    stem_channels: int
    norm: Literal["batch", "prompt"]
    conditions: Sequence[str]
    condition: str | None
    context_dim: int
    affine: bool
    zero_init: bool
    append_one: bool
    backend: str


class SparseUNet(nn.Module):
    """Sparse convolutional U-Net over voxels; maps a PointBatch to features or logits of the same points.

    Points that share a cell are averaged before the network and all receive the cell's result.

    Args:
        in_chans: columns of `points.feat`.
        num_classes: of the head; 0 for no head.
        grid_size: cell size in metres, used where the points come without `grid_coord`.
        channels: widths of the 4 encoder stages, then of the 4 decoder stages from coarse to fine.
        depths: residual blocks of the same 8 stages.
        stem_channels: width at full resolution before the encoder.
        norm: "batch", or "prompt" for norms and a context per condition (data set).
        conditions: names of the conditions, for norm="prompt".
        condition: which one to use where the points do not say.
        context_dim: width of a condition's context vector.
        affine: whether the norms have a learned scale and shift of their own.
        zero_init: start prompt-driven norms without influence of the context.
        append_one: whether the stem reads a column of ones beside the given ones. Adapting weights to other columns
            sets it where dropped columns are not zero at their fill value: in a sparse convolution that is no bias.
        head: "linear"; "text" for a `TextAlignedHead` as described by `text_head`; "per_condition" for a linear layer
            per condition as described by `head_classes`. The latter two where `num_classes` is the number of classes of
            `condition` (any other number means a new linear head). They give each condition its own classes, so one
            condition per batch.
        text_head: `embed_dim`, `num_embeddings` and `classes` of the text-aligned head.
        head_classes: condition -> number of its classes.
        backend: of the sparse convolutions: "auto", "torch", "triton" or "spconv".

    Example:
        >>> model = SparseUNet(3, 5, channels=(8,) * 8, depths=(1,) * 8, stem_channels=8).eval()
        >>> points = PointBatch(torch.rand(50, 3), torch.rand(50, 3), torch.tensor([20, 50]))
        >>> model(points).shape
        torch.Size([50, 5])
    """

    stem_weight_name = "stem.conv.weight"  # what reads the feature columns, input channels last

    def __init__(
        self,
        in_chans: int = 6,
        num_classes: int = 0,
        *,
        grid_size: float = 0.02,
        channels: Sequence[int] = (32, 64, 128, 256, 256, 128, 96, 96),
        depths: Sequence[int] = (2, 3, 4, 6, 2, 2, 2, 2),
        stem_channels: int = 32,
        norm: Literal["batch", "prompt"] = "batch",
        conditions: Sequence[str] = (),
        condition: str | None = None,
        context_dim: int = 256,
        affine: bool = True,
        zero_init: bool = False,
        append_one: bool = False,
        head: Literal["linear", "text", "per_condition"] = "linear",
        text_head: Mapping[str, Any] | None = None,
        head_classes: Mapping[str, int] | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        _check_options(channels, depths, norm, conditions, condition)
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.num_features = channels[-1]
        self.grid_size = grid_size
        self.norm = norm
        self.conditions = tuple(conditions) if norm == "prompt" else ()
        self.condition = condition
        self.append_one = append_one
        self.grad_checkpointing = False

        norm_layer: NormLayer = partial(BatchNorm, affine=affine)
        if norm == "prompt":
            self.context = nn.Embedding(len(conditions), context_dim)
            norm_layer = partial(
                PromptDrivenNorm, num_conditions=len(conditions), context_dim=context_dim, affine=affine
            )
        layers: dict[str, Any] = {"norm_layer": norm_layer, "backend": backend}
        stem = SubMConv3d(in_chans + append_one, stem_channels, kernel_size=5, backend=backend)
        self.stem = ConvNorm(stem, norm_layer(stem_channels))
        widths = [stem_channels, *channels[:NUM_STAGES]]  # of the resolutions, fine to coarse
        self.enc = nn.ModuleList(EncoderStage(widths[i], widths[i + 1], depths[i], **layers) for i in range(NUM_STAGES))
        inputs = channels[NUM_STAGES - 1 : -1]
        self.dec = nn.ModuleList(  # from coarse to fine
            DecoderStage(inputs[i], widths[-2 - i], channels[NUM_STAGES + i], depths[NUM_STAGES + i], **layers)
            for i in range(NUM_STAGES)
        )
        self.head: nn.Module = nn.Identity()
        self.apply(_init_weights)
        if zero_init:
            for module in self.modules():
                if isinstance(module, PromptDrivenNorm):
                    nn.init.zeros_(module.modulation.weight)
        self.reset_classifier(num_classes)
        if head == "text" and num_classes > 0:
            if text_head is None or condition is None:
                raise ValueError("head='text' expected text_head={...} and a condition, got none. Give both.")
            if num_classes == len(text_head["classes"].get(condition, ())):
                self.head = TextAlignedHead(self.num_features, **text_head)
        if head == "per_condition" and num_classes > 0:
            if head_classes is None or condition is None:
                raise ValueError("head='per_condition' expected head_classes={...} and a condition. Give both.")
            if num_classes == head_classes.get(condition):
                self.head = ConditionHeads(self.num_features, head_classes)
                self.head.apply(_init_weights)
        stages = [("stem", 1), *((f"enc.{i}", 2 ** (i + 1)) for i in range(NUM_STAGES))]
        stages += [(f"dec.{i}", 2 ** (NUM_STAGES - 1 - i)) for i in range(NUM_STAGES)]
        self.feature_info = [
            {"num_chs": width, "reduction": reduction, "module": name}
            for (name, reduction), width in zip(stages, [stem_channels, *channels], strict=True)
        ]

    # Forward ----------------------------------------------------------------------------------------------------------

    def forward(self, points: PointBatch) -> Tensor:
        """Logits (N, num_classes) of the points, or features (N, num_features) without a head."""
        return self.forward_head(self.forward_features(points))

    def forward_features(self, points: PointBatch) -> PointBatch:
        """The same points with features (N, num_features)."""
        x, row, prompt = self._prepare(points)
        for stage_output in self._stages(x, prompt):
            x = stage_output
        return replace(points, feat=x.feat.index_select(0, row))

    def forward_head(self, features: PointBatch, pre_logits: bool = False) -> Tensor:
        """Logits (N, num_classes) of features (N, num_features); the features where `pre_logits` or without a head."""
        if pre_logits:
            return features.feat
        if not isinstance(self.head, TextAlignedHead | ConditionHeads):
            return self.head(features.feat)
        condition = features.condition if features.condition is not None else self.condition
        if not isinstance(condition, str):
            raise ValueError(
                f"Classes per condition expected one condition for the batch, got {condition}: their number "
                "differs between conditions. Pass scenes of one condition at a time."
            )
        return self.head(features.feat, condition)

    def forward_point_features(self, points: PointBatch) -> Tensor:
        """Features (M, num_features) of the original points in their order, before any grid sampling."""
        feat = self.forward_features(points).feat
        return feat if points.inverse is None else feat.index_select(0, points.inverse)

    def forward_intermediates(
        self,
        points: PointBatch,
        indices: int | Sequence[int] | None = None,
        output_fmt: IntermediateFormat = "sparse",
        grid: VolumeGrid | None = None,
    ) -> list[Intermediate]:
        """Outputs of the stages in `feature_info`.

        Args:
            points: N points.
            indices: which stages, negative ones from the end; a number means the last that many; None means all.
            output_fmt: see below.
            grid: for "dense": boxes whose shape the largest reduction of the stages divides.

        Returns:
            One entry per stage. "sparse": a PointBatch of its voxels; `coord` is the mean position of a voxel's points,
            `grid_coord` its cell at that resolution, and `inverse` leads from every original point to its voxel.
            "points": the N points, each with the features of its voxel. "dense": a FeatureVolume of the voxels averaged
            in the cells of `grid`, whose shape is divided by the stage's reduction.
        """
        _check_format(output_fmt, grid)
        wanted = _stage_indices(indices, len(self.feature_info))
        x, row, prompt = self._prepare(points)
        outputs = list(islice(self._stages(x, prompt), max(wanted, default=-1) + 1))
        coord = segment_mean(points.coord, row, len(x))
        places = {x.voxels.stride: (coord, row)}
        for finer in outputs[:NUM_STAGES]:  # the stem and the encoder but its last stage lead to the coarser voxels
            step = coarsening(finer.voxels)
            coord = segment_mean(coord, step.parent, len(step.coarse))
            row = step.parent.index_select(0, row)
            places[step.coarse.stride] = (coord, row)
        result: list[Intermediate] = []
        for i in wanted:
            coord, row = places[outputs[i].voxels.stride]
            if output_fmt == "points":
                result.append(replace(points, feat=outputs[i].feat.index_select(0, row)))
                continue
            inverse = row if points.inverse is None else row.index_select(0, points.inverse)
            sparse = _as_points(outputs[i], coord, inverse, points.condition)
            reduction = self.feature_info[i]["reduction"]
            result.append(sparse if grid is None else densify(sparse, _reduced(grid, reduction)))
        return result

    def _stages(self, x: SparseTensor, prompt: Prompt | None) -> Iterator[SparseTensor]:
        """Outputs of the stem, the encoder stages and the decoder stages, one after the other."""
        x = self._stage(self.stem, x, prompt=prompt)
        yield x
        skips = [x]
        for stage in self.enc:
            x = self._stage(stage, x, prompt=prompt)
            skips.append(x)
            yield x
        skips.pop()
        for stage in self.dec:
            x = self._stage(stage, x, skips.pop(), prompt=prompt)
            yield x

    def _stage(self, stage: nn.Module, x: SparseTensor, *args: SparseTensor, prompt: Prompt | None) -> SparseTensor:
        if not (self.grad_checkpointing and self.training and torch.is_grad_enabled()):
            return stage(x, *args, prompt=prompt)
        contexts = lambda: (keep_activations(), keep_statistics())  # noqa: E731
        return cast(SparseTensor, checkpoint(stage, x, *args, prompt=prompt, use_reentrant=False, context_fn=contexts))

    def _prepare(self, points: PointBatch) -> tuple[SparseTensor, Tensor, Prompt | None]:
        """Voxels with averaged features, the voxel of each point (N,), and the conditions of the batch."""
        if points.feat.ndim != 2 or points.feat.shape[1] != self.in_chans:
            raise ValueError(
                f"{type(self).__name__} takes {self.in_chans} feature channels; `points.feat` is "
                f"{tuple(points.feat.shape)}. Pass in_chans={points.feat.shape[-1]} to create_model, or change the "
                "transform's feature columns."
            )
        prompt = self._prompt(points)
        batch = points.batch
        grid_coord = points.grid_coord
        if grid_coord is None:
            grid_coord = grid_index(points.coord, self.grid_size, batch=batch)
        x, row = SparseTensor.from_points(points.feat, grid_coord, batch, points.batch_size)
        if self.append_one:
            x = x.with_feat(F.pad(x.feat, (0, 1), value=1.0))
        return x, row, prompt

    def _prompt(self, points: PointBatch) -> Prompt | None:
        if self.norm == "batch":
            return None
        condition = points.condition if points.condition is not None else self.condition
        if condition is None:
            raise ValueError(
                f"{type(self).__name__} has norms for {list(self.conditions)} and was not told which to use. Set "
                "`points.condition`, or pass condition=... to create_model."
            )
        names = (condition,) if isinstance(condition, str) else condition
        if not isinstance(condition, str) and len(names) != points.batch_size:
            raise ValueError(
                f"Expected one condition, or one for each of {points.batch_size} scenes, got {len(names)}: {names}."
            )
        position = [_position(name, self.conditions) for name in names]
        present = tuple(sorted(set(position)))
        device = points.feat.device
        context = self.context(torch.tensor(present, device=device))  # (G, D)
        if len(present) == 1:
            return Prompt(present, context)
        return Prompt(present, context, torch.tensor([present.index(p) for p in position], device=device))

    # Head and training ------------------------------------------------------------------------------------------------

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the head by a new one for `num_classes`; 0 removes it."""
        self.num_classes = num_classes
        device = self.stem.conv.weight.device
        self.head = nn.Linear(self.num_features, num_classes, device=device) if num_classes > 0 else nn.Identity()
        self.head.apply(_init_weights)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only each stage's output for the backward pass and compute the rest again: less memory, more time."""
        self.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layer groups for timm, in order: stem, each encoder stage, each decoder stage (coarse to fine), head."""
        index = "" if coarse else r"\.(\d+)"
        return {
            "stem": r"^(?:stem|context)\.",
            "enc": [(rf"^enc{index}", None)],
            "dec": [(rf"^dec{index}", None)],
            "head": r"^head\.",
        }

    def no_weight_decay(self) -> set[str]:
        """Parameters that are looked up rather than multiplied with."""
        return {"context.weight"} if self.norm == "prompt" else set()


@torch.no_grad()
def raise_hue(model: SparseUNet, gain: float) -> SparseUNet:
    """Multiply what the first layer reads of hue, and leave what it reads of brightness.

    A random layer reads both with equal weights, but indoors hues differ four to six times less than brightness does
    (standard deviations in 16 built-in rooms): features of hue start small. For each output and offset the weights
    (r, g, b) become `mean + gain * (weights - mean)`. Models that do not read all three stay as they are.

    Args:
        model: a new one, whose weights are random.
        gain: 1 changes nothing.

    Returns:
        The same model.
    """
    columns = cast(PretrainedCfg, model.pretrained_cfg).point_cfg.feature_columns
    if all(name in columns for name in COLOR):
        read = [columns.index(name) for name in COLOR]
        weight = model.get_parameter(model.stem_weight_name)  # (out, k, k, k, in)
        rgb = weight[..., read]
        mean = rgb.mean(dim=-1, keepdim=True)
        weight[..., read] = mean + gain * (rgb - mean)
    return model


@torch.no_grad()
def fill_untrained_conditions(model: SparseUNet) -> tuple[str, ...]:
    """Give conditions that training never saw the norms and the context of one that it did see.

    Otherwise their statistics are those of the initialization and their contexts random, and a model that was trained
    without naming conditions would be wrong for every scene that names another than the default one. Taken are those of
    the default condition, or of the first trained one. The copies keep their count of zero batches: they stay known as
    untrained.

    Returns:
        The names of those conditions.
    """
    norms = [module for module in model.modules() if isinstance(module, PromptDrivenNorm)]
    trained = [any(_batches(norm.norms[i]) for norm in norms) for i in range(len(model.conditions))]
    if not any(trained):
        return ()
    source = trained.index(True)
    if model.condition is not None and trained[default := _position(model.condition, model.conditions)]:
        source = default
    missing = [i for i, known in enumerate(trained) if not known]
    for position in missing:
        model.context.weight[position] = model.context.weight[source]
        for norm in norms:
            own = norm.norms[position].state_dict()
            for key, value in norm.norms[source].state_dict().items():
                if key != "num_batches_tracked":
                    own[key].copy_(value)
    return tuple(model.conditions[i] for i in missing)


def _batches(norm: nn.Module) -> int:
    return int(norm.num_batches_tracked)  # type: ignore[arg-type]


def _check_options(
    channels: Sequence[int], depths: Sequence[int], norm: str, conditions: Sequence[str], condition: str | None
) -> None:
    if len(channels) != 2 * NUM_STAGES or len(depths) != 2 * NUM_STAGES or min(depths) < 1:
        raise ValueError(
            f"Expected {2 * NUM_STAGES} channels and {2 * NUM_STAGES} depths of at least 1 (encoder, then decoder); "
            f"got channels={tuple(channels)}, depths={tuple(depths)}."
        )
    if norm not in ("batch", "prompt"):
        raise ValueError(f"Expected norm to be 'batch' or 'prompt', got {norm!r}.")
    if norm == "prompt" and len(set(conditions)) != max(len(conditions), 1):
        raise ValueError(
            f"norm='prompt' needs distinct names of conditions, got conditions={tuple(conditions)}. "
            f"The released weights have conditions={RELEASED_CONDITIONS}."
        )
    if norm == "prompt" and condition is not None:
        _position(condition, conditions)


def _position(name: str, conditions: Sequence[str]) -> int:
    if name not in conditions:
        raise ValueError(
            f"Unknown condition {name!r}; this model knows {list(conditions)}. Use one of them, or create the model "
            "with conditions=[...] and train it."
        )
    return list(conditions).index(name)


def _init_weights(module: nn.Module) -> None:
    # As the official code: strided and inverse convolutions keep their default initialization.
    if isinstance(module, SubMConv3d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def _stage_indices(indices: int | Sequence[int] | None, count: int) -> list[int]:
    if indices is None:
        return list(range(count))
    chosen = list(range(count - indices, count)) if isinstance(indices, int) else list(indices)
    wrong = [i for i in chosen if not -count <= i < count]
    if wrong:
        raise ValueError(
            f"Expected indices of {count} stages, got {wrong} in {indices}. `feature_info` lists the stages."
        )
    return [i % count for i in chosen]


def _check_format(output_fmt: str, grid: VolumeGrid | None) -> None:
    if output_fmt not in get_args(IntermediateFormat) or (output_fmt == "dense") != (grid is not None):
        raise ValueError(
            f"Expected output_fmt 'sparse' or 'points', or 'dense' together with a grid; got {output_fmt!r} and "
            f"grid={grid}. Pass grid=VolumeGrid(bounds, shape) for dense outputs, and only for those."
        )


def _reduced(grid: VolumeGrid, reduction: int) -> VolumeGrid:
    if any(cells % reduction for cells in grid.shape):
        raise ValueError(
            f"Expected a grid whose shape is a multiple of the stage's reduction {reduction}; got {grid.shape}. Choose "
            f"another shape, or stages with a smaller reduction (`indices`)."
        )
    X, Y, Z = (cells // reduction for cells in grid.shape)
    return replace(grid, shape=(X, Y, Z))


def _as_points(x: SparseTensor, coord: Tensor, inverse: Tensor, condition: str | tuple[str, ...] | None) -> PointBatch:
    return PointBatch(coord, x.feat, x.voxels.offset, grid_coord=x.grid_coord, inverse=inverse, condition=condition)


# Official checkpoints -------------------------------------------------------------------------------------------------

_OFFICIAL_PLACES = (  # (official prefix, ours); decoders are numbered from the finest there and from the coarsest here
    (r"conv_input\.", lambda m: "stem."),
    (r"down\.(\d)\.", lambda m: f"enc.{m[1]}.down."),
    (r"up\.(\d)\.", lambda m: f"dec.{NUM_STAGES - 1 - int(m[1])}.up."),
    (r"enc\.(\d)\.block(\d+)\.", lambda m: f"enc.{m[1]}.blocks.{m[2]}."),
    (r"dec\.(\d)\.block(\d+)\.", lambda m: f"dec.{NUM_STAGES - 1 - int(m[1])}.blocks.{m[2]}."),
    (r"final\.", lambda m: "head."),
)
_OFFICIAL_LAYERS = {  # within one of these places, v1m1 and v1m3
    "0": "conv", "conv": "conv", "1": "norm", "bn": "norm",
    "conv1": "conv1", "conv2": "conv2", "bn1": "norm1", "bn2": "norm2",
    "proj.0": "shortcut", "proj_conv": "shortcut", "proj.1": "shortcut_norm", "proj_norm": "shortcut_norm",
}  # fmt: skip


def checkpoint_filter_fn(state_dict: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Official SpUNet-v1m1 or -v1m3 weights under this package's names; weights that have them already pass through.

    Prefixes (`module.`, `backbone.`) are removed, and what belongs to no encoder (renderer, projection, text
    embeddings) is left out. Norms and contexts are matched to the model's conditions by name.

    Raises:
        ValueError: for a key inside the encoder that has no counterpart.
    """
    assert isinstance(model, SparseUNet)
    encoder = encoder_entries(state_dict)
    if "stem.conv.weight" in encoder:
        return encoder
    result: dict[str, Tensor] = {}
    for key, value in encoder.items():
        if key == "embedding_table.weight":
            rows = _same_conditions(_OFFICIAL_TABLE_ORDER, model.conditions, len(value))
            result["context.weight"] = value[rows]
            continue
        name = _our_name(key, model.conditions)
        if name is not None:
            result[name] = _as_linear(value) if name.endswith(("shortcut.weight", "head.weight")) else value
    if isinstance(model.head, TextAlignedHead):
        above = strip_wrappers(state_dict)
        result |= {ours: above[theirs] for theirs, ours in HEAD_KEYS.items() if theirs in above}
    return result


def encoder_entries(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's entries without prefixes, and the table of contexts that sits one level above it."""
    entries = {key.removeprefix("module."): value for key, value in state_dict.items()}
    for prefix in ("backbone.backbone.", "backbone."):
        inside = {key.removeprefix(prefix): value for key, value in entries.items() if key.startswith(prefix)}
        table = prefix.removesuffix("backbone.") + "embedding_table.weight"
        if inside:
            return inside | ({"embedding_table.weight": entries[table]} if table in entries else {})
    return entries


def _our_name(key: str, conditions: Sequence[str]) -> str | None:
    """This package's name of an official key; None for the norm of a condition that the model does not have."""
    for pattern, place in _OFFICIAL_PLACES:
        found = re.match(pattern, key)
        if found is None:
            continue
        rest = key[found.end() :]
        if pattern.startswith("final"):
            return place(found) + rest
        layer = next((layer for layer in _OFFICIAL_LAYERS if rest.startswith(f"{layer}.")), None)
        if layer is None:
            break
        name = place(found) + _OFFICIAL_LAYERS[layer] + rest[len(layer) :].replace("modulation.1.", "modulation.")
        norm = re.search(r"bns\.(\d+)\.", name)
        if norm is None:
            return name
        order = _same_conditions(RELEASED_CONDITIONS, conditions, None)
        position = int(norm[1])
        return name.replace(norm[0], f"norms.{order.index(position)}.") if position in order else None
    raise ValueError(
        f"'{key}' has no counterpart in SparseUNet. Expected the keys of the official SpUNet-v1m1 or SpUNet-v1m3, "
        "or of this package's own checkpoints."
    )


def _same_conditions(theirs: Sequence[str], ours: Sequence[str], count: int | None) -> list[int]:
    """Position among `theirs` of each of our conditions; the same position for names that are not the released ones."""
    if all(name in theirs for name in ours) and count in (None, len(theirs)):
        return [theirs.index(name) for name in ours]
    return list(range(len(ours)))


def _as_linear(weight: Tensor) -> Tensor:
    """Weight of nn.Linear (out, in) from that of a 1x1x1 convolution (out, 1, 1, 1, in).

    spconv 2.3 multiplies with the same memory read as an (in, out) matrix: a reinterpretation, not a transpose.
    """
    if weight.ndim == 2:
        return weight
    out_chans, in_chans = weight.shape[0], weight.shape[-1]
    return weight.reshape(in_chans, out_chans).t().contiguous()


# Names ----------------------------------------------------------------------------------------------------------------

default_cfgs = generate_default_cfgs(
    {
        "sparseunet34": PretrainedCfg(),
        "sparseunet_small": PretrainedCfg(),
        **shipped_cfgs("sparseunet_small"),
        "sparseunet_tiny": PretrainedCfg(),
        **shipped_cfgs("sparseunet_tiny"),
        **released_cfgs("sparseunet_ponderv2"),
        "sparseunet_ponderv2_small": PretrainedCfg(condition="ScanNet"),
        **shipped_cfgs("sparseunet_ponderv2_small"),
        "sparseunet_ponderv2_tiny": PretrainedCfg(condition="ScanNet"),
        **shipped_cfgs("sparseunet_ponderv2_tiny"),
    }
)

SIZES: dict[str, dict[str, Any]] = {
    "base": {"channels": (32, 64, 128, 256, 256, 128, 96, 96), "depths": (2, 3, 4, 6, 2, 2, 2, 2)},
    "small": {"channels": (32, 64, 96, 128, 128, 96, 96, 96), "depths": (1, 1, 2, 2, 1, 1, 1, 1)},
    "tiny": {"channels": (16, 32, 64, 80, 80, 64, 32, 32), "depths": (1,) * 8, "stem_channels": 16},
}


def choose_condition(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of an entry point, with a default condition among the `conditions` where those are given."""
    if "conditions" in kwargs and kwargs.get("condition") is None:
        # Other conditions than the config's: without a choice, the first one stands for input that names none.
        cfg = kwargs.get("pretrained_cfg")
        chosen = cfg.condition if cfg is not None else None
        kwargs["condition"] = chosen if chosen in kwargs["conditions"] else next(iter(kwargs["conditions"]), None)
    return kwargs


def _create(name: str, pretrained: bool, **kwargs: Any) -> SparseUNet:
    options = choose_condition(kwargs)
    model = build_model(SparseUNet, name, pretrained, checkpoint_filter_fn=checkpoint_filter_fn, **options)
    return cast(SparseUNet, model)


def prompted(context_dim: int) -> dict[str, Any]:
    return {"norm": "prompt", "conditions": RELEASED_CONDITIONS, "context_dim": context_dim}


@register_model
def sparseunet34(pretrained: bool = False, **kwargs: Any) -> SparseUNet:
    """SparseUNet-34, the paper's indoor encoder with plain batch norms (39.2M parameters, official SpUNet-v1m1)."""
    return _create("sparseunet34", pretrained, **SIZES["base"] | kwargs)


@register_model
def sparseunet_small(pretrained: bool = False, **kwargs: Any) -> SparseUNet:
    """A smaller SparseUNet with the same output width (6.6M parameters)."""
    return _create("sparseunet_small", pretrained, **SIZES["small"] | kwargs)


@register_model
def sparseunet_tiny(pretrained: bool = False, **kwargs: Any) -> SparseUNet:
    """A SparseUNet that trains on a CPU (1.7M parameters)."""
    return _create("sparseunet_tiny", pretrained, **SIZES["tiny"] | kwargs)


@register_model
def sparseunet_ponderv2(pretrained: bool = False, **kwargs: Any) -> SparseUNet:
    """SparseUNet-34 with norms and a context per data set (43.6M parameters, official SpUNet-v1m3)."""
    return _create("sparseunet_ponderv2", pretrained, **SIZES["base"] | prompted(256) | kwargs)


@register_model
def sparseunet_ponderv2_small(pretrained: bool = False, **kwargs: Any) -> SparseUNet:
    """`sparseunet_small` with norms and a context per data set (7.6M parameters)."""
    return _create("sparseunet_ponderv2_small", pretrained, **SIZES["small"] | prompted(128) | kwargs)


@register_model
def sparseunet_ponderv2_tiny(pretrained: bool = False, **kwargs: Any) -> SparseUNet:
    """`sparseunet_tiny` with norms and a context per data set (1.9M parameters)."""
    return _create("sparseunet_ponderv2_tiny", pretrained, **SIZES["tiny"] | prompted(64) | kwargs)
