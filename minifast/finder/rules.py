"""Rules that read a learning rate from the curve of a learning rate range test."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from minifast.errors import MinifastError

MIN_POINTS = 10  # a shorter curve gives no suggestion
RANGE_FACTOR = 2.0  # the suggested range goes from suggestion / 2 to suggestion * 2
BETA = 0.98  # of the moving average that smooths the losses
IGNORED_FALL = 0.05  # the last part of the fall, where the loss hardly moves; the rules agree more often without it
IGNORED_START = 0.1  # the first part of the fall
WINDOW = 10  # neighbouring losses whose mean is compared with the mean of the first quarter
MIN_CLEARNESS = 4.2  # standard errors; at this value none of 256 range tests on pure noise gave a suggestion
MIN_FALL = 0.005  # share of the loss; the loss of a dead network falls by less, with almost no noise
MAX_RATIO = 10.0  # the steepest fall counts up to this factor from a tenth of the minimum
NEAR = 5  # points after the beginning of learning that are not taken for divergence
BELOW_VALID = 5.0  # factor below the learning rate with the lowest loss of validation samples


def cut(values: Sequence[Any], skip_start: int, skip_end: int) -> list[Any]:
    """Return ``values`` without the first and last ones; from a short list at most a quarter is cut at each end.

    >>> cut(range(5), 1, 2), cut(range(3), 10, 5)
    ([1, 2, 3], [0, 1, 2])
    """
    quarter = len(values) // 4
    return list(values)[min(skip_start, quarter) : len(values) - min(skip_end, quarter)]


class Rules(NamedTuple):
    """The learning rate that each rule reads from the curve of ``lr_find``.

    Attributes:
        steepest: where the smoothed loss falls steepest over the logarithm of the learning rate.
        minimum: a tenth of the learning rate with the lowest loss. The last 5 % of the fall, where the loss hardly
            moves, are ignored.
        valley: the middle of the longest falling subsequence.
        slide: the first learning rate, from the right, whose slope equals the slope fifteen points further right. The
            tolerance is 1 % of the curve's height per point.
    """

    steepest: float
    minimum: float
    valley: float
    slide: float


def suggest_lr(lrs: Sequence[float], losses: Sequence[float], skip_start: int = 10, skip_end: int = 5) -> float:
    """Return the learning rate to train with, read from the curve of ``lr_find``.

    The suggestion is the geometric mean of the rules ``steepest`` and ``minimum``; see ``minifast.finder.rules.Rules``.

    Args:
        lrs: the learning rate of each step, in rising order.
        losses: the smoothed loss of each step.
        skip_start: how many points to ignore at the start, at most a quarter of the curve.
        skip_end: how many points to ignore at the end, at most a quarter of the curve.

    Raises:
        MinifastError: the curve has fewer than 10 points or does not fall.

    >>> lrs = [10 ** (k / 10 - 6) for k in range(60)]
    >>> losses = [1.0 if lr < 1e-4 else 1 - 0.3 * math.log10(lr * 1e4) if lr < 1e-1 else 5.0 for lr in lrs]
    >>> 1e-4 < suggest_lr(lrs, losses) < 1e-1
    True
    """
    return combine_rules(read_rules(lrs, losses, skip_start, skip_end))


def combine_rules(readings: Rules, valid_minimum: float | None = None) -> float:
    """Return the geometric mean of the first two rules, or less where a model would memorize the training samples.

    A steepest fall that is more than a factor of 10 away from a tenth of the minimum counts as if it were at that
    factor: the minimum is the more reliable rule.

    If ``valid_minimum`` is given, the learning rate with the lowest loss of validation samples, a fifth of it is
    returned if that is lower, but at least a fifth of the mean.
    """
    ratio = min(max(readings.steepest / readings.minimum, 1 / MAX_RATIO), MAX_RATIO)
    mean = readings.minimum * math.sqrt(ratio)
    return mean if valid_minimum is None else min(mean, max(valid_minimum, mean) / BELOW_VALID)


def suggested_range(suggestion: float) -> tuple[float, float]:
    """Return the lowest and the highest learning rate of the range around a suggestion.

    The range goes from half to twice the suggestion. On each problem of ``python -m benchmarks finder``, 1cycle
    training at its ends lost at most 0.02 of accuracy.
    """
    return suggestion / RANGE_FACTOR, suggestion * RANGE_FACTOR


def read_rules(
    lrs: Sequence[float],
    losses: Sequence[float],
    skip_start: int = 0,
    skip_end: int = 0,
    curves: Sequence[Sequence[float]] = (),
    learned: bool | None = None,
    learned_from: float | None = None,
) -> Rules:
    """Return what each rule reads from a curve; if the curve is a median, ``curves`` holds the single runs.

    ``learned`` and ``learned_from`` are what ``minifast.finder.learning`` finds, if the losses allow it. Below
    ``learned_from`` the loss falls by noise: the minimum is looked for from there on, and the steepest fall from a
    tenth of it on.

    Raises:
        MinifastError: the curve has too few points or does not fall.
    """
    points = [(lr, loss) for lr, loss in zip(lrs, losses, strict=False) if math.isfinite(loss)]
    if len(losses) and not points:
        raise MinifastError(
            "The loss of lr_find was NaN or infinite from the first step on, at the lowest learning rate. Look for NaN "
            "or infinite values in the data, the weights and the loss function."
        )
    if len(points) < MIN_POINTS:
        raise MinifastError(
            f"The curve of lr_find has {len(points)} points, too few to suggest a learning rate; "
            f"run lr_find(num_it=100) with a start_lr at which the loss does not diverge."
        )
    learning_rates, curve = np.array(cut(points, skip_start, skip_end)).T
    if not (np.diff(learning_rates) > 0).all():
        raise MinifastError(
            "The learning rates do not rise, so this is not a curve of lr_find; call learn.lr_find() first."
        )
    slide = _slide(learning_rates, curve)
    # The slope between two batches is noise, so take a mean over seven points. Ignore all points after divergence.
    sums, counts = (np.convolve(values, np.ones(7))[3:-3] for values in (curve, np.ones_like(curve)))
    curve = sums / counts
    start = np.median(curve[: max(3, len(curve) // 4)])
    fallen = start - np.minimum.accumulate(curve)
    diverged = (curve > start + 0.2 * fallen[-1]) & (fallen > 0.5 * fallen[-1])
    first = 0 if learned_from is None else min(int(np.searchsorted(learning_rates, learned_from)), len(curve) - 1)
    end = max(int(diverged.argmax()) if diverged.any() else len(curve), min(first + NEAR, len(curve)))
    fallen, later = fallen[:end], start - np.minimum.accumulate(curve[first:end])
    lowest = first + int((later >= (1 - IGNORED_FALL) * later[-1]).argmax())
    # Where the loss has not begun to fall, the steepest slope is noise.
    begun = int((fallen >= (IGNORED_START * fallen[-1] if fallen[-1] > 0 else 0)).argmax())
    begun = max(begun, 0 if learned_from is None else int(np.searchsorted(learning_rates, learned_from / MAX_RATIO)))
    slope = np.gradient(curve, np.log(learning_rates))[: lowest + 1]
    slope[: min(begun, lowest)] = 0
    is_steep = slope.min() < 0
    falls = lowest >= 2 and (is_steep or learned_from is not None) and fallen[-1] > MIN_FALL * abs(start)
    clear = _clearness(curves or [losses]) >= MIN_CLEARNESS if learned is None else learned
    if not (falls and clear):
        raise MinifastError(
            "The loss of lr_find does not fall more than by chance, so there is no suggestion.",
            hint="Try num_it=300 or repeats=3. Look at the curve with learn.recorder.plot(), and check the data, the "
            "loss function, start_lr and end_lr.",
            cli_hint="Look at lr_find.png, check the images and their classes, or pass a learning rate with --lr.",
        )
    falling = _longest_fall(curve.tolist())
    return Rules(
        float(learning_rates[slope.argmin()]) if is_steep else float(learning_rates[lowest]) / 10,
        float(learning_rates[lowest]) / 10,
        float(learning_rates[falling[len(falling) // 2]]),
        slide,
    )


def _clearness(curves: Sequence[Sequence[float]]) -> float:
    """Return how many standard errors the lowest mean of neighbouring losses is below the mean of the first quarter.

    In the first quarter the learning rates are too low to change the loss. The smoothing is undone first, and the
    losses of several runs are averaged.
    """
    smoothed = np.asarray(curves, float)
    weights = 1 - BETA ** np.arange(smoothed.shape[1] + 1)
    sums = np.pad(smoothed, ((0, 0), (1, 0))) * weights
    losses = ((sums[:, 1:] - BETA * sums[:, :-1]) / (1 - BETA)).mean(0)
    losses = losses[np.isfinite(losses)]
    quarter = max(MIN_POINTS // 2, len(losses) // 4)
    first, rest = losses[:quarter], losses[quarter:]
    near = min(WINDOW, len(rest))
    fall = first.mean() - np.convolve(rest, np.full(near, 1 / near), "valid").min()
    # From differences, so that a slope does not count as noise.
    deviation = math.sqrt(float((np.diff(first) ** 2).mean()) / 2)
    error = deviation * math.sqrt(1 / near + 1 / quarter)
    return float(fall / error) if error else math.inf


def _longest_fall(curve: Sequence[float]) -> list[int]:
    """Return the positions of the longest falling subsequence."""
    ends: list[float] = []  # negated highest last value of a fall of each length; negated so that bisect works
    last: list[int] = []
    previous: list[int] = []
    for i, value in enumerate(curve):
        place = bisect_left(ends, -value)
        previous.append(last[place - 1] if place else -1)
        ends[place : place + 1] = [-value]
        last[place : place + 1] = [i]
    positions = []
    i = last[-1]
    while i >= 0:
        positions.append(i)
        i = previous[i]
    return positions[::-1]


def _slide(learning_rates: Any, curve: Any, distance: int = 15, tolerance: float = 0.01) -> float:
    slope = np.gradient(curve) / max(np.ptp(curve), 1e-30)
    left = len(curve) - 1 - distance
    while left > 0 and abs(slope[left + distance] - slope[left]) > tolerance:
        left -= 1
    return float(learning_rates[max(left, 0)])
