"""Signed distance, colour and semantics at positions inside a feature volume (paper Eq. 4, 5, 9)."""

from __future__ import annotations

import abc
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, TypedDict, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.trilinear import sample_volume, sample_volume_with_gradient
from ..structures import FeatureVolume, FieldOutput, VolumeGrid
from .softplus_mlp import BETA, sigmoid_and_softplus, softplus_mlp

Volumes = FeatureVolume | tuple[FeatureVolume, ...]  # several resolutions of one scene; the first gives the box


class AbstractField(nn.Module, abc.ABC):
    """What a renderer asks about space. Positions are metres in the scene's frame."""

    @abc.abstractmethod
    def sdf(self, positions: Tensor, volume: Volumes) -> Tensor:
        """Signed distance alone, for samplers and meshes: (B, R, S, 3) -> (B, R, S)."""

    @abc.abstractmethod
    def forward(self, positions: Tensor, directions: Tensor, volume: Volumes) -> FieldOutput:
        """Everything, at positions (B, R, S, 3) seen along unit directions (B, R, 3)."""


class FieldArgs(TypedDict, total=False):
    """Arguments of `SDFField` besides `in_chans`, which renderers pass on."""

    hidden_dim: int
    geo_dim: int
    num_blocks: int
    rgb_blocks: int
    semantic_blocks: int
    semantic_dim: int | None
    points_factor: float
    share_volume: bool
    rgb_normal: Literal["unit", "gradient"]
    frame: Literal["metres", "official"]
    initial_sdf: float | None


class SDFField(AbstractField):
    """phi_SDF, phi_RGB and phi_SEMANTIC: small MLPs on trilinearly interpolated features (paper Eq. 4, 5, 9).

    The gradient of the sdf is computed in closed form (the chain rule of a few linear layers, then the Jacobian of the
    lookup), so that a training step needs one ordinary backward pass instead of a second-order graph. It is
    differentiable to any order in the features, the positions and the parameters. Everything is float32 or better.

    Args:
        in_chans: channels of the volume, or the sum over a tuple of volumes.
        hidden_dim: width of the hidden layers.
        geo_dim: width of the geometry feature h that phi_SDF hands to the other two.
        num_blocks: hidden layers of phi_SDF. Official indoor setting: 1.
        rgb_blocks: hidden layers of phi_RGB. Official indoor setting: 0.
        semantic_blocks: hidden layers of phi_SEMANTIC. Official indoor setting: 0.
        semantic_dim: outputs of phi_SEMANTIC, or None for none.
        points_factor: weight of the position, normalised to the box, as an input of the three MLPs. The paper's MLPs
            take the position (1.0); the official indoor configuration multiplies it by 0.0, which is the default here:
            what the decoder can read off the position, the encoder need not learn.
        share_volume: True: all MLPs see all channels (Eq. 4 and 5). False, official indoor: phi_SDF sees the first
            half of each volume's channels and the others see the second half.
        rgb_normal: what phi_RGB and phi_SEMANTIC take for the normal: the unit normal, or the raw "gradient" as in
            the official code, whose length the network can then see.
        frame: "metres", or "official": gradients with respect to the position normalised to the box, and positions
            outside the box moved to its faces. Needed for the official weights only.
        initial_sdf: sdf of empty cells at initialisation, metres: space starts out free of surfaces, and
            the samples that see one carve it in. None leaves the default initialisation, which starts anywhere
            around zero: surfaces everywhere.
    """

    def __init__(
        self,
        in_chans: int,
        *,
        hidden_dim: int = 128,
        geo_dim: int = 64,
        num_blocks: int = 1,
        rgb_blocks: int = 0,
        semantic_blocks: int = 0,
        semantic_dim: int | None = None,
        points_factor: float = 0.0,
        share_volume: bool = True,
        rgb_normal: Literal["unit", "gradient"] = "unit",
        frame: Literal["metres", "official"] = "metres",
        initial_sdf: float | None = 0.3,
    ) -> None:
        super().__init__()
        if not share_volume and in_chans % 2:
            raise ValueError(
                f"share_volume=False splits the channels of the volume in two halves; got in_chans={in_chans}. "
                "Pass an even number of channels, or share_volume=True."
            )
        self.in_chans = in_chans
        self.semantic_dim = semantic_dim
        self.share_volume = share_volume
        self.rgb_normal = rgb_normal
        self.frame = frame
        feat_dim = in_chans if share_volume else in_chans // 2
        self.sdf_mlp = InjectedMLP(
            feat_dim,
            1 + geo_dim,
            hidden_dim=hidden_dim,
            num_blocks=num_blocks,
            points_factor=points_factor,
            activation="softplus",
        )
        self.rgb_mlp = InjectedMLP(
            3 + feat_dim + geo_dim + 3,
            3,
            hidden_dim=hidden_dim,
            num_blocks=rgb_blocks,
            points_factor=points_factor,
            activation="relu",
        )
        self.semantic_mlp = None
        if semantic_dim is not None:
            self.semantic_mlp = InjectedMLP(
                3 + feat_dim + geo_dim,
                semantic_dim,
                hidden_dim=hidden_dim,
                num_blocks=semantic_blocks,
                points_factor=points_factor,
                activation="relu",
            )
        if initial_sdf is not None:
            self._start_empty(initial_sdf)

    @torch.no_grad()
    def _start_empty(self, initial_sdf: float) -> None:
        """Shift the sdf's bias so that zero features in the middle of the box give `initial_sdf`."""
        zero = torch.zeros(1, self.sdf_mlp.in_chans)
        start = self.sdf_mlp(zero, torch.full((1, 3), 0.5), outputs=1)[0, 0]
        last, _ = self.sdf_mlp._linears()[-1]
        last.bias[0] += initial_sdf - start

    def sdf(self, positions: Tensor, volume: Volumes) -> Tensor:
        """Signed distance alone, for samplers and meshes: (B, R, S, 3) metres -> (B, R, S)."""
        with torch.autocast(positions.device.type, enabled=False):
            volumes = self._check(volume)
            lower, extent = _box(volumes[0].grid, positions)
            unit = (positions - lower) / extent  # not moved into the box, as the official samplers do not either
            # Half the channels, which are read 1.9 x faster than all (see `ops.rows.gather_rows`), and one output.
            used = [item.feat.shape[1] // (1 if self.share_volume else 2) for item in volumes]
            feat = _join([sample_volume(v, positions, channels=c) for v, c in zip(volumes, used, strict=True)])
            return self.sdf_mlp(feat, unit, outputs=1)[..., 0]

    def forward(self, positions: Tensor, directions: Tensor, volume: Volumes) -> FieldOutput:
        """Query the field at positions (B, R, S, 3) in metres, seen along unit directions (B, R, 3)."""
        with torch.autocast(positions.device.type, enabled=False):
            volumes = self._check(volume)
            positions, unit = self._normalise(positions, volumes[0].grid)
            lookups = [sample_volume_with_gradient(item, positions) for item in volumes]
            halves = [self._halves(feat) for feat, _ in lookups]
            sdf_feat = _join([first for first, _ in halves])  # (B, R, S, C)
            out, feat_slope, unit_slope = self.sdf_mlp.value_and_slope(sdf_feat, unit)
            gradient = self._gradient(
                feat_slope.split([first.shape[-1] for first, _ in halves], -1),
                [pull_back for _, pull_back in lookups],
                unit_slope,
                volumes[0].grid,
            )
            sdf, geometry = out.split([1, out.shape[-1] - 1], -1)
            normal = unit_vector(gradient) if self.rgb_normal == "unit" else gradient
            inputs = torch.cat([normal, *[second for _, second in halves], geometry], -1)
            rgb = self.rgb_mlp(inputs, unit, shared=directions[:, :, None]).sigmoid()
            output = FieldOutput(sdf=sdf[..., 0], gradient=gradient, rgb=rgb)
            if self.semantic_mlp is None:
                return output
            last_inputs, last_layer = self.semantic_mlp.before_last(inputs, unit)
            return replace(output, semantic_inputs=last_inputs, semantic_layer=last_layer)

    def _check(self, volume: Volumes) -> tuple[FeatureVolume, ...]:
        volumes = volume if isinstance(volume, tuple) else (volume,)
        channels = [item.feat.shape[1] for item in volumes]
        if sum(channels) != self.in_chans:
            raise ValueError(
                f"SDFField takes volumes with {self.in_chans} channels in total; got {channels}. "
                f"Build the renderer with in_chans={sum(channels)}, or change the channels of the volume encoder."
            )
        return volumes

    def _halves(self, feat: Tensor) -> tuple[Tensor, Tensor]:
        """Features for the sdf and for the appearance."""
        if self.share_volume:
            return feat, feat
        first, second = feat.chunk(2, -1)  # one concatenation in the backward pass, where slices add two padded copies
        return first, second

    def _normalise(self, positions: Tensor, grid: VolumeGrid) -> tuple[Tensor, Tensor]:
        """Positions to look up, metres, and the same normalised to [0, 1] within the box."""
        lower, extent = _box(grid, positions)
        unit = (positions - lower) / extent
        if self.frame == "official":  # these two constants are the official code's
            unit = torch.where(unit >= 1.0, 0.999, unit).clamp(min=0.0)
            positions = lower + unit * extent
        return positions, unit

    def _gradient(
        self,
        feat_slopes: Sequence[Tensor],
        pull_backs: Sequence[Callable[[Tensor], Tensor]],
        unit_slope: Tensor | None,
        grid: VolumeGrid,
    ) -> Tensor:
        """d(sdf)/d(position) from the slopes with respect to the features and the normalised position."""
        parts = [pull_back(slope) for pull_back, slope in zip(pull_backs, feat_slopes, strict=True)]
        gradient = torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]
        _, extent = _box(grid, gradient)
        if self.frame == "official":
            gradient = gradient * extent
            return gradient if unit_slope is None else gradient + unit_slope
        return gradient if unit_slope is None else gradient + unit_slope / extent


class InjectedMLP(nn.Module):
    """An MLP that adds the features again before every layer, and the position before the first.

        x_0 = points_factor * position(p);   x_{l+1} = layers[l](act(x_l) + inject[l](feat)), no act at l = 0

    No activation lies between `inject[l]` and `layers[l]`, so the product of their matrices is formed first: the same
    numbers with about half the arithmetic. A factor of zero skips the position and freezes its parameters, which stay
    so that official checkpoints load.
    """

    def __init__(
        self,
        in_chans: int,
        out_chans: int,
        *,
        hidden_dim: int,
        num_blocks: int,
        points_factor: float,
        activation: Literal["softplus", "relu"],
    ) -> None:
        super().__init__()
        self.in_chans = in_chans
        self.points_factor = points_factor
        self.activation = activation
        widths = [hidden_dim] * (num_blocks + 1) + [out_chans]
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in itertools.pairwise(widths))
        self.inject = nn.ModuleList(nn.Linear(in_chans, hidden_dim) for _ in self.layers)
        self.position = nn.Linear(3, hidden_dim).requires_grad_(points_factor != 0.0)

    def forward(self, feat: Tensor, unit: Tensor, outputs: int | None = None, shared: Tensor | None = None) -> Tensor:
        """Features (..., in_chans) and normalised positions (..., 3) -> the first `outputs` of (..., out_chans).

        `shared` (..., n) holds the last n features where they are the same along an axis, which it has at size 1.
        """
        return self._forward(feat, unit, outputs, shared)[0]

    def before_last(self, feat: Tensor, unit: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Inputs (..., H) of the last layer, whose output is linear in them, and its weight (out_chans, H) and bias."""
        layer, inject = self._linears()[-1]
        weight, bias = layer.weight @ inject.weight, layer.weight @ inject.bias + layer.bias
        if len(self.layers) > 1:
            below = self._act(self._forward(feat, unit, None, None)[1][-1])
            return torch.cat([feat, below], -1), (torch.cat([weight, layer.weight], 1), bias)
        if self.points_factor == 0.0:
            return feat, (weight, bias)
        matrix = self.points_factor * layer.weight
        weight, bias = torch.cat([weight, matrix @ self.position.weight], 1), bias + matrix @ self.position.bias
        return torch.cat([feat, unit], -1), (weight, bias)

    def value_and_slope(self, feat: Tensor, unit: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """The outputs, and the derivatives of the first with respect to `feat` and `unit` (None if not an input)."""
        if len(self.layers) == 2 and self.activation == "softplus" and self.points_factor == 0.0:
            (first, first_inject), (last, last_inject) = self._linears()
            out, feat_slope = softplus_mlp(
                feat.flatten(0, -2),
                first.weight @ first_inject.weight,
                first.weight @ first_inject.bias + first.bias,
                last.weight @ last_inject.weight,
                last.weight,
                last.weight @ last_inject.bias + last.bias,
            )
            return out.view(*feat.shape[:-1], -1), feat_slope.view(feat.shape), None
        out, pre_activations = self._forward(feat, unit, None, None)
        *hidden_layers, (last, last_inject) = self._linears()
        slope = last.weight[0]  # d(out_0)/d(input of the layer): (hidden) for the last one, then (..., hidden)
        feat_slope = slope @ last_inject.weight
        for index, (layer, inject) in reversed(list(enumerate(hidden_layers))):
            slope = slope * self._act_slope(pre_activations[index])
            feat_slope = feat_slope + slope @ (layer.weight @ inject.weight)
            if index > 0 or self.points_factor != 0.0:
                slope = slope @ layer.weight
        unit_slope = None
        if self.points_factor != 0.0:
            unit_slope = (self.points_factor * (slope @ self.position.weight)).expand_as(unit)
        return out, feat_slope.expand_as(feat), unit_slope

    def _forward(
        self, feat: Tensor, unit: Tensor, outputs: int | None, shared: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        pre_activations: list[Tensor] = []
        for index, (layer, inject) in enumerate(self._linears()):
            weight, bias = layer.weight, layer.bias
            if index == len(self.layers) - 1:
                weight, bias = weight[:outputs], bias[:outputs]
            matrix, bias = weight @ inject.weight, weight @ inject.bias + bias
            if shared is None:
                hidden = F.linear(feat, matrix, bias)
            else:
                own, common = matrix.split([feat.shape[-1], shared.shape[-1]], 1)
                hidden = _linear(feat, own) + F.linear(shared, common, bias)
            if index > 0:
                hidden = hidden + F.linear(self._act(pre_activations[-1]), weight)
            elif self.points_factor != 0.0:
                hidden = hidden + self.points_factor * F.linear(self.position(unit), weight)
            pre_activations.append(hidden)
        return pre_activations.pop(), pre_activations

    def _linears(self) -> list[tuple[nn.Linear, nn.Linear]]:
        return cast("list[tuple[nn.Linear, nn.Linear]]", list(zip(self.layers, self.inject, strict=True)))

    def _act(self, x: Tensor) -> Tensor:
        if self.activation == "relu":
            return F.relu(x)
        return F.softplus(x, beta=BETA) if torch.is_grad_enabled() else sigmoid_and_softplus(BETA * x)[1] / BETA

    def _act_slope(self, x: Tensor) -> Tensor:
        return torch.sigmoid(BETA * x) if self.activation == "softplus" else (x > 0).to(x.dtype)


def unit_vector(vector: Tensor) -> Tensor:
    """Vector / length, smoothly zero at zero: derivatives stay below 1000 where a flat sdf has no normal."""
    return vector / (vector.square().sum(-1, keepdim=True) + 1e-6).sqrt()


def _linear(feat: Tensor, weight: Tensor) -> Tensor:
    """`F.linear`, with at least 16 outputs inside: BLAS is slow at the gradients of three."""
    few = len(weight)
    return F.linear(feat, F.pad(weight, (0, 0, 0, 16 - few)))[..., :few] if few < 16 else F.linear(feat, weight)


def _join(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts, -1) if len(parts) > 1 else parts[0]


def _box(grid: VolumeGrid, like: Tensor) -> tuple[Tensor, Tensor]:
    """Lower corner and extent of each scene's box, ready to broadcast: 2 x (B, 1, 1, 3) metres."""
    bounds = grid.bounds.to(like.dtype)[:, :, None, None]
    return bounds[:, 0], bounds[:, 1] - bounds[:, 0]
