from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ponder_zoo.structures import PointBatch
from ponder_zoo.volume import BlockMask


def make_points(counts: tuple[int, ...] = (400, 300)) -> PointBatch:
    num = sum(counts)
    grid_coord = torch.randint(-20, 40, (num, 3), dtype=torch.int32)
    return PointBatch(torch.rand(num, 3), torch.rand(num, 4) + 1.0, torch.tensor(counts).cumsum(0), grid_coord)


def block_names(points: PointBatch, size: int) -> list[tuple]:
    blocks = (points.grid_coord.double() / size).floor().long()
    return [tuple(row) for row in torch.cat([points.batch[:, None], blocks], 1).tolist()]


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.8, 1.0])
def test_the_share_of_hidden_blocks_is_exact_in_each_scene(ratio: float) -> None:
    points = make_points()
    mask = BlockMask(4, ratio=ratio, block=8, generator=torch.Generator().manual_seed(3))
    feat = mask(points).feat
    hidden = (feat == mask.token).all(1)
    assert ((feat == points.feat).all(1) != hidden).all()
    visible: dict[tuple, set[bool]] = {}
    for name, is_hidden in zip(block_names(points, 8), hidden.tolist(), strict=True):
        visible.setdefault(name, set()).add(not is_hidden)
    assert all(len(seen) == 1 for seen in visible.values())  # blocks are hidden as a whole
    for scene in range(2):
        blocks = [next(iter(seen)) for name, seen in visible.items() if name[0] == scene]
        assert sum(blocks) == round(len(blocks) * (1 - ratio))


def test_every_block_is_hidden_equally_often() -> None:
    grid_coord = torch.arange(10)[:, None].expand(10, 3).int() * 8
    points = PointBatch(torch.rand(10, 3), torch.ones(10, 1), torch.tensor([10]), grid_coord)
    mask = BlockMask(1, ratio=0.8, generator=torch.Generator().manual_seed(0))
    visible = torch.stack([mask(points).feat[:, 0] == 1.0 for _ in range(400)]).double().mean(0)
    assert (visible - 0.2).abs().max() < 0.08  # four standard deviations


def test_the_seed_decides() -> None:
    points = make_points()
    first, again, other = (
        BlockMask(4, generator=torch.Generator().manual_seed(seed))(points).feat == points.feat for seed in (1, 1, 2)
    )
    assert (first == again).all() and (first != other).any()


def test_the_token_learns_and_evaluation_hides_nothing() -> None:
    points = make_points()
    mask = BlockMask(4)
    mask(points).feat.sum().backward()
    assert mask.token.grad is not None and (mask.token.grad > 0).all()
    assert mask.eval()(points) is points


def test_errors_say_what_to_do() -> None:
    with pytest.raises(ValueError, match="GridSample"):
        BlockMask(4)(replace(make_points(), grid_coord=None))
    with pytest.raises(ValueError, match=r"ratio in \[0, 1\]"):
        BlockMask(4, ratio=80)
