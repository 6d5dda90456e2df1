"""3D encoders pre-trained by differentiable rendering. Importing the package costs nothing, using a model costs torch.

Names below are imported when they are first used (PEP 562), so that `ponder-zoo --help` and the version come at once
instead of after torch: in 0.1 s instead of 2 s (2 CPU cores, 2026-11; `tests/test_import.py` guards it).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .doctor import doctor as doctor
from .version import __version__ as __version__

if TYPE_CHECKING:
    from .data.model_input import create_transform as create_transform
    from .data.model_input import resolve_model_data_config as resolve_model_data_config
    from .models import LoadReport as LoadReport
    from .models import PointCfg as PointCfg
    from .models import PretrainedCfg as PretrainedCfg
    from .models import convert as convert
    from .models import create_model as create_model
    from .models import create_pretrainer as create_pretrainer
    from .models import create_renderer as create_renderer
    from .models import get_pretrained_cfg as get_pretrained_cfg
    from .models import is_model as is_model
    from .models import list_models as list_models
    from .models import list_pretrained as list_pretrained
    from .models import list_renderers as list_renderers
    from .models import push_to_hf_hub as push_to_hf_hub
    from .models import register_model as register_model
    from .models import register_model_deprecations as register_model_deprecations
    from .models import register_renderer as register_renderer
    from .models import save_for_hf as save_for_hf
    from .models import verify as verify
    from .structures import Cameras as Cameras
    from .structures import FeatureVolume as FeatureVolume
    from .structures import PointBatch as PointBatch
    from .structures import PretrainBatch as PretrainBatch
    from .structures import RayBundle as RayBundle
    from .structures import RaySamples as RaySamples
    from .structures import RayTargets as RayTargets
    from .structures import RenderOutput as RenderOutput
    from .structures import SceneInput as SceneInput
    from .structures import VolumeGrid as VolumeGrid

_NAMES = {
    "data.model_input": "create_transform resolve_model_data_config",
    "models": "LoadReport PointCfg PretrainedCfg convert create_model create_pretrainer create_renderer "
    "get_pretrained_cfg is_model list_models list_pretrained list_renderers push_to_hf_hub register_model "
    "register_model_deprecations register_renderer save_for_hf verify",
    "structures": "Cameras FeatureVolume PointBatch PretrainBatch RayBundle RaySamples RayTargets RenderOutput "
    "SceneInput VolumeGrid",
}
_HOME = {name: module for module, names in _NAMES.items() for name in names.split()}
_FOLDERS = ("data", "models", "structures")


def __getattr__(name: str) -> Any:
    """Import what is asked for, once: the name then is an attribute like any other."""
    if name in _HOME:
        globals()[name] = found = getattr(import_module(f".{_HOME[name]}", __name__), name)
        return found
    if name in _FOLDERS:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_FOLDERS})
