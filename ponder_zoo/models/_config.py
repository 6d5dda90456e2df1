"""What travels with weights: where they are, what they were trained on, and what input they expect."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

FORMAT_VERSION = 1  # of config.json; a newer one is refused
COLOR_NORMAL = ("red", "green", "blue", "normal_x", "normal_y", "normal_z")


class _JsonConfig:
    """Frozen dataclasses that read themselves from JSON and name the nearest field for an unknown one."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        names = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        unknown = sorted(set(values) - names)
        if unknown:
            raise ValueError(
                f"{cls.__name__} has no field {unknown}; it has {sorted(names)}. "
                "The config may come from a newer version of ponder_zoo: upgrade, or remove the field."
            )
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)  # type: ignore[call-overload]


@dataclass(frozen=True)
class PointCfg(_JsonConfig):
    """What raw points must be turned into before the model sees them.

    A column's value is `(raw - mean) / std`; `fill` is the raw value that stands for an absent column, and None says
    that the column must be there.
    """

    grid_size: float = 0.02  # metres
    feature_columns: tuple[str, ...] = COLOR_NORMAL
    mean: tuple[float, ...] = (127.5, 127.5, 127.5, 0.0, 0.0, 0.0)
    std: tuple[float, ...] = (127.5, 127.5, 127.5, 1.0, 1.0, 1.0)
    fill: tuple[float | None, ...] = (127.5, 127.5, 127.5, 0.0, 0.0, 0.0)
    center: Literal["none", "xy_mid_z_min"] = "xy_mid_z_min"
    max_extent: float = 100.0  # metres; a larger cloud is probably in other units

    def __post_init__(self) -> None:
        lengths = {name: len(getattr(self, name)) for name in ("feature_columns", "mean", "std", "fill")}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"PointCfg needs one mean, std and fill per feature column; got lengths {lengths}.")

    def select(self, columns: tuple[str, ...]) -> PointCfg:
        """The same config for other columns: known ones keep their normalization, new ones get mean 0 and std 1."""
        index = {name: i for i, name in enumerate(self.feature_columns)}
        return dataclasses.replace(
            self,
            feature_columns=tuple(columns),
            mean=tuple(self.mean[index[name]] if name in index else 0.0 for name in columns),
            std=tuple(self.std[index[name]] if name in index else 1.0 for name in columns),
            fill=tuple(self.fill[index[name]] if name in index else None for name in columns),
        )


@dataclass(frozen=True)
class PretrainedCfg(_JsonConfig):
    """Source, input, head and provenance of one set of weights; the field names are timm's where timm has them."""

    # source; the first one given wins
    file: str | None = None
    hf_hub_id: str | None = None
    hf_hub_revision: str | None = None
    hf_hub_filename: str = "model.safetensors"
    # identity
    architecture: str = ""
    tag: str = ""
    # input
    point_cfg: PointCfg = PointCfg()
    condition: str | None = None  # default data set of models with per-data-set norms
    # head
    num_classes: int = 0
    label_names: tuple[str, ...] = ()
    classifier: str = "head"  # prefix of the classifier's keys
    # arguments of the architecture that this variant needs
    model_args: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    # provenance
    license: str | None = None
    description: str | None = None
    origin_url: str | None = None
    paper_ids: tuple[str, ...] = ("arXiv:2310.08586",)
    training_data: str | None = None
    training_data_license: str | None = None  # the terms of the data, which may bind the weights

    @property
    def has_weights(self) -> bool:
        return self.file is not None or self.hf_hub_id is not None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        values = dict(values)
        if isinstance(values.get("point_cfg"), Mapping):
            values["point_cfg"] = PointCfg.from_dict(values["point_cfg"])
        return super().from_dict(values)
