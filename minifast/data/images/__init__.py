"""Images: find and decode the files, cache the pixels, augment batches, and the ImageDataBunch."""

from minifast.data.images.augment import get_transforms
from minifast.data.images.decoding import get_image_files
from minifast.data.images.image_bunch import ImageDataBunch

__all__ = [
    "ImageDataBunch",
    "get_image_files",
    "get_transforms",
]
