"""Hostile files: refused before anything runs or is allocated, each within a second and little memory."""

from __future__ import annotations

import collections
import contextlib
import io
import json
import os
import pickle
import resource
import struct
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

import ponder_zoo as pz
from ponder_zoo.models._foreign import read_checkpoint, state_dict_of
from ponder_zoo.models._pretrained import read_safetensors, read_weights
from ponder_zoo.models._safety import check_size, read_json

SENTINEL = "PONDER_ZOO_TEST_WAS_EXECUTED"
MEMORY = 256 << 20  # bytes that refusing may add to the peak of this process


@pytest.fixture(autouse=True)
def bounds(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test of this file: nothing was executed, quickly and without memory."""
    os.environ.pop(SENTINEL, None)
    peak, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    yield
    assert SENTINEL not in os.environ, "code in the file was executed"
    assert time.process_time() - start < 3.0  # under 0.5 s on a machine that does nothing else
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * 1024 < MEMORY


def archive(path: Path, program: bytes, records: dict[str, bytes] | None = None, **zip_args: Any) -> Path:
    """A file laid out as torch.save does it, with any pickle program."""
    with zipfile.ZipFile(path, "w", zip_args.get("compression", zipfile.ZIP_STORED)) as file:
        file.writestr("archive/data.pkl", program)
        for name, content in {"archive/version": b"3\n", "archive/byteorder": b"little", **(records or {})}.items():
            file.writestr(name, content)
    return path


class Reduce:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


SET = f"__import__('os').environ.__setitem__('{SENTINEL}', '1')"


def raw_calls(*names: str) -> bytes:
    """GLOBAL instructions by hand, for names that Python would not pickle."""
    return (
        b"\x80\x02"
        + b"".join(f"c{name}\n".encode() for name in names)
        + b"(X"
        + struct.pack("<I", len(SET))
        + SET.encode()
        + b"tR."
    )


GADGETS: dict[str, Any] = {
    "os.system": lambda: pickle.dumps(Reduce(os.system, f"touch {SENTINEL}"), 2),
    "eval": lambda: pickle.dumps(Reduce(eval, SET), 2),
    "exec": lambda: pickle.dumps(Reduce(exec, SET), 2),
    "eval in a state_dict": lambda: pickle.dumps({"state_dict": {"weight": Reduce(eval, SET)}}, 2),
    "eval at protocol 4": lambda: pickle.dumps(Reduce(eval, SET), 4),
    "getattr chain": lambda: pickle.dumps(Reduce(getattr, Reduce(__import__, "os"), "system"), 2),
    "builtins by another name": lambda: raw_calls("__builtin__\neval"),
    "torch.hub": lambda: pickle.dumps(Reduce(torch.hub.load, "a/b", "c"), 2),
    "torch.load": lambda: pickle.dumps(Reduce(torch.load, "/etc/passwd"), 2),
    "torch through a dotted name": lambda: raw_calls("torch\n_utils.os.system"),
    "numpy object array": lambda: pickle.dumps({"a": np.array([Reduce(eval, SET)], dtype=object)}, 2),
    "numpy load": lambda: pickle.dumps(Reduce(np.load, "/etc/passwd"), 2),
    "numpy scalar of objects": lambda: (
        b"\x80\x02cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\nX\x02\x00\x00\x00O8\x89\x88\x87RX\x01\x00\x00\x00a\x86R."
    ),
    "functools.partial": lambda: pickle.dumps(Reduce(__import__("functools").partial, eval, SET), 2),
    "INST instruction": lambda: b"(X" + struct.pack("<I", len(SET)) + SET.encode() + b"ibuiltins\neval\n.",
    "OBJ instruction": lambda: b"(cbuiltins\neval\nX" + struct.pack("<I", len(SET)) + SET.encode() + b"o.",
    "extension registry": lambda: b"\x80\x02\x82\x01.",
    "state of a function": lambda: (
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x01\x00\x00\x00aX\x01\x00\x00\x00bsb."
    ),
    "attributes of a function": lambda: (
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}X\x0c\x00\x00\x00__defaults__)s\x86b."
    ),
    "bytearray of 100 GB": lambda: b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\x00\x00\x00\x00\x19\x85R.",
    "memo index of 2 billion": lambda: b"\x80\x02}r\xff\xff\xff\x7f.",
    "string of 4 GB": lambda: b"\x80\x02X\xff\xff\xff\xffabc.",
    "codec": lambda: b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00zip\x86R.",
    "no end": lambda: b"\x80\x02}",
    "empty": lambda: b"",
    "garbage": lambda: bytes(range(256)),
    "deep": lambda: b"\x80\x02" + b"(" * 100_000 + b".",
    "persistent id of another kind": lambda: b"\x80\x02X\x01\x00\x00\x00aQ.",
}


@pytest.mark.parametrize("gadget", list(GADGETS))
def test_a_pickle_that_does_anything_but_hold_tensors_is_refused(gadget: str, tmp_path: Path) -> None:
    path = archive(tmp_path / "model.pth", GADGETS[gadget]())
    with pytest.raises(ValueError, match=r"is refused: .*nothing in it was executed"):
        read_checkpoint(path)
    assert not Path(SENTINEL).exists()


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_bare_pickle_is_no_checkpoint(protocol: int, tmp_path: Path) -> None:
    (tmp_path / "model.pth").write_bytes(pickle.dumps(Reduce(eval, SET), protocol))
    with pytest.raises(ValueError, match="no zip archive"):
        read_checkpoint(tmp_path / "model.pth")


def tensor_program(
    count: int, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], hooks: Any = None
) -> bytes:
    """What torch.save writes for one tensor, with any numbers."""

    class Storage:
        def __init__(self) -> None:
            self.id = ("storage", torch.FloatStorage, "0", "cpu", count)

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return value.id if isinstance(value, Storage) else None

    hooks = collections.OrderedDict() if hooks is None else hooks
    call = Reduce(torch._utils._rebuild_tensor_v2, Storage(), offset, shape, stride, False, hooks)
    buffer = io.BytesIO()
    Pickler(buffer, 2).dump({"weight": call})
    return buffer.getvalue()


def test_a_tensor_written_by_hand_is_read(tmp_path: Path) -> None:
    data = {"archive/data/0": np.arange(6, dtype=np.float32).tobytes()}
    path = archive(tmp_path / "ok.pth", tensor_program(6, 0, (2, 3), (3, 1)), data)
    assert read_checkpoint(path)["weight"].tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((10**11, 0, (10**11,), (1,)), "claims 100000000000 x 4 bytes and has 24"),  # torch would read past the record
        ((7, 0, (7,), (1,)), "claims 7 x 4 bytes and has 24"),
        (
            (6, 0, (10**12,), (0,)),
            "does not lie in its storage",
        ),  # few bytes, and huge once anything is computed with it
        ((6, 4, (3,), (1,)), "does not lie in its storage"),
        ((6, 0, (2, 3), (3, 2)), "does not lie in its storage"),
        ((6, 0, (-1,), (1,)), "not described by"),
        ((6, 0, (2**63,), (1,)), "not described by"),
        ((6, 0, (1,) * 65, (1,) * 65), "not described by"),
        ((6, 0, (2, 3), (1,)), "different lengths"),
        ((6, 0, (6,), (1,), {"hook": 1}), "carries hooks"),
    ],
)
def test_a_tensor_that_claims_more_than_is_there_is_refused(numbers: Any, message: str, tmp_path: Path) -> None:
    data = {"archive/data/0": bytes(24)}
    with pytest.raises(ValueError, match=message):
        read_checkpoint(archive(tmp_path / "model.pth", tensor_program(*numbers), data))


def test_compressed_records_are_refused_whatever_they_grow_to(tmp_path: Path) -> None:
    data = {"archive/data/0": bytes(20 << 20)}
    path = archive(tmp_path / "model.pth", pickle.dumps({}, 2), data, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 20
    with pytest.raises(ValueError, match="is compressed"):
        read_checkpoint(path)


@pytest.mark.parametrize("name", ["../../evil", "archive/../../evil", "/etc/evil", "C:\\evil", "archive//x"])
def test_records_that_leave_the_archive_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="leaves the archive"):
        read_checkpoint(archive(tmp_path / "model.pth", pickle.dumps({}, 2), {name: b"x"}))


def test_two_programs_code_or_trailing_bytes_are_refused(tmp_path: Path) -> None:
    empty = pickle.dumps({}, 2)
    with pytest.raises(ValueError, match=r"2 data\.pkl"):
        read_checkpoint(archive(tmp_path / "two.pth", empty, {"other/data.pkl": empty}))
    with pytest.raises(ValueError, match="TorchScript"):
        read_checkpoint(archive(tmp_path / "script.pth", empty, {"archive/constants.pkl": empty}))
    path = archive(tmp_path / "tail.pth", empty)
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(ValueError, match="no zip archive"):
        read_checkpoint(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"no zip archive.*truncated"):
        read_checkpoint(path)


def test_what_torch_saves_of_plain_training_is_read(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimizer = {  # as SGD's state_dict; making one would cost more than the second this file allows
        "state": {i: {"momentum_buffer": torch.randn_like(p)} for i, p in enumerate(model.parameters())},
        "param_groups": [{"lr": 0.1, "momentum": 0.9, "nesterov": True, "foreach": None, "params": [0, 1, 2, 3]}],
    }
    checkpoint = {
        "epoch": 3,
        "state_dict": {f"module.{key}": value for key, value in model.state_dict().items()},
        "optimizer": optimizer,
        "scheduler": {"lr": [0.1], "done": False},
        "scaler": None,
        "best_metric_value": np.float64(0.75),
        "view": torch.arange(12.0).view(3, 4).t(),
        "half": nn.Parameter(torch.ones(2, dtype=torch.bfloat16)),
        "empty": torch.zeros(0, 3),
    }
    torch.save(checkpoint, tmp_path / "model.pth")
    again = read_checkpoint(tmp_path / "model.pth")
    assert again["epoch"] == 3 and again["best_metric_value"] == 0.75 and again["empty"].shape == (0, 3)
    assert torch.equal(again["view"], checkpoint["view"]) and torch.equal(again["half"], checkpoint["half"])
    torch.testing.assert_close(again["optimizer"], checkpoint["optimizer"], rtol=0, atol=0)
    weights = read_weights(tmp_path / "model.pth")
    assert weights.keys() == checkpoint["state_dict"].keys()
    with pytest.raises(ValueError, match="expected a state_dict"):
        state_dict_of([1], "list.pth")


def test_the_mini_checkpoint_of_the_official_layout_is_read(shared_dir: Path) -> None:
    path = shared_dir / "parity" / "f_mini_pretrain_checkpoint.pth"
    weights = read_weights(path)
    assert len(weights) == 602 and all(key.startswith("module.") for key in weights)
    assert read_checkpoint(path)["best_metric_value"] == -float("inf")


@given(data=st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_anywhere_in_a_checkpoint_is_noticed_or_harmless(data: st.DataObject, tmp_path: Path) -> None:
    state = {"weight": torch.arange(6.0).view(2, 3), "epoch": 3, "best": np.float64(0.5), "t": torch.ones(4)[1:3]}
    torch.save(state, tmp_path / "model.pth")
    content = bytearray((tmp_path / "model.pth").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "model.pth").write_bytes(content)
    with contextlib.suppress(ValueError):
        read_checkpoint(tmp_path / "model.pth")


@given(data=st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_anywhere_in_a_safetensors_header_is_noticed_or_harmless(data: st.DataObject, tmp_path: Path) -> None:
    save_file({"weight": torch.arange(6.0).view(2, 3), "bias": torch.ones(3)}, tmp_path / "model.safetensors")
    content = bytearray((tmp_path / "model.safetensors").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, 160))] = data.draw(st.integers(0, 255))
    (tmp_path / "model.safetensors").write_bytes(content)
    with contextlib.suppress(ValueError):
        read_safetensors(tmp_path / "model.safetensors")


def header(entries: Any, data: bytes = b"", length: int | None = None) -> bytes:
    raw = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x01",
        header({}, length=2**63),
        header({}, length=10**9),
        header(b"[" * 100_000),
        header(b"\xff\xfe"),
        header([1]),
        header({"a": {**F32, "shape": [10**15], "data_offsets": [0, 4 * 10**15]}}, bytes(8)),
        header({"a": {**F32, "shape": [10**15]}}, bytes(8)),
        header({"a": {**F32, "shape": [2**62, 2**62]}}, bytes(8)),
        header({"a": {**F32, "shape": [-2]}}, bytes(8)),
        header({"a": {**F32, "shape": [True, 2]}}, bytes(8)),
        header({"a": {**F32, "dtype": "OBJECT"}}, bytes(8)),
        header({"a": {**F32, "dtype": ["F32"]}}, bytes(8)),
        header({"a": F32, "b": F32}, bytes(8)),
        header({"a": F32}, bytes(9)),
        header({"a": {**F32, "data_offsets": [4, 12]}}, bytes(12)),
        header({"a": {"shape": [2]}}, bytes(8)),
    ],
)
def test_a_safetensors_header_that_lies_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"not a readable safetensors file: .*truncated or damaged"):
        read_safetensors(tmp_path / "model.safetensors")


def test_our_reading_of_headers_agrees_with_the_library(tmp_path: Path) -> None:
    tensors = {
        "a": torch.rand(2, 3),
        "b": torch.zeros(0, 4),
        "c": torch.tensor(1),
        "d": torch.ones(3, dtype=torch.bfloat16),
    }
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    again = read_safetensors(tmp_path / "model.safetensors")
    assert again.keys() == tensors.keys() and all(torch.equal(again[key], value) for key, value in tensors.items())


@pytest.mark.usefixtures("dummies")
class TestConfig:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        model = pz.create_model("neighbour_encoder")
        renderer = pz.create_renderer("small_renderer", in_chans=3)
        return pz.save_for_hf(model, tmp_path, renderer=renderer, reference=False)

    def change(self, folder: Path, change: Callable[[dict[str, Any]], Any]) -> str:
        config = json.loads((folder / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))
        return f"local-dir:{folder}"

    @pytest.mark.parametrize(
        "change",
        [
            lambda c: c["model_args"].update(width=10**8),
            lambda c: c["model_args"].update(width=20_000),
            lambda c: c["pretrained_cfg"].update(num_classes=10**9),
            lambda c: c["point_cfg"].update(
                {
                    key: [value] * 40_000
                    for key, value in {"feature_columns": "x", "mean": 0.0, "std": 1.0, "fill": 0.0}.items()
                },
            ),
        ],
    )
    def test_sizes_beyond_the_weights_are_refused_before_allocating(self, folder: Path, change: Any) -> None:
        with pytest.raises(ValueError, match=r"asks for more than \d+ parameters.*nothing was allocated"):
            pz.create_model(self.change(folder, change), pretrained=True)

    def test_without_weights_there_is_an_absolute_limit(self, folder: Path) -> None:
        name = self.change(folder, lambda c: c["model_args"].update(width=10**7))
        with pytest.raises(ValueError, match="asks for more than 1000000000 parameters"):
            pz.create_model(name)

    def test_a_renderer_is_checked_likewise(self, folder: Path) -> None:
        name = self.change(folder, lambda c: c["renderer"]["model_args"].update(hidden_dim=10**8))
        for pretrained in (True, False):
            with pytest.raises(ValueError, match=r"asks for more than \d+ parameters"):
                pz.create_renderer(name, pretrained=pretrained, in_chans=300)

    @pytest.mark.parametrize("number", ["1e12", "Infinity", "NaN", "-5000000000", "9" * 5000])
    def test_numbers_that_no_model_has_are_refused(self, folder: Path, number: str) -> None:
        text = (folder / "config.json").read_text().replace('"width"', f'"extra": {number}, "width"')
        text = text.replace('"model_args": {}', f'"model_args": {{"extra": {number}}}')
        (folder / "config.json").write_text(text)
        with pytest.raises(ValueError, match=r"holds the number|is not valid JSON"):
            pz.create_model(f"local-dir:{folder}", pretrained=True)

    @pytest.mark.parametrize("content", [b"[" * 200_000, b"[1]", b"\xff", b"{", b" " * (5 << 20)])
    def test_what_is_no_config_is_refused(self, folder: Path, content: bytes) -> None:
        (folder / "config.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"is not valid JSON|expected an object|not a model's config"):
            pz.create_model(f"local-dir:{folder}", pretrained=True)

    @pytest.mark.parametrize("field", ["architecture", "model_args", "pretrained_cfg", "renderer"])
    def test_entries_of_another_kind_are_refused(self, folder: Path, field: str) -> None:
        name = self.change(folder, lambda c: c.update({field: [1]}))
        with pytest.raises(ValueError, match=f"lacks \\['{field}'\\]|'renderer' without architecture"):
            pz.create_model(name, pretrained=True)

    @pytest.mark.parametrize("name", ["endpoint", "token", "checkpoint_path", "pretrained_cfg_overlay", "backend"])
    def test_a_config_cannot_choose_where_to_load_from(self, folder: Path, name: str) -> None:
        path = self.change(folder, lambda c: c["model_args"].update({name: "http://elsewhere"}))
        with pytest.raises(ValueError, match=rf"sets \['{name}'\] in model_args, which only the caller may choose"):
            pz.create_model(path, pretrained=True)

    def test_names_of_architectures_are_looked_up_and_nothing_else(self, folder: Path) -> None:
        name = self.change(folder, lambda c: c.update(architecture="../../os.system"))
        with pytest.raises(ValueError, match="Unknown model"):
            pz.create_model(name, pretrained=True)


def test_endless_layers_are_stopped() -> None:
    def build() -> nn.Module:
        layers = nn.Sequential()
        for i in range(10**9):
            layers.add_module(str(i), nn.Identity())
        return layers

    with pytest.raises(ValueError, match="asks for more than 20000 layers"):
        check_size(build, 10**9, "a config")


def test_the_check_leaves_no_hook_behind(tmp_path: Path) -> None:
    check_size(lambda: nn.Linear(2, 2), 6, "a config")
    with pytest.raises(ValueError, match="more than 5 parameters"):
        check_size(lambda: nn.Linear(2, 2), 5, "a config")
    assert nn.Linear(100, 100).weight.device.type == "cpu"
    (tmp_path / "config.json").write_text('{"a": 1}')
    assert read_json(tmp_path / "config.json") == {"a": 1}


@pytest.mark.parametrize(
    "name", ["../weights.safetensors", "/etc/passwd", "a/../../b", "..\\b", "C:b", "a//b", "a\0b", ""]
)
@pytest.mark.usefixtures("dummies")
def test_a_config_cannot_name_files_outside_the_repository(name: str, hub: Any) -> None:
    cfg = {"hf_hub_id": "org/name", "hf_hub_filename": name}
    with pytest.raises(ValueError, match="Expected a file name inside the repository"):
        pz.create_model("neighbour_encoder", pretrained=True, pretrained_cfg=cfg, endpoint=hub.endpoint)
    assert hub.requests == []
