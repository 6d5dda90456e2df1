"""Feature volumes: from points to a dense grid of cells, and the dense network on it."""

from .densify import densify as densify
from .densify import densify_official as densify_official
from .densify import official_lookup_grid as official_lookup_grid
from .encoders import AbstractVolumeEncoder as AbstractVolumeEncoder
from .encoders import PointVolumeEncoder as PointVolumeEncoder
from .mask import BlockMask as BlockMask
from .unet3d import UNet3D as UNet3D
