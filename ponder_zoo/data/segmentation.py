"""Labelled scenes with augmentation, for fine-tuning."""

from __future__ import annotations

from typing import Protocol

from .checks import check_scene
from .sampler import Key, item_rng, split_key
from .scene import Scene
from .transforms import Transform


class SceneSource(Protocol):
    """A map-style data set of scenes."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Scene: ...


class SegmentationDataset:
    """A source of scenes with a transform; batch its items with `data.collate.PointCollate`.

    Args:
        source: map-style data set of labelled scenes.
        transform: for example `segmentation_train_transforms()`.
        seed: with the epoch and the index it decides what the transform draws.
        max_extent: metres; see `check_scene`.

    Items are taken by index (epoch 0) or by (epoch, index), which `EpochSampler` yields.
    """

    def __init__(self, source: SceneSource, *, transform: Transform, seed: int = 0, max_extent: float = 100.0) -> None:
        self.source = source
        self.transform = transform
        self.seed = seed
        self.max_extent = max_extent

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: Key) -> Scene:
        epoch, index = split_key(key, len(self))
        scene = self.source[index]
        check_scene(scene, max_extent=self.max_extent)
        return self.transform(scene, item_rng(self.seed, epoch, index))
