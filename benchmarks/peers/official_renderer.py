"""The official NeuS renderer as a plain autograd formulation, to measure ours against.

Written from descriptions of what the official code computes, in its order and layout: one scene at a time, a
channel-first volume, every head evaluated at every sample, linear layers in sequence although nothing lies between
them, passes of the position computed and multiplied by 0.0, the sdf's gradient by autograd with `create_graph`, an
importance pass over all channels and outputs, and a normal map that no loss uses. The lookup comes in two forms:

    naive   eight gathers and plain autograd
    good    a function with hand-written forward, backward and double backward on channel-last memory, as the three
            kernels of the extension that the official code needs; each is one fused kernel of `ops.rows`, so that the
            comparison is of formulations, not of kernels. Like the official code it forms the gradient of the volume
            also in the pass that asks only for the gradient of the positions.
"""

from __future__ import annotations

import itertools
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ponder_zoo.ops.rows import dot_rows, gather_rows, scatter_rows

Output = dict[str, Tensor]


class OfficialRenderer(nn.Module):
    """NeuS in the unit cube; parameters have the official names.

    Args:
        in_chans: channels of the volume; the first half feeds the sdf, the second colour and semantics.
        hidden_dim: width of the decoders.
        geo_dim: width of the geometry feature.
        num_blocks: hidden layers of the three decoders: sdf, colour, semantics.
        semantic_dim: outputs of the semantic decoder.
        points_factor: weight of the position in the decoders.
        num_samples: uniform samples.
        num_importance: importance samples.
        sampler: which trilinear lookup.
    """

    def __init__(
        self,
        in_chans: int = 128,
        *,
        hidden_dim: int = 128,
        geo_dim: int = 64,
        num_blocks: tuple[int, int, int] = (1, 0, 0),
        semantic_dim: int = 512,
        points_factor: float = 0.0,
        num_samples: int = 96,
        num_importance: int = 36,
        sampler: Literal["naive", "good"] = "good",
    ) -> None:
        super().__init__()
        half = in_chans // 2
        shapes = {
            "sdf_decoder": (half, 1 + geo_dim),
            "rgb_decoder": (3 + half + geo_dim + 3, 3),
            "semantic_decoder": (3 + half + geo_dim, semantic_dim),
        }
        parts: dict[str, nn.Module] = {
            name: Decoder(*shape, hidden_dim, blocks, points_factor, softplus=name == "sdf_decoder")
            for (name, shape), blocks in zip(shapes.items(), num_blocks, strict=True)
        }
        parts["deviation_network"] = nn.ParameterDict({"variance": torch.full((1,), 0.3)})
        parts["laplace_density"] = nn.ParameterDict({"beta": torch.full((1,), 0.3), "beta_min": torch.full((1,), 1e-4)})
        self.field = nn.ModuleDict(parts)
        self.field["laplace_density"].requires_grad_(False)  # of VolSDF: stored, not used
        self.num_samples, self.num_importance = num_samples, num_importance
        self.sample = sample_naive if sampler == "naive" else sample_good

    def forward(self, volume: Tensor, origins: Tensor, directions: Tensor, samples: Tensor | None = None) -> Output:
        """Render rays (R, 3) of one scene in the unit cube from its volume (C, Z, Y, X).

        `samples` (R, S + 1) are edges of intervals to use instead of those that the sampler draws.
        """
        if samples is None:
            near, far, hit = collide(origins, directions)
            near, far = near * hit, far * hit
            with torch.no_grad():
                samples = self.draw_samples(volume, origins, directions, near, far)
        starts, ends = samples[:, :-1], samples[:, 1:]
        output = self.query(volume, origins, directions, starts)
        alpha = self.alpha(output, directions, ends - starts)
        transmittance = torch.cumprod(F.pad(1.0 - alpha + 1e-7, (1, 0), value=1.0), -1)[:, :-1]
        weights = alpha * transmittance
        normal = F.normalize(output["gradient"], dim=-1)
        depth = (weights * starts).sum(-1) / (weights.sum(-1) + 1e-10)
        images = {name: (weights[..., None] * output[name]).sum(1) for name in ("rgb", "semantic")}
        images["normal"] = (weights[..., None] * normal).sum(1)
        images["depth"] = depth.clamp(starts.min(), starts.max())
        return images | {"weights": weights, "starts": starts} | {k: output[k] for k in ("sdf", "gradient")}

    def query(self, volume: Tensor, origins: Tensor, directions: Tensor, starts: Tensor) -> Output:
        """Everything at the samples (R, S): sdf (R, S), gradient (R, S, 3), rgb (R, S, 3), semantic (R, S, D)."""
        with torch.enable_grad():
            points = origins[:, None] + starts[..., None] * directions[:, None]
            points = normalise(points).reshape(-1, 3).requires_grad_()
            out, appearance = self.decode_sdf(volume, points)
            sdf, geometry = out[:, :1], out[:, 1:]
            (gradient,) = torch.autograd.grad(sdf, points, torch.ones_like(sdf), create_graph=True)
        view = directions[:, None].expand(*starts.shape, 3).reshape(-1, 3)
        inputs = torch.cat([gradient, appearance, geometry], -1)
        rgb = torch.sigmoid(self.field["rgb_decoder"](points, torch.cat([inputs, view], -1)))
        semantic = self.field["semantic_decoder"](points, inputs)
        flat = {"sdf": sdf, "gradient": gradient, "rgb": rgb, "semantic": semantic}
        result = {name: value.view(*starts.shape, -1) for name, value in flat.items()}
        return result | {"sdf": result["sdf"][..., 0]}

    def decode_sdf(self, volume: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """All outputs of the sdf decoder, and the features for the other two: points (P, 3) in [0, 1]."""
        feat = self.sample(volume, 2.0 * points - 1.0)  # (P, C)
        shape, appearance = feat.chunk(2, -1)
        return self.field["sdf_decoder"](points, shape), appearance

    def alpha(self, output: Output, directions: Tensor, delta: Tensor) -> Tensor:
        sharpness = (10.0 * self.field["deviation_network"]["variance"]).exp().clamp(1e-6, 1e6)  # type: ignore[index]
        slope = -F.relu(-(directions[:, None] * output["gradient"]).sum(-1))
        before = torch.sigmoid((output["sdf"] - slope * delta * 0.5) * sharpness)
        after = torch.sigmoid((output["sdf"] + slope * delta * 0.5) * sharpness)
        return ((before - after + 1e-5) / (before + 1e-5)).clamp(0.0, 1.0)

    def draw_samples(self, volume: Tensor, origins: Tensor, directions: Tensor, near: Tensor, far: Tensor) -> Tensor:
        """Edges (R, S + 1) of uniform and importance samples."""
        steps = torch.linspace(0.0, 1.0, self.num_samples + 1, dtype=near.dtype).expand(len(near), -1)
        if self.training:
            middle = 0.5 * (steps[:, 1:] + steps[:, :-1])
            lower, upper = torch.cat([steps[:, :1], middle], -1), torch.cat([middle, steps[:, -1:]], -1)
            steps = lower + (upper - lower) * torch.rand_like(lower)
        edges = near[:, None] + steps * (far - near)[:, None]
        starts = edges[:, :-1]
        points = origins[:, None] + starts[..., None] * directions[:, None]  # not normalised: the official defect
        sdf = self.decode_sdf(volume, points.reshape(-1, 3))[0][:, 0].view_as(starts)
        new = self.invert(edges, coarse_weights(edges, sdf))
        merged = torch.cat([starts, new[:, :-1]], -1).sort(-1).values
        return torch.cat([merged, torch.maximum(edges[:, -1:], new[:, -1:])], -1)

    def invert(self, edges: Tensor, weights: Tensor) -> Tensor:
        """Quantiles of the weights: (R, N + 1)."""
        count = self.num_importance + 1
        total = weights.sum(-1, keepdim=True)
        padding = F.relu(1e-5 - total)
        pdf = (weights + padding / weights.shape[-1]) / (total + padding)
        cdf = F.pad(pdf.cumsum(-1).clamp(max=1.0), (1, 0))
        u = torch.linspace(0.0, 1.0 - 1.0 / count, count, dtype=edges.dtype).expand(len(edges), count)
        u = (u + (torch.rand_like(u) if self.training else 0.5) / count).contiguous()
        index = torch.searchsorted(cdf, u, right=True)
        low, high = (index - 1).clamp(0, edges.shape[-1] - 1), index.clamp(0, edges.shape[-1] - 1)
        cdf_low, cdf_high, low, high = (
            cdf.gather(1, low),
            cdf.gather(1, high),
            edges.gather(1, low),
            edges.gather(1, high),
        )
        width = cdf_high - cdf_low
        share = (u - cdf_low) / torch.where(width < 1e-5, torch.ones_like(width), width)
        return low + share.clamp(0.0, 1.0) * (high - low)


class Decoder(nn.Module):
    """x <- lin_l(x + fc_c_l(feat)), activations between; x_0 = points_factor * fc_p(position)."""

    def __init__(
        self, in_dim: int, out_dim: int, hidden_dim: int, num_blocks: int, points_factor: float, *, softplus: bool
    ) -> None:
        super().__init__()
        widths = [hidden_dim] * (num_blocks + 1) + [out_dim]
        self.points_factor = points_factor
        self.depth = num_blocks + 1
        self.fc_p = nn.Linear(3, hidden_dim)
        self.fc_c = nn.ModuleList(nn.Linear(in_dim, hidden_dim) for _ in range(self.depth))
        for index, (i, o) in enumerate(itertools.pairwise(widths)):
            self.add_module(f"lin{index}", nn.Linear(i, o))
        self.activation = nn.Softplus(beta=100) if softplus else nn.ReLU()

    def forward(self, points: Tensor, feat: Tensor) -> Tensor:
        x = self.fc_p(points) * self.points_factor
        for index in range(self.depth):
            x = self.get_submodule(f"lin{index}")(x + self.fc_c[index](feat))
            if index < self.depth - 1:
                x = self.activation(x)
        return x


def coarse_weights(edges: Tensor, sdf: Tensor, sharpness: float = 64.0) -> Tensor:
    """Weights that guide importance sampling: edges (R, S + 1), sdf (R, S) -> (R, S), the last one zero."""
    starts = edges[:, :-1]
    distance = starts[:, 1:] - starts[:, :-1]
    cosine = (sdf[:, 1:] - sdf[:, :-1]) / (distance + 1e-5)
    cosine = torch.minimum(F.pad(cosine[:, :-1], (1, 0)), cosine).clamp(-1e3, 0.0)
    middle = 0.5 * (sdf[:, 1:] + sdf[:, :-1])
    before = torch.sigmoid((middle - cosine * distance * 0.5) * sharpness)
    after = torch.sigmoid((middle + cosine * distance * 0.5) * sharpness)
    alpha = (before - after + 1e-5) / (before + 1e-5)
    weights = alpha * torch.cumprod(F.pad(1.0 - alpha + 1e-7, (1, 0), value=1.0), -1)[:, :-1]
    return F.pad(weights, (0, 1))


def normalise(points: Tensor) -> Tensor:
    """Cube coordinates to [0, 1], moved inside."""
    points = points / 1.101 + 0.5
    return torch.where(points >= 1.0, 0.999, points).clamp(min=0.0)


def collide(origins: Tensor, directions: Tensor, half: float = 0.55, near: float = 0.01) -> tuple[Tensor, ...]:
    """Distances (R,) at which rays enter and leave the box, and whether they do."""
    inverse = 1.0 / (directions + 1e-6)
    first, second = (-half - origins) * inverse, (half - origins) * inverse
    enter = torch.minimum(first, second).amax(-1).clamp(min=near)
    leave = torch.maximum(first, second).amin(-1)
    return enter, leave, leave > enter


def official_losses(output: Output, depth: Tensor, rgb: Tensor, semantic: Tensor, truncation: float = 0.05) -> Output:
    """The official terms, weighted: depth (R,), rgb (R, 3), semantic (R, D) with zero rows for unlabelled rays."""
    seen = depth > 0
    start, sdf = output["starts"], output["sdf"]
    free = (seen[:, None] & (start < depth[:, None] - truncation)).to(sdf)
    band = (seen[:, None] & ((start - depth[:, None]).abs() <= truncation)).to(sdf)
    logits = F.normalize(output["semantic"], dim=-1) @ semantic.T / 0.01
    labelled = seen & (semantic.abs().sum(-1) > 0)
    entropy = F.cross_entropy(logits, torch.arange(len(logits)), reduction="none")
    return {
        "depth": ((output["depth"] - depth).abs() * seen).sum() / seen.sum().clamp(min=1),
        "rgb": 10.0 * (output["rgb"] - rgb).abs().mean(),
        "semantic": 0.1 * entropy[labelled].mean(),
        "free_space": (F.relu(truncation - sdf) * free).sum() / free.sum().clamp(min=1),
        "sdf": 10.0 * ((start + sdf - depth[:, None]).abs() * band).sum() / band.sum().clamp(min=1),
        "eikonal": 0.01 * (output["gradient"].norm(dim=-1) - 1.0).square().mean(),
    }


def sample_naive(volume: Tensor, grid: Tensor) -> Tensor:
    """Trilinear lookup, values at the corners, zeros outside: (C, Z, Y, X), (P, 3) in [-1, 1] as x, y, z -> (P, C)."""
    index, weight, _ = corners(volume, grid)
    table = volume.flatten(1)  # (C, Z Y X)
    return torch.stack([table[:, index[:, k]] * weight[:, k] for k in range(8)]).sum(0).T


def sample_good(volume: Tensor, grid: Tensor) -> Tensor:
    """The same by hand-written derivatives on channel-last memory."""
    return _Sample.apply(volume, grid)  # type: ignore[return-value]


class _Sample(torch.autograd.Function):
    """First kernel: the lookup. Its backward is the second."""

    @staticmethod
    def forward(ctx: Any, volume: Tensor, grid: Tensor) -> Tensor:
        ctx.save_for_backward(volume, grid)
        index, weight, _ = corners(volume, grid)
        return gather_rows(_rows(volume), index, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return _SampleBackward.apply(*ctx.saved_tensors, grad.contiguous())  # type: ignore[return-value]


class _SampleBackward(torch.autograd.Function):
    """Second kernel: gradients of the volume and of the positions. Its backward is the third."""

    @staticmethod
    def forward(ctx: Any, volume: Tensor, grid: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(volume, grid, grad)
        index, weight, slope = corners(volume, grid, slopes=True)
        along = dot_rows(_rows(volume), index, grad)  # (P, 8)
        total = scatter_rows(index, weight, grad, volume[0].numel())
        return _volume(total, volume), (along[..., None] * slope).sum(1)

    @staticmethod
    def backward(ctx: Any, grad_volume: Tensor, grad_grid: Tensor) -> tuple[Tensor, None, Tensor]:  # type: ignore[override]
        # The first pass's gradient of the volume is discarded by its caller, so `grad_volume` is zero.
        volume, grid, grad = ctx.saved_tensors
        index, _, slope = corners(volume, grid, slopes=True)
        coefficient = (slope * grad_grid[:, None]).sum(-1)  # (P, 8)
        total = scatter_rows(index, coefficient, grad, volume[0].numel())
        return _volume(total, volume), None, gather_rows(_rows(volume), index, coefficient)


def corners(volume: Tensor, grid: Tensor, *, slopes: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Rows (P, 8), weights (P, 8) and d(weight)/d(grid) (P, 8, 3) or empty of the cells around each position."""
    size = grid.new_tensor(volume.shape[:0:-1])  # X, Y, Z
    cell = (grid + 1.0) * 0.5 * (size - 1.0)
    base = cell.detach().floor()
    offset = torch.tensor([[k & 1, k >> 1 & 1, k >> 2] for k in range(8)])
    corner = base[:, None] + offset  # (P, 8, 3)
    inside = ((corner >= 0) & (corner < size)).all(-1)
    fraction = (cell - base)[:, None]
    factor = torch.where(offset > 0, fraction, 1.0 - fraction)  # (P, 8, 3)
    x, y, z = corner.clamp(min=0).minimum(size - 1).long().unbind(-1)
    index = (z * volume.shape[2] + y) * volume.shape[3] + x
    slope = grid.new_empty(0)
    if slopes:
        others = torch.stack([factor[..., a] * factor[..., b] for a, b in ((1, 2), (0, 2), (0, 1))], -1)
        slope = others * (2 * offset - 1) * (0.5 * (size - 1.0)) * inside[..., None]
    return index, factor.prod(-1) * inside, slope


def _rows(volume: Tensor) -> Tensor:
    return volume.detach().movedim(0, -1).reshape(-1, len(volume))  # a copy where the volume is channel-first


def _volume(rows: Tensor, like: Tensor) -> Tensor:
    return rows.view(*like.shape[1:], len(like)).movedim(-1, 0)
