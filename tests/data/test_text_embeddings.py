"""Prompts through a real, small, untrained CLIP model: its tokenizer, its encoder, its weights from a file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ponder_zoo.data import text_embeddings
from ponder_zoo.data.text_embeddings import (
    TEMPLATES,
    class_embeddings,
    encode_prompts,
    ensemble_prompts,
    load_text_encoder,
)

open_clip = pytest.importorskip("open_clip")
NAMES = ("wall", "floor", "otherprop", "shower curtain")


@pytest.fixture(scope="module")
def tiny(tiny_clip: str) -> str:
    return tiny_clip


@pytest.fixture(scope="module")
def weights(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    model, _, _ = open_clip.create_model_and_transforms(tiny)
    file = tmp_path_factory.mktemp("weights") / "tiny.pt"
    torch.save(model.state_dict(), file)
    return str(file)


def by_hand(tiny: str, weights: str, prompt: str) -> Tensor:
    model, _, _ = open_clip.create_model_and_transforms(tiny)
    model.load_state_dict(torch.load(weights))
    with torch.no_grad():
        return F.normalize(model.eval().encode_text(open_clip.get_tokenizer(tiny)([prompt])), dim=-1)[0]


def test_there_are_as_many_templates_as_in_the_official_code_and_each_has_one_place() -> None:
    assert len(TEMPLATES) == len(set(TEMPLATES)) == 21
    assert all(template.count("{}") == 1 for template in TEMPLATES)


def test_a_class_is_the_unit_mean_of_its_own_prompts(tiny: str, weights: str) -> None:
    templates = ("a {}.", "the {}", "itap of a {}.")
    table = class_embeddings(NAMES, model=tiny, weights=weights, templates=templates)
    assert table.shape == (4, 16) and table.dtype == torch.float32
    for row, spoken in zip(table, ("wall", "floor", "other property", "shower curtain"), strict=True):
        prompts = torch.stack([by_hand(tiny, weights, template.format(spoken)) for template in templates])
        torch.testing.assert_close(row, F.normalize(prompts.mean(0), dim=-1), atol=1e-6, rtol=0)


def test_the_official_ensemble_averages_prompts_of_other_classes() -> None:
    """With one-hot prompts, row 0 shows what it is made of: one template each of many classes."""
    K, T = 36, 21
    prompts = torch.eye(K).repeat_interleave(T, 0)  # class after class
    right = ensemble_prompts(prompts, K)
    assert torch.equal(right, torch.eye(K))
    wrong = ensemble_prompts(prompts, K, rule="official")
    expected = torch.zeros(K)
    for group in range(T):  # row 0 of each group of 36 consecutive prompts
        expected[group * K // T] += 1.0 / T
    torch.testing.assert_close(wrong[0], expected)
    assert wrong[0].nonzero()[:6, 0].tolist() == [0, 1, 3, 5, 6, 8]
    assert (wrong.norm(dim=1) < 0.5).all()
    assert len(wrong.unique(dim=0)) == 12, "wall, floor and cabinet mix the same classes, and so do 11 more triples"


def test_prompts_come_from_the_cache_which_knows_what_they_depend_on(
    tiny: str, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"model": tiny, "templates": ("a {}.",), "cache": tmp_path}
    first = class_embeddings(NAMES, weights=weights, **options)
    (file,) = tmp_path.iterdir()
    calls = []

    def load(*arguments: str) -> object:
        calls.append(arguments)
        return load_text_encoder(*arguments)

    monkeypatch.setattr(text_embeddings, "load_text_encoder", load)
    assert torch.equal(class_embeddings(NAMES, weights=weights, **options), first) and not calls
    class_embeddings(NAMES[:2], weights=weights, **options)
    class_embeddings(NAMES, weights=weights, **options | {"templates": ("the {}.",)})
    assert len(calls) == 2
    torch.manual_seed(1)
    torch.save(open_clip.create_model_and_transforms(tiny)[0].state_dict(), tmp_path / "other.pt")
    assert not torch.equal(class_embeddings(NAMES, weights=str(tmp_path / "other.pt"), **options), first)
    assert len(calls) == 3
    file.write_bytes(file.read_bytes()[:-7])
    assert torch.equal(class_embeddings(NAMES, weights=weights, **options), first) and len(calls) == 4


def test_batches_of_prompts_do_not_matter(tiny: str, weights: str) -> None:
    encoder, tokenizer = load_text_encoder(tiny, weights)
    prompts = ["a wall.", "a floor.", "a long prompt about a shower curtain in a bathroom.", "sink"]
    together, apart = (encode_prompts(encoder, tokenizer, prompts, batch_size=size) for size in (4, 1))
    torch.testing.assert_close(together, apart, atol=1e-6, rtol=0)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(4))


def test_without_weights_the_error_says_what_to_do(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr(open_clip, "create_model_and_transforms", offline)
    with pytest.raises(ConnectionError, match=r"Network is unreachable.*text_weights=FILE.*table=one-hot"):
        class_embeddings(NAMES, cache=tmp_path)
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"no model 'ViT-Z'.*open_clip\.list_models"):
        class_embeddings(NAMES, model="ViT-Z")
    with pytest.raises(ValueError, match=r"no weights 'laion9b' for ViT-B-16-quickgelu.*it has \['openai'"):
        class_embeddings(NAMES, weights="laion9b")
    (tmp_path / "bad.pt").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"Cannot load the weights '.*bad\.pt' of the text encoder tiny-clip"):
        class_embeddings(NAMES, model=tiny, weights=str(tmp_path / "bad.pt"))
