"""ponder_zoo: 3D encoders pre-trained by differentiable rendering. Importing it costs torch and nothing else."""

from typing import TYPE_CHECKING, Any

from .doctor import doctor as doctor
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
from .version import __version__ as __version__

if TYPE_CHECKING:
    from .data.model_input import create_transform as create_transform
    from .data.model_input import resolve_model_data_config as resolve_model_data_config


def __getattr__(name: str) -> Any:
    """Import the data layer when its names are first used: models alone do not need it."""
    if name in ("create_transform", "resolve_model_data_config"):
        from .data import model_input

        return getattr(model_input, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), "create_transform", "resolve_model_data_config"])
