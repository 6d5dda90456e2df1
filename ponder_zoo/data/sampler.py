"""Random numbers and order that depend on (seed, epoch, index) alone: any number of workers and a resume agree."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

Key = int | tuple[int, int]  # index, or (epoch, index)


class EpochSampler(Sampler[tuple[int, int]]):
    """Yield (epoch, index) for every item of a data set once, in an order that depends on the seed and the epoch.

    `set_epoch` chooses the epoch; it advances by itself when an iteration ends. Data sets of this package take such
    keys and draw from `item_rng(seed, epoch, index)`, so workers that outlive an epoch need not be told of the next.
    """

    def __init__(self, num_items: int, *, shuffle: bool = True, seed: int = 0, epoch: int = 0) -> None:
        self.num_items = num_items
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_items

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch = self.epoch
        order = np.arange(self.num_items)
        if self.shuffle:
            order = np.random.default_rng(np.random.SeedSequence([self.seed, epoch])).permutation(self.num_items)
        for index in order.tolist():
            yield epoch, index
        self.epoch = epoch + 1


def item_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The generator of one item."""
    return np.random.default_rng(np.random.SeedSequence([seed, epoch, index]))


def split_key(key: Key, num_items: int, epoch: int = 0) -> tuple[int, int]:
    """(epoch, index) of a key, with the index checked as in a list."""
    if isinstance(key, tuple):
        epoch, key = key
    return epoch, range(num_items)[key]
