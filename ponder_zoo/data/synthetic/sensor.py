"""What a depth camera makes of exact images: noise, quantisation, holes, flying pixels, and imperfect poses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .primitives import Float, rotation_x, rotation_z

SensorName = Literal["off", "kinect", "tof"]


@dataclass(frozen=True)
class SensorModel:
    """Parameters of a depth camera and of the colour camera beside it. Lengths in metres, angles in radians."""

    noise_near: float = 0.0012  # standard deviation of depth: noise_near + noise_far (z - 0.4)^2, for a Kinect
    noise_far: float = 0.0019  # (Nguyen et al., 3DIM 2012: axial noise)
    disparity_step: float = 0.0  # depth z is rounded to steps of disparity_step * z^2; 0 = no rounding
    near: float = 0.4  # nothing is measured nearer
    far: float = 8.0  # or farther
    grazing: float = 1.396  # 80 degrees: surfaces seen at a larger angle give nothing
    dark: float = 0.0  # probability of no return from a black surface
    shiny: float = 1.0  # factor on the materials' probability of no return
    blobs: float = 0.0  # share of the image lost to clustered holes
    edge_loss: float = 0.0  # probability of no return beside a depth edge
    flying: float = 0.0  # probability that a pixel at a depth edge mixes both depths
    shadow: bool = False  # whether the side of an edge that the projector cannot reach is lost
    perforation: float = 0.0  # probability of a single lost pixel
    misregistration: float = 0.0  # colour against depth, pixels of a 640 pixel wide image
    pose_shift: float = 0.005  # root mean square error of the camera position
    pose_turn: float = 0.00524  # root mean square error of the orientation: 0.3 degrees
    exposure: float = 0.08  # relative, per frame
    white_balance: float = 0.03  # relative, per frame and channel
    color_noise: float = 0.008  # of full scale


SENSORS: dict[str, SensorModel | None] = {
    "off": None,
    "kinect": SensorModel(
        disparity_step=0.00287,  # 1/8 pixel at a focal length of 580 pixels and a base line of 7.5 cm
        far=5.5,
        dark=0.1,
        blobs=0.025,
        edge_loss=0.25,
        flying=0.1,
        shadow=True,
        misregistration=1.5,
    ),
    "tof": SensorModel(
        noise_near=0.004,
        noise_far=0.0008,
        far=5.0,
        grazing=1.3,
        dark=0.45,
        blobs=0.1,
        edge_loss=0.3,
        flying=0.45,
        perforation=0.13,
        misregistration=2.0,
    ),
}


def sense_depth(
    model: SensorModel,
    depth: Float,
    *,
    cosine: Float,
    brightness: Float,
    shiny: Float,
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """Measured depth (V, H, W) of exact z-depth (V, H, W); 0 = no measurement.

    Args:
        model: the camera.
        depth: exact z-depth in metres, 0 where nothing is.
        cosine: of the angle between viewing ray and surface normal (V, H, W).
        brightness: of the surfaces in the infra-red, here their mean colour in 0-1 (V, H, W).
        shiny: probability that the material returns nothing (V, H, W).
        rng: the scene's sensor stream.
    """
    shape = depth.shape
    edge, jump = _edges(depth)
    measured = depth.astype(np.float32)
    fly = edge & (rng.random(shape, np.float32) < model.flying)
    measured = np.where(fly, measured + rng.random(shape, np.float32) * jump, measured)
    sigma = model.noise_near + model.noise_far * np.square(np.maximum(measured - 0.4, 0))
    # Half of the variance is shared by neighbours, as block matching and lens errors make it.
    noise = np.sqrt(0.5) * rng.standard_normal(shape, np.float32) + np.sqrt(0.5) * _smooth_noise(shape, 4, rng)
    measured = measured + sigma * noise
    if model.disparity_step:
        measured = _quantise(measured, model.disparity_step)
    lost = (depth <= 0) | (measured < model.near) | (measured > model.far) | (cosine < np.cos(model.grazing))
    weak = model.shiny * shiny * np.clip(1.2 - 0.2 * depth, 0.2, 1.0)
    weak = np.maximum(weak, model.dark * np.clip(1 - brightness / 0.12, 0, 1))
    # Weak returns are lost in patches of a few pixels: a uniform number from smooth noise (logistic curve for its law).
    lost |= 1 / (1 + np.exp(-1.702 * _smooth_noise(shape, 4, rng))) < weak
    lost |= edge & (rng.random(shape, np.float32) < model.edge_loss)
    if model.shadow:
        lost |= _projector_shadow(depth)
    if model.blobs:
        lost |= _smooth_noise(shape, 10, rng) > _gaussian_quantile(model.blobs)
    if model.perforation:
        lost |= rng.random(shape, np.float32) < model.perforation
    return np.where(lost, np.float32(0), measured).astype(np.float32)


def sense_color(model: SensorModel, color: Float, rng: np.random.Generator) -> Float:
    """Display colours (V, H, W, 3) in 0-1 with exposure, white balance, a shift against depth, and noise."""
    V, _, W, _ = color.shape
    gain = 1 + model.exposure * (2 * rng.random((V, 1, 1, 1)) - 1)
    balance = 1 + model.white_balance * (2 * rng.random((V, 1, 1, 3)) - 1)
    turn, pixels = 2 * np.pi * rng.random(), model.misregistration * W / 640 * rng.random()
    shifted = _shift(color, pixels * np.cos(turn), pixels * np.sin(turn))
    noise = model.color_noise * rng.standard_normal(color.shape, np.float32)
    return np.clip(shifted * (gain * balance).astype(np.float32) + noise, 0, 1)


def sense_pose(model: SensorModel, cam_to_world: Float, rng: np.random.Generator) -> Float:
    """Estimated poses (V, 4, 4): true ones with small errors in position and orientation."""
    result = cam_to_world.copy()
    for pose in result:
        x, y, z = rng.standard_normal(3) * model.pose_turn / np.sqrt(3)
        turn = rotation_z(z) @ rotation_x(x) @ _rotation_y(y)
        pose[:3, :3] = pose[:3, :3] @ turn
        pose[:3, 3] += rng.standard_normal(3) * model.pose_shift / np.sqrt(3)
    return result


def _rotation_y(angle: float) -> Float:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, 0.0, s], [0.0, 1.0, 0.0], [-s, 0.0, c]])


def _edges(depth: Float) -> tuple[NDArray[np.bool_], Float]:
    """Pixels beside a depth edge, and the step to the neighbour across it (V, H, W)."""
    jump = np.zeros_like(depth, dtype=np.float32)
    for axis in (1, 2):
        for shift in (-1, 1):
            step = np.roll(depth, shift, axis) - depth
            first = [slice(None)] * 3
            first[axis] = slice(0, 1) if shift == 1 else slice(-1, None)
            step[tuple(first)] = 0
            jump = np.where(np.abs(step) > np.abs(jump), step, jump)
    return (np.abs(jump) > 0.05 * depth + 0.02) & (depth > 0), jump


def _quantise(depth: Float, step: float) -> Float:
    """Depth from rounded disparity: 1 / z is a multiple of `step`."""
    safe = np.maximum(depth, 0.05)
    return np.where(depth > 0.05, 1 / np.maximum(np.round(1 / safe / step) * step, step), depth)


def _projector_shadow(depth: Float, baseline: float = 0.075) -> NDArray[np.bool_]:
    """What a projector beside the camera (at +x by the base line) cannot light: no structured-light depth there.

    Pixel u at depth z appears to the projector at u - f b / z; another pixel of the row that is nearer and appears at
    the same place hides it.
    """
    _, _, W = depth.shape
    focal = 585.0 / 640.0 * W
    shift = np.where(depth > 0, focal * baseline / np.maximum(depth, 0.1), 0)
    seen = np.arange(W) - shift  # where the projector sees the pixel, growing along a row unless hidden
    # A point is hidden if a pixel to its right is seen further left: then its ray passes behind that pixel.
    right = np.minimum.accumulate(seen[..., ::-1], axis=-1)[..., ::-1]
    return (seen > right + 0.5) & (depth > 0)


def _smooth_noise(shape: tuple[int, ...], cell: int, rng: np.random.Generator) -> Float:
    """Unit-variance noise (V, H, W) correlated over about `cell` pixels."""
    V, H, W = shape
    lattice = rng.standard_normal((V, H // cell + 2, W // cell + 2), np.float32)
    rows, columns = np.arange(H, dtype=np.float32) / cell, np.arange(W, dtype=np.float32) / cell
    r, c = rows.astype(int), columns.astype(int)
    fr, fc = (rows - r)[:, None], columns - c
    along = lattice[:, r] * (1 - fr) + lattice[:, r + 1] * fr
    value = along[..., c] * (1 - fc) + along[..., c + 1] * fc
    spread = np.sqrt((fr**2 + (1 - fr) ** 2) * (fc**2 + (1 - fc) ** 2))
    return value / spread.astype(np.float32)


def _gaussian_quantile(share: float) -> float:
    """Value that a standard normal exceeds with probability `share`."""
    from statistics import NormalDist

    return NormalDist().inv_cdf(1 - share)


def _shift(color: Float, dx: float, dy: float) -> Float:
    """Images (V, H, W, 3) moved by a fraction of a pixel (bilinear, edges repeated)."""
    for axis, amount in ((2, dx), (1, dy)):
        whole = int(np.floor(amount))
        f = np.float32(amount - whole)
        size = color.shape[axis]
        a = np.clip(np.arange(size) - whole, 0, size - 1)
        b = np.clip(np.arange(size) - whole - 1, 0, size - 1)
        color = np.take(color, a, axis) * (1 - f) + np.take(color, b, axis) * f
    return color
