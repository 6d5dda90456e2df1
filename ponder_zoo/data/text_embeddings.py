"""Embeddings of class names by the text encoder of a CLIP model (arXiv:2103.00020), averaged over prompts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .array_cache import read_arrays, write_arrays

# As in the prompt engineering of CLIP: kinds of pictures in which an indoor object may be seen.
TEMPLATES: tuple[str, ...] = (
    "itap of a {}.",
    "a photo of a {}.",
    "a photo of the {}.",
    "a photo of one {}.",
    "a photo of my {}.",
    "a photo of a small {}.",
    "a photo of a large {}.",
    "a photo of a clean {}.",
    "a photo of a dirty {}.",
    "a bad photo of a {}.",
    "a good photo of the {}.",
    "a blurry photo of a {}.",
    "a bright photo of a {}.",
    "a dark photo of a {}.",
    "a close-up photo of a {}.",
    "a cropped photo of a {}.",
    "a low resolution photo of a {}.",
    "a rendering of a {}.",
    "a photo of a {} in a room.",
    "a photo of a {} in the scene.",
    "there is a {} in the room.",
)
SPOKEN = {  # how a prompt says names that are no words
    "otherstructure": "other structure",
    "otherfurniture": "other furniture",
    "otherprop": "other property",
}
OFFLINE = (
    "Download them once with a connection (they stay in the cache of open_clip and in semantic.cache), give a file "
    "with semantic.text_weights=FILE, or train without CLIP: semantic.table=one-hot"
)


def class_embeddings(
    names: Sequence[str],
    *,
    model: str = "ViT-B-16-quickgelu",
    weights: str = "openai",
    templates: Sequence[str] = TEMPLATES,
    ensemble: Literal["class", "official"] = "class",
    cache: str | Path | None = None,
) -> Tensor:
    """One unit vector per class name: (K, D) float32. On the CPU; takes a minute once, then comes from the cache.

    Args:
        names: of the classes.
        model: as open_clip names it; the default is the paper's ViT-B/16.
        weights: a tag of open_clip, or a file.
        templates: prompts with `{}` for the name.
        ensemble: "class": the mean over a class's prompts. "official": the mean over the official code's groups of
            prompts, each of other classes; see `ensemble_prompts`.
        cache: folder for the embeddings of the prompts, under a hash of the model, its weights, names and templates.

    Raises:
        ConnectionError: if the weights are not at hand and cannot be downloaded.
        ValueError: for an unknown model or tag, or a file that does not fit.
    """
    prompts = [template.format(SPOKEN.get(name, name)) for name in names for template in templates]
    file = None if cache is None else _cache_file(Path(cache).expanduser(), model, weights, prompts)
    kept = read_arrays(file) if file is not None else None
    embedding = None if kept is None or "embedding" not in kept else torch.from_numpy(kept["embedding"])
    if embedding is None or len(embedding) != len(prompts):
        encoder, tokenizer = load_text_encoder(model, weights)
        embedding = encode_prompts(encoder, tokenizer, prompts)
        if file is not None:
            write_arrays(file, {"embedding": embedding.numpy()})
    return ensemble_prompts(embedding, len(names), rule=ensemble)


def ensemble_prompts(embedding: Tensor, num_classes: int, *, rule: Literal["class", "official"] = "class") -> Tensor:
    """From embeddings of prompts, class after class (K T, D), to one unit vector per class (K, D).

    "official": the rows are read as if they came template after template, so that each average mixes T rows of other
    classes, and are not normalised again. Released weights were trained with that.
    """
    templates = len(embedding) // num_classes
    if rule == "official":
        return embedding.view(templates, num_classes, -1).mean(0)
    return F.normalize(embedding.view(num_classes, templates, -1).mean(1), dim=-1)


@torch.no_grad()
def encode_prompts(encoder: Any, tokenizer: Any, prompts: Sequence[str], *, batch_size: int = 256) -> Tensor:
    """Unit embeddings (P, D) float32 of prompts by an open_clip model."""
    encoder = encoder.eval()
    parts = [prompts[start : start + batch_size] for start in range(0, len(prompts), batch_size)]
    embeddings = [encoder.encode_text(tokenizer(list(part))).float() for part in parts]
    return F.normalize(torch.cat(embeddings), dim=-1)


def load_text_encoder(model: str, weights: str) -> tuple[Any, Any]:
    """An open_clip model with weights, and its tokenizer. See `class_embeddings` for what it raises."""
    import open_clip

    if model not in open_clip.list_models():
        raise ValueError(f"open_clip has no model {model!r}. Choose one of open_clip.list_models().")
    is_file = Path(weights).is_file()
    if not is_file and weights not in open_clip.list_pretrained_tags_by_model(model):
        raise ValueError(
            f"open_clip has no weights {weights!r} for {model}, and there is no such file; it has "
            f"{open_clip.list_pretrained_tags_by_model(model)}."
        )
    try:
        encoder, _, _ = open_clip.create_model_and_transforms(model, pretrained=weights)
        return encoder, open_clip.get_tokenizer(model)
    except Exception as error:  # of the Hub's client, of urllib, or of torch for a file that does not fit
        kind = ValueError if is_file else ConnectionError
        what = f"the weights {weights!r} of the text encoder {model}: {str(error).rstrip(' .')}"
        raise kind(f"Cannot load {what}. {OFFLINE}.") from error


def _cache_file(folder: Path, model: str, weights: str, prompts: Sequence[str]) -> Path:
    if Path(weights).is_file():
        weights = hashlib.sha256(Path(weights).read_bytes()).hexdigest()
    content = json.dumps([model, weights, list(prompts)])
    return folder / f"text-{hashlib.sha256(content.encode()).hexdigest()[:32]}.safetensors"
