"""Convert a PIL image of any mode to bytes: gray, color, or the class numbers of a mask."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from minifast.data.images.quick_jpeg import resize_quickly
from minifast.data.images.resizing import ON_ITS_SIDE, decode_smaller, part_of, resize_image
from minifast.errors import DataError

UPRIGHT = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # EXIF orientation to the PIL transpose that undoes it
ORIENTED = {"exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp"}  # where Pillow finds an orientation
DRAFTED = ("JPEG", "MPO")  # formats that decode at a fraction of their size
DEEP = 65535  # the largest value of 16 bits
BYTE = 255  # the largest value of 8 bits
ADVICE = "Give the values that become black and white in all images as `value_range`."


REMEDY = "Replace or remove it."


class UnreadableImageError(DataError):
    """A file is not an image, is truncated, or cannot be opened."""


class ValueRangeError(UnreadableImageError):
    """An image has values outside of 0 to 65535, or of 0 to 1 for floats, and there is no ``value_range``.

    Attributes:
        values: the lowest and the highest value, and whether they are integers.
    """

    values: tuple[float, float, bool] = (0.0, 0.0, False)


class Pixels(NamedTuple):
    """What the pixels of an image become.

    Attributes:
        channels: 3 for color, 1 for gray.
        value_range: the values of images with more than 8 bits per channel that become black and white. None for 0 and
            65535, or for floats 0 and 1.
        mask: the pixels are the class numbers of a mask, and stay as they are.
        exact: decode JPEG files in full, and resize them with Pillow; see ``decode_smaller`` and ``resize_quickly``.
    """

    channels: int = 3
    value_range: tuple[float, float] | None = None
    mask: bool = False
    exact: bool = False

    def __str__(self) -> str:
        return "" if self == COLOR else repr(tuple(self))


COLOR = Pixels()


def to_array(image: Any, size: tuple[int, int] | None, resize: str, pixels: Pixels, name: Any) -> np.ndarray[Any, Any]:
    """Return a PIL image as uint8 ``(channels, height, width)``, upright, with 1 channel for gray and else 3."""
    # An image that the caller decoded has no tiles any more, but still the format of its file.
    is_near = not (pixels.exact or pixels.mask) and image.format in DRAFTED and bool(image.tile)
    if not is_near:  # a JPEG file is decoded later: smaller, or by torchvision
        image.load()  # before the orientation, because some formats store it after the pixels
    orientation = _orientation(image)
    box = decode_smaller(image, size, orientation) if is_near and size is not None else None
    if pixels.mask:
        image = _class_numbers(image, name)
    elif image.mode not in ("L", "RGB"):
        image = _eight_bits(image, pixels.value_range, name)
    if pixels.channels == 1 and image.mode != "L":
        image = image.convert("L")
    if orientation in UPRIGHT:
        image = image.transpose(UPRIGHT[orientation])
    if size is not None:
        if is_near and resize != "pad":
            quick = resize_quickly(image, size, part_of(image, size, resize, box))
            if quick is not None:
                return quick
        image = resize_image(image, size, resize, nearest=pixels.mask, box=box)
    array = np.frombuffer(image.tobytes(), np.uint8)  # a tenth of the time of a tiny image less than by np.asarray
    if image.mode == "L":
        return array.reshape(1, image.height, image.width)
    return array.reshape(image.height, image.width, 3).transpose(2, 0, 1)


def _eight_bits(image: Any, value_range: tuple[float, float] | None, name: Any) -> Any:
    """Return an image in mode L or RGB."""
    if image.mode.startswith(("I", "F")):
        return _scaled(image, value_range, name)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("L" if image.mode == "1" else "RGB")  # transparent pixels keep their color


def _scaled(image: Any, value_range: tuple[float, float] | None, name: Any) -> Any:
    from PIL import Image

    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise UnreadableImageError(f"{name} has pixels that are NaN or infinite. {REMEDY}")
    low, high = value_range or (0, DEEP if image.mode.startswith("I") else 1)
    if value_range is None and values.size and not (low <= values.min() and values.max() <= high):
        error = ValueRangeError(
            f"{name} has values from {values.min():g} to {values.max():g}, outside of {low} to {high} (mode "
            f"{image.mode}). {ADVICE}"
        )
        error.values = float(values.min()), float(values.max()), image.mode.startswith("I")
        raise error
    return Image.fromarray(np.rint((values - low) / (high - low) * BYTE).clip(0, BYTE).astype(np.uint8))


def _class_numbers(image: Any, name: Any) -> Any:
    """Return a mask as an image in mode L whose pixels are its values, or the indices of its palette."""
    from PIL import Image

    values = np.asarray(image)
    if values.ndim == 3 and (values == values[..., :1]).all():
        values = values[..., 0]
    if values.ndim != 2 or values.dtype.kind not in "biu" or values.min() < 0 or values.max() > BYTE:
        raise UnreadableImageError(
            f"{name} is no mask (mode {image.mode}): a mask has one number from 0 to 255 per pixel, the class. Convert "
            f"colors to class numbers."
        )
    return Image.fromarray(values.astype(np.uint8))


def check_value_range(value: Any) -> tuple[float, float] | None:
    """Return ``value_range`` if it is None, or a pair of a lower and a higher number.

    >>> check_value_range((0, 4095))
    (0, 4095)
    >>> check_value_range((5, 5))
    Traceback (most recent call last):
    ValueError: `value_range` must be a pair (black, white) of numbers, the first lower, got (5, 5).
    """
    if value is None:
        return None
    numbers = isinstance(value, (tuple, list)) and len(value) == 2 and all(np.isfinite(part) for part in value)
    if not numbers or value[0] >= value[1]:
        raise ValueError(f"`value_range` must be a pair (black, white) of numbers, the first lower, got {value!r}.")
    return value[0], value[1]


def upright_size(file: str) -> tuple[int, int] | None:
    """Return width and height of an image file when it is upright, without decoding it; None if it cannot be read."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            width, height = image.size
            return (height, width) if _orientation(image) in ON_ITS_SIDE else (width, height)
    except Exception:  # decoding it raises the error
        return None


def _orientation(image: Any) -> Any:
    # Most files have none of these, and then nothing is parsed.
    if ORIENTED.isdisjoint(image.info):
        return None
    try:
        return image.getexif().get(274)
    except Exception:  # the EXIF data may be damaged and the pixels intact
        return None
