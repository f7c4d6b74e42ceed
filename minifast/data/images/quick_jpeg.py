"""Decode JPEG files with torchvision and resize them with torch, which takes less time than with Pillow."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from minifast.data.images.resizing import Box

LEAST_PIXELS = 30_000  # of the decoded image; for smaller ones, Pillow is as fast
CAPABILITIES = ("AVX2", "AVX512")  # of processors for which torch resizes bytes, in one thread
RGB = 3  # torchvision's ImageReadMode.RGB
MAX_SHIFT = 1 / 64  # of a pixel, by which the start of a crop may move
MAX_EXTRA = 64  # pixels of the result that are computed before a crop and thrown away, at most a quarter of its size
ROUNDING_GUARD = 1 + 1e-9  # torch rounds the size of the result down


def has_kernel() -> bool:
    """Return whether torch has its kernel for bytes on this processor."""
    return torch.backends.cpu.get_cpu_capability() in CAPABILITIES


class AxisCrop(NamedTuple):
    """How to crop and resize one axis of an image with ``torch.nn.functional.interpolate``.

    Attributes:
        source: the pixels of the image to resize.
        factor: the size of the result, divided by the size of the source.
        result: the pixels of the result to keep.
    """

    source: slice
    factor: float
    result: slice


def crop_axis(start: float, stop: float, n: int, side: int) -> AxisCrop | None:
    """Return how to resize the part from ``start`` to ``stop`` of an axis to fewer pixels, ``n``.

    torch's source starts with a whole pixel. If the part starts within a pixel, the source starts some pixels of the
    result earlier, at a whole pixel.

    Args:
        start: start of the part in pixels, may be a fraction.
        stop: end of the part.
        n: pixels of the result.
        side: pixels of the axis.

    Returns:
        None if there is no such start, or the result would not be that of Pillow.

    >>> crop_axis(62.5, 437.5, 224, 500)  # a pixel of the result is 1.674 wide, 23 of them are 38.504
    AxisCrop(source=slice(24, 440, None), factor=0.5973333333333334, result=slice(23, 247, None))
    """
    scale = (stop - start) / n
    if scale < 1:  # many pixels of the result would lack their neighbors, and torch skips axes that keep their size
        return None
    for extra in range(min(MAX_EXTRA, n // 4) + 1):
        first = start - extra * scale
        if round(first) < 0:
            return None
        if abs(first - round(first)) <= MAX_SHIFT:
            source = slice(round(first), min(side, math.ceil(stop + scale)))  # with the neighbors after the part
            factor = max(1 / scale, (extra + n) / (source.stop - source.start))  # all pixels, where it moved back
            return AxisCrop(source, factor, slice(extra, extra + n))
    return None


def resize_quickly(image: Any, size: tuple[int, int], box: Box) -> np.ndarray[Any, Any] | None:
    """Return a part of a PIL image in a smaller size, as ``image.resize(size, BILINEAR, box)`` does.

    The bytes are those of Pillow up to rounding. A part that starts within a pixel may be moved by a 64th of a pixel.
    The first row and column of the result lack the pixels before the part, if it starts with a whole pixel.

    Args:
        image: a PIL image in mode RGB, decoded or not.
        size: (height, width).
        box: the part of the image.

    Returns:
        An array of uint8 ``(3, height, width)``, not contiguous; None where Pillow must resize.

    >>> from PIL import Image
    >>> photograph = Image.new("RGB", (500, 375), (10, 20, 30))
    >>> quick = resize_quickly(photograph, (2, 2), Box(62.5, 0, 437.5, 375))
    >>> quick is None or quick[:, 0, 0].tolist() == [10, 20, 30]
    True
    """
    if image.mode != "RGB" or image.width * image.height < LEAST_PIXELS or not has_kernel():
        return None
    rows = crop_axis(box.upper, box.lower, size[0], image.height)
    columns = crop_axis(box.left, box.right, size[1], image.width)
    if rows is None or columns is None:
        return None
    part = np.require(decode_pixels(image)[rows.source, columns.source], requirements=["C", "W"])
    resized = functional.interpolate(
        torch.from_numpy(part).permute(2, 0, 1)[None],
        scale_factor=(rows.factor * ROUNDING_GUARD, columns.factor * ROUNDING_GUARD),
        mode="bilinear",
        antialias=True,
    )
    return resized[0, :3, rows.result, columns.result].numpy()


def decode_pixels(image: Any) -> np.ndarray[Any, Any]:
    """Return the pixels of a PIL image in mode RGB, uint8 ``(height, width, 3 or 4)``.

    torchvision decodes a JPEG file that was read as a whole. Pillow decodes the others, such as open files.
    """
    decode = torchvision_decoder() if _is_whole_file(image) else None
    with suppress(RuntimeError):  # Pillow says what is wrong with the file
        if decode is not None:
            return decode(image.fp.getbuffer())
    # Four bytes a pixel, as Pillow stores them.
    return np.frombuffer(image.tobytes("raw", "RGBX"), np.uint8).reshape(image.height, image.width, 4)


def _is_whole_file(image: Any) -> bool:
    """Return whether a PIL image is a JPEG file in memory that is to be decoded in its own size."""
    tile: Any = getattr(image, "tile", ())  # empty once an image is decoded
    at_begin = bool(tile) and tile[0][0] == "jpeg" and tile[0][2] == 0
    return at_begin and isinstance(image.fp, io.BytesIO) and image.decoderconfig in ((), (1, 0))  # set by draft


@cache
def torchvision_decoder() -> Callable[[bytes | memoryview], np.ndarray[Any, Any]] | None:
    """Return torchvision's JPEG decoder if its pixels are those of Pillow's, else None.

    It takes the content of a file and returns uint8 ``(height, width, 3)``; it raises RuntimeError for a damaged file.
    It is loaded without the rest of torchvision, whose import takes a second.
    """
    with suppress(ValueError, ImportError, OSError):  # a stand-in for torchvision, or a library of another system
        spec = find_spec("torchvision")
        for folder in spec.submodule_search_locations or [] if spec else []:
            for library in (*Path(folder).glob("image*.so"), *Path(folder).glob("image*.pyd")):
                torch.ops.load_library(library)  # type: ignore[no-untyped-call]
    operator = getattr(torch.ops.image, "decode_jpeg", None)
    if operator is None:
        return None

    def decode(content: bytes | memoryview) -> np.ndarray[Any, Any]:
        writable = bytearray(content)  # torch warns of memory that it must not write to
        pixels: Tensor = operator(torch.frombuffer(writable, dtype=torch.uint8), RGB)
        return pixels.permute(1, 2, 0).numpy()

    with suppress(RuntimeError, TypeError):
        if all(np.array_equal(decode(content), _decode_with_pillow(content)) for content in _samples()):
            return decode
    return None


def _samples() -> Iterator[bytes]:
    """Yield small JPEG files of the usual kinds."""
    from PIL import Image

    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 53, 3), np.uint8))
    for subsampling in ("4:4:4", "4:2:2", "4:2:0"):
        for progressive in (False, True):
            sample = io.BytesIO()
            noise.save(sample, "jpeg", quality=90, subsampling=subsampling, progressive=progressive)
            yield sample.getvalue()


def _decode_with_pillow(content: bytes) -> np.ndarray[Any, Any]:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(content)))
