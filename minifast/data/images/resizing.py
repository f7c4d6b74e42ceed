"""Resize an image to a size of another aspect ratio: crop, squish or pad it."""

from __future__ import annotations

from typing import Any

import numpy as np

METHODS = ("crop", "squish", "pad")


def resize_image(image: Any, size: tuple[int, int], method: str = "crop", nearest: bool = False) -> Any:
    """Return a PIL image in another size.

    Args:
        image: a PIL image in mode L or RGB.
        size: (height, width).
        method: ``"crop"`` cuts the center in the aspect ratio of ``size``; ``"squish"`` changes the aspect ratio;
            ``"pad"`` keeps the whole image and mirrors it at its borders to fill the size.
        nearest: take the nearest pixel, for masks; by default the mean of the pixels around.

    >>> from PIL import Image
    >>> wide = Image.fromarray(np.array([[0, 50, 100, 150], [0, 50, 100, 150]], dtype=np.uint8))
    >>> np.asarray(resize_image(wide, (2, 2), "crop")).tolist()
    [[50, 100], [50, 100]]
    >>> [resize_image(wide, (2, 2), method).size for method in METHODS]
    [(2, 2), (2, 2), (2, 2)]
    """
    from PIL import Image, ImageOps

    height, width = size
    how = Image.Resampling.NEAREST if nearest else Image.Resampling.BILINEAR
    if (image.height, image.width) == size:
        return image
    if method == "squish":
        return image.resize((width, height), how)
    if method == "crop":
        return ImageOps.fit(image, (width, height), how)
    scale = min(width / image.width, height / image.height)
    inner_size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    inner = image.resize(inner_size, how)
    above, left = (height - inner.height) // 2, (width - inner.width) // 2
    edges = [(above, height - inner.height - above), (left, width - inner.width - left), (0, 0)]
    pixels = np.asarray(inner)
    return Image.fromarray(np.pad(pixels, edges[: pixels.ndim], mode="reflect"))
