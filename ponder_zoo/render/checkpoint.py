"""Names of the official code's renderer parameters."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn

_MLPS = {"sdf_decoder": "sdf_mlp", "rgb_decoder": "rgb_mlp", "semantic_decoder": "semantic_mlp"}


def checkpoint_filter_fn(state_dict: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Translate the renderer's part of an official state dict; entries that are already ours pass through.

    Takes names as in `field.sdf_decoder.lin0.weight`, with or without `module.` and `renderer.` in front. The official
    field stores the parameters of NeuS and of VolSDF whichever it is used for: `model` decides which ones are kept.
    Entries of other parts of a full model are returned unchanged, for the caller's strict loading to report.
    """
    wanted = dict(model.state_dict())
    result = {}
    for name, value in state_dict.items():
        short = re.sub(r"^(module\.)?(renderer\.)?", "", name)
        ours = _translate(short)
        if ours is None:  # a parameter of the renderer that this one does not have
            continue
        if ours in ("log_sharpness", "beta_parameter"):
            if ours in wanted:
                result[ours] = value.reshape(())  # official: one element
            continue
        result[ours if ours in wanted else name] = value
    return result


def _translate(name: str) -> str | None:
    special = {
        "field.deviation_network.variance": "log_sharpness",
        "field.laplace_density.beta": "beta_parameter",
        "field.laplace_density.beta_min": None,  # a constant, 1e-4
    }
    if name in special:
        return special[name]
    match = re.fullmatch(r"field\.(\w+_decoder)\.(?:lin(\d+)|fc_c\.(\d+)|fc_p)\.(weight|bias)", name)
    if match is None or match[1] not in _MLPS:
        return name
    decoder, layer, inject, kind = match.groups()
    part = f"layers.{layer}" if layer else f"inject.{inject}" if inject else "position"
    return f"field.{_MLPS[decoder]}.{part}.{kind}"
