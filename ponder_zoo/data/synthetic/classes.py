"""Class names, the generator's version, and one random stream per purpose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeVar

import numpy as np

GENERATOR_VERSION = 1  # Bump on any change of what a (seed, scene) looks like: caches and golden hashes depend on it.

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")

# The 20 classes of the ScanNet benchmark in its order, so that heads and metrics carry over to real scans.
CLASSES: tuple[str, ...] = (
    "wall",
    "floor",
    "cabinet",
    "bed",
    "chair",
    "sofa",
    "table",
    "door",
    "window",
    "bookshelf",
    "picture",
    "counter",
    "desk",
    "curtain",
    "refrigerator",
    "shower curtain",
    "toilet",
    "sink",
    "bathtub",
    "otherfurniture",
)
CLASS_INDEX: dict[str, int] = {name: index for index, name in enumerate(CLASSES)}
# ScanNet leaves ceilings and other structure (beams, columns) unlabelled in its 20 classes; so do we.
IGNORED = -1

_STREAMS = ("layout", "materials", "cameras", "sensor", "samples")
T = TypeVar("T")


def stream(seed: int, split: Split, scene: int, purpose: str) -> np.random.Generator:
    """The random stream of one purpose for one scene; a change in one stream's use does not shift the others."""
    key = [GENERATOR_VERSION, seed, SPLITS.index(split), scene, _STREAMS.index(purpose)]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))


class Draw:
    """Draws for the scene grammar: everything is made of uniform numbers, whose stream numpy keeps stable.

    `held_out` opens the styles that only the test split shows.
    """

    def __init__(self, rng: np.random.Generator, *, held_out: bool = False) -> None:
        self.rng = rng
        self.held_out = held_out

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * float(self.rng.random())

    def chance(self, probability: float) -> bool:
        return float(self.rng.random()) < probability

    def integer(self, low: int, high: int) -> int:
        """Uniform in low..high, both included."""
        return low + int(self.rng.random() * (high - low + 1))

    def pick(self, options: Sequence[T]) -> T:
        return options[int(self.rng.random() * len(options))]

    def shuffled(self, options: Sequence[T]) -> list[T]:
        return [options[i] for i in np.argsort(self.rng.random(len(options)), kind="stable")]

    def style(self, common: Sequence[T], held_out: Sequence[T]) -> T:
        """A part style: in the test split half of the draws come from styles that the other splits never show."""
        coin, which = self.chance(0.5), float(self.rng.random())
        options = held_out if self.held_out and coin else common
        return options[int(which * len(options))]
