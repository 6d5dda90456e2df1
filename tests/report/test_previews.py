from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ponder_zoo.report.colors import INVALID, UNLABELLED, class_palette, color_table
from ponder_zoo.report.previews import (
    WRONG,
    PreviewView,
    median_depth_error,
    preview_path,
    psnr,
    write_segmentation_views,
    write_view_grid,
)
from ponder_zoo.report.splat import Camera

H, W = 6, 8


def view(**changes: object) -> PreviewView:
    depth = np.full((H, W), 2.0)
    depth[:, :4] = 1.0
    made = PreviewView(
        reference_rgb=np.full((H, W, 3), [200, 20, 20], np.uint8),
        rendered_rgb=np.full((H, W, 3), [20 / 255, 200 / 255, 20 / 255]),
        reference_depth=depth,
        rendered_depth=depth + 0.05,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def colors_of(path: Path) -> set[tuple[int, ...]]:
    with Image.open(path) as image:
        pixels = np.asarray(image).reshape(-1, 3)
    values, counts = np.unique(pixels, axis=0, return_counts=True)
    return {tuple(value) for value in values[counts > 400].tolist()}  # areas, not letters


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def test_a_grid_shows_the_images_it_was_given(tmp_path: Path) -> None:
    path = write_view_grid(tmp_path / "new" / "grid.png", [view(), view()], title="Step 3", tile_width=96)
    colors = colors_of(path)
    assert {(200, 20, 20), (20, 200, 20)} <= colors
    assert {tuple(color_table("depth")[0]), tuple(color_table("depth")[-1])} <= {tuple(c) for c in colors}
    width, height = size_of(path)
    assert width == 2 * 28 + 6 * (96 + 10) - 10  # six kinds of image: no input points, no normals
    assert height > 2 * 72
    assert [p.name for p in path.parent.iterdir()] == ["grid.png"]  # nothing unfinished is left


def test_every_column_appears_where_its_data_is_given(tmp_path: Path) -> None:
    normal = np.broadcast_to(np.array([0.0, 0.0, 1.0]), (H, W, 3))
    camera = Camera(np.array([[8.0, 0, 3.5], [0, 8.0, 2.5], [0, 0, 1]]), np.eye(4), (H, W))
    cloud = np.stack([*np.meshgrid(np.linspace(-1, 1, 50), np.linspace(-1, 1, 50)), np.full((50, 50), 2.0)], -1)
    full = view(
        rendered_normal=normal,
        reference_normal=normal,
        opacity=np.ones((H, W)),
        camera=camera,
        points_coord=cloud.reshape(-1, 3),
        points_color=np.full((2500, 3), [10, 20, 250]),
        name="frame 7",
    )
    path = write_view_grid(tmp_path / "grid.png", [full, view()], tile_width=96)
    assert size_of(path)[0] == 2 * 28 + 9 * (96 + 10) - 10
    assert {(10, 20, 250), (128, 128, 255), INVALID} <= colors_of(path)  # INVALID: the second view has no points


def test_columns_can_be_chosen(tmp_path: Path) -> None:
    path = write_view_grid(tmp_path / "grid.png", [view()], columns=["Reference", "Rendered"], tile_width=96)
    assert size_of(path)[0] == 2 * 28 + 2 * (96 + 10) - 10
    with pytest.raises(ValueError, match=r"got \['Image'\]"):
        write_view_grid(tmp_path / "grid.png", [view()], columns=["Image"])


def test_transparent_pixels_show_no_depth(tmp_path: Path) -> None:
    opaque = colors_of(write_view_grid(tmp_path / "a.png", [view()], tile_width=96))
    clear = colors_of(write_view_grid(tmp_path / "b.png", [view(opacity=np.zeros((H, W)))], tile_width=96))
    assert INVALID not in opaque and INVALID in clear


def test_depth_colours_do_not_depend_on_what_was_rendered(tmp_path: Path) -> None:
    bad = view(rendered_depth=np.full((H, W), 500.0))
    last = tuple(color_table("depth")[-1].tolist())
    for index, one in enumerate((view(), bad)):
        path = write_view_grid(tmp_path / f"{index}.png", [one], tile_width=96)
        assert {tuple(color_table("depth")[0].tolist()), last} <= colors_of(path)


def test_not_finite_images_and_missing_depth_still_give_a_picture(tmp_path: Path) -> None:
    broken = view(rendered_rgb=np.full((H, W, 3), np.nan), rendered_depth=np.full((H, W), np.inf))
    nothing = view(reference_depth=np.zeros((H, W)))
    alone = view(reference_depth=None)
    for index, one in enumerate((broken, nothing, alone)):
        assert write_view_grid(tmp_path / f"{index}.png", [one], tile_width=64).stat().st_size > 0


def test_images_of_another_size_are_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"rendered_depth.*\(6, 8\).*got \(3, 4\).*stride"):
        write_view_grid(tmp_path / "grid.png", [view(rendered_depth=np.ones((3, 4)))])
    with pytest.raises(ValueError, match="at least one view"):
        write_view_grid(tmp_path / "grid.png", [])


def test_psnr_and_depth_error_are_the_closed_forms() -> None:
    assert psnr(np.full((4, 4, 3), 0.5), np.full((4, 4, 3), 0.6)) == pytest.approx(20.0)
    assert psnr(np.full((4, 4, 3), 255, np.uint8), np.full((4, 4, 3), 1.0)) == math.inf
    assert median_depth_error([[1.0, 2.0, 9.0]], [[1.5, 2.5, 0.0]]) == pytest.approx(0.5)
    assert math.isnan(median_depth_error([[1.0]], [[0.0]]))


def test_preview_paths_sort_by_step(tmp_path: Path) -> None:
    paths = [preview_path(tmp_path, step).name for step in (5, 40, 1000)]
    assert paths == sorted(paths) and paths[0] == "step_00000005_views.png"


def plane(height: float) -> np.ndarray:
    x, y = np.meshgrid(np.linspace(-1, 1, 50), np.linspace(-1, 1, 50))
    return np.stack([x, y, np.full_like(x, height)], -1).reshape(-1, 3)


def test_segmentation_views_show_truth_prediction_and_errors(tmp_path: Path) -> None:
    coord = plane(0.0)
    truth = (coord[:, 0] > 0).astype(int)
    truth[:100] = -1
    prediction = np.zeros(len(coord), int)
    path = write_segmentation_views(
        tmp_path / "seg.png", coord, prediction, truth, names=["floor", "wall"], tile_width=200, num_views=3
    )
    palette = [tuple(color) for color in class_palette(2).tolist()]
    assert {*palette, WRONG} <= colors_of(path)
    assert size_of(path)[0] == 2 * 28 + 3 * 210 - 10


def test_normals_open_the_view_into_a_room(tmp_path: Path) -> None:
    coord = np.concatenate([plane(0.0), plane(2.0)])  # floor and, above it, a ceiling
    normal = np.repeat([[0, 0, 1.0], [0, 0, -1.0]], len(coord) // 2, axis=0)
    color = np.repeat([[250, 10, 10], [10, 10, 250]], len(coord) // 2, axis=0)
    label = np.zeros(len(coord), int)
    arguments = {"names": ["all"], "color": color, "tile_width": 200}
    closed = write_segmentation_views(tmp_path / "a.png", coord, label, label, **arguments)
    opened = write_segmentation_views(tmp_path / "b.png", coord, label, label, normal=normal, **arguments)
    assert (10, 10, 250) in colors_of(closed)
    assert (10, 10, 250) not in colors_of(opened) and (250, 10, 10) in colors_of(opened)


def test_labels_without_a_name_and_unequal_lengths_are_refused(tmp_path: Path) -> None:
    coord = plane(0.0)
    label = np.zeros(len(coord), int)
    with pytest.raises(ValueError, match="Class index 2 has no name"):
        write_segmentation_views(tmp_path / "a.png", coord, label + 2, label, names=["a", "b"])
    with pytest.raises(ValueError, match=r"prediction \(N,\)"):
        write_segmentation_views(tmp_path / "a.png", coord, label[:-1], label, names=["a"])


def test_classes_have_one_colour_per_name_in_all_label_spaces(tmp_path: Path) -> None:
    """The wall is label 0 of one set and 1 of the other; "bed" is drawn where a wall is."""
    wall = {"reference_segment": np.zeros((H, W), int), "rendered_segment": np.full((H, W), 1)}
    first = view(**wall, class_names=("wall", "bed"))
    second = view(
        reference_segment=np.full((H, W), -1), rendered_segment=np.ones((H, W), int), class_names=("desk", "wall")
    )
    path = write_view_grid(
        tmp_path / "grid.png", [first, second], columns=("Reference classes", "Rendered classes"), tile_width=96
    )
    wall_color, bed, desk = (tuple(row) for row in class_palette(3).tolist())  # what occurs in references comes first
    colors = colors_of(path)
    assert {wall_color, bed, UNLABELLED} <= colors and desk not in colors
    assert size_of(path)[0] == 2 * 28 + 2 * (96 + 10) - 10
    without = write_view_grid(tmp_path / "without.png", [view()], tile_width=96)
    assert not {wall_color, bed} & colors_of(without)
    with pytest.raises(ValueError, match=r"`rendered_segment` \(6, 8\)"):
        write_view_grid(tmp_path / "x.png", [view(rendered_segment=np.zeros((2, 2), int))])


def test_features_are_drawn_in_the_colours_they_come_with(tmp_path: Path) -> None:
    first = np.zeros((H, W, 3))
    first[..., 1] = 1.0
    opacity = np.ones((H, W))
    opacity[:, :4] = 0.0
    made = view(reference_feature=first, rendered_feature=1.0 - first, opacity=opacity)
    columns = ("Reference features", "Rendered features")
    path = write_view_grid(tmp_path / "grid.png", [made], columns=columns, tile_width=96)
    assert {(0, 255, 0), (255, 0, 255), INVALID} <= colors_of(path)
