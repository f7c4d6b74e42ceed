"""Resize an image to a size of another aspect ratio: crop, squish or pad it; and how large a JPEG is decoded for it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from minifast.errors import DataError
from minifast.utils.checks import check_count, shown

METHODS = ("crop", "squish", "pad")
MARGIN = 3  # a JPEG is decoded to at least this many times the wanted height and width
ON_ITS_SIDE = (5, 6, 7, 8)  # EXIF orientations that exchange height and width
MIRRORED = (2, 3, 7, 8)  # those after which the right border of the file is the left or upper one of the image
UPSIDE_DOWN = (3, 4, 6, 7)  # those after which its lower border is the upper or left one


Size = int | tuple[int, int] | None


def check_size(size: Any) -> tuple[int, int] | None:
    """Return ``size`` as (height, width), or None.

    Raises:
        TypeError: if it is neither an integer nor a pair of integers.
        ValueError: if it is less than 1.
    """
    if size is None or isinstance(size, int):
        return None if size is None else (check_count("size", size), size)
    if not isinstance(size, (tuple, list)) or len(size) != 2:
        raise TypeError(f"`size` must be an integer or a pair (height, width), got {shown(size)}.")
    height, width = (check_count("each of size", side) for side in size)
    return height, width


def check_same_size(reference: tuple[str, int, int], name: str, image: Any) -> None:
    """Raise a DataError if an image ``(channels, height, width)`` differs in size from the reference."""
    reference_name, height, width = reference
    if tuple(image.shape[1:]) != (height, width):
        h, w = image.shape[1:]
        raise DataError(
            f"Images must have the same size, but {reference_name} is {width}×{height} pixels and {name} is {w}×{h}.",
            hint="Give a size to resize all to, such as size=224.",
            cli_hint="Give a size to resize all to, such as --size 224.",
        )


class Box(NamedTuple):
    """The part of a decoded image that the picture covers, in pixels, which may be fractions at two borders."""

    left: float
    upper: float
    right: float
    lower: float


def decode_smaller(image: Any, size: tuple[int, int], orientation: Any) -> Box | None:
    """Let an opened JPEG file decode at a half, a quarter or an eighth of its size, if that is enough for ``size``.

    The decoder then takes means of blocks of pixels, which saves most of its time. Other formats, and images that are
    decoded already, stay as they are.

    Args:
        image: an opened PIL image.
        size: (height, width) to resize to, of the image when it is upright.
        orientation: the EXIF orientation of the file.

    Returns:
        The part of the smaller image that the picture covers once it is upright, None if it is all of it.
    """
    on_its_side = orientation in ON_ITS_SIDE
    wanted = [MARGIN * side for side in size[::-1]]
    drafted = image.draft(None, tuple(wanted[::-1] if on_its_side else wanted))
    if drafted is None:
        return None
    width, height = drafted[1][2:]
    # Where the size is no multiple of the blocks, the picture ends within the last pixel.
    x, y = image.width - width, image.height - height
    x, y = x * (orientation in MIRRORED), y * (orientation in UPSIDE_DOWN)
    if on_its_side:
        x, y, width, height = y, x, height, width
    return Box(x, y, x + width, y + height)


def _center(box: Box, width: int, height: int) -> Box:
    """Return the largest part in the middle of ``box`` with the aspect ratio of ``width`` and ``height``."""
    box_width, box_height, ratio = box.right - box.left, box.lower - box.upper, width / height
    if box_width / box_height == ratio:
        return box
    is_wide = box_width / box_height > ratio
    crop_width = min(box_width, ratio * box_height) if is_wide else box_width
    crop_height = box_height if is_wide else min(box_height, box_width / ratio)
    left, upper = box.left + (box_width - crop_width) / 2, box.upper + (box_height - crop_height) / 2
    return Box(left, upper, min(left + crop_width, box.right), min(upper + crop_height, box.lower))


def part_of(image: Any, size: tuple[int, int], method: str, box: Box | None = None) -> Box:
    """Return the part of an image that ``"crop"`` or ``"squish"`` uses: of ``box``, by default of all of it."""
    box = box or Box(0, 0, *image.size)
    return _center(box, size[1], size[0]) if method == "crop" else box


def resize_image(
    image: Any, size: tuple[int, int], method: str = "crop", nearest: bool = False, box: Box | None = None
) -> Any:
    """Return a PIL image in another size.

    Args:
        image: a PIL image in mode L or RGB.
        size: (height, width).
        method: ``"crop"`` cuts the center in the aspect ratio of ``size``; ``"squish"`` changes the aspect ratio;
            ``"pad"`` keeps the whole image and mirrors it at its borders to fill the size.
        nearest: take the nearest pixel, for masks; by default the mean of the pixels around.
        box: the part of the image to use; by default all of it.

    >>> from PIL import Image
    >>> wide = Image.fromarray(np.array([[0, 50, 100, 150], [0, 50, 100, 150]], dtype=np.uint8))
    >>> np.asarray(resize_image(wide, (2, 2), "crop")).tolist()
    [[50, 100], [50, 100]]
    >>> [resize_image(wide, (2, 2), method).size for method in METHODS]
    [(2, 2), (2, 2), (2, 2)]
    """
    from PIL import Image

    height, width = size
    how = Image.Resampling.NEAREST if nearest else Image.Resampling.BILINEAR
    if (image.height, image.width) == size:
        return image
    if method != "pad":
        return image.resize((width, height), how, part_of(image, size, method, box))
    box = box or Box(0, 0, *image.size)
    scale = min(width / (box.right - box.left), height / (box.lower - box.upper))
    scaled = (max(1, round((end - begin) * scale)) for begin, end in ((box.left, box.right), (box.upper, box.lower)))
    inner = image.resize(tuple(scaled), how, box)
    above, left = (height - inner.height) // 2, (width - inner.width) // 2
    edges = [(above, height - inner.height - above), (left, width - inner.width - left), (0, 0)]
    pixels = np.asarray(inner)
    return Image.fromarray(np.pad(pixels, edges[: pixels.ndim], mode="reflect"))
