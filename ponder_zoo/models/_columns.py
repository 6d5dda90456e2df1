"""Weights that read some input columns, for a model that is given others: matched by name, never by position.

The stem is linear in the columns, so each rule is exact: a column of the same name keeps its weights; a declared proxy
gets the mean of the weights of what it stands for; a new column gets zeros, so that it changes nothing until trained;
and a dropped column acts as if it always held its fill value. A constant input is not a bias in a sparse convolution,
where the number of neighbours varies from voxel to voxel: unless the normalized fill is zero, the dropped weights are
kept for a column of ones that the model appends to its input itself (`append_one=True`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ._config import PointCfg

COLOR = ("red", "green", "blue")
PROXIES: dict[str, tuple[str, ...]] = dict.fromkeys(("intensity", "strength", "reflectance", "gray"), COLOR)


@dataclass(frozen=True, eq=False)
class ColumnMap:
    """How `C_old` columns of weights become `C_new` columns and, where needed, a column of ones."""

    matrix: Tensor  # (C_new, C_old) float64: new column j gets sum_c matrix[j, c] * old column c
    ones: Tensor  # (C_old,) float64: normalized fill of the dropped columns, 0 elsewhere
    words: Mapping[str, str]  # column -> what was done, for the report

    @property
    def needs_ones(self) -> bool:
        return bool(self.ones.any())

    def apply(self, weight: Tensor, appends_one: bool) -> Tensor:
        """The stem's weight for the new columns: (out, ..., C_old) -> (out, ..., C_new).

        Args:
            weight: input channels last; with `C_old` input channels, or one more if it had a column of ones already.
            appends_one: whether the result has that one more channel.
        """
        old = self.matrix.shape[1]
        if weight.shape[-1] not in (old, old + 1):
            raise ValueError(
                f"Expected a stem weight with {old} input channels last, got shape {tuple(weight.shape)}. The weights "
                "do not belong to the columns that their config names."
            )
        columns = weight[..., :old].double()
        result = columns @ self.matrix.T.to(weight.device)
        if appends_one:
            one = columns @ self.ones.to(weight.device)
            one = one + weight[..., old] if weight.shape[-1] > old else one
            result = torch.cat([result, one[..., None]], dim=-1)
        return result.to(weight.dtype)


def map_columns(old: PointCfg, new: PointCfg, proxies: Mapping[str, tuple[str, ...]] | None = None) -> ColumnMap:
    """Match columns by name.

    Args:
        old: what the weights read.
        new: what the model is given.
        proxies: new column -> the old columns that it stands for, beside `PROXIES`.

    Raises:
        ValueError: if a dropped column has no fill value, or a proxy names an unknown column.
    """
    index = {name: i for i, name in enumerate(old.feature_columns)}
    for name, sources in (proxies or {}).items():
        unknown = [source for source in sources if source not in index]
        if unknown or not sources:
            raise ValueError(
                f"The proxy '{name}' stands for {list(sources)}; the weights read {list(index)}. Name those."
            )
    known = {name: sources for name, sources in PROXIES.items() if all(source in index for source in sources)}
    known.update(proxies or {})
    matrix = torch.zeros(len(new.feature_columns), len(index), dtype=torch.float64)
    ones = torch.zeros(len(index), dtype=torch.float64)
    words = {}
    for row, name in enumerate(new.feature_columns):
        if name in index:
            matrix[row, index[name]] = 1.0
            words[name] = "copied"
        elif name in known:
            for source in known[name]:
                matrix[row, index[source]] = 1.0 / len(known[name])
            words[name] = f"mean of {', '.join(known[name])}"
        else:
            words[name] = "new, zero weights"
    for name, i in index.items():
        if name not in new.feature_columns:
            ones[i], words[name] = _dropped(old, name, i)
    return ColumnMap(matrix, ones, words)


def _dropped(old: PointCfg, name: str, i: int) -> tuple[float, str]:
    fill = old.fill[i]
    if fill is None:
        raise ValueError(
            f"The weights need the column '{name}': their config gives no fill value for it. Keep it in "
            f"feature_columns, or say what stands for it with pretrained_cfg_overlay (point_cfg.fill)."
        )
    value = (fill - old.mean[i]) / old.std[i]
    if value == 0.0:
        return 0.0, f"dropped, exact at its fill value {fill:g}"
    return value, f"dropped, folded at its fill value {fill:g} into a column of ones"
