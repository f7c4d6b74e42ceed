"""Rules that read a learning rate from a finder's curve: lists in, a rate out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from minifast.errors import MinifastError


def cut(values: Sequence[Any], skip_start: int, skip_end: int) -> list[Any]:
    """Leave out the first and last values, but of a short list no more than a quarter at either end.

    >>> cut(range(5), 1, 2), cut(range(3), 10, 5)
    ([1, 2, 3], [0, 1, 2])
    """
    quarter = len(values) // 4
    return list(values)[min(skip_start, quarter) : len(values) - min(skip_end, quarter)]


def suggest_lr(lrs: Sequence[float], losses: Sequence[float], skip_start: int = 10, skip_end: int = 5) -> float:
    """Return the learning rate to train with, read from a finder's curve.

    It is the geometric mean of two rules: the rate where the smoothed loss falls steepest over the logarithm of the
    rate, and a tenth of the rate where it is lowest. The curve's ends are left out, as ``Recorder.plot`` does.

    Raises:
        MinifastError: too few points, or a curve that does not fall.

    >>> lrs = [10 ** (k / 10 - 6) for k in range(60)]
    >>> losses = [1.0 if lr < 1e-4 else 1 - 0.3 * math.log10(lr * 1e4) if lr < 1e-1 else 5.0 for lr in lrs]
    >>> 1e-4 < suggest_lr(lrs, losses) < 1e-1
    True
    """
    steepest, tenth = suggestions(lrs, losses, skip_start, skip_end)
    return math.sqrt(steepest * tenth)


def suggestions(
    lrs: Sequence[float], losses: Sequence[float], skip_start: int = 0, skip_end: int = 0
) -> tuple[float, float]:
    """Return the rate of the steepest fall and a tenth of the rate of the lowest smoothed loss.

    Raises:
        MinifastError: too few points, or a curve that does not fall.
    """
    points = [(lr, loss) for lr, loss in zip(lrs, losses, strict=False) if math.isfinite(loss)]
    if len(points) < 10:
        raise MinifastError(
            f"The finder's curve has {len(points)} points, too few to suggest a rate; "
            f"run lr_find(num_it=100) with a start_lr at which the loss does not diverge."
        )
    rates, curve = np.array(cut(points, skip_start, skip_end)).T
    # One batch's luck is no slope: a mean over seven points, and nothing after the loss has blown up.
    curve = np.array([curve[max(0, i - 3) : i + 4].mean() for i in range(len(curve))])
    start = np.median(curve[: max(3, len(curve) // 4)])
    fallen = start - np.minimum.accumulate(curve)
    blown_up = (curve > start + 0.2 * fallen[-1]) & (fallen > 0.5 * fallen[-1])
    end = int(blown_up.argmax()) if blown_up.any() else len(curve)
    lowest = int(curve[:end].argmin())
    slope = np.gradient(curve, np.log(rates))[: lowest + 1]
    if lowest < 2 or slope.min() >= 0:
        raise MinifastError(
            "The finder's loss does not fall, so it suggests no rate; look at learn.recorder.plot(), "
            "and at the data, the loss function and start_lr."
        )
    return float(rates[slope.argmin()]), float(rates[lowest]) / 10
