"""How good rendered views are, next to the best that a constant image could do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


def psnr(image: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of two images with values in [0, 1]: (..., 3), (..., 3) -> scalar.

    A pair of equal images has no noise; the error is floored at 1e-10, that is 100 dB.
    """
    error = (image.float().clamp(0.0, 1.0) - reference.float()).square().mean()
    return -10.0 * torch.log10(error.clamp(min=1e-10))


def depth_errors(depth: Tensor, reference: Tensor) -> dict[str, Tensor]:
    """Mean and median absolute error (metres) and mean relative error over the pixels that were measured.

    Args:
        depth: (...) metres, as rendered.
        reference: (...) metres, 0 = not measured. Without any measured pixel all errors are NaN.
    """
    measured = reference > 0
    truth = reference[measured].float()
    error = (depth[measured].float() - truth).abs()
    if len(error) == 0:
        nan = depth.new_tensor(float("nan"))
        return {"depth_abs": nan, "depth_median": nan, "depth_rel": nan}
    return {"depth_abs": error.mean(), "depth_median": _median(error), "depth_rel": (error / truth).mean()}


def view_scores(rgb: Tensor, depth: Tensor, reference_rgb: Tensor, reference_depth: Tensor) -> dict[str, float]:
    """Scores of one rendered view, and of the best constant image in its place (the keys that end in `_constant`).

    The best constant colour in the sense of the PSNR is the mean colour of the reference; the best constant depth in
    the sense of the absolute error is its median. Both look at the answer, which a model cannot.

    Args:
        rgb: (H, W, 3) rendered, in [0, 1].
        depth: (H, W) rendered, metres.
        reference_rgb: (H, W, 3) in [0, 1].
        reference_depth: (H, W) metres, 0 = not measured.
    """
    colour = reference_rgb.float().reshape(-1, 3).mean(0).expand_as(reference_rgb)
    measured = reference_depth[reference_depth > 0].float()
    middle = _median(measured) if len(measured) else reference_depth.new_tensor(0.0)
    scores = {"psnr": psnr(rgb, reference_rgb), **depth_errors(depth, reference_depth)}
    constant = {"psnr": psnr(colour, reference_rgb), **depth_errors(middle.expand_as(depth), reference_depth)}
    for values, image in ((scores, rgb), (constant, colour)):
        values["rgb_abs"] = (image.float().clamp(0.0, 1.0) - reference_rgb.float()).abs().mean()
    result = {key: float(value) for key, value in scores.items()}
    return result | {f"{key}_constant": float(value) for key, value in constant.items()}


def class_scores(segment: Tensor, reference: Tensor) -> dict[str, float]:
    """Share of the labelled pixels whose class is right, and of those that the most frequent class would get right.

    Args:
        segment: (...) class index, as rendered.
        reference: (...) class index, -1 = unlabelled. Without any label both shares are NaN.
    """
    known = reference >= 0
    if not known.any():
        return {"class_accuracy": float("nan"), "class_accuracy_constant": float("nan")}
    right = (segment[known] == reference[known]).float().mean()
    share = torch.bincount(reference[known].long()).max() / known.sum()
    return {"class_accuracy": float(right), "class_accuracy_constant": float(share)}


def mean_scores(views: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Mean over views of `view_scores`, with `psnr_gain` (dB above the constant) and `depth_ratio` (of the medians).

    Views without measured depth do not enter the depth means, nor those without labels the class means.
    """
    rows, missing = list(views), float("nan")
    if not rows:
        raise ValueError("Expected the scores of at least one view; got none. Does the split have views to render?")
    result: dict[str, float] = {"views": len(rows)}
    for key in dict.fromkeys(key for row in rows for key in row):
        values = torch.tensor([row.get(key, missing) for row in rows], dtype=torch.float64)
        result[key] = values.nanmean().item()
    result["psnr_gain"] = result["psnr"] - result["psnr_constant"]
    result["depth_ratio"] = result["depth_median"] / max(result["depth_median_constant"], 1e-9)
    return result


def _median(values: Tensor) -> Tensor:
    """The usual median (mean of the middle two), which `torch.median` is not."""
    ordered = values.sort().values
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
