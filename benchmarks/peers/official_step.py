"""The official pre-training step, put together of peers: spconv, pooling per scene, dense U-Net and renderer.

Everything as the official code has it: channel-first volumes, scene by scene. One thing is less: the sparse U-Net has
plain norms, where the official one (and ours in this comparison) has prompt-driven ones.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ponder_zoo.structures import PointBatch
from ponder_zoo.volume.unet3d import UNet3D

from .channel_first import ChannelFirstUNet
from .official_renderer import OfficialRenderer, Output, official_losses
from .spconv_unet import SpconvUNet, sites

GRID_SIZE = 0.02  # metres


class OfficialPonder(nn.Module):
    """Points and rays of scenes in their unit cubes -> loss terms."""

    def __init__(self, volume_shape: tuple[int, int, int] = (128, 128, 32)) -> None:
        super().__init__()
        self.backbone = SpconvUNet(6)
        self.proj_net = ChannelFirstUNet(UNet3D(96, 128))
        self.renderer = OfficialRenderer()
        self.volume_shape = volume_shape

    def forward(
        self,
        points: PointBatch,
        metres_per_unit: Tensor,
        origins: Tensor,
        directions: Tensor,
        depth: Tensor,
        rgb: Tensor,
        semantic: Tensor,
    ) -> Output:
        """`points` have cube coordinates; rays are (B, R, 3), targets (B, R, ...)."""
        feat = self.backbone(points.feat, *sites(points), points.batch_size)
        volumes = self.proj_net(self.pool(points, feat, metres_per_unit))
        outputs = [self.renderer(volume, origins[b], directions[b]) for b, volume in enumerate(volumes)]
        joined = {name: torch.cat([output[name] for output in outputs]) for name in outputs[0]}
        return official_losses(joined, depth.flatten(), rgb.flatten(0, 1), semantic.flatten(0, 1))

    def pool(self, points: PointBatch, feat: Tensor, metres_per_unit: Tensor) -> Tensor:
        """Mean of the features in each cell, (B, C, Z, Y, X)."""
        X, Y, Z = self.volume_shape
        volumes = []
        for b in range(points.batch_size):
            rows = points.batch == b
            steps = ((points.coord[rows] + 0.5) * metres_per_unit[b] / GRID_SIZE).floor()
            resolution = (metres_per_unit[b] / GRID_SIZE).floor() + 2.0
            cell = (steps / (resolution / steps.new_tensor([X, Y, Z]))).floor().long()
            index = (cell[:, 0] * Y + cell[:, 1]) * Z + cell[:, 2]
            total = feat.new_zeros(X * Y * Z, feat.shape[1]).index_add(0, index, feat[rows])
            count = feat.new_zeros(X * Y * Z).index_add(0, index, torch.ones_like(index, dtype=feat.dtype))
            mean = total / count.clamp(min=1.0)[:, None]
            volumes.append(mean.view(X, Y, Z, -1).permute(3, 2, 1, 0))
        return torch.stack(volumes).contiguous()
