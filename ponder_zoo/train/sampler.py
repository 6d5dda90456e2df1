"""Which items make up which step: a function of the seed and the step alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch.utils.data import Dataset, Sampler


class ItemKey(NamedTuple):
    """An item of one of several sources, in a pass over that source: all that decides its random choices."""

    source: int
    epoch: int
    index: int


class StepSampler(Sampler[list[ItemKey]]):
    """Batches of the steps `start..stop`, for this process.

    The items of step s do not depend on where a run was interrupted or on how many processes share the batch: each
    source is an endless sequence of shuffled passes, step s takes the next `batch_size` items of it, and process p of P
    takes the p-th part of each. There is no position to save beside the step.

    Several sources take turns by whole batches, `ratios[i]` batches of source i at a time, so that a batch has one
    *condition* (data set) on all processes.

    Args:
        lengths: number of items of each source.
        batch_size: items per step, over all processes and accumulated parts.
        ratios: batches of each source per round.
        seed: of the shuffles.
        start: first step to give.
        stop: step to stop before.
        parts: gradient accumulation; each step yields this many batches.
        processes: how many processes share a batch.
        process: index of this one.
        shuffle: False gives each pass in order.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        *,
        stop: int,
        start: int = 0,
        ratios: Sequence[int] | None = None,
        seed: int = 0,
        parts: int = 1,
        processes: int = 1,
        process: int = 0,
        shuffle: bool = True,
    ) -> None:
        if not lengths or min(lengths) < 1:
            raise ValueError(
                f"Expected at least one item in each source, got lengths {list(lengths)}. Check data.root."
            )
        if batch_size % (parts * processes):
            raise ValueError(
                f"Expected a batch that {processes} processes x {parts} accumulated parts divide, got {batch_size} "
                f"items. Choose a multiple of {parts * processes}."
            )
        self.lengths, self.batch_size, self.seed, self.shuffle = list(lengths), batch_size, seed, shuffle
        self.ratios = list(ratios) if ratios is not None else [1] * len(self.lengths)
        if len(self.ratios) != len(self.lengths) or min(self.ratios) < 1:
            raise ValueError(f"Expected one ratio >= 1 for each of {len(lengths)} sources, got {self.ratios}.")
        self.start, self.stop, self.parts, self.processes, self.process = start, stop, parts, processes, process
        self._pass = lru_cache(maxsize=2 * len(self.lengths))(self._shuffled)

    def __len__(self) -> int:
        return max(self.stop - self.start, 0) * self.parts

    def __iter__(self) -> Iterator[list[ItemKey]]:
        share = self.batch_size // (self.parts * self.processes)
        for step in range(self.start, self.stop):
            items = self.items(step)
            for part in range(self.parts):
                first = (part * self.processes + self.process) * share
                yield items[first : first + share]

    def items(self, step: int) -> list[ItemKey]:
        """The whole batch of a step, over all processes and parts."""
        source, turn = self._turn(step)
        length = self.lengths[source]
        positions = range(turn * self.batch_size, (turn + 1) * self.batch_size)
        return [ItemKey(source, p // length, self._pass(source, p // length)[p % length]) for p in positions]

    def describe(self) -> dict[str, Any]:
        """What decides the order, to be compared when a run resumes."""
        keys = ("lengths", "batch_size", "ratios", "seed", "shuffle")
        return {key: getattr(self, key) for key in keys}

    def _turn(self, step: int) -> tuple[int, int]:
        """(source of a step, how many batches of that source came before)."""
        schedule = [source for source, ratio in enumerate(self.ratios) for _ in range(ratio)]
        rounds, place = divmod(step, len(schedule))
        source = schedule[place]
        return source, rounds * self.ratios[source] + schedule[:place].count(source)

    def _shuffled(self, source: int, epoch: int) -> list[int]:
        if not self.shuffle:
            return list(range(self.lengths[source]))
        # One integer from three, far apart: a sum would give source 1 of epoch 0 the shuffle of source 0 of epoch 1.
        seed = (self.seed * 1_000_003 + source) * 1_000_003 + epoch
        return torch.randperm(self.lengths[source], generator=torch.Generator().manual_seed(seed % 2**63)).tolist()


class JointDataset(Dataset[Any]):
    """Several data sets behind one loader: key (source, epoch, index) -> `sources[source][epoch, index]`."""

    def __init__(self, sources: Sequence[Any]) -> None:
        self.sources = list(sources)

    def __len__(self) -> int:
        return sum(len(source) for source in self.sources)

    def __getitem__(self, key: ItemKey) -> Any:
        source, epoch, index = key
        return self.sources[source][epoch, index]
