"""Vision: pretrained networks for images, with a new head.

Images themselves (folders, decoding, augmentation) live in ``minifast.data.images`` and are exported here too.
"""

from minifast.data.images import ImageDataBunch, get_transforms
from minifast.vision.body import create_body
from minifast.vision.head import AdaptiveConcatPool2d, create_head
from minifast.vision.transfer import cnn_learner

__all__ = [
    "AdaptiveConcatPool2d",
    "ImageDataBunch",
    "cnn_learner",
    "create_body",
    "create_head",
    "get_transforms",
]
