"""How far colour, height and normal alone give the class away: nearest neighbours on generated rooms held out.

`python -m ponder_zoo.data.synthetic.baseline` prints the share of each class and the mean IoU of several feature sets.
A generator whose classes follow from the colour or the height of a point would teach an encoder nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .classes import CLASSES, Split
from .dataset import SyntheticRooms
from .layout import Room
from .primitives import Float

# Columns of the point features: colour (in 0-1), height in metres, normal. Each is standardised before the search.
FEATURES: dict[str, slice | list[int]] = {
    "colour": slice(0, 3),
    "height": slice(3, 4),
    "height + normal": slice(3, 7),
    "colour + height + normal": slice(0, 7),
}


def point_features(rooms: SyntheticRooms, per_scene: int) -> tuple[Float, NDArray[np.int64]]:
    """Features (N, 7) and classes (N,) of evenly spaced labelled points of all scenes."""
    features, labels = [], []
    for index in range(len(rooms)):
        scene = rooms[index]
        assert scene.color is not None and scene.normal is not None and scene.segment is not None
        rows = np.flatnonzero(scene.segment >= 0)
        rows = rows[np.linspace(0, len(rows) - 1, min(per_scene, len(rows))).astype(int)]
        features.append(np.column_stack([scene.color[rows] / 255, scene.coord[rows, 2], scene.normal[rows]]))
        labels.append(scene.segment[rows])
    return np.concatenate(features), np.concatenate(labels)


def nearest_neighbour_labels(train: Float, labels: NDArray[np.int64], test: Float, *, k: int = 15) -> NDArray[np.int64]:
    """Majority class among the k nearest training rows, after standardising the columns: (N,)."""
    from scipy.spatial import KDTree

    mean, spread = train.mean(0), train.std(0) + 1e-9
    _, near = KDTree((train - mean) / spread).query((test - mean) / spread, k=k)
    votes = labels[near.reshape(len(test), -1)]
    counts = np.stack([(votes == c).sum(1) for c in range(len(CLASSES))], 1)
    return counts.argmax(1)


def mean_iou(predicted: NDArray[np.int64], labels: NDArray[np.int64]) -> float:
    """Mean over the classes that occur in the labels of intersection over union."""
    classes = np.unique(labels)
    ious = [((predicted == c) & (labels == c)).sum() / ((predicted == c) | (labels == c)).sum() for c in classes]
    return float(np.mean(ious))


Points = tuple[Float, NDArray[np.int64]]  # features (N, 7) and classes (N,), from `point_features`


def feature_baselines(train: Points, test: Points) -> dict[str, float]:
    """Mean IoU in [0, 1] on test points for each of `FEATURES`, by its name."""
    (x, y), (x_test, y_test) = train, test
    return {
        name: mean_iou(nearest_neighbour_labels(x[:, columns], y, x_test[:, columns]), y_test)
        for name, columns in FEATURES.items()
    }


def instance_descriptors(room: Room) -> Float:
    """What whole objects look like: extents, heights, kinds and number of parts, size of the room: (I, 10)."""
    p = room.primitives
    rows = []
    for index, instance in enumerate(room.instances):
        kinds = p.kind[p.instance == index]
        flat = np.sort(instance.size[:2])
        low, high = instance.center[2] - instance.size[2] / 2, instance.center[2] + instance.size[2] / 2
        parts = [np.sqrt((kinds == k).sum()) for k in range(3)]
        rows.append([*flat, instance.size[2], low, high, *parts, np.sqrt(len(kinds)), np.sqrt(room.plan.area)])
    return np.array(rows)


def oracle_iou(train: Sequence[Room], test: SyntheticRooms) -> float:
    """Mean IoU over points if objects were segmented and known whole: nearest neighbour on their descriptors."""
    described = np.concatenate([instance_descriptors(room) for room in train])
    classes = np.concatenate([[i.segment for i in room.instances] for room in train])
    known = classes >= 0
    predicted, labels = [], []
    for index in range(len(test)):
        scene, room = test[index], test.room(index)
        assert scene.segment is not None and scene.instance is not None
        guess = nearest_neighbour_labels(described[known], classes[known], instance_descriptors(room), k=1)
        rows = scene.segment >= 0
        predicted.append(guess[scene.instance[rows]])
        labels.append(scene.segment[rows])
    return mean_iou(np.concatenate(predicted), np.concatenate(labels))


def color_psnr(rooms: SyntheticRooms, *, cell: float = 0.1) -> tuple[float, float]:
    """PSNR in dB, mean over scenes, of two predictions of the images: one colour per image, one per cell of space.

    The second is what features on cells of `cell` metres could render at best if they saw everything and geometry were
    no question; the gap between the two is what there is to learn.
    """
    constant, cells = [], []
    for index in range(len(rooms)):
        scene = rooms[index]
        assert scene.views is not None and scene.color is not None
        color = scene.color.astype(np.float64) / 255
        view = np.nonzero(scene.views.depth > 0)[0]
        _, where = np.unique(np.floor(scene.coord / cell).astype(np.int64), axis=0, return_inverse=True)
        for groups, result in ((view, constant), (where.reshape(-1), cells)):
            count = np.maximum(np.bincount(groups), 1)
            mean = np.stack([np.bincount(groups, color[:, c]) / count for c in range(3)], 1)
            result.append(-10 * np.log10(np.square(color - mean[groups]).mean()))
    return float(np.mean(constant)), float(np.mean(cells))


def report(
    split: Split = "val",
    *,
    train_scenes: int = 64,
    test_scenes: int = 32,
    per_scene: int = 3000,
    seed: int = 0,
    cache_dir: str | None = None,
) -> dict[str, float]:
    """Mean IoU on scenes of `split` for each feature set, the most frequent class, and the oracle; shares per class."""
    size = {"num_views": 6, "image_size": (60, 80), "seed": seed, "cache_dir": cache_dir}
    train = SyntheticRooms("train", num_scenes=train_scenes, **size)
    test = SyntheticRooms(split, num_scenes=test_scenes, **size)
    train_points, test_points = point_features(train, per_scene), point_features(test, per_scene)
    y, y_test = train_points[1], test_points[1]
    result = {f"share of {name}": float((y_test == c).mean()) for c, name in enumerate(CLASSES)}
    result["most frequent class"] = mean_iou(np.full_like(y_test, np.bincount(y).argmax()), y_test)
    result |= feature_baselines(train_points, test_points)
    more = SyntheticRooms(
        "train", num_scenes=8 * train_scenes, **size
    )  # geometry alone is cheap: the oracle gets more of it
    result["oracle: whole objects"] = oracle_iou([more.room(i) for i in range(len(more))], test)
    return result


def main() -> None:
    """Print the report of one split."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--split", default="val", choices=("train", "val", "test"), help="the held-out scenes")
    parser.add_argument("--train-scenes", type=int, default=64)
    parser.add_argument("--test-scenes", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache-dir", default=None)
    args = parser.parse_args()
    figures = report(
        args.split,
        train_scenes=args.train_scenes,
        test_scenes=args.test_scenes,
        seed=args.seed,
        cache_dir=args.cache_dir,
    )
    for name, value in figures.items():
        print(f"{'' if name.startswith('share') else 'mIoU of '}{name:32s} {100 * value:6.2f} %")
    rooms = SyntheticRooms(args.split, num_scenes=min(8, args.test_scenes), seed=args.seed, cache_dir=args.cache_dir)
    constant, cells = color_psnr(rooms)
    print(f"PSNR of one colour per image {constant:.2f} dB, of the mean colour of 10 cm cells {cells:.2f} dB")


if __name__ == "__main__":
    main()
