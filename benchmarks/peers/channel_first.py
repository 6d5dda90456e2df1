"""The dense U-Net in torch's default memory order (channels first): the same layers and weights as ours."""

from __future__ import annotations

from torch import Tensor, nn

from ponder_zoo.volume.unet3d import UNet3D


class ChannelFirstUNet(nn.Module):
    """Runs the layers of a `UNet3D` without any change of memory order."""

    def __init__(self, unet: UNet3D) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, volume: Tensor) -> Tensor:
        unet, skips, x = self.unet, [], volume
        for level, block in enumerate(unet.encoder):
            x = _norm_conv(block, unet.pool(x) if level > 0 else x)
            skips.append(x)
        for block, skip in zip(unet.decoder, reversed(skips[:-1]), strict=True):
            x = _norm_conv(block.block, block.upsample(x) + skip)
        return unet.head(x)


def _norm_conv(block: nn.Module, x: Tensor) -> Tensor:
    return block.conv(block.norm(x)).relu()
