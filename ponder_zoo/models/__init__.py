"""Everything with a name and weights. Importing this registers all built-in names."""

from . import renderers as renderers
from . import sparse_unet as sparse_unet
from ._builder import build_model as build_model
from ._builder import build_renderer as build_renderer
from ._config import PointCfg as PointCfg
from ._config import PretrainedCfg as PretrainedCfg
from ._convert import ConversionReport as ConversionReport
from ._convert import convert as convert
from ._factory import create_model as create_model
from ._factory import create_pretrainer as create_pretrainer
from ._factory import create_renderer as create_renderer
from ._hub import push_to_hf_hub as push_to_hf_hub
from ._hub import save_for_hf as save_for_hf
from ._pretrained import LoadReport as LoadReport
from ._reference import VerifyReport as VerifyReport
from ._reference import verify as verify
from ._registry import generate_default_cfgs as generate_default_cfgs
from ._registry import get_pretrained_cfg as get_pretrained_cfg
from ._registry import is_model as is_model
from ._registry import list_models as list_models
from ._registry import list_pretrained as list_pretrained
from ._registry import list_renderers as list_renderers
from ._registry import register_model as register_model
from ._registry import register_model_deprecations as register_model_deprecations
from ._registry import register_renderer as register_renderer
