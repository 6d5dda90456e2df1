"""Fields and rays with known answers."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ponder_zoo.render import AbstractField, AbstractSurfaceRenderer, NeuS, UniSurf, VolSDF
from ponder_zoo.render.field import Volumes
from ponder_zoo.structures import FeatureVolume, FieldOutput, RayBundle, VolumeGrid


class SphereField(AbstractField):
    """A sphere around the origin; its colour is its position."""

    def __init__(self, radius: float) -> None:
        super().__init__()
        self.radius = radius

    def sdf(self, positions: Tensor, volume: Volumes) -> Tensor:
        return positions.norm(dim=-1) - self.radius

    def forward(self, positions: Tensor, directions: Tensor, volume: Volumes) -> FieldOutput:
        rgb = (0.5 + 0.25 * positions).clamp(0.0, 1.0)
        return FieldOutput(self.sdf(positions, volume), F.normalize(positions, dim=-1), rgb)


class PlaneField(AbstractField):
    """The half-space below a height z is solid."""

    def __init__(self, height: float) -> None:
        super().__init__()
        self.height = height

    def sdf(self, positions: Tensor, volume: Volumes) -> Tensor:
        return positions[..., 2] - self.height

    def forward(self, positions: Tensor, directions: Tensor, volume: Volumes) -> FieldOutput:
        up = torch.tensor([0.0, 0.0, 1.0]).expand_as(positions)
        return FieldOutput(self.sdf(positions, volume), up, torch.full_like(positions, 0.25))


class LookupField(AbstractField):
    """The volume's only channel is the sdf itself."""

    def sdf(self, positions: Tensor, volume: Volumes) -> Tensor:
        from ponder_zoo.ops.trilinear import sample_volume

        assert isinstance(volume, FeatureVolume)
        return sample_volume(volume, positions)[..., 0]

    def forward(self, positions: Tensor, directions: Tensor, volume: Volumes) -> FieldOutput:
        return FieldOutput(self.sdf(positions, volume), torch.zeros_like(positions), torch.zeros_like(positions))


def empty_volume(channels: int = 4, half: float = 4.0, scenes: int = 1) -> FeatureVolume:
    grid = VolumeGrid(torch.tensor([[[-half] * 3, [half] * 3]]).repeat(scenes, 1, 1), (2, 2, 2))
    return FeatureVolume(torch.zeros(scenes, channels, 2, 2, 2), grid)


def random_volume(channels: int, scenes: int = 1, seed: int = 0, dtype: torch.dtype = torch.float32) -> FeatureVolume:
    generator = torch.Generator().manual_seed(seed)
    lower = torch.tensor([-1.0, -0.5, 0.0], dtype=dtype) + torch.arange(scenes, dtype=dtype)[:, None]
    bounds = torch.stack([lower, lower + lower.new_tensor([3.0, 2.0, 1.5])], 1)
    feat = torch.randn(scenes, channels, 3, 4, 5, generator=generator, dtype=dtype)
    return FeatureVolume(feat, VolumeGrid(bounds, (5, 4, 3)))


def rays_towards(target: Tensor, *, num_rays: int, distance: float, far: float, seed: int = 0) -> RayBundle:
    """Rays from all sides at `distance` from `target`, through points near it."""
    generator = torch.Generator().manual_seed(seed)
    out = F.normalize(torch.randn(num_rays, 3, generator=generator), dim=-1)
    aim = target + 0.2 * torch.randn(num_rays, 3, generator=generator).clamp(-2.0, 2.0)
    origins = target + distance * out
    return make_rays(origins[None], F.normalize(aim - origins, dim=-1)[None], far=far)


def make_rays(origins: Tensor, directions: Tensor, *, far: float, near: float = 0.05) -> RayBundle:
    shape = origins.shape[:2]
    return RayBundle(
        origins, directions, torch.full(shape, near), torch.full(shape, far), torch.ones(shape, dtype=torch.bool)
    )


def ray_sphere_distance(rays: RayBundle, radius: float) -> Tensor:
    middle = -(rays.origins * rays.directions).sum(-1)
    closest_squared = rays.origins.square().sum(-1) - middle.square()
    return middle - (radius**2 - closest_squared).sqrt()


def make_renderer(
    name: str, field: AbstractField | None = None, *, sharpness: float = 200.0
) -> AbstractSurfaceRenderer:
    """A renderer in eval mode; `sharpness` is the inverse thickness of surfaces in 1/m."""
    renderer: AbstractSurfaceRenderer
    if name == "neus":
        renderer = NeuS(4, hidden_dim=8, geo_dim=4, initial_sharpness=sharpness)
    elif name == "neus_official":
        renderer = NeuS(4, hidden_dim=8, geo_dim=4, initial_sharpness=sharpness, alpha_rule="official")
    elif name == "volsdf":
        renderer = VolSDF(4, hidden_dim=8, geo_dim=4, initial_beta=1.0 / sharpness)
    else:
        renderer = UniSurf(4, hidden_dim=8, geo_dim=4, initial_sharpness=sharpness)
    if field is not None:
        renderer.field = field
    return renderer.eval()


def set_sharpness(renderer: AbstractSurfaceRenderer, value: float) -> None:
    with torch.no_grad():
        if isinstance(renderer, VolSDF):
            renderer.beta_parameter.fill_(1.0 / value)
        else:
            renderer.log_sharpness.fill_(math.log(value) / 10.0)  # type: ignore[operator]
