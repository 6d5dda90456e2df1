"""Losses of pre-training by rendering: paper Eq. 8 and the regularizers of the official code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from ..structures import RayBundle, RayTargets, RenderOutput

TEMPERATURE = 0.01  # of semantic logits, where none is given: CLIP's
Mean = Callable[[Tensor, Tensor], Tensor]  # (value, how much each entry counts) -> scalar


def masked_mean(value: Tensor, counted: Tensor, average_count: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Mean over the entries that count, 0 if there are none; entries that do not may hold anything, NaN included.

    `counted` is bool, or between 0 and 1 for entries that count in part.
    """
    counted = counted.expand_as(value)
    zero = torch.zeros_like(value)
    total = (torch.where(counted > 0, value, zero) * counted).sum()
    count = counted.sum(dtype=total.dtype)
    # Where no entry counts the sum is zero, too. A mean of counts over processes may lie between 0 and 1.
    return total / (count if average_count is None else average_count(count)).clamp(min=1e-6)


@dataclass(frozen=True)
class RenderLossWeights:
    """How much each term counts, and what the terms need to know. A weight of zero switches a term off.

    The defaults are `.metres()`: the official weights, with a truncation in metres.
    """

    rgb: float = 10.0
    depth: float = 1.0
    free_space: float = 1.0
    sdf: float = 10.0
    eikonal: float = 0.01
    normal: float = 0.0
    semantic: float = 0.0
    feature: float = 0.0
    truncation: float = 0.2  # half-width of the band around the observed depth where the sdf is supervised, metres
    band: Literal["tapered", "hard"] = "tapered"  # whether a sample counts less towards the edge of that band
    rays: Literal["valid", "all"] = "valid"  # which rays count in rgb and eikonal; official: all, misses included
    semantic_rule: Literal["classes", "rays"] = "classes"  # against the class table; official: against the other rays
    first_class: Literal["counts", "dropped"] = "counts"  # official: label 0 of rendered semantics is no label
    temperature: float | None = None  # of the semantic logits; null: 0.01; in recipes, one over semantic.scale
    feature_rule: Literal["cosine", "squared"] = "cosine"  # 1 - cosine, or the mean square of the differences

    @classmethod
    def metres(cls) -> Self:
        """The default: official weights, lengths in metres, only rays that cross the volume count."""
        return cls()

    @classmethod
    def paper(cls) -> Self:
        """Eq. 8 with the indoor weights of Sec. 4.2.2: colour 1.0 and depth 0.1, nothing else."""
        return cls(rgb=1.0, depth=0.1, free_space=0.0, sdf=0.0, eikonal=0.0)

    @classmethod
    def official(cls) -> Self:
        """The official indoor configuration. Its lengths are cube units: rescale the scenes to the unit cube."""
        return cls(truncation=0.05, band="hard", rays="all", semantic=0.1, semantic_rule="rays", first_class="dropped")


def render_loss(
    output: RenderOutput,
    targets: RayTargets,
    rays: RayBundle,
    weights: RenderLossWeights,
    *,
    class_embeddings: Tensor | None = None,
    average_count: Callable[[Tensor], Tensor] | None = None,
) -> dict[str, Tensor]:
    """All terms, each a float32 scalar already multiplied by its weight: sum them. No wait for the device.

    Terms that need a depth count the valid rays with `targets.depth > 0`. `normal`, `semantic` and `feature` appear
    where they have a weight and both the output and the targets have them.

    Args:
        output: what the renderer returned for `rays`.
        targets: what was observed along them.
        rays: tells which rays are padding.
        weights: see `RenderLossWeights`.
        class_embeddings: (K, D) one row per class, for rendered semantic features (paper Eq. 9: text embeddings of the
            class names). None: `output.semantic` holds the K logits themselves.
        average_count: mean over processes of the number of entries that a term averages over
            (`train.distributed.mean_over_processes`). With it, gradients averaged over processes are those of one
            process with the whole batch, although the processes see different numbers of valid rays.
    """

    def mean(value: Tensor, counted: Tensor) -> Tensor:
        return masked_mean(value, counted, average_count)

    with torch.autocast(output.rgb.device.type, enabled=False):
        counted = rays.valid if weights.rays == "valid" else torch.ones_like(rays.valid)  # (B, R)
        seen = counted & (targets.depth > 0)  # (B, R)
        terms = {
            "rgb": lambda: mean((_full(output.rgb) - targets.rgb).abs(), counted[..., None]),
            "depth": lambda: mean((_full(output.depth) - targets.depth).abs(), seen),
            "free_space": lambda: free_space_loss(output, targets, seen, weights, mean),
            "sdf": lambda: sdf_loss(output, targets, seen, weights, mean),
            "eikonal": lambda: eikonal_loss(_full(output.field.gradient), counted, mean),
        }
        normal, segment, semantic = targets.normal, targets.segment, output.semantic
        if weights.normal > 0.0 and normal is not None:
            terms["normal"] = lambda: normal_loss(_full(output.normal), normal, counted, mean)
        if weights.semantic > 0.0 and segment is not None and semantic is not None:
            known = seen if weights.semantic_rule == "rays" else counted
            terms["semantic"] = lambda: semantic_loss(semantic, segment, known, weights, class_embeddings, mean)
        feature = targets.feature
        if weights.feature > 0.0 and feature is not None and semantic is not None:
            terms["feature"] = lambda: feature_loss(semantic, feature, counted, weights, mean)
        zero = output.rgb.new_zeros((), dtype=torch.float32)
        return {
            name: getattr(weights, name) * term() if getattr(weights, name) != 0.0 else zero
            for name, term in terms.items()
        }


def free_space_loss(
    output: RenderOutput, targets: RayTargets, seen: Tensor, weights: RenderLossWeights, mean: Mean = masked_mean
) -> Tensor:
    """In front of the observed surface, further than the truncation from it, the sdf is at least the truncation.

    With a tapered band, samples count from there on linearly more, up to once more the truncation.
    """
    t, sdf = output.samples.t_starts, _full(output.field.sdf)  # (B, R, S)
    beyond = targets.depth[..., None] - weights.truncation - t
    counted = beyond > 0 if weights.band == "hard" else (beyond / weights.truncation).clamp(0.0, 1.0)
    return mean((weights.truncation - sdf).clamp(min=0.0), seen[..., None] * counted)


def sdf_loss(
    output: RenderOutput, targets: RayTargets, seen: Tensor, weights: RenderLossWeights, mean: Mean = masked_mean
) -> Tensor:
    """Near the observed surface the sdf is the remaining distance along the ray.

    With a tapered band, samples count linearly less towards its edge: the loss stays continuous where samples, which
    move with the sdf, enter and leave it. With a hard one each that does so changes the loss by some 1e-4.
    """
    t, sdf = output.samples.t_starts, _full(output.field.sdf)  # (B, R, S)
    remaining = targets.depth[..., None] - t
    near = remaining.abs()
    counted = near <= weights.truncation if weights.band == "hard" else (1.0 - near / weights.truncation).clamp(min=0.0)
    return mean((sdf - remaining).abs(), seen[..., None] * counted)


def eikonal_loss(gradient: Tensor, counted: Tensor, mean: Mean = masked_mean) -> Tensor:
    """An sdf has a gradient of length one: (B, R, S, 3), (B, R) -> scalar."""
    length = (gradient.square().sum(-1) + 1e-12).sqrt()  # a plain norm has no derivative at zero
    return mean((length - 1.0).square(), counted[..., None])


def normal_loss(normal: Tensor, target: Tensor, counted: Tensor, mean: Mean = masked_mean) -> Tensor:
    """One minus the cosine, for a fully opaque ray: (B, R, 3); a zero target is unknown."""
    known = counted & (target.square().sum(-1) > 0)
    return mean(1.0 - (normal * target).sum(-1), known)


def semantic_loss(
    predicted: Tensor,
    segment: Tensor,
    counted: Tensor,
    weights: RenderLossWeights,
    class_embeddings: Tensor | None = None,
    mean: Mean = masked_mean,
) -> Tensor:
    """Cross-entropy of the rendered semantics (B, R, D); rays without label (negative) do not count.

    "classes": over the K classes. "rays" (official): over the embeddings of all rays of the batch, where other rays of
    the same class are negatives; its matrix is rays x rays.
    """
    predicted, segment = _full(predicted).flatten(0, 1), segment.flatten()  # (B R, D), (B R,)
    first = 0 if weights.first_class == "counts" else 1
    known = counted.flatten() & (segment >= first)
    row = segment.clamp(min=0)  # a row to look up also for rays that do not count
    if class_embeddings is None and weights.semantic_rule == "rays":
        raise ValueError(
            'semantic_rule="rays" compares embeddings, but render_loss got class_embeddings=None. '
            'Pass the table of class embeddings (K, D), or use semantic_rule="classes".'
        )
    if class_embeddings is not None:
        table = class_embeddings.to(predicted.dtype)
        predicted = F.normalize(predicted, dim=-1) / (weights.temperature or TEMPERATURE)
        if weights.semantic_rule == "rays":  # unlabelled rays are zero rows
            table = table[row] * (segment >= first)[:, None]
            row = torch.arange(len(row), device=row.device)
        predicted = predicted @ table.T
    return mean(_cross_entropy(predicted, row), known)


def feature_loss(
    predicted: Tensor, target: Tensor, counted: Tensor, weights: RenderLossWeights, mean: Mean = masked_mean
) -> Tensor:
    """How far rendered features are from observed ones, (B, R, D) each; a zero target is unknown."""
    predicted, target = _full(predicted), _full(target)
    known = counted & (target.square().sum(-1) > 0)
    if weights.feature_rule == "squared":
        return mean((predicted - target).square().mean(-1), known)
    return mean(1.0 - F.cosine_similarity(predicted, target, dim=-1), known)


def point_loss(logits: Tensor, segment: Tensor, *, average_count: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Cross-entropy of class scores of points, (N, K) and (N,), over those with a label (not negative); else 0.

    The language-guided loss of Point Prompt Training. See `render_loss` for `average_count`.
    """
    with torch.autocast(logits.device.type, enabled=False):
        return masked_mean(_cross_entropy(_full(logits), segment.clamp(min=0)), segment >= 0, average_count)


def _cross_entropy(logits: Tensor, row: Tensor) -> Tensor:
    """(M, K) and (M,) -> (M,)."""
    return -logits.log_softmax(-1).gather(-1, row[:, None])[:, 0]


def _full(value: Tensor) -> Tensor:
    return value.to(torch.promote_types(value.dtype, torch.float32))
