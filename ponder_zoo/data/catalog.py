"""Data sets by name, as the recipes' `data.name=` and `data.root=` select them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from .pretrain import PretrainDataset
from .scene import Scene
from .transforms import Compose, RandomDropout, pretrain_transforms

Split = Literal["train", "val", "test"]
KEPT_ROOMS = 48  # of the generator, in memory: 10 MB each at the default size, five times faster than from its cache


@dataclass(frozen=True)
class DataConfig:
    """Which scenes, and how they become items. Lengths in metres."""

    # synthetic, synthetic:S3DIS, rgbd, scannet_labelled, or prepared: scannet, scannet200, s3dis, structured3d; several
    # with commas train jointly
    name: str = "synthetic"
    # Folder of each set that has files, with commas, a URL for prepared ones; several of them if there is one such set
    root: str | None = None
    ratios: tuple[int, ...] | None = None  # batches of each set per round; null is one of each
    condition: str | None = None  # of each set with commas, for encoders with norms per set; null: the model's
    workers: int = 0  # processes that load data beside each training process
    # The built-in rooms (synthetic)
    scenes: int = 24  # rooms to train on
    val_scenes: int = 4  # rooms to evaluate on, of other seeds
    views: int = 10  # images per room
    image_size: tuple[int, int] = (96, 128)  # H, W of them
    sensor: Literal["off", "kinect", "tof"] = "kinect"
    cache: str | None = "~/.cache/ponder_zoo/rooms"  # folder for finished rooms; null for none
    # Posed RGB-D frames (rgbd)
    views_per_item: int = 5  # paper Sec. 4.2.2
    frame_interval: int = 4  # frames between the views of an item
    holdout_every: int = 10  # one frame in so many is never trained on
    max_points: int | None = 100_000  # of an item, before grid sampling
    # Labelled scans (scannet_labelled)
    val_every: int = 3  # one room in so many is for evaluation
    val_fold: int | None = None  # which of these groups of rooms, from 0; null: the last
    # Prepared data sets
    val_area: int = 5  # of S3DIS, for evaluation; each in turn for the 6-fold score


class Prepared(NamedTuple):
    """Where a name is in prepared data."""

    dataset: str
    label_set: str
    condition: str


PREPARED = {
    "scannet": Prepared("scannet", "segment", "ScanNet"),
    "scannet200": Prepared("scannet", "ScanNet200", "ScanNet"),
    "s3dis": Prepared("s3dis", "segment", "S3DIS"),
    "structured3d": Prepared("structured3d", "segment", "Structured3D"),
}


class Source:
    """A map-style data set of scenes under its name; keeps the scenes it gave last.

    Args:
        name: as in `data.name`.
        scenes: the data set.
        condition: set on every scene.
        keep: number of scenes to keep in memory.
    """

    def __init__(self, name: str, scenes: Any, *, condition: str | None = None, keep: int = 0) -> None:
        self.name, self.scenes, self.condition, self.keep = name, scenes, condition, keep
        self._get = lru_cache(maxsize=keep)(self._read)

    def __reduce__(self) -> tuple[Any, ...]:
        """For loader workers that are not forked: without the scenes it kept."""
        return partial(Source, condition=self.condition, keep=self.keep), (self.name, self.scenes)

    def with_scenes(self, scenes: Any) -> Source:
        """The same with other scenes."""
        return Source(self.name, scenes, condition=self.condition, keep=self.keep)

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> Scene:
        return self._get(index)

    def _read(self, index: int) -> Scene:
        scene = self.scenes[index]
        return scene if self.condition is None else replace(scene, condition=self.condition)

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.scenes.classes)


def open_views(config: DataConfig, split: Split) -> list[Source]:
    """Sources of scenes with views to render, one per name."""
    prepared = {name: partial(_prepared, name, views=True) for name in PREPARED}
    return _open(config, split, {"synthetic": _synthetic, "rgbd": _rgbd} | prepared)


def open_labelled(config: DataConfig, split: Split) -> list[Source]:
    """Sources of labelled scenes, one per name; each has its own `classes`.

    Raises:
        ValueError: for an unknown name or a missing folder.
    """
    prepared = {name: partial(_prepared, name, views=False) for name in PREPARED}
    return _open(config, split, {"synthetic": _synthetic, "scannet_labelled": _scannet_labelled} | prepared)


def pretrain_dataset(
    source: Source, split: Split, *, grid_size: float, dropout: float, recolor: bool = False, **options: Any
) -> PretrainDataset:
    """Items of one source: augmented for training; for "val", what `evaluate.py` renders.

    Of a room of the generator, `input_views` of its images give the points and others are rendered. A source of frames
    chooses on its own: its windows in training, held-out frames in validation. Prepared scenes have points; any
    `target_views` of their images are rendered.

    Args:
        source: from `open_views`.
        split: as given there.
        grid_size: metres.
        dropout: share of the points to hide, in validation as well: the norms' statistics depend on the density.
        recolor: give each scene other colours in training; see `pretrain_transforms`.
        options: of PretrainDataset.
    """
    if source.name in PREPARED:
        options = options | {"input_views": None} | ({"target_views": 2} if split == "val" else {})
    elif not _is_synthetic(source.name):
        options = {key: value for key, value in options.items() if key not in ("input_views", "target_views")}
    elif split == "val":
        options = options | {"targets": "unseen", "target_views": 2}
    transform = pretrain_transforms(grid_size, dropout=dropout, recolor=recolor, augment=split == "train")
    if split == "val":
        transform = Compose((RandomDropout(dropout, p=1.0), transform))
    return PretrainDataset(source, transform=transform, **options)


def _open(
    config: DataConfig, split: Split, openers: dict[str, Callable[[DataConfig, Split, Any], Any]]
) -> list[Source]:
    names = [name.strip() for name in config.name.split(",")]
    unknown = [name for name in names if _kind(name) not in openers]
    if unknown:
        raise ValueError(
            f"Expected data.name to be some of {sorted(openers)} for this task, got {unknown}. "
            "Write one name, or several with commas."
        )
    roots = _roots(config, [name for name in names if not _is_synthetic(name)])
    conditions = [None] * len(names) if config.condition is None else [c.strip() for c in config.condition.split(",")]
    if len(conditions) != len(names):
        raise ValueError(f"Expected one data.condition for each of {names}, got {conditions}. Separate them by commas.")
    sources = []
    for name, condition in zip(names, conditions, strict=True):
        space = name.partition(":")[2] or None
        scenes = openers[_kind(name)](config, split, space if _is_synthetic(name) else roots.pop(0))
        keep = KEPT_ROOMS if _is_synthetic(name) else 0
        default = PREPARED[name].condition if name in PREPARED else space
        sources.append(Source(name, scenes, condition=condition or default, keep=keep))
    return sources


def _roots(config: DataConfig, names: list[str]) -> list[list[str]]:
    """The folders of each set that has files: one each, or all of them for a single set."""
    roots = [] if config.root is None else [root.strip() for root in config.root.split(",")]
    if len(names) == 1 and roots:
        return [roots]
    if len(roots) != len(names):
        raise ValueError(
            f"Expected one folder in data.root for each set with files ({names or 'none'}), got {roots}. "
            "Separate them by commas, in the order of data.name."
        )
    return [[root] for root in roots]


def _kind(name: str) -> str:
    return name.partition(":")[0]


def _is_synthetic(name: str) -> bool:
    return _kind(name) == "synthetic"


def _synthetic(config: DataConfig, split: Split, space: str | None) -> Any:
    """The built-in rooms; with a label space, those of another seed, recorded as for that data set."""
    from .synthetic import SyntheticRooms
    from .synthetic.label_spaces import SPACES

    if space is not None and space not in SPACES:
        raise ValueError(f"Expected data.name=synthetic:SPACE with one of {sorted(SPACES)}, got {space!r}.")
    options: dict[str, Any] = {"sensor": config.sensor}
    if space is not None:
        options = {"sensor": SPACES[space].sensor, "seed": SPACES[space].seed, "labels": space}
    return SyntheticRooms(
        split,
        num_scenes=config.scenes if split == "train" else config.val_scenes,
        num_views=config.views,
        image_size=config.image_size,
        cache_dir=None if config.cache is None else Path(config.cache).expanduser(),
        **options,
    )


def _without_test(name: str, split: Split) -> Literal["train", "val"]:
    if split == "test":
        raise ValueError(f"Expected split=train or val, got test, which {name} does not have. Evaluate with split=val.")
    return split


def _rgbd(config: DataConfig, split: Split, root: Any) -> Any:
    from .rgbd import PosedRGBD

    return PosedRGBD(
        root,
        _without_test("rgbd", split),
        views_per_item=config.views_per_item,
        frame_interval=config.frame_interval,
        holdout_every=config.holdout_every,
        max_points=config.max_points,
    )


def _scannet_labelled(config: DataConfig, split: Split, root: Any) -> Any:
    from .labelled import LabelledScans

    if len(root) > 1:
        raise ValueError(f"Expected one folder in data.root for scannet_labelled, got {root}. Put the scans together.")
    split = _without_test("scannet_labelled", split)
    return LabelledScans(root[0], split, val_every=config.val_every, val_fold=config.val_fold)


def _prepared(name: str, config: DataConfig, split: Split, root: Any, *, views: bool) -> Any:
    from .prepared import PreparedScenes

    dataset, label_set, _ = PREPARED[name]
    if len(root) > 1:
        raise ValueError(f"Expected one folder or URL in data.root for {name}, got {root}.")
    splits = [split]
    if dataset == "s3dis":
        split = _without_test(name, split)
        areas = {f"Area_{number}" for number in range(1, 7)}
        held_out = {f"Area_{config.val_area}"}
        if not held_out <= areas:
            raise ValueError(f"Expected data.val_area to be 1 to 6, got {config.val_area}.")
        splits = sorted(held_out if split == "val" else areas - held_out)
    labelled = not views and split != "test"  # labels of test scenes may be the benchmark's secret
    return PreparedScenes(root[0], splits, dataset=dataset, label_set=label_set, views=views, labelled=labelled)
