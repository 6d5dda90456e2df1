"""Items per second that one worker of a data loader makes: scenes read or generated, augmented, sampled, with rays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from ponder_zoo.data import (
    LabelledScans,
    PointCollate,
    PosedRGBD,
    PretrainCollate,
    PretrainDataset,
    SegmentationDataset,
    SyntheticRooms,
    pretrain_transforms,
    segmentation_train_transforms,
)

from .harness import Call, Case
from .machine import ROOT, device

SHARED = Path(ROOT).parent / "shared/data"  # small real samples, where they are beside the repository
PER_CALL = 4  # items
PAPER = {"volume_shape": (128, 128, 32), "rays_per_view": 128}


def cases() -> Iterator[Case]:
    """No peer: what counts is whether a worker keeps up with a step."""
    if device().type != "cpu":
        return
    sources: dict[str, Callable[[], Call]] = {
        "pipeline/pretrain/rooms": lambda: _items(_rooms(kept=True), PretrainCollate()),
        "pipeline/pretrain/rooms_generated": lambda: _items(_rooms(kept=False), PretrainCollate()),
        "pipeline/segmentation/rooms": lambda: _items(_labelled_rooms(), PointCollate()),
    }
    if (SHARED / "rgbd/7scenes_redkitchen").is_dir():
        sources["pipeline/pretrain/frames"] = lambda: _items(_frames(), PretrainCollate())
    if (SHARED / "indoor/scannet_labelled").is_dir():
        sources["pipeline/segmentation/scans"] = lambda: _items(_scans(), PointCollate())
    for name, setup in sources.items():
        yield Case(name=name, peer="none", ours=setup, repeats=5, items=PER_CALL, unit="items")


class _Kept:
    """Scenes in memory."""

    def __init__(self, scenes: Any, count: int) -> None:
        self.scenes = [scenes[index] for index in range(count)]

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> Any:
        return self.scenes[index]


def _synthetic() -> SyntheticRooms:
    return SyntheticRooms("train", num_scenes=1000, num_views=10, image_size=(96, 128), cache_dir=None)


def _rooms(kept: bool) -> PretrainDataset:
    """Pre-training items as recipes/pretrain.py makes them."""
    source = _Kept(_synthetic(), 2) if kept else _synthetic()
    transform = pretrain_transforms(0.08, dropout=0.3, recolor=True)
    options: dict[str, Any] = {"volume_shape": (48, 48, 24), "rays_per_view": 96, "margin": 0.3}
    return PretrainDataset(source, transform=transform, input_views=7, target_views=5, **options)


def _frames() -> PretrainDataset:
    """Five posed 640 x 480 frames in the paper's indoor settings."""
    source = PosedRGBD([SHARED / "rgbd/7scenes_redkitchen"], "train", max_points=None)
    return PretrainDataset(source, transform=pretrain_transforms(0.02), **PAPER)


def _labelled_rooms() -> SegmentationDataset:
    return SegmentationDataset(_Kept(_synthetic(), 2), transform=segmentation_train_transforms())


def _scans() -> SegmentationDataset:
    source = LabelledScans(SHARED / "indoor/scannet_labelled", "train")
    return SegmentationDataset(source, transform=segmentation_train_transforms())


def _items(dataset: Any, collate: Callable[[list[Any]], object]) -> Call:
    """Makes the next items on one thread, as a worker does, and packs them."""
    position = 0

    def call() -> object:
        nonlocal position
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            keys = range(position, position + PER_CALL)
            position += PER_CALL
            return collate([dataset[(key // len(dataset), key % len(dataset))] for key in keys])
        finally:
            torch.set_num_threads(threads)

    return call
