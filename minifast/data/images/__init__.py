"""Images: find and decode the files, cache the pixels, augment batches, and the ImageDataBunch."""

from minifast.data.images.augment import get_transforms
from minifast.data.images.decoding import verify_images
from minifast.data.images.image_bunch import ImageDataBunch
from minifast.data.images.listing import get_image_files
from minifast.data.images.segmentation import SegmentationDataBunch

__all__ = [
    "ImageDataBunch",
    "SegmentationDataBunch",
    "get_image_files",
    "get_transforms",
    "verify_images",
]
