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


NEAR = 10  # neighbouring losses whose mean is compared with the first quarter's


CLEAR = 4.2  # by how many standard errors it must be lower: of 256 finders over noise alone none suggested a rate


SMALL = 0.005  # share of the loss that it must fall: of a dead network it moves a little, with next to no noise


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
    longest falling sequence. ``slide``: seen from the right, the first rate whose slope is that of the point fifteen to
    its right, within a hundredth of the curve's height a point.
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


def rules(
    lrs: Sequence[float],
    losses: Sequence[float],
    skip_start: int = 0,
    skip_end: int = 0,
    curves: Sequence[Sequence[float]] = (),
) -> Rules:
    """Return what each rule reads from a finder's curve; ``curves`` are those of single runs where it is their median.

    Raises:
        MinifastError: too few points, or a curve that does not fall.
    """
    points = [(lr, loss) for lr, loss in zip(lrs, losses, strict=False) if math.isfinite(loss)]
    if len(losses) and not points:
        raise MinifastError(
            "The finder's loss was not finite from its first step on, at the lowest rate; look for NaN or infinite "
            "numbers in the data, the weights and the loss function."
        )
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
    falls = lowest >= 2 and slope.min() < 0 and fallen[-1] > SMALL * abs(start)
    if not falls or _clearness(curves or [losses]) < CLEAR:
        raise MinifastError(
            "The finder's loss does not fall more than by chance, so it suggests no rate; try repeats=3, and look at "
            "the curve with learn.recorder.plot(), and at the data, the loss function, start_lr and end_lr."
        )
    falling = _longest_fall(curve.tolist())
    return Rules(
        float(rates[slope.argmin()]), float(rates[lowest]) / 10, float(rates[falling[len(falling) // 2]]), slide
    )


def _clearness(curves: Sequence[Sequence[float]]) -> float:
    """Return by how many standard errors the lowest mean of neighbouring losses is below that of the first quarter.

    In the first quarter the rates are too low to change anything. The losses are those behind the smoothed ones, of
    several runs their mean.
    """
    smoothed = np.asarray(curves, float)
    weights = 1 - BETA ** np.arange(smoothed.shape[1] + 1)
    sums = np.pad(smoothed, ((0, 0), (1, 0))) * weights
    losses = ((sums[:, 1:] - BETA * sums[:, :-1]) / (1 - BETA)).mean(0)
    losses = losses[np.isfinite(losses)]
    quarter = max(LEAST // 2, len(losses) // 4)
    first, rest = losses[:quarter], losses[quarter:]
    near = min(NEAR, len(rest))
    fall = first.mean() - np.convolve(rest, np.full(near, 1 / near), "valid").min()
    deviation = math.sqrt(float((np.diff(first) ** 2).mean()) / 2)  # of neighbours, so that a slope is no noise
    error = deviation * math.sqrt(1 / near + 1 / quarter)
    return float(fall / error) if error else math.inf


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


def _slide(rates: Any, curve: Any, apart: int = 15, alike: float = 0.01) -> float:
    slope = np.gradient(curve) / max(np.ptp(curve), 1e-30)
    left = len(curve) - 1 - apart
    while left > 0 and abs(slope[left + apart] - slope[left]) > alike:
        left -= 1
    return float(rates[max(left, 0)])
