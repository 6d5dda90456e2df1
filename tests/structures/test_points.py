from __future__ import annotations

import pytest
import torch

from ponder_zoo import PointBatch


def scene(n: int, **extra: object) -> dict[str, object]:
    return {"coord": torch.rand(n, 3), "feat": torch.rand(n, 4), **extra}


def test_batch_says_which_scene_each_row_belongs_to() -> None:
    points = PointBatch.from_list([scene(2), scene(3)])
    assert points.batch.tolist() == [0, 0, 1, 1, 1]


def test_split_undoes_from_list() -> None:
    scenes = [
        scene(4, inverse=torch.tensor([3, 0, 0, 1, 2]), condition="A"),
        scene(2, inverse=torch.tensor([1, 0]), condition="B"),
    ]
    for got, want in zip(PointBatch.from_list(scenes).split(), scenes, strict=True):
        torch.testing.assert_close(got.coord, want["coord"])
        torch.testing.assert_close(got.inverse, want["inverse"])
        assert got.condition == want["condition"]


def test_one_condition_for_all_scenes_is_a_name() -> None:
    assert PointBatch.from_list([scene(1, condition="A"), scene(1, condition="A")]).condition == "A"


def test_to_changes_nested_tensors_and_keeps_names() -> None:
    points = PointBatch.from_list([scene(2, condition="A")]).to("meta")
    assert points.coord.is_meta and points.offset.is_meta and points.condition == "A"


@pytest.mark.parametrize(
    ("scenes", "message"),
    [
        ([], "at least one scene"),
        ([scene(2), scene(0)], "Scene 1 of the batch has no points"),
        ([{"coord": torch.rand(2, 3)}], r"lacks \['feat'\]"),
        ([scene(2), {"coord": torch.rand(2, 3), "feat": torch.rand(2, 5)}], r"scenes with \[4, 5\] columns"),
        ([scene(2), scene(2, condition="A")], r"lacks \['condition'\]"),
        ([{"coord": torch.rand(2, 2), "feat": torch.rand(2, 4)}], r"expected coord \(n, 3\)"),
        (
            [{"coord": torch.tensor([[0.0, 0, float("nan")]]), "feat": torch.rand(1, 4)}],
            "1 of 1 rows of `coord` are NaN",
        ),
        ([{"coord": torch.rand(1, 3), "feat": torch.tensor([[float("inf")]])}], "1 of 1 rows of `feat` are NaN"),
    ],
)
def test_bad_scenes_are_named(scenes: list[dict[str, object]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PointBatch.from_list(scenes)
