from __future__ import annotations

import pytest
import torch

from ponder_zoo.train.sampler import ItemKey, JointDataset, StepSampler


def test_every_pass_sees_every_item_once_in_a_new_order():
    keys = [key for batch in StepSampler([10], 4, stop=5) for key in batch]
    passes = [[key.index for key in keys if key.epoch == epoch] for epoch in (0, 1)]
    assert sorted(passes[0]) == sorted(passes[1]) == list(range(10)) and passes[0] != passes[1]


def test_processes_and_parts_share_the_batch_of_one():
    whole = list(StepSampler([7, 5], 8, stop=6, ratios=[2, 1], seed=3))
    for processes, parts in ((2, 1), (4, 1), (1, 2), (2, 2)):
        shares = [
            list(StepSampler([7, 5], 8, stop=6, ratios=[2, 1], seed=3, processes=processes, process=p, parts=parts))
            for p in range(processes)
        ]
        for step in range(6):
            batch = [key for part in range(parts) for share in shares for key in share[step * parts + part]]
            assert batch == whole[step]


def test_a_later_start_goes_on_with_the_same_batches():
    assert list(StepSampler([9], 2, stop=8))[5:] == list(StepSampler([9], 2, start=5, stop=8))
    assert len(StepSampler([9], 2, start=5, stop=8, parts=2)) == 6


def test_sources_take_turns_by_their_ratios_and_batches_are_pure():
    batches = list(StepSampler([4, 4], 2, stop=6, ratios=[2, 1]))
    assert [batch[0].source for batch in batches] == [0, 0, 1, 0, 0, 1]
    assert all(len({key.source for key in batch}) == 1 for batch in batches)
    second = [key for batch in batches if batch[0].source == 1 for key in batch]
    assert sorted(key.index for key in second) == [0, 1, 2, 3]


def test_sources_and_seeds_have_their_own_orders():
    def order(**kwargs):
        return [key.index for batch in StepSampler([50], 50, stop=1, **kwargs) for key in batch]

    assert order(seed=0) != order(seed=1)
    both = list(StepSampler([50, 50], 50, stop=2))
    assert [key.index for key in both[0]] != [key.index for key in both[1]]
    assert order(shuffle=False) == list(range(50))


def test_a_set_smaller_than_the_batch_repeats_with_new_epochs():
    (batch,) = StepSampler([2], 5, stop=1)
    assert [key.epoch for key in batch] == [0, 0, 1, 1, 2]


@pytest.mark.parametrize(
    ("lengths", "batch", "kwargs", "message"),
    [
        ([0], 2, {}, "at least one item"),
        ([4], 3, {"processes": 2}, "multiple of 2"),
        ([4], 2, {"ratios": [1, 1]}, "ratio"),
    ],
)
def test_impossible_requests_are_explained(lengths, batch, kwargs, message):
    with pytest.raises(ValueError, match=message):
        StepSampler(lengths, batch, stop=1, **kwargs)


class Numbers(torch.utils.data.Dataset):
    def __init__(self, name):
        self.name = name

    def __len__(self):
        return 3

    def __getitem__(self, key):
        return (self.name, *key)


def test_workers_give_the_items_that_the_keys_name():
    data = JointDataset([Numbers("a"), Numbers("b")])
    sampler = StepSampler([3, 3], 2, stop=4)
    loader = torch.utils.data.DataLoader(data, batch_sampler=sampler, num_workers=1, collate_fn=list)
    expected = [[("ab"[key.source], key.epoch, key.index) for key in batch] for batch in sampler]
    assert list(loader) == expected and len(data) == 6
    assert data[ItemKey(1, 4, 2)] == ("b", 4, 2)
