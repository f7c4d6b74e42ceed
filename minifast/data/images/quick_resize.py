"""Resize color images with torch's kernel for bytes, in a third to two thirds of Pillow's time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from minifast.data.images.resizing import Box

LEAST_PIXELS = 100_000  # of the decoded image; for smaller ones, Pillow is as fast
LEAST_SCALE = 1.5  # of half pixels; an image that becomes larger would show them
CAPABILITIES = ("AVX2", "AVX512")  # of processors for which torch has this kernel, which runs in one thread


def has_kernel() -> bool:
    """Return whether torch has its kernel for bytes on this processor."""
    return torch.backends.cpu.get_cpu_capability() in CAPABILITIES


def resize_quickly(image: Any, size: tuple[int, int], box: Box) -> np.ndarray[Any, Any] | None:
    """Return a part of a PIL image in another size, uint8 ``(3, height, width)``; None where Pillow must do it.

    If the box has whole pixels, the bytes are those of ``image.resize(size, BILINEAR, box)`` up to rounding, but at the
    borders, where Pillow also uses pixels outside of the box. If it ends in the middle of a pixel, each pixel is used
    twice. Other boxes are left to Pillow.

    Args:
        image: a PIL image in mode RGB.
        size: (height, width).
        box: the part of the image.

    >>> from PIL import Image
    >>> photograph = Image.new("RGB", (500, 375), (10, 20, 30))
    >>> quick = resize_quickly(photograph, (2, 2), Box(62.5, 0, 437.5, 375))
    >>> quick is None or quick[:, 0, 0].tolist() == [10, 20, 30]
    True
    """
    if image.mode != "RGB" or image.width * image.height < LEAST_PIXELS or not has_kernel():
        return None
    cuts, repeats = [], []
    for begin, end, n in ((box.upper, box.lower, size[0]), (box.left, box.right, size[1])):
        twice = 2 if begin % 1 or end % 1 else 1
        if (twice * begin) % 1 or (twice * end) % 1 or (twice == 2 and end - begin < LEAST_SCALE * n):
            return None
        first = math.floor(begin)
        cuts.append((slice(first, math.ceil(end)), slice(int(twice * (begin - first)), int(twice * (end - first)))))
        repeats.append(twice)
    # Four bytes a pixel, as Pillow stores them.
    pixels = np.frombuffer(image.tobytes("raw", "RGBX"), np.uint32).reshape(image.height, image.width)
    pixels = pixels[cuts[0][0], cuts[1][0]]
    for axis, twice in enumerate(repeats):
        pixels = np.repeat(pixels, twice, axis) if twice == 2 else pixels
    pixels = np.require(pixels[cuts[0][1], cuts[1][1]], requirements=["C", "W"])
    tensor = torch.from_numpy(pixels.view(np.uint8).reshape(*pixels.shape, 4)).permute(2, 0, 1)
    resized = functional.interpolate(tensor[None], size, mode="bilinear", antialias=True)[0, :3]
    return np.ascontiguousarray(resized.numpy())
