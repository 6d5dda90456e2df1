"""Dense features of images by a 2D model, as targets of rendering for images without labels. Computed once, then read.

Beyond the paper, which names it as future work: what DINOv2, SigLIP, CLIP or any other image backbone says at a pixel
takes the place of the text embedding of the pixel's class.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from .array_cache import read_arrays, write_arrays
from .scene import Array, Scene

logger = logging.getLogger(__name__)
PCA_IMAGES = 64  # that the projection is fitted to
Weights = Literal["pretrained", "random"]


class ImageBackbone(NamedTuple):
    """A 2D model as a function."""

    dense: Callable[[Tensor], Tensor]  # (B, 3, *size) normalised -> (B, C, h, w)
    size: tuple[int, int]  # H, W that images are resized to
    mean: Sequence[float]
    std: Sequence[float]


class ImageFeatures:
    """Feature maps of images, from a cache on disk that is keyed by the image, the model and the projection.

    Args:
        model: "timm/NAME", or "open_clip/NAME:TAG". The last stage's map is taken: patch tokens of a transformer, the
            feature map of a CNN.
        weights: "random" gives the same untrained model everywhere, to try things out without a download.
        dim: project to so many principal components of the features of some images; see `fit`. None: all channels.
        cache: folder for the maps.

    Example:
        >>> features = ImageFeatures("timm/resnet18", weights="random", cache="/tmp/features")  # doctest: +SKIP
        >>> features.maps(scene.views.color).shape  # doctest: +SKIP
        (10, 7, 7, 512)
    """

    def __init__(
        self, model: str, *, weights: Weights = "pretrained", dim: int | None = None, cache: str | Path
    ) -> None:
        self.model, self.dim = model, dim
        self.weights: Weights = weights
        self.cache = Path(cache).expanduser()
        self.channels = dim or 0  # D; known after `fit`
        self._backbone: ImageBackbone | None = None
        self._projection: _Projection | None = None

    def fit(self, images: Sequence[Array]) -> None:
        """Fit the projection to images (H, W, 3) uint8, or find it in the cache; without `dim` count the channels."""
        if self.dim is None:
            self.channels = self.maps(images[0][None]).shape[-1]
            return
        self.channels = self.dim
        file = self._file("projection", str(self.dim), *(_digest(image) for image in images))
        self._projection = _Projection.read(file)
        if self._projection is None:
            maps = [self._compute(image[None]) for image in images]
            rows = np.concatenate([each.reshape(-1, each.shape[-1]) for each in maps])
            self._projection = _Projection.fit(rows, self.dim)
            self._projection.write(file)

    def prepare(self, scenes: Iterable[Scene], device: torch.device | str = "cpu") -> None:
        """Compute what the cache lacks for the images of some scenes, on a device, and let go of the model."""
        self._backbone = None
        for scene in scenes:
            if scene.views is not None:
                self.maps(scene.views.color, device=device)
        self._backbone = None  # loaders' workers read the cache; they need no copy of the model

    def maps(self, color: Array, *, device: torch.device | str = "cpu") -> NDArray[np.float32]:
        """Images (V, H, W, 3) uint8 -> (V, h, w, D)."""
        if self.dim is not None and self._projection is None:
            raise ValueError(f"Expected the projection to {self.dim} dimensions to be fitted. Call fit(images) first.")
        return np.stack([self._map(image, device) for image in color])

    def _map(self, image: Array, device: torch.device | str) -> NDArray[np.float32]:
        key = "" if self._projection is None else self._projection.digest
        file = self._file("map", key, _digest(image))
        found = read_arrays(file)
        if found is None:
            found = {"map": self._project(self._compute(image[None], device)[0]).astype(np.float16)}
            write_arrays(file, found)
        return found["map"].astype(np.float32)

    def _project(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        return features if self._projection is None else self._projection(features)

    @torch.no_grad()
    def _compute(self, color: Array, device: torch.device | str = "cpu") -> NDArray[np.float32]:
        """(B, H, W, 3) uint8 -> (B, h, w, C)."""
        if self._backbone is None:
            self._backbone = load_backbone(self.model, self.weights, device)
        backbone = self._backbone
        image = torch.from_numpy(np.ascontiguousarray(color)).to(device).movedim(-1, 1).float() / 255.0
        image = F.interpolate(image, size=backbone.size, mode="bilinear", antialias=True)
        mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (backbone.mean, backbone.std))
        return backbone.dense((image - mean) / std).movedim(1, -1).float().cpu().numpy()

    def _file(self, kind: str, *content: str) -> Path:
        digest = hashlib.blake2b("\n".join([self.model, self.weights, *content]).encode(), digest_size=16).hexdigest()
        return self.cache / kind / digest[:2] / f"{digest}.safetensors"


def look_up(
    maps: Array, view: NDArray[Any], row: NDArray[Any], column: NDArray[Any], image_size: tuple[int, int]
) -> NDArray[np.float32]:
    """Features (M, D) at pixels of the images that maps (V, h, w, D) cover, interpolated between their cells' centres.

    Args:
        maps: one per view.
        view: (M,) which one.
        row: (M,) pixel.
        column: (M,) pixel.
        image_size: H, W.
    """

    def neighbours(pixel: NDArray[Any], pixels: int, cells: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        place = ((pixel + 0.5) * cells / pixels - 0.5).clip(0, cells - 1)
        low = np.floor(place).astype(np.int64)
        return low, np.minimum(low + 1, cells - 1), (place - low).astype(np.float32)[:, None]

    top, bottom, v = neighbours(row, image_size[0], maps.shape[1])
    left, right, u = neighbours(column, image_size[1], maps.shape[2])
    upper = maps[view, top, left] * (1 - u) + maps[view, top, right] * u
    lower = maps[view, bottom, left] * (1 - u) + maps[view, bottom, right] * u
    return (upper * (1 - v) + lower * v).astype(np.float32)


def load_backbone(model: str, weights: Weights, device: torch.device | str = "cpu") -> ImageBackbone:
    """The model behind a name; see `ImageFeatures`.

    Raises:
        ValueError: for a name that no library knows, or a model without dense features.
        ConnectionError: if pre-trained weights are not at hand and cannot be downloaded.
    """
    library, _, name = model.partition("/")
    loaders = {"timm": _load_timm, "open_clip": _load_open_clip}
    if library not in loaders or not name:
        raise ValueError(f"Expected semantic.image_model=timm/NAME or open_clip/NAME:TAG, got {model!r}.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # "random" weights are the same everywhere
        return loaders[library](name, weights == "pretrained", torch.device(device))


def _load_timm(name: str, pretrained: bool, device: torch.device) -> ImageBackbone:
    import timm
    from timm.data.config import resolve_model_data_config

    if not timm.is_model(name):
        raise ValueError(f"timm has no model {name!r}. Choose one of timm.list_models().")
    try:
        model: Any = timm.create_model(name, pretrained=pretrained, num_classes=0).eval().to(device)
    except Exception as error:  # whatever the Hub's client raises
        raise _unavailable(f"timm/{name}", error) from error
    if not hasattr(model, "forward_intermediates"):
        raise ValueError(f"timm's {name} has no `forward_intermediates`, which gives dense features. Choose another.")
    config = resolve_model_data_config(model)

    def dense(image: Tensor) -> Tensor:
        return model.forward_intermediates(image, indices=1, norm=True, intermediates_only=True)[0]

    return ImageBackbone(dense, tuple(config["input_size"][1:]), config["mean"], config["std"])


def _load_open_clip(name: str, pretrained: bool, device: torch.device) -> ImageBackbone:
    import open_clip

    name, _, tag = name.partition(":")
    if name not in open_clip.list_models():
        raise ValueError(f"open_clip has no model {name!r}. Choose one of open_clip.list_models().")
    try:
        weights: dict[str, Any] = {"pretrained": tag, "require_pretrained": True} if pretrained else {}
        model: Any = open_clip.create_model(name, **weights).eval().to(device)
    except Exception as error:  # whatever the Hub's client raises
        raise _unavailable(f"open_clip/{name}:{tag}", error) from error
    config = open_clip.get_model_preprocess_cfg(model)
    size = config["size"] if isinstance(config["size"], tuple | list) else (config["size"], config["size"])

    def dense(image: Tensor) -> Tensor:
        output = model.forward_intermediates(
            image, image_indices=1, normalize_intermediates=True, intermediates_only=True
        )
        return output["image_intermediates"][0]

    return ImageBackbone(dense, (int(size[0]), int(size[1])), config["mean"], config["std"])


def _unavailable(name: str, error: Exception) -> ConnectionError:
    return ConnectionError(
        f"Cannot load the weights of {name}: {str(error).rstrip(' .')}. Run once with a connection (they stay in the "
        "Hub's cache), or try things out with semantic.image_weights=random, an untrained model."
    )


@dataclass(frozen=True, eq=False)
class _Projection:
    """Principal components of features."""

    mean: NDArray[np.float32]  # (C,)
    basis: NDArray[np.float32]  # (D, C) orthonormal rows

    def __call__(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        return ((features - self.mean) @ self.basis.T).astype(np.float32)

    @property
    def digest(self) -> str:
        return _digest(np.concatenate([self.mean[None], self.basis]))

    @classmethod
    def fit(cls, rows: NDArray[np.float32], dim: int) -> _Projection:
        """From features (N, C)."""
        if not 1 <= dim <= min(rows.shape):
            raise ValueError(
                f"Expected semantic.image_dim between 1 and the {min(rows.shape)} that {len(rows)} features of "
                f"{rows.shape[1]} channels span, got {dim}."
            )
        mean = rows.mean(0, dtype=np.float64)
        centred = rows - mean
        _, vectors = np.linalg.eigh(centred.T @ centred)  # of rising variance
        basis = vectors[:, ::-1][:, :dim].T
        sign = np.sign(basis[np.arange(dim), np.abs(basis).argmax(1)])  # an eigenvector's own is arbitrary
        return cls(mean.astype(np.float32), (basis * sign[:, None]).astype(np.float32))

    @classmethod
    def read(cls, file: Path) -> _Projection | None:
        found = read_arrays(file)
        return None if found is None else cls(found["mean"], found["basis"])

    def write(self, file: Path) -> None:
        write_arrays(file, {"mean": self.mean, "basis": self.basis})


def _digest(array: Array) -> str:
    hashed = hashlib.blake2b(f"{array.shape} {array.dtype}".encode(), digest_size=16)
    hashed.update(np.ascontiguousarray(array).data)
    return hashed.hexdigest()
