"""Built-in indoor scenes: furnished rooms, posed RGB-D with a sensor model, exact labels, surfaces and distances."""

from .classes import CLASSES as CLASSES
from .classes import GENERATOR_VERSION as GENERATOR_VERSION
from .dataset import SyntheticRooms as SyntheticRooms
from .geometry import sample_surface as sample_surface
from .geometry import signed_distance as signed_distance
from .geometry import triangulate as triangulate
from .layout import Room as Room
from .layout import draw_room as draw_room
from .layout import oriented_boxes as oriented_boxes
