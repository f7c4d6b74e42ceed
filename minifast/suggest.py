"""Rules that read a learning rate from a finder's curve: lists in, rates out."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from minifast.errors import MinifastError

LEAST = 10  # points of a curve from which a rate can be read
WIDTH = 2.0  # of the band of rates that are about as good, to either side
BETA = 0.98  # of the moving average that smoothed the losses
CREEP = 0.05  # the last part of the fall, in which the loss still creeps down; without it the rules agree more often
CLEAR = 6.0  # by how many times its noise a loss must fall: with noise alone it fell 4 times at most, in training 11
AGREE = 10.0  # by how much the two rules that are averaged may differ


def cut(values: Sequence[Any], skip_start: int, skip_end: int) -> list[Any]:
    """Leave out the first and last values, but of a short list no more than a quarter at either end.

    >>> cut(range(5), 1, 2), cut(range(3), 10, 5)
    ([1, 2, 3], [0, 1, 2])
    """
    quarter = len(values) // 4
    return list(values)[min(skip_start, quarter) : len(values) - min(skip_end, quarter)]


class Rules(NamedTuple):
    """The rates that each rule reads from a finder's curve.

    ``steepest``: where the smoothed loss falls steepest over the logarithm of the rate. ``minimum``: a tenth of the
    rate where it is lowest, but for the last twentieth of its fall, in which it creeps. ``valley``: the middle of the
    longest falling sequence. ``slide``: the last rate before the slope of the rising end, fifteen points to its right,
    differs.
    """

    steepest: float
    minimum: float
    valley: float
    slide: float


def suggest_lr(lrs: Sequence[float], losses: Sequence[float], skip_start: int = 10, skip_end: int = 5) -> float:
    """Return the learning rate to train with, read from a finder's curve.

    It is the geometric mean of two rules: the rate where the smoothed loss falls steepest over the logarithm of the
    rate, and a tenth of the rate where it is lowest but for a twentieth of its fall. The curve's ends are left out, as
    ``Recorder.plot`` does.

    Raises:
        MinifastError: too few points, a curve that does not fall, or rules that differ by more than ten times.

    >>> lrs = [10 ** (k / 10 - 6) for k in range(60)]
    >>> losses = [1.0 if lr < 1e-4 else 1 - 0.3 * math.log10(lr * 1e4) if lr < 1e-1 else 5.0 for lr in lrs]
    >>> 1e-4 < suggest_lr(lrs, losses) < 1e-1
    True
    """
    return agreed(rules(lrs, losses, skip_start, skip_end))


def agreed(found: Rules) -> float:
    """Return the mean of the first two rules.

    Raises:
        MinifastError: they differ by more than ten times.
    """
    ratio = found.steepest / found.minimum
    if not 1 / AGREE <= ratio <= AGREE:
        raise MinifastError(
            f"The steepest fall is at {found.steepest:.2g} and a tenth of the minimum at {found.minimum:.2g}, more "
            f"than {AGREE:g} times apart, so no rate is suggested; look at the curve, and try repeats=3 or more num_it."
        )
    return math.sqrt(found.steepest * found.minimum)


def band(suggestion: float) -> tuple[float, float]:
    """Return the lowest and the highest rate that are about as good as a suggestion.

    Twice and half of it: within that, one cycle lost at most two hundredths of accuracy on each of the problems of
    ``python -m benchmarks finder``.
    """
    return suggestion / WIDTH, suggestion * WIDTH


def rules(lrs: Sequence[float], losses: Sequence[float], skip_start: int = 0, skip_end: int = 0) -> Rules:
    """Return what each rule reads from a finder's curve.

    Raises:
        MinifastError: too few points, or a curve that does not fall.
    """
    points = [(lr, loss) for lr, loss in zip(lrs, losses, strict=False) if math.isfinite(loss)]
    if len(points) < LEAST:
        raise MinifastError(
            f"The finder's curve has {len(points)} points, too few to suggest a rate; "
            f"run lr_find(num_it=100) with a start_lr at which the loss does not diverge."
        )
    rates, curve = np.array(cut(points, skip_start, skip_end)).T
    if not (np.diff(rates) > 0).all():
        raise MinifastError("The learning rates do not rise, so this is no finder's curve; call learn.lr_find() first.")
    slide = _slide(rates, curve)
    # One batch's luck is no slope: a mean over seven points, and nothing after the loss has blown up.
    curve = np.array([curve[max(0, i - 3) : i + 4].mean() for i in range(len(curve))])
    start = np.median(curve[: max(3, len(curve) // 4)])
    fallen = start - np.minimum.accumulate(curve)
    blown_up = (curve > start + 0.2 * fallen[-1]) & (fallen > 0.5 * fallen[-1])
    end = int(blown_up.argmax()) if blown_up.any() else len(curve)
    fallen = fallen[:end]
    lowest = int((fallen >= (1 - CREEP) * fallen[-1]).argmax())
    slope = np.gradient(curve, np.log(rates))[: lowest + 1]
    if lowest < 2 or slope.min() >= 0 or fallen[-1] < CLEAR * _noise([loss for _, loss in points]):
        raise MinifastError(
            "The finder's loss does not fall more than by chance, so it suggests no rate; look at the curve with "
            "learn.recorder.plot(), and at the data, the loss function, start_lr and end_lr."
        )
    falling = _longest_fall(curve.tolist())
    return Rules(
        float(rates[slope.argmin()]), float(rates[lowest]) / 10, float(rates[falling[len(falling) // 2]]), slide
    )


def _noise(smoothed: Sequence[float]) -> float:
    """Return the standard deviation that a smoothed loss has by chance, from the differences of the losses behind it.

    Those of the first quarter count, where the rates are too low to change anything, and outliers do not.
    """
    n = len(smoothed)
    weights = 1 - BETA ** np.arange(n + 1)
    sums = np.concatenate([[0.0], smoothed]) * weights
    losses = (sums[1:] - BETA * sums[:-1]) / (1 - BETA)
    quarter = max(8, n // 4)
    steps = np.diff(losses[:quarter])
    deviation = 1.4826 * np.median(np.abs(steps - np.median(steps))) / math.sqrt(2)
    return float(deviation * math.sqrt((1 - BETA) / (1 + BETA) * (1 + BETA**quarter) / (1 - BETA**quarter)))


def _longest_fall(curve: Sequence[float]) -> list[int]:
    """Return the positions of the longest sequence of values, not necessarily neighbours, that falls."""
    ends: list[float] = []  # the negative of the highest last value of a fall of each length, so that they rise
    last: list[int] = []
    before: list[int] = []
    for i, value in enumerate(curve):
        place = bisect_left(ends, -value)
        before.append(last[place - 1] if place else -1)
        ends[place : place + 1] = [-value]
        last[place : place + 1] = [i]
    found = []
    i = last[-1]
    while i >= 0:
        found.append(i)
        i = before[i]
    return found[::-1]


def _slide(rates: Any, curve: Any, apart: int = 15, alike: float = 0.005) -> float:
    slope = np.gradient(curve)
    left = len(curve) - 1 - apart
    while left > 0 and abs(slope[left + apart] - slope[left]) > alike:
        left -= 1
    return float(rates[max(left, 0)])
