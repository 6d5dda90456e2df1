"""Block masking: hide most of a scene from the encoder behind a learnable token."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from ..structures import PointBatch


class BlockMask(nn.Module):
    """Replace the features of randomly chosen blocks of cells by a learnable token (Sec. 3.1; official mask, Sec. 4.3).

    A block is `block`^3 cells of `grid_coord`. In each scene round(n (1 - ratio)) of its n occupied blocks stay
    visible. Points keep their places: only features change. Active in training mode only. No synchronization, no
    loop over scenes.

    Args:
        in_chans: channels of the features.
        ratio: share of the blocks to hide.
        block: cells per block side.
        generator: source of randomness, on the device of the points or on the CPU; None is torch's default generator.
    """

    def __init__(
        self, in_chans: int, *, ratio: float = 0.8, block: int = 8, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        if not 0.0 <= ratio <= 1.0 or block < 1:
            raise ValueError(
                f"BlockMask expected a ratio in [0, 1] and a block size of at least 1 cell; got ratio={ratio}, "
                f"block={block}. The official setting is ratio=0.8, block=8."
            )
        self.ratio = ratio
        self.block = block
        self.generator = generator
        self.token = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, in_chans), std=0.02))

    def forward(self, points: PointBatch) -> PointBatch:
        """The same points; hidden ones have the token as their features."""
        if not self.training:
            return points
        if points.grid_coord is None:
            raise ValueError(
                "BlockMask expected points with `grid_coord` (cells at the encoder's grid size); got none. "
                "Add GridSample to the transforms."
            )
        visible = choose_visible_blocks(points, self.ratio, self.block, self._random(points.coord))
        feat = torch.where(visible[:, None], points.feat, self.token.to(points.feat.dtype))
        return replace(points, feat=feat)

    def _random(self, coord: Tensor) -> Tensor:
        device = coord.device if self.generator is None else self.generator.device
        return torch.rand(len(coord), generator=self.generator, device=device).to(coord.device)


def choose_visible_blocks(points: PointBatch, ratio: float, block: int, priority: Tensor) -> Tensor:
    """Which points lie in a visible block: (N,) bool; exactly round(n (1 - ratio)) of a scene's n blocks are visible.

    Args:
        points: with `grid_coord`.
        ratio: share of the blocks to hide.
        block: cells per block side.
        priority: (N,) random numbers in [0, 1); the i-th block takes the i-th, and those with the smallest are visible.
    """
    assert points.grid_coord is not None
    batch = points.batch
    block_of_point, scene_of_block = _number_blocks(batch, points.grid_coord, block, points.batch_size)
    # Entries beyond the number of blocks have scene B: they sort behind all others and count for nobody.
    by_priority = priority.argsort()
    order = by_priority[scene_of_block[by_priority].argsort(stable=True)]  # (N,) by scene, then by priority
    count = scene_of_block.new_zeros(points.batch_size + 1).index_add_(
        0, scene_of_block, torch.ones_like(scene_of_block)
    )
    start = count.cumsum(0) - count
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device) - start[scene_of_block[order]]
    keep = (count.double() * (1.0 - ratio)).round().long()
    return (rank < keep[scene_of_block])[block_of_point]


def _number_blocks(batch: Tensor, grid_coord: Tensor, block: int, batch_size: int) -> tuple[Tensor, Tensor]:
    """Number the occupied blocks 0, 1, ...: block of each point (N,), scene of each block (N,) padded with batch_size.

    What torch.unique does, at a fixed output size and therefore without a synchronization.
    """
    place = torch.div(grid_coord.long(), block, rounding_mode="floor")  # (N, 3)
    place = place - place.amin(0)
    size = place.amax(0) + 1
    key = ((batch * size[0] + place[:, 0]) * size[1] + place[:, 1]) * size[2] + place[:, 2]
    ordered, order = key.sort()
    new = torch.ones_like(ordered)
    new[1:] = (ordered[1:] != ordered[:-1]).long()
    number = new.cumsum(0) - 1
    block_of_point = torch.empty_like(order)
    block_of_point[order] = number
    scene_of_block = torch.full_like(batch, batch_size)
    scene_of_block[number] = batch[order]
    return block_of_point, scene_of_block
