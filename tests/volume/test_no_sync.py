from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ponder_zoo.ops.trilinear import sample_volume_with_gradient
from ponder_zoo.structures import FeatureVolume, PointBatch, VolumeGrid
from ponder_zoo.volume import BlockMask, UNet3D, densify

WAITING = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "is_nonzero",
}


class Watch(TorchDispatchMode):
    """Fails on operators that would make the host wait for a device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in WAITING, name
        if name == "index":
            assert all(i is None or i.dtype != torch.bool for i in args[1]), "boolean indexing"
        return func(*args, **kwargs or {})


def test_from_points_to_samples_and_back_nothing_waits_for_the_device() -> None:
    coord = torch.rand(90, 3)
    points = PointBatch(coord, torch.rand(90, 4, requires_grad=True), torch.tensor([50, 90]), (coord / 0.05).int())
    grid = VolumeGrid(torch.tensor([[[0.0] * 3, [1.0] * 3]]).expand(2, 2, 3), (8, 8, 4))
    mask, unet = BlockMask(4, block=4), UNet3D(4, 6, channels=(4, 8))
    positions = torch.rand(2, 3, 5, 3, requires_grad=True)
    with Watch():
        volume = FeatureVolume(unet(densify(mask(points), grid).feat), grid)
        feat, gradient = sample_volume_with_gradient(volume, positions)
        (feat.sum() + gradient(feat).square().sum()).backward()
    assert positions.grad is not None and points.feat.grad is not None
