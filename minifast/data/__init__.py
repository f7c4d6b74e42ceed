"""Data: loaders, the order of samples, CSV tables, labels, normalization, downloads, and the DataBunch.

Everything about images (decoding, the cache, augmentation) lives in ``minifast.data.images``. Pretrained networks live
in ``minifast.vision``.
"""

from minifast.data.bunch import DataBunch
from minifast.data.download import URLs, untar_data
from minifast.data.images.augment import get_transforms
from minifast.data.images.decoding import verify_images
from minifast.data.images.image_bunch import ImageDataBunch
from minifast.data.images.listing import get_image_files
from minifast.data.images.segmentation import SegmentationDataBunch
from minifast.data.loaders import DeviceDataLoader, TensorLoader
from minifast.data.normalize import channel_view, denormalize, imagenet_stats, normalize
from minifast.data.parts import DatasetType
from minifast.data.synthetic import generate_sample
from minifast.data.tabular import TabularDataBunch
from minifast.data.tensors import TensorDataBunch
from minifast.utils.public import suggest_names

__all__ = [
    "DataBunch",
    "DatasetType",
    "DeviceDataLoader",
    "ImageDataBunch",
    "SegmentationDataBunch",
    "TabularDataBunch",
    "TensorDataBunch",
    "TensorLoader",
    "URLs",
    "channel_view",
    "denormalize",
    "generate_sample",
    "get_image_files",
    "get_transforms",
    "imagenet_stats",
    "normalize",
    "untar_data",
    "verify_images",
]

suggest_names(__name__)
