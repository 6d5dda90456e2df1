"""What flows through the package: frozen dataclasses of tensors."""

from .base import TensorStruct as TensorStruct
from .cameras import Cameras as Cameras
from .instances import Instances as Instances
from .instances import PointLabels as PointLabels
from .points import PointBatch as PointBatch
from .rays import FieldOutput as FieldOutput
from .rays import RayBundle as RayBundle
from .rays import RaySamples as RaySamples
from .rays import RayTargets as RayTargets
from .rays import RenderOutput as RenderOutput
from .scene import PretrainBatch as PretrainBatch
from .scene import SceneInput as SceneInput
from .volume import FeatureVolume as FeatureVolume
from .volume import VolumeGrid as VolumeGrid
