"""One image to predict: a path, a PIL image, an array or a tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minifast.data.images.conversion import Pixels
from minifast.data.images.decoding import read_image
from minifast.errors import DataError

FILE_TYPES = (np.uint8, np.uint16, np.bool_)  # of arrays whose values mean what they mean in a file
OVERSHOOT = 0.1  # of floats beyond 0 and 1, where an interpolation resized the image


def as_image(item: Any, size: tuple[int, int] | None, resize: str, pixels: Pixels) -> Tensor:
    """Return an image as a tensor ``(channels, height, width)``: uint8, or floats from 0 to 1.

    A path, a PIL image and an array of uint8 or uint16 are decoded and resized as the files of the data are. A tensor
    of floats or uint8, or an array of floats ``(channels, height, width)``, is taken as it is.

    Raises:
        DataError: if the value is none of these, or its channels do not fit.

    >>> as_image(np.uint16([[0, 65535]]), None, "crop", Pixels(channels=1)).tolist()
    [[[0, 255]]]
    """
    given = item
    if isinstance(item, (Tensor, np.ndarray)) and item.ndim == 4 and len(item) == 1:
        item = item[0]  # a batch of one
    image = item
    if isinstance(item, np.ndarray) and item.dtype in FILE_TYPES:
        image = _pil_of(item)
    if isinstance(image, (str, Path)) or hasattr(image, "convert"):
        return torch.from_numpy(read_image(image, size, resize, pixels).copy())
    if isinstance(item, np.ndarray) and item.dtype.kind == "f" and item.ndim == 3:
        image = torch.from_numpy(np.ascontiguousarray(item))
    if isinstance(image, Tensor) and image.ndim == 3 and len(image) in (1, pixels.channels):
        if image.dtype is torch.uint8:
            return image
        if image.is_floating_point():
            low, high = (float(image.min()), float(image.max())) if image.numel() else (0.0, 1.0)
            if not (low >= -OVERSHOOT and high <= 1 + OVERSHOOT):
                raise DataError(
                    f"The values of an image of floats must be from 0 to 1, got {low:g} to {high:g}. Divide "
                    f"values from 0 to 255 by 255, or give uint8; give an image as it was before a normalization."
                )
            return image.float().expand(pixels.channels, -1, -1)
    raise DataError(
        f"An image must be a path, a PIL image, an array of uint8 or uint16 (height, width) or (height, width, "
        f"channels), or a tensor of floats or uint8 ({pixels.channels}, height, width), got {_described(given)}"
    )


def _pil_of(array: np.ndarray[Any, Any]) -> Any:
    """Return an array as the PIL image of a file with these pixels, or None."""
    from PIL import Image

    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    try:
        return Image.fromarray(array) if array.ndim in (2, 3) and array.size else None
    except TypeError:  # such as five channels
        return None


def _described(item: Any) -> str:
    """Return what was given in place of an image, and what to do about it."""
    if not isinstance(item, (np.ndarray, Tensor)):
        return f"{type(item).__name__}."
    kind = "a tensor" if isinstance(item, Tensor) else "an array"
    text = f"{kind} of {str(item.dtype).removeprefix('torch.')} with the shape {tuple(item.shape)}."
    if item.ndim == 4:
        return f"{text} Give one image, such as batch[0]; get_preds predicts many."
    if item.ndim == 2:
        how = "tensor[None]" if isinstance(item, Tensor) else "PIL.Image.fromarray(array), which is scaled as a file is"
        return f"{text} Give {how}."
    return text
