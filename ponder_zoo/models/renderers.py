"""The renderers by name. They read volumes in metres; `neus_ponderv2` is the official code's indoor configuration."""

from __future__ import annotations

import math
from typing import Any

from ..render import NeuS, UniSurf, VolSDF
from ._builder import build_renderer
from ._config import PretrainedCfg
from ._registry import generate_default_cfgs, register_renderer
from ._shipped import shipped_renderer_cfgs

default_cfgs = generate_default_cfgs(
    {**{name: PretrainedCfg() for name in ("neus", "volsdf", "unisurf")}, **shipped_renderer_cfgs()}
)


@register_renderer
def neus(pretrained: bool = False, **kwargs: Any) -> NeuS:
    """NeuS, the renderer of the paper (Eq. 4-7)."""
    return build_renderer(NeuS, "neus", **kwargs)  # type: ignore[return-value]


@register_renderer
def volsdf(pretrained: bool = False, **kwargs: Any) -> VolSDF:
    """VolSDF with its error-bounded sampler."""
    return build_renderer(VolSDF, "volsdf", **kwargs)  # type: ignore[return-value]


@register_renderer
def unisurf(pretrained: bool = False, **kwargs: Any) -> UniSurf:
    """UniSurf: occupancy of an sdf, sampled around the first surface."""
    return build_renderer(UniSurf, "unisurf", **kwargs)  # type: ignore[return-value]


@register_renderer
def neus_ponderv2(pretrained: bool = False, **kwargs: Any) -> NeuS:
    """NeuS as in the official indoor configuration, defects included: for its checkpoints, in the unit-cube frame."""
    args: dict[str, Any] = dict(
        in_chans=128,
        semantic_dim=512,
        share_volume=False,
        rgb_normal="gradient",
        frame="official",
        num_samples=96,
        num_importance=36,
        importance_sharpness=64.0,
        initial_sharpness=math.exp(3.0),
        alpha_rule="official",
        sampler_frame="official",
    )
    return build_renderer(NeuS, "neus_ponderv2", **args | kwargs)  # type: ignore[return-value]
