from __future__ import annotations

import pytest
import torch

from ponder_zoo.report import pca
from ponder_zoo.report.pca import PCAColors, pca_rgb


def features(rows: int = 500, columns: int = 12) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    latent = torch.randn(rows, 3, generator=generator).exp() * torch.tensor([4.0, 2.0, 1.0])
    return latent @ torch.randn(3, columns, generator=generator) + 0.01 * torch.randn(
        rows, columns, generator=generator
    )


def test_the_solver_s_signs_do_not_change_the_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    feat = features()
    expected = pca_rgb(feat)
    solve = torch.linalg.eigh

    def flipped(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values, vectors = solve(matrix)
        return values, vectors * torch.where(torch.arange(vectors.shape[1]) % 2 == 0, -1.0, 1.0)

    monkeypatch.setattr(pca.torch.linalg, "eigh", flipped)
    torch.testing.assert_close(pca_rgb(feat), expected)
    monkeypatch.setattr(pca.torch.linalg, "eigh", lambda matrix: (solve(matrix)[0], -solve(matrix)[1]))
    torch.testing.assert_close(pca_rgb(feat), expected)


def test_the_sign_is_fixed_for_symmetric_data_too() -> None:
    half = features()
    symmetric = torch.cat([half, -half])  # every third moment is zero
    fitted = PCAColors.fit(symmetric)
    largest = fitted.basis.gather(0, fitted.basis.abs().argmax(0, keepdim=True))[0]
    assert (largest > 0).all()


def test_order_of_rows_and_columns_does_not_matter() -> None:
    feat = features()
    rows, columns = torch.randperm(len(feat)), torch.randperm(feat.shape[1])
    torch.testing.assert_close(pca_rgb(feat[rows]), pca_rgb(feat)[rows], atol=1e-5, rtol=0)
    torch.testing.assert_close(pca_rgb(feat[:, columns]), pca_rgb(feat), atol=1e-5, rtol=0)


def test_the_axes_are_those_of_the_data() -> None:
    basis = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64))[0]
    feat = torch.randn(4000, 8, dtype=torch.float64) * torch.tensor([9.0, 5.0, 3.0, 0.1, 0.1, 0.1, 0.1, 0.1]) @ basis.T
    overlap = (PCAColors.fit(feat).basis.T @ basis[:, :3]).abs()
    torch.testing.assert_close(overlap, torch.eye(3, dtype=torch.float64), atol=0.05, rtol=0)


def test_a_few_outliers_do_not_wash_out_the_colours() -> None:
    feat = features()
    spread = pca_rgb(feat).std(0)
    feat[0] = feat[0] * 20
    assert (pca_rgb(feat).std(0) > 0.5 * spread).all()


def test_colours_use_the_whole_range() -> None:
    colors = pca_rgb(features())
    assert colors.min() == 0 and colors.max() == 1 and colors.shape == (500, 3) and colors.dtype == torch.float32


def test_constant_narrow_and_not_finite_features_give_finite_colours() -> None:
    assert (pca_rgb(torch.full((10, 6), 3.0)) == 0.5).all()
    narrow = pca_rgb(torch.randn(50, 2))
    assert narrow.shape == (50, 3) and (narrow[:, 2] == 0.5).all()
    feat = features()
    feat[7, 2] = float("nan")
    assert torch.isfinite(pca_rgb(feat)).all()


def test_bad_features_are_refused() -> None:
    with pytest.raises(ValueError, match=r"features \(N, C\)"):
        pca_rgb(torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match="at least one row"):
        pca_rgb(torch.full((3, 4), float("nan")))
