"""Features as colours: the three main directions of variation become red, green and blue."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_MAX_RANGE_ROWS = 1_000_000  # torch.quantile refuses more than 16 million values; a regular subset is as good


@dataclass(frozen=True, eq=False)
class PCAColors:
    """A fitted map from features to colours; apply it to other points to give them comparable colours.

    The same features give the same colours whatever the device, the order of the rows or the solver: the sign of
    each axis is fixed, and the range of each channel is a quantile range, so a few outliers do not wash out the rest.
    """

    mean: Tensor  # (C,) float64
    basis: Tensor  # (C, 3) float64, orthonormal columns, zero where the data has fewer than three directions
    low: Tensor  # (3,) projection shown as 0
    high: Tensor  # (3,) projection shown as 1

    @classmethod
    def fit(cls, features: Tensor, *, quantile: float = 0.01) -> PCAColors:
        """Fit on features (N, C); rows with a value that is not finite are left out.

        Args:
            features: one row per point, any float type, any device.
            quantile: this share of the points is clipped at either end of each channel.

        Raises:
            ValueError: if `features` is not a matrix or has no finite row.
        """
        if features.ndim != 2 or not 0.0 <= quantile < 0.5:
            raise ValueError(
                f"PCA colours need features (N, C) and a quantile in [0, 0.5); got features {tuple(features.shape)} "
                f"and quantile {quantile}. Flatten the leading axes first."
            )
        rows = features.detach().double()
        rows = rows[torch.isfinite(rows).all(-1)]
        if len(rows) == 0:
            raise ValueError(
                f"PCA colours need at least one row of finite features; got {tuple(features.shape)} with none. "
                "Look for NaN in the encoder's weights or input."
            )
        mean = rows.mean(0)
        basis = _principal_axes(rows - mean)
        step = -(-len(rows) // _MAX_RANGE_ROWS)
        projected = (rows[::step] - mean) @ basis
        low = torch.quantile(projected, quantile, dim=0)
        high = torch.quantile(projected, 1.0 - quantile, dim=0)
        return cls(mean, basis, low, high)

    def __call__(self, features: Tensor) -> Tensor:
        """Features (..., C) -> colours (..., 3) in [0, 1], float32. A direction without variation is 0.5 throughout."""
        projected = (features.detach().double() - self.mean) @ self.basis
        extent = self.high - self.low
        flat = extent <= 1e-9 * (self.mean.abs().max() + self.low.abs().max() + self.high.abs().max())
        colors = ((projected - self.low) / torch.where(flat, torch.ones_like(extent), extent)).clamp(0.0, 1.0)
        return torch.where(flat, torch.full_like(colors, 0.5), colors).nan_to_num(0.0).float()


def _principal_axes(centred: Tensor) -> Tensor:
    """Main axes of centred rows (N, C), strongest first, with a fixed sign: (C, 3), padded with zeros if C < 3."""
    covariance = centred.T @ centred / max(len(centred), 1)
    _, vectors = torch.linalg.eigh(covariance)  # ascending
    axes = vectors.flip(-1)[:, :3]
    # A solver may return either sign. The third moment of the projections is a property of the data and, unlike the
    # largest coefficient, does not change when features are permuted; the coefficient decides for symmetric data.
    skew = (centred @ axes).pow(3).mean(0)
    scale = (centred @ axes).pow(2).mean(0).pow(1.5)
    largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))[0]
    sign = torch.where(skew.abs() > 1e-3 * scale, skew, largest)
    axes = axes * torch.where(sign < 0, -1.0, 1.0)
    return torch.nn.functional.pad(axes, (0, 3 - axes.shape[1]))


def pca_rgb(features: Tensor, *, quantile: float = 0.01) -> Tensor:
    """Features (N, C) -> colours (N, 3) in [0, 1] by their own main directions; see PCAColors.

    Example:
        >>> pca_rgb(torch.randn(100, 16)).shape
        torch.Size([100, 3])
    """
    return PCAColors.fit(features, quantile=quantile)(features)
