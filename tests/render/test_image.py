from __future__ import annotations

import math

import pytest
import torch
from known_fields import PlaneField, empty_volume, make_renderer, random_volume

from ponder_zoo.render import NeuS, render_image

K = torch.tensor([[20.0, 0.0, 7.5], [0.0, 20.0, 5.5], [0.0, 0.0, 1.0]])


def looking_down(height: float) -> torch.Tensor:
    """A camera above the origin that looks down; x to the right."""
    pose = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0]))
    pose[2, 3] = height
    return pose


def test_depth_is_z_depth_and_normals_are_in_the_world_frame() -> None:
    renderer = make_renderer("neus", PlaneField(-1.0), sharpness=1000.0)
    image = render_image(renderer, empty_volume(), K, looking_down(1.5), (12, 16))
    assert {name: tuple(value.shape) for name, value in image.items()} == {
        "rgb": (12, 16, 3),
        "depth": (12, 16),
        "normal": (12, 16, 3),
        "opacity": (12, 16),
    }
    torch.testing.assert_close(image["depth"], torch.full((12, 16), 2.5), atol=1e-3, rtol=0.0)
    torch.testing.assert_close(image["normal"], torch.tensor([0.0, 0.0, 1.0]).expand(12, 16, 3), atol=1e-3, rtol=0.0)
    torch.testing.assert_close(image["rgb"], torch.full((12, 16, 3), 0.25), atol=1e-3, rtol=0.0)


def test_any_camera_gives_its_own_z_depth() -> None:
    renderer = make_renderer("neus", PlaneField(-1.0), sharpness=1000.0)
    tilt = math.radians(20.0)
    pose = looking_down(1.5)
    rotation = torch.eye(4)
    rotation[1:3, 1:3] = torch.tensor([[math.cos(tilt), -math.sin(tilt)], [math.sin(tilt), math.cos(tilt)]])
    pose = pose @ rotation
    image = render_image(renderer, empty_volume(), K, pose, (12, 16))
    v, u = torch.meshgrid(torch.arange(12.0), torch.arange(16.0), indexing="ij")
    toward = torch.stack([(u - 7.5) / 20.0, (v - 5.5) / 20.0, torch.ones(12, 16)], -1) @ pose[:3, :3].T
    torch.testing.assert_close(image["depth"], 2.5 / -toward[..., 2], atol=2e-3, rtol=0.0)


@pytest.mark.parametrize("name", ["neus", "volsdf", "unisurf"])
def test_chunks_and_strides_change_nothing_else(name: str) -> None:
    renderer = make_renderer(name, sharpness=20.0)
    volume = random_volume(4)
    pose = looking_down(1.2)
    whole = render_image(renderer, volume, K, pose, (12, 16))
    pieces = render_image(renderer, volume, K, pose, (12, 16), chunk=50)
    coarse = render_image(renderer, volume, K, pose, (12, 16), stride=5)
    for key, value in whole.items():
        torch.testing.assert_close(pieces[key], value, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(coarse[key], value[::5, ::5], atol=1e-5, rtol=1e-5)


def test_the_mode_is_restored_and_no_graph_is_kept() -> None:
    renderer = NeuS(4, hidden_dim=8, geo_dim=4, semantic_dim=3).train()
    volume = random_volume(4)
    first, second = (render_image(renderer, volume, K, looking_down(1.2), (4, 4)) for _ in range(2))
    assert renderer.training and not first["rgb"].requires_grad
    assert first["semantic"].shape == (4, 4, 3)
    assert torch.equal(first["rgb"], second["rgb"])  # eval mode: not stratified


def test_a_camera_that_looks_away_sees_black() -> None:
    renderer = make_renderer("neus", PlaneField(-1.0))
    pose = torch.eye(4)
    pose[2, 3] = 9.0
    image = render_image(renderer, empty_volume(), K, pose, (4, 6))
    assert all((value == 0.0).all() for value in image.values())


def test_a_batch_of_scenes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"one scene; got a volume of 2 scenes.*Select one"):
        render_image(make_renderer("neus"), random_volume(4, scenes=2), K, torch.eye(4), (4, 4))
