"""Sparse convolution: features on occupied voxels, kernel maps, layers, and the backends that compute them."""

from .backends import BACKENDS as BACKENDS
from .backends import has_spconv as has_spconv
from .epilogue import Epilogue as Epilogue
from .kernel_map import Coarsening as Coarsening
from .kernel_map import KernelMap as KernelMap
from .kernel_map import coarsening as coarsening
from .kernel_map import submanifold_map as submanifold_map
from .modules import DownConv3d as DownConv3d
from .modules import SubMConv3d as SubMConv3d
from .modules import UpConv3d as UpConv3d
from .tensor import SparseTensor as SparseTensor
from .voxels import Voxels as Voxels
from .voxels import voxelize as voxelize
