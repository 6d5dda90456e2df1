"""Push and pull through the real Hub client, over a Hub on loopback, and every way in which that can fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo_dummies
from loopback_hub import OWNER, STRANGER, Fault, LoopbackHub, Repo
from torch import nn

import ponder_zoo as pz
from ponder_zoo.models._reference import reference_points

pytestmark = pytest.mark.usefixtures("dummies")
NAME = "org/room-encoder"


def encoder(**args: Any) -> nn.Module:
    return pz.create_model("neighbour_encoder", num_classes=3, **args)


def push(hub: LoopbackHub, model: nn.Module | None = None, **args: Any) -> str:
    model = encoder() if model is None else model
    args.setdefault("reference", False)  # most tests need none, and it costs a forward pass
    return pz.push_to_hf_hub(model, NAME, endpoint=hub.endpoint, token=OWNER, **args)


@pytest.fixture
def pull(hub: LoopbackHub, tmp_path: Path) -> Any:
    """Create the pushed model from an empty cache of this test."""

    def create(name: str = f"hf-hub:{NAME}", pretrained: bool = True, token: Any = False, **args: Any) -> nn.Module:
        args = {"endpoint": hub.endpoint, "cache_dir": tmp_path / "cache", "token": token, **args}
        return pz.create_model(name, pretrained, **args)

    return create


def same_weights(one: nn.Module, two: nn.Module) -> bool:
    a, b = one.state_dict(), two.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_a_pushed_model_comes_back_bit_exact_with_its_history(hub: LoopbackHub, pull: Any) -> None:
    first, second = encoder(), encoder()
    commit = push(hub, first)
    assert push(hub, second) != commit
    assert same_weights(pull(), second) and same_weights(pull(f"hf-hub:{NAME}@{commit}"), first)
    model = pull()
    assert model.load_report.source.startswith(f"{NAME}@") and model.pretrained_cfg.hf_hub_id == NAME
    assert len(hub.repos[NAME].commits) == 3  # the Hub's own first one, and one for each push


def test_one_push_is_one_commit_with_everything(hub: LoopbackHub) -> None:
    renderer = pz.create_renderer("small_renderer", in_chans=3)
    push(hub, renderer=renderer, reference=True)
    names = {"config.json", "model.safetensors", "renderer.safetensors", "reference.safetensors", "README.md"}
    assert set(hub.files(NAME)) == names | {".gitattributes"}
    assert len(hub.repos[NAME].commits) == 2
    push(hub)  # without the renderer: it would not fit the new weights
    assert "renderer.safetensors" not in hub.files(NAME)


def test_a_renderer_is_pulled_alone(hub: LoopbackHub, tmp_path: Path) -> None:
    renderer = pz.create_renderer("small_renderer", in_chans=3)
    push(hub, renderer=renderer)
    hub.requests.clear()
    args = {"endpoint": hub.endpoint, "cache_dir": tmp_path}
    again = pz.create_renderer(f"hf-hub:{NAME}", pretrained=True, **args)
    assert same_weights(again, renderer)
    assert not any("model.safetensors" in request for request in hub.requests)


def test_without_pretrained_only_the_config_is_fetched(hub: LoopbackHub, pull: Any) -> None:
    push(hub, encoder(width=5))
    hub.requests.clear()
    assert pull(pretrained=False).num_features == 5
    assert all("config.json" in request for request in hub.requests)


def test_branches_and_tags_are_revisions(hub: LoopbackHub, pull: Any) -> None:
    from huggingface_hub import HfApi

    first, second = encoder(), encoder()
    push(hub, first)
    HfApi(endpoint=hub.endpoint, token=OWNER).create_tag(NAME, tag="v1.0")
    push(hub, second, revision="next")
    assert same_weights(pull(), first) and same_weights(pull(f"hf-hub:{NAME}@v1.0"), first)
    assert same_weights(pull(f"hf-hub:{NAME}@next"), second)


def test_a_private_repository_opens_with_a_token_that_stays_with_the_hub(hub: LoopbackHub, pull: Any) -> None:
    model = encoder()
    push(hub, model, private=True)
    assert hub.repos[NAME].private
    assert same_weights(pull(token=OWNER), model)
    with pytest.raises(PermissionError, match=r"does not exist, or it is private \(HTTP 401\).*pass token="):
        pull(cache_dir=None, token=False)
    with pytest.raises(FileNotFoundError, match=r"private \(HTTP 404\).*token gives no access"):
        pull(cache_dir=None, token=STRANGER)
    with pytest.raises(PermissionError, match=r"No access.*HTTP 401"):
        pull(cache_dir=None, token="hf_expired")
    assert hub.blob_authorizations == []


def test_a_gated_repository_says_that_terms_must_be_accepted(hub: LoopbackHub, pull: Any) -> None:
    push(hub)
    hub.repos[NAME].gated = True
    with pytest.raises(PermissionError, match=r"gated.*HTTP 403.*Accept its terms"):
        pull(token=STRANGER)


def test_pushing_without_write_access_is_refused(hub: LoopbackHub) -> None:
    for token in (STRANGER, False):
        with pytest.raises(PermissionError, match=f"No access to {NAME}"):
            pz.push_to_hf_hub(encoder(), NAME, endpoint=hub.endpoint, token=token)
    assert NAME not in hub.repos


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("hf-hub:org/absent", FileNotFoundError, r"'org/absent' on http.*does not exist, or it is private"),
        (f"hf-hub:{NAME}@nope", FileNotFoundError, "has no revision 'nope'"),
        ("hf-hub:room-encoder", ValueError, "Expected a Hub repository 'org/name'"),
        ("hf-hub:../../etc", ValueError, "Expected a Hub repository 'org/name'"),
        (f"hf-hub:{NAME}@../../main", ValueError, r"branch, tag or commit after '@', got '\.\./\.\./main'"),
        (f"hf-hub:{NAME}@", ValueError, "branch, tag or commit after '@'"),
        (NAME, ValueError, f"'hf-hub:{NAME}'"),
    ],
)
def test_a_wrong_name_is_explained(hub: LoopbackHub, pull: Any, name: str, error: type, message: str) -> None:
    push(hub)
    with pytest.raises(error, match=message):
        pull(name, token=OWNER)


def change_config(hub: LoopbackHub, change: Any) -> None:
    config = json.loads(hub.files(NAME)["config.json"])
    change(config)
    hub.put(NAME, {"config.json": json.dumps(config).encode()})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(format_version=2), "format_version 2.*Upgrade"),
        (lambda c: c.update(architecture="neighbor_encoder"), "Did you mean neighbour_encoder"),
        (lambda c: c.update(architecture="other_encoder", model_args={}), "do not fit NeighbourEncoder.*another shape"),
        (
            lambda c: c["model_args"].update(width=9),
            r"do not fit.*stem: file \(8, 3, 3, 3, 6\), model \(9, 3, 3, 3, 6\)",
        ),
    ],
)
def test_a_config_that_does_not_go_with_the_weights_is_explained(
    hub: LoopbackHub, pull: Any, change: Any, message: str
) -> None:
    push(hub)
    change_config(hub, change)
    with pytest.raises(ValueError, match=message):
        pull()


def test_a_repository_of_another_kind_names_what_is_missing(hub: LoopbackHub, pull: Any) -> None:
    hub.put(NAME, {"pytorch_model.bin": b"x"})
    with pytest.raises(FileNotFoundError, match=r"has no file 'config\.json'"):
        pull()


@pytest.mark.parametrize("damage", [lambda b: b[:-9], lambda b: b"\xff" * 8 + b[8:], lambda b: b[:9] + b"x" + b[10:]])
def test_a_file_that_was_published_damaged_is_named(hub: LoopbackHub, pull: Any, damage: Any) -> None:
    push(hub)
    hub.put(NAME, {"model.safetensors": damage(hub.files(NAME)["model.safetensors"])})
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        pull()


@pytest.mark.parametrize(
    ("kind", "message"), [("corrupt", "arrived damaged: expected digest"), ("truncate", "arrived truncated")]
)
def test_what_arrives_damaged_is_not_kept(hub: LoopbackHub, pull: Any, kind: Any, message: str) -> None:
    model = encoder()
    push(hub, model)
    hub.faults = [Fault(kind, "model.safetensors")]
    with pytest.raises(ValueError, match=message):
        pull()
    assert same_weights(pull(), model)


def test_a_dropped_connection_is_resumed(hub: LoopbackHub, pull: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    model = encoder()
    push(hub, model)
    hub.faults = [Fault("drop", "model.safetensors", times=2)]
    assert same_weights(pull(), model) and hub.faults[0].times == 0


def test_a_connection_that_keeps_dropping_leaves_nothing_that_could_be_used(
    hub: LoopbackHub, pull: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    model = encoder()
    push(hub, model)
    hub.faults = [Fault("drop", "model.safetensors", times=1000)]
    with pytest.raises(ConnectionError, match=r"broke while fetching model.safetensors of .*try again"):
        pull()
    assert [path.name for path in (tmp_path / "cache").rglob("*.safetensors")] == []
    hub.faults = []
    assert same_weights(pull(), model)


def test_a_hostile_commit_header_cannot_leave_the_cache(hub: LoopbackHub, pull: Any, tmp_path: Path) -> None:
    push(hub)
    hub.commit_header = "../../../../outside"
    with pytest.raises((ValueError, ConnectionError)):
        pull()
    assert {path.name for path in tmp_path.iterdir()} <= {"cache"}


def test_offline_uses_the_cache_and_says_what_it_lacks(
    hub: LoopbackHub, pull: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = encoder()
    push(hub, model)
    pull()
    hub.requests.clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert same_weights(pull(), model) and hub.requests == []
    with pytest.raises(FileNotFoundError, match=r"renderer|not in the cache.*HF_HUB_OFFLINE"):
        pull("hf-hub:org/never-seen")


def test_a_hub_that_cannot_be_reached_is_named_unless_all_is_cached(
    hub: LoopbackHub, pull: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    model = encoder()
    push(hub, model)
    pull()
    nowhere = "http://127.0.0.1:9"
    assert same_weights(pull(endpoint=nowhere), model)
    with pytest.raises(ConnectionError, match=r"127.0.0.1:9 cannot be reached and config.json of org/never"):
        pull("hf-hub:org/never", endpoint=nowhere)


def test_all_files_of_a_model_are_of_one_commit(hub: LoopbackHub, pull: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A push between the config and the weights must not mix two models."""
    first = encoder(width=5)
    push(hub, first)
    before, resolve = hub.repos[NAME].refs["main"], Repo.find
    push(hub, encoder(width=6))
    after = hub.repos[NAME].refs["main"]
    hub.repos[NAME].refs["main"] = before
    calls = []

    def racing(self: Repo, revision: str) -> str | None:
        found = resolve(self, revision)
        calls.append(revision)
        if len(calls) == 2:  # HEAD and GET of config.json
            self.refs["main"] = after
        return found

    monkeypatch.setattr(Repo, "find", racing)
    assert same_weights(pull(), first)
    assert same_weights(pull(), pull(f"hf-hub:{NAME}@{after}"))


def test_the_card_is_read_by_the_hub_and_an_edited_one_is_kept(hub: LoopbackHub, tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    metadata = {
        "license": "cc-by-4.0",
        "training_data": "built-in rooms: a | b",
        "training_data_license": "mit",
        "metrics": {"mIoU": 0.25},
        "description": "Line one.\n---\nmalicious: true",
    }
    push(hub, metadata=metadata, preview=tmp_path / "picture.png", reference=True)
    (tmp_path / "README.md").write_bytes(hub.files(NAME)["README.md"])
    card = ModelCard.load(tmp_path / "README.md")
    data = card.data.to_dict()
    assert data["library_name"] == "ponder_zoo" and data["license"] == "cc-by-4.0" and "malicious" not in data
    assert data["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.25
    for text in (
        *(
            f'pz.create_model("hf-hub:{NAME}", pretrained=True)',
            f'pz.verify("hf-hub:{NAME}")',
            "| red | 127.5 | 127.5 |",
        ),
        *(
            "0.02 m",
            "| mIoU | 0.25 |",
            "preview.png",
            "arXiv:2310.08586",
            "Terms of the training data | mit",
            "a \\| b",
        ),
    ):
        assert text in card.text
    hub.put(NAME, {"README.md": b"# Mine"})
    push(hub)
    assert hub.files(NAME)["README.md"] == b"# Mine"


def test_verify_replays_the_reference_and_notices_other_weights(hub: LoopbackHub, tmp_path: Path) -> None:
    push(hub, reference=True)
    args = {"endpoint": hub.endpoint, "cache_dir": tmp_path}
    report = pz.verify(f"hf-hub:{NAME}", **args)
    assert report.passed and report.error < 1e-6 and "agrees" in str(report)
    other = pz.save_for_hf(encoder(), tmp_path / "other", reference=False)
    with pytest.raises(FileNotFoundError, match="exported without a reference"):
        pz.verify(other)
    with pytest.raises(FileNotFoundError, match=r"absent/config\.json; there is no such file"):
        pz.verify(tmp_path / "absent")
    (other / "reference.safetensors").write_bytes(hub.files(NAME)["reference.safetensors"])
    assert not pz.verify(other).passed and "DISAGREES" in str(pz.verify(other))


def test_a_reference_may_be_given_and_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = encoder()
    model.trunk.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    points = reference_points(model.pretrained_cfg).split()[0]
    pz.save_for_hf(model, tmp_path, reference=points)
    assert model.training and not model.trunk.training and model.stem.grad is None
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert pz.verify(tmp_path).passed
    with torch.no_grad():
        model.stem.fill_(float("nan"))
    with pytest.raises(ValueError, match="no finite tensor"):
        pz.save_for_hf(model, tmp_path, reference=points)


def test_a_new_process_with_an_empty_cache_gives_the_same_numbers(hub: LoopbackHub, tmp_path: Path) -> None:
    model = encoder().eval()
    push(hub, model, renderer=pz.create_renderer("small_renderer", in_chans=3))
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import torch, zoo_dummies, ponder_zoo as pz\n"
        "from ponder_zoo.models._reference import reference_points\n"
        "pz.register_model(zoo_dummies.neighbour_encoder); pz.register_renderer(zoo_dummies.small_renderer)\n"
        f"model = pz.create_model('hf-hub:{NAME}', pretrained=True).eval()\n"
        f"pz.create_renderer('hf-hub:{NAME}', pretrained=True)\n"
        "torch.save(model(reference_points(model.pretrained_cfg)), sys.argv[2])"
    )
    env = os.environ | {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home")}
    out = tmp_path / "out.pt"
    command = [sys.executable, "-c", code, str(Path(zoo_dummies.__file__).parent), str(out)]
    subprocess.run(command, check=True, env=env, timeout=200)
    torch.testing.assert_close(torch.load(out), model(reference_points(model.pretrained_cfg)), rtol=0, atol=0)
    copy = tmp_path / "copy"
    hf = str(Path(sys.executable).parent / "hf")
    subprocess.run(
        [hf, "download", NAME, "--local-dir", str(copy)], check=True, env=env, timeout=200, capture_output=True
    )
    assert same_weights(pz.create_model(f"local-dir:{copy}", pretrained=True), model)


def test_the_hub_client_itself_downloads_the_folder(hub: LoopbackHub, tmp_path: Path) -> None:
    from huggingface_hub import HfApi, snapshot_download

    model = encoder()
    push(hub, model)
    folder = snapshot_download(NAME, endpoint=hub.endpoint, local_dir=tmp_path / "copy")
    assert same_weights(pz.create_model(f"local-dir:{folder}", pretrained=True), model)
    info = HfApi(endpoint=hub.endpoint).model_info(NAME)
    assert info.sha == hub.repos[NAME].refs["main"]
