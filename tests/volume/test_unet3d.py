from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from ponder_zoo.volume import UNet3D
from ponder_zoo.volume.unet3d import checkpoint_filter_fn


def assert_near(ours: torch.Tensor, official: torch.Tensor, name: str) -> None:
    error = (ours - official).abs().max() / official.abs().max()
    assert error < 1e-4, f"{name}: {float(error):.1e}"


def test_outputs_gradients_and_buffers_match_the_official_code(shared_dir: Path) -> None:
    data = load_file(shared_dir / "parity/c_unet3d_v1m2.safetensors")
    model = UNet3D(12, 16, channels=(3, 6, 12, 24))

    def ours(prefix: str) -> dict[str, torch.Tensor]:
        official = {key.removeprefix(prefix): value for key, value in data.items() if key.startswith(prefix)}
        return checkpoint_filter_fn(official, model)

    model.load_state_dict(ours("state."))
    assert sum(p.numel() for p in model.parameters()) == 26680
    assert_near(model.eval()(data["in.x"]), data["eval.out"], "eval")
    x = data["in.x"].requires_grad_()
    out = model.train()(x)
    assert_near(out, data["train.out"], "train")
    (out * data["train.cotangent"]).sum().backward()
    assert_near(x.grad, data["grad.in.x"], "input")
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    gradients = ours("grad.state.")
    assert len(gradients) >= 4
    for name, value in gradients.items():
        assert_near(parameters[name].grad, value, name)
    after = ours("after_train.")
    assert len(after) >= 14
    for name, value in after.items():
        assert_near(buffers[name], value, name)


def test_the_default_is_the_released_network(shared_dir: Path) -> None:
    keys = json.loads((shared_dir / "parity/f_keys_pretrain_ponder_ppt.json").read_text())["keys"]
    prefix = "proj_net."
    with torch.device("meta"):
        model = UNet3D(96, 128)
        official = {k.removeprefix(prefix): torch.empty(s) for k, s in keys.items() if k.startswith(prefix)}
    assert sum(p.numel() for p in model.parameters()) == 2_991_520
    ours = {key: value.shape for key, value in model.state_dict().items()}
    assert {key: value.shape for key, value in checkpoint_filter_fn(official, model).items()} == ours
    assert set(checkpoint_filter_fn(model.state_dict(), model)) == set(ours)


def test_the_output_is_channels_last_like_the_input() -> None:
    out = UNet3D(3, 8, channels=(4, 8))(torch.randn(1, 3, 4, 6, 8))
    assert out.shape == (1, 8, 4, 6, 8)
    assert out.is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_any_number_of_levels_works(levels: int) -> None:
    assert UNet3D(3, 5, channels=(2, 3, 4)[:levels])(torch.randn(1, 3, 4, 4, 8)).shape == (1, 5, 4, 4, 8)


@pytest.mark.parametrize("out_chans", [3, 5])
def test_a_shortcut_adds_the_input(out_chans: int) -> None:
    volume = torch.randn(2, 3, 4, 4, 8)
    model = UNet3D(3, out_chans, channels=(4, 8), shortcut=True).eval()
    plain = UNet3D(3, out_chans, channels=(4, 8)).eval()
    plain.load_state_dict(model.state_dict(), strict=False)
    added = model(volume) - plain(volume)
    expected = volume if out_chans == 3 else F.conv3d(volume, model.shortcut.weight)
    torch.testing.assert_close(added, expected, atol=1e-5, rtol=1e-5)


def test_volumes_that_do_not_fit_are_explained() -> None:
    model = UNet3D(3, 8)
    with pytest.raises(ValueError, match=r"multiples of 8; got \(4, 8, 8\)"):
        model(torch.zeros(1, 3, 4, 8, 8))
    with pytest.raises(ValueError, match="in_chans=2"):
        model(torch.zeros(1, 2, 8, 8, 8))
    with pytest.raises(ValueError, match="at least one level"):
        UNet3D(3, 8, channels=())
