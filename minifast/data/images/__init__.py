"""Images: find and decode the files, cache the pixels, augment batches, and the ImageDataBunch."""

from minifast.data.images.augment import get_transforms
from minifast.data.images.decoding import verify_images
from minifast.data.images.image_bunch import ImageDataBunch
from minifast.data.images.listing import get_image_files

__all__ = [
    "ImageDataBunch",
    "get_image_files",
    "get_transforms",
    "verify_images",
]
