"""Scenes, readers, transforms, and the data sets that recipes and users' own loops train on."""

from .collate import PointCollate as PointCollate
from .collate import PretrainCollate as PretrainCollate
from .labelled import LabelledScans as LabelledScans
from .model_input import create_transform as create_transform
from .model_input import resolve_model_data_config as resolve_model_data_config
from .pretrain import PretrainDataset as PretrainDataset
from .readers import read_scene as read_scene
from .rgbd import PosedRGBD as PosedRGBD
from .scene import Scene as Scene
from .scene import Views as Views
from .segmentation import SegmentationDataset as SegmentationDataset
from .synthetic import SyntheticRooms as SyntheticRooms
from .transforms import pretrain_transforms as pretrain_transforms
from .transforms import segmentation_test_transforms as segmentation_test_transforms
from .transforms import segmentation_train_transforms as segmentation_train_transforms
from .unproject import unproject as unproject
