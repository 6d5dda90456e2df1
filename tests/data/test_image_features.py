"""Feature maps of real, untrained image models: where they are read, and what their cache depends on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ponder_zoo.data import image_features
from ponder_zoo.data.image_features import ImageFeatures, load_backbone, look_up
from ponder_zoo.data.pretrain import PretrainDataset
from ponder_zoo.data.synthetic import SyntheticRooms
from ponder_zoo.data.transforms import pretrain_transforms

VIT, CNN = "timm/vit_tiny_patch16_224", "timm/resnet10t"


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 24, 32, 3), dtype=np.uint8)


def test_a_linear_map_is_read_exactly_between_the_centres_of_its_cells() -> None:
    """The map's cell (i, j) covers a part of the image; its value belongs to the middle of that part."""
    H, W, h, w = 12, 20, 3, 5
    rows, columns = (np.arange(h) + 0.5) * H / h - 0.5, (np.arange(w) + 0.5) * W / w - 0.5
    ramp = np.stack(np.meshgrid(rows, columns, indexing="ij"), -1).astype(np.float32)  # its own pixel position
    maps = np.stack([ramp, ramp + 100.0])
    row, column = (grid.ravel() for grid in np.meshgrid(np.arange(H), np.arange(W), indexing="ij"))
    view = np.arange(len(row)) % 2
    read = look_up(maps, view, row, column, (H, W))
    inside = np.stack([row.clip(rows[0], rows[-1]), column.clip(columns[0], columns[-1])], -1) + 100.0 * view[:, None]
    np.testing.assert_allclose(read, inside, atol=1e-4)


@pytest.mark.parametrize("model", [VIT, CNN, "open_clip"])
def test_maps_are_those_of_the_model(model: str, images: np.ndarray, tmp_path: Path, tiny_clip: str) -> None:
    model = f"open_clip/{tiny_clip}" if model == "open_clip" else model
    backbone = load_backbone(model, "random")
    features = ImageFeatures(model, weights="random", cache=tmp_path)
    maps = features.maps(images[:1])
    x = torch.from_numpy(images[:1]).movedim(-1, 1).float() / 255.0
    x = torch.nn.functional.interpolate(x, size=backbone.size, mode="bilinear", antialias=True)
    x = (x - torch.tensor(backbone.mean).view(1, 3, 1, 1)) / torch.tensor(backbone.std).view(1, 3, 1, 1)
    with torch.no_grad():
        expected = backbone.dense(x).movedim(1, -1).numpy()
    assert maps.shape == expected.shape and maps.shape[1] > 1
    np.testing.assert_allclose(maps, expected, atol=2e-3 * np.abs(expected).max())  # kept as float16


def test_patch_tokens_lie_where_their_patch_is(tmp_path: Path) -> None:
    """Changing one quarter of an image changes a CNN's map most in that quarter."""
    image = np.full((1, 224, 224, 3), 128, np.uint8)
    changed = image.copy()
    changed[:, :112, 112:] = np.random.default_rng(0).integers(0, 256, (112, 112, 3))
    for model in (VIT, CNN):
        features = ImageFeatures(model, weights="random", cache=tmp_path)
        difference = np.abs(features.maps(changed) - features.maps(image)).mean(-1)[0]
        h, w = difference.shape
        quarters = [difference[a : a + h // 2, b : b + w // 2].mean() for a in (0, h - h // 2) for b in (0, w - w // 2)]
        assert int(np.argmax(quarters)) == 1, model


def test_the_cache_depends_on_image_model_and_projection_and_survives_damage(
    images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def load(*arguments: Any) -> Any:
        calls.append(arguments)
        return load_backbone(*arguments)

    monkeypatch.setattr(image_features, "load_backbone", load)
    first = ImageFeatures(VIT, weights="random", cache=tmp_path).maps(images)
    again = ImageFeatures(VIT, weights="random", cache=tmp_path)
    np.testing.assert_array_equal(again.maps(images), first)
    assert len(calls) == 1
    assert again.maps(255 - images[:1]).shape == first[:1].shape and len(calls) == 2
    ImageFeatures(CNN, weights="random", cache=tmp_path).maps(images[:1])
    assert len(calls) == 3
    projected = ImageFeatures(VIT, weights="random", dim=8, cache=tmp_path)
    projected.fit(list(images))
    assert projected.maps(images[:1]).shape[-1] == projected.channels == 8 and len(calls) == 4
    for file in (tmp_path / "map").rglob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:-100])
    np.testing.assert_array_equal(ImageFeatures(VIT, weights="random", cache=tmp_path).maps(images), first)


def test_a_projection_keeps_the_directions_of_largest_variance(images: np.ndarray, tmp_path: Path) -> None:
    raw = ImageFeatures(VIT, weights="random", cache=tmp_path).maps(images).reshape(-1, 192)
    features = ImageFeatures(VIT, weights="random", dim=16, cache=tmp_path)
    features.fit(list(images))
    kept = features.maps(images).reshape(-1, 16)
    centred = raw - raw.mean(0)
    singular = np.linalg.svd(centred, compute_uv=False)
    np.testing.assert_allclose(np.linalg.norm(kept, axis=0), singular[:16], rtol=2e-2)
    same = ImageFeatures(VIT, weights="random", dim=16, cache=tmp_path)
    same.fit(list(images))  # from the cache
    np.testing.assert_array_equal(same.maps(images).reshape(-1, 16), kept)


def test_targets_of_rays_are_the_features_at_their_pixels_in_the_colours_as_taken(tmp_path: Path) -> None:
    rooms = SyntheticRooms("train", num_scenes=1, num_views=3, image_size=(24, 32), sensor="off")
    features = ImageFeatures(VIT, weights="random", dim=4, cache=tmp_path)
    assert rooms[0].views is not None
    features.fit(list(rooms[0].views.color))
    features.prepare([rooms[0]])
    data = PretrainDataset(
        rooms,
        transform=pretrain_transforms(0.1, recolor=True),
        volume_shape=(8, 8, 8),
        rays_per_view=20,
        image_features=features,
    )
    item = data[0]
    assert item.targets.feature is not None and item.targets.feature.shape == (*item.targets.depth.shape, 4)
    scene, _ = data.prepare((0, 0))
    assert scene.views is not None and scene.views.feature is not None
    np.testing.assert_array_equal(scene.views.feature, features.maps(rooms[0].views.color))
    assert not np.array_equal(scene.views.color, rooms[0].views.color), "recoloured"


def test_what_cannot_be_loaded_is_explained(
    images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def maps(model: str, **options: Any) -> Any:
        return ImageFeatures(model, cache=tmp_path, **options).maps(images)

    with pytest.raises(ValueError, match=r"timm/NAME or open_clip/NAME:TAG, got 'dinov2'"):
        maps("dinov2")
    with pytest.raises(ValueError, match=r"timm has no model 'resnet9000'"):
        maps("timm/resnet9000")
    with pytest.raises(ValueError, match=r"open_clip has no model 'ViT-Z'"):
        maps("open_clip/ViT-Z:openai")
    with pytest.raises(ValueError, match=r"fit\(images\) first"):
        maps(VIT, weights="random", dim=4)
    with pytest.raises(ValueError, match=r"image_dim between 1 and the 192"):
        ImageFeatures(VIT, weights="random", dim=500, cache=tmp_path).fit(list(images))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def offline(*_: Any, **__: Any) -> None:
        raise OSError("no connection")

    monkeypatch.setattr("timm.create_model", offline)
    with pytest.raises(ConnectionError, match=r"no connection.*image_weights=random"):
        maps(VIT)
