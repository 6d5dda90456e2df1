"""ponder_zoo: 3D encoders pre-trained by differentiable rendering. Importing it costs torch and nothing else."""

from .models import LoadReport as LoadReport
from .models import PointCfg as PointCfg
from .models import PretrainedCfg as PretrainedCfg
from .models import create_model as create_model
from .models import create_pretrainer as create_pretrainer
from .models import create_renderer as create_renderer
from .models import get_pretrained_cfg as get_pretrained_cfg
from .models import is_model as is_model
from .models import list_models as list_models
from .models import list_pretrained as list_pretrained
from .models import list_renderers as list_renderers
from .models import register_model as register_model
from .models import register_renderer as register_renderer
from .models import save_for_hf as save_for_hf
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
