"""Prepared data sets by name, as the recipes ask for them."""

from __future__ import annotations

import functools
import http.server
import pickle
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from data.rooms_reader import Rooms

from ponder_zoo.data.catalog import DataConfig, open_labelled, open_views, pretrain_dataset
from ponder_zoo.data.prepare.runner import prepare

OPTIONS = {"volume_shape": (16, 16, 8), "rays_per_view": 8, "input_views": 2, "target_views": 3}


class Areas(Rooms):
    """Rooms 0, 1, ... in Area_1, Area_5, Area_1, ..."""

    name = "s3dis"

    def read(self, scene, skip):
        return replace(super().read(scene, skip), split="Area_5" if int(scene[-2:]) % 2 else "Area_1")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, make_views) -> Path:
    folder = tmp_path_factory.mktemp("areas")
    for number in range(3):
        views = make_views(num_views=5)
        np.savez(folder / f"room_{number:02d}.npz", **{k: v for k, v in vars(views).items() if v is not None})
    prepare(Areas, folder, folder.parent / "prepared_areas", progress=False)
    return folder.parent / "prepared_areas"


def test_the_area_of_validation_is_chosen(prepared, caplog):
    config = DataConfig(name="s3dis", root=str(prepared))
    (train,), (val,) = open_labelled(config, "train"), open_labelled(config, "val")
    assert (train.scenes.names, val.scenes.names) == (["room_00", "room_02"], ["room_01"])
    assert "has no scenes of ['Area_2', 'Area_3', 'Area_4', 'Area_6']" in caplog.text
    (val,) = open_labelled(replace(config, val_area=1), "val")
    assert val.scenes.names == ["room_00", "room_02"]
    with pytest.raises(ValueError, match="val_area to be 1 to 6"):
        open_labelled(replace(config, val_area=7), "val")
    with pytest.raises(ValueError, match=r"expected splits of \['Area_1', 'Area_5'\], got \['Area_3'\]"):
        open_labelled(replace(config, val_area=3), "val")


def test_scenes_carry_the_condition_of_their_data_set(prepared):
    config = DataConfig(name="s3dis", root=str(prepared))
    for (source,) in (open_labelled(config, "train"), open_views(config, "train")):
        assert source[0].condition == source.condition == "S3DIS" and source.classes[0] == "class 0"
    assert open_labelled(config, "train")[0][0].stored_views is None
    (source,) = open_views(replace(config, condition="ScanNet"), "train")
    assert source[0].condition == "ScanNet"


def test_items_render_some_of_the_images_and_keep_all_points(prepared):
    (source,) = open_views(DataConfig(name="s3dis", root=str(prepared)), "train")
    data = pretrain_dataset(source, "train", grid_size=0.1, dropout=0.0, **OPTIONS)
    scene, _ = data.prepare((0, 0))
    assert scene.views is not None and len(scene.views) == 3 and scene.stored_views is None
    drawn = {data.prepare((epoch, 0))[0].views.cam_to_world[0].tobytes() for epoch in range(4)}
    assert len(drawn) > 1, "others in each epoch"
    every = pretrain_dataset(source, "train", grid_size=0.1, dropout=0.0, **OPTIONS | {"target_views": None})
    assert len(every.prepare((0, 0))[0].views) == 5
    val = pretrain_dataset(source, "val", grid_size=0.1, dropout=0.3, **OPTIONS)
    assert len(val.prepare((0, 0))[0].views) == 2
    item = data[0, 1]
    assert item.targets.segment is not None and item.rays.valid.sum() > 8
    # rays end on the points: images and cloud moved together
    ends = item.rays.origins + item.rays.directions * item.targets.depth[..., None]
    distance = torch.cdist(ends[0], item.scene.points.coord).min(1).values
    assert distance.max() < 0.15, "the grid has cells of 0.1 m"


def test_items_of_a_web_server_are_the_local_ones(prepared):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(prepared))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        roots = [str(prepared), f"http://127.0.0.1:{server.server_port}/"]
        items = []
        for root in roots:
            (source,) = open_views(DataConfig(name="s3dis", root=root), "train")
            items.append(pretrain_dataset(source, "train", grid_size=0.1, dropout=0.3, **OPTIONS)[3, 1])
        server.shutdown()
    first, second = items
    assert first.name == second.name == "room_02"
    for one, other in (
        (first.scene.points.feat, second.scene.points.feat),
        (first.rays.directions, second.rays.directions),
        (first.targets.rgb, second.targets.rgb),
    ):
        assert torch.equal(one, other)


def test_wrong_roots_are_explained(prepared):
    with pytest.raises(ValueError, match="expected scannet, it holds s3dis"):
        open_labelled(DataConfig(name="scannet", root=str(prepared)), "train")
    with pytest.raises(ValueError, match=r"Expected one folder or URL in data\.root for s3dis"):
        open_labelled(DataConfig(name="s3dis", root=f"{prepared},{prepared}"), "train")
    with pytest.raises(ValueError, match="Make it with python -m ponder_zoo"):
        open_labelled(DataConfig(name="s3dis", root=str(prepared.parent)), "train")


def test_sources_go_to_loader_workers_that_are_not_forked() -> None:
    config = DataConfig(name="synthetic:S3DIS", scenes=2, views=2, image_size=(24, 32))
    source = open_views(config, "train")[0]
    there = pickle.loads(pickle.dumps(source))
    assert (there.name, there.condition, there.keep) == (source.name, source.condition, source.keep)
    assert there.classes == source.classes and there.condition is not None
    np.testing.assert_array_equal(there[1].coord, source[1].coord)
