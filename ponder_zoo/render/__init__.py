"""Differentiable rendering of feature volumes: one field, three renderers."""

from .base import AbstractSurfaceRenderer as AbstractSurfaceRenderer
from .checkpoint import checkpoint_filter_fn as checkpoint_filter_fn
from .field import AbstractField as AbstractField
from .field import SDFField as SDFField
from .image import render_image as render_image
from .neus import NeuS as NeuS
from .unisurf import UniSurf as UniSurf
from .volsdf import VolSDF as VolSDF
