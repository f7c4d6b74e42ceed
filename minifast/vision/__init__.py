"""Transfer learning for images: pretrained backbones with a new head.

Loading, decoding and augmentation of images are in ``minifast.data.images``; this package exports them too.
"""

from minifast.data.images import ImageDataBunch, SegmentationDataBunch, get_transforms
from minifast.utils.public import suggest_names
from minifast.vision.body import create_body
from minifast.vision.head import AdaptiveConcatPool2d, create_head
from minifast.vision.transfer import cnn_learner, vision_learner

__all__ = [
    "AdaptiveConcatPool2d",
    "ImageDataBunch",
    "SegmentationDataBunch",
    "cnn_learner",
    "create_body",
    "create_head",
    "get_transforms",
    "vision_learner",
]

suggest_names(__name__)
