"""The values of images with more than 8 bits per channel: find the range of a data set, and pixels outside of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from minifast.data.images.conversion import ADVICE, DEEP
from minifast.utils.public import warn_caller

SAMPLED = 64  # images whose values are read, evenly spaced over a data set
MANY = 0.1  # the fraction of white pixels, or of lost images, from which there is a warning
LOST = 0.9  # the fraction of clipped pixels from which an image counts as lost


class Values(NamedTuple):
    """What the pixels of an image hold.

    Attributes:
        low: the lowest value.
        high: the highest value.
        integers: whether the values are integers.
        below: the fraction of pixels below the value range.
        above: the fraction of pixels above it.
    """

    low: float
    high: float
    integers: bool
    below: float
    above: float


def is_deep(mode: str) -> bool:
    """Return whether images of a PIL mode have more than 8 bits per channel.

    >>> is_deep("I;16"), is_deep("F"), is_deep("L")
    (True, True, False)
    """
    return mode.startswith(("I", "F"))


def read_values(name: str, value_range: tuple[float, float] | None) -> Values | None:
    """Return what the pixels of a file hold; None for 8 bits, and for a file that cannot be read."""
    from PIL import Image

    try:
        with Image.open(name) as image:
            if not is_deep(image.mode):
                return None
            values, integers = np.asarray(image), image.mode.startswith("I")
        if not values.size or not np.isfinite(values).all():
            return None
    except Exception:  # decoding it raises the error
        return None
    black, white = value_range or (0, DEEP if integers else 1)
    low, high = float(values.min()), float(values.max())
    return Values(low, high, integers, float((values < black).mean()), float((values > white).mean()))


def sample_values(names: Sequence[str], value_range: tuple[float, float] | None = None) -> list[Values]:
    """Return what up to ``SAMPLED`` of the files hold, without those of 8 bits."""
    rows = np.unique(np.linspace(0, len(names) - 1, min(SAMPLED, len(names))).round().astype(int)).tolist()
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        found = list(pool.map(lambda row: read_values(names[row], value_range), rows))
    return [values for values in found if values is not None]


def range_of(values: Sequence[Values]) -> tuple[float, float]:
    """Return the lowest and the highest value of images."""
    return min(one.low for one in values), max(one.high for one in values)


def suggest_range(names: Sequence[str], values: Sequence[Values]) -> str:
    """Return a sentence with the values of the sampled files, and a ``value_range`` that fits them.

    Values from 0 are given the number of bits that holds them, because files outside of the sample may be brighter.

    >>> suggest_range(["a", "b"], [Values(0, 900, True, 0, 0), Values(3, 4000, True, 0, 0)])
    'The values of 2 of the 2 images range from 0 to 4000; value_range=(0, 4095) fits them.'
    """
    low, high = range_of(values)
    black, white = low, high
    if low >= 0 and all(one.integers for one in values):
        black, white = 0, 2 ** max(1, int(high).bit_length()) - 1
    elif low == high:
        white = low + 1
    return (
        f"The values of {min(len(values), len(names))} of the {len(names)} images range from {low:g} to {high:g}; "
        f"value_range=({black:g}, {white:g}) fits them."
    )


def warn_about_values(names: Sequence[str], value_range: tuple[float, float] | None) -> None:
    """Warn if images with more than 8 bits become nearly black, or lose many pixels to ``value_range``.

    Up to ``SAMPLED`` of the files are read.
    """
    if value_range is None:  # the first image is enough for most data sets
        first = read_values(names[0], None) if names else None
        if first is None or not first.integers or first.high > DEEP // 16:
            return
    values = sample_values(names, value_range)
    if not values:
        return
    if value_range is None:
        if range_of(values)[1] > DEEP // 16:
            return
        problem = f"16-bit images are scaled from 0 to {DEEP}, so these are nearly black."
    else:
        lost = sum(one.below + one.above >= LOST for one in values)
        above = sum(one.above for one in values) / len(values)
        if lost < MANY * len(values) and above < MANY:
            return
        problem = (
            f"value_range=({value_range[0]:g}, {value_range[1]:g}) makes {above:.0%} of the pixels white, and at least "
            f"{LOST:.0%} of the pixels of {lost} of {len(values)} images black or white."
        )
    warn_caller(f"{problem} {ADVICE} {suggest_range(names, values)}")
