"""Schedules: pure functions of progress in [0, 1], the ways to join them, and the 1cycle policy in its three forms.

A schedule is any ``f(p)``: no state, no optimizer, no step count. Training evaluates it at ``i / n`` for batch ``i``
of ``n``, so it can be drawn and tested without a model, and a run is taken up again by evaluating it where it stopped.

Every maker accepts floats or NumPy arrays for its values (an array holds a value per layer group), and every schedule
accepts a float or an array for ``p`` (not both as arrays at once).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from minifast.errors import check_number

Value = Any  # a float, or an array with a value per layer group
Schedule = Callable[[Any], Value]


def _is_array(p: Any) -> bool:
    return getattr(p, "ndim", 0) > 0


def annealing_no(start: Value, end: Value, pct: Any) -> Value:
    """Stay at ``start``, whatever ``end`` and ``pct`` are."""
    return start + 0 * pct


def annealing_linear(start: Value, end: Value, pct: Any) -> Value:
    """Go from ``start`` to ``end`` on a straight line.

    >>> annealing_linear(0.0, 2.0, 0.25)
    0.5
    """
    return (1 - pct) * start + pct * end


def annealing_cos(start: Value, end: Value, pct: Any) -> Value:
    """Go from ``start`` to ``end`` on half a cosine, flat at both ends (Loshchilov & Hutter 2016, equation 5).

    >>> annealing_cos(1.0, 0.0, 0.5)
    0.5
    """
    wave = np.cos(math.pi * pct) if _is_array(pct) else math.cos(math.pi * pct)
    return end + (start - end) / 2 * (wave + 1)


def annealing_exp(start: Value, end: Value, pct: Any) -> Value:
    """Go from ``start`` to ``end`` by equal ratios; both must have the same sign and be other than 0.

    >>> round(annealing_exp(1e-4, 1.0, 0.5), 6)
    0.01
    """
    return start * (end / start) ** pct


def annealing_poly(degree: float) -> Callable[[Value, Value, Any], Value]:
    """Make the annealing that falls as ``(1 - pct) ** degree``.

    >>> annealing_poly(2)(1.0, 0.0, 0.5)
    0.25
    """

    def annealing(start: Value, end: Value, pct: Any) -> Value:
        return end + (start - end) * (1 - pct) ** degree

    return annealing


def constant(value: Value) -> Schedule:
    """Make the schedule that stays at ``value``."""
    return partial(annealing_no, value, value)


def linear(start: Value, end: Value) -> Schedule:
    """Make the schedule that goes from ``start`` to ``end`` on a straight line."""
    return partial(annealing_linear, start, end)


def cosine(start: Value, end: Value) -> Schedule:
    """Make the schedule that goes from ``start`` to ``end`` on half a cosine."""
    return partial(annealing_cos, start, end)


def exponential(start: Value, end: Value) -> Schedule:
    """Make the schedule that goes from ``start`` to ``end`` by equal ratios."""
    return partial(annealing_exp, start, end)


def polynomial(start: Value, end: Value, degree: float) -> Schedule:
    """Make the schedule that goes from ``start`` to ``end`` as ``(1 - p) ** degree``."""
    return partial(annealing_poly(degree), start, end)


def step(start: Value, factor: float, steps: int) -> Schedule:
    """Make the schedule that is multiplied by ``factor`` at each of ``steps`` seams, evenly spread.

    >>> [step(1.0, 0.5, 2)(p) for p in (0.0, 0.33, 0.34, 0.67, 1.0)]
    [1.0, 1.0, 0.5, 0.25, 0.25]
    """

    return join(*((1, constant(start * factor**k)) for k in range(steps + 1)))


def join(*parts: tuple[float, Schedule]) -> Schedule:
    """Put schedules one after another, each over its share of the whole.

    Shares are proportions, divided by their sum here; a schedule whose share is 0 is left out. At a seam the later
    schedule speaks. Shares that are whole numbers of batches put the seams exactly on batches.

    Raises:
        ValueError: no share is greater than 0, or one is negative or not finite.

    >>> f = join((1, linear(0.0, 1.0)), (3, linear(1.0, 0.0)))
    >>> [f(p) for p in (0.0, 0.125, 0.25, 0.625, 1.0)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    shares = [check_number("a share of join", share, low=0) for share, _ in parts]
    total = math.fsum(shares)
    if not total > 0:
        raise ValueError("join got no share greater than 0; give each schedule its own, such as (0.3, linear(0, 1)).")
    pieces = []
    done = 0.0
    for share, (_, schedule) in zip(shares, parts, strict=True):
        if share > 0:
            pieces.append((done / total, (done + share) / total, schedule))
            done += share

    def joined(p: Any) -> Value:
        if _is_array(p):
            return np.array([joined(float(q)) for q in p])
        for begin, end, schedule in pieces[:-1]:
            if p < end:
                return schedule((p - begin) / (end - begin))
        begin, _, schedule = pieces[-1]
        return schedule((p - begin) / (1 - begin))

    return joined


WARMUPS = {"linear": linear, "cosine": cosine}


def one_cycle(
    lr_max: Value,
    div_factor: float = 25.0,
    pct_start: float = 0.3,
    final_div: float | None = None,
    warmup: str = "linear",
) -> Schedule:
    """Make the learning rate of the 1cycle policy: up from ``lr_max / div_factor``, then down a cosine to 0.

    Args:
        lr_max: the highest rate (a float, or an array with a rate per layer group).
        div_factor: by how much lower the first rate is.
        pct_start: the share of training that goes up, in [0, 1].
        final_div: end at ``lr_max / final_div`` instead of 0.
        warmup: ``"linear"`` as fastai v1's page describes it, or ``"cosine"`` as its code does it.

    Raises:
        ValueError: an argument is out of its range.

    Source: L. Smith, "A disciplined approach to neural network hyper-parameters" (2018); two phases are fastai's form.

    >>> f = one_cycle(1.0)
    >>> [round(f(p), 3) for p in (0.0, 0.15, 0.3, 0.65, 1.0)]
    [0.04, 0.52, 1.0, 0.5, 0.0]
    """
    check_number("div_factor", div_factor, above=0)
    end = 0 * lr_max if final_div is None else lr_max / check_number("final_div", final_div, above=0)
    return _two_phases(lr_max / div_factor, lr_max, end, pct_start, warmup)


def one_cycle_momentum(
    moms: tuple[float, float] = (0.95, 0.85), pct_start: float = 0.3, warmup: str = "linear"
) -> Schedule:
    """Make the momentum of the 1cycle policy: from ``moms[0]`` down to ``moms[1]``, then back on a cosine.

    >>> [round(one_cycle_momentum()(p), 3) for p in (0.0, 0.3, 1.0)]
    [0.95, 0.85, 0.95]
    """
    high, low = moms
    return _two_phases(high, low, high, pct_start, warmup)


def _two_phases(start: Value, peak: Value, end: Value, pct_start: float, warmup: str) -> Schedule:
    pct_start = check_number("pct_start", pct_start, low=0, high=1)
    if warmup not in WARMUPS:
        raise ValueError(f"warmup is {warmup!r}; it must be one of {', '.join(map(repr, WARMUPS))}.")
    return join((pct_start, WARMUPS[warmup](start, peak)), (1 - pct_start, cosine(peak, end)))


def three_phases(lr_max: Value, div_factor: float = 25.0, pct_start: float = 0.45) -> Schedule:
    """Make the learning rate of Smith's original 1cycle: up, the same line down, then down to a hundredth of the start.

    ``pct_start`` is the share of the way up, and of the way down, so at most a half.

    >>> f = three_phases(1.0, div_factor=10, pct_start=0.4)
    >>> [round(f(p), 4) for p in (0.0, 0.4, 0.8, 1.0)]
    [0.1, 1.0, 0.1, 0.001]
    """
    check_number("div_factor", div_factor, above=0)
    pct_start = check_number("pct_start", pct_start, low=0, high=0.5)
    low = lr_max / div_factor
    return join(
        (pct_start, linear(low, lr_max)), (pct_start, linear(lr_max, low)), (1 - 2 * pct_start, linear(low, low / 100))
    )


def three_phases_momentum(moms: tuple[float, float] = (0.95, 0.85), pct_start: float = 0.45) -> Schedule:
    """Make the momentum of Smith's original 1cycle: down, up, then held at ``moms[0]``."""
    high, low = moms
    pct_start = check_number("pct_start", pct_start, low=0, high=0.5)
    return join((pct_start, linear(high, low)), (pct_start, linear(low, high)), (1 - 2 * pct_start, constant(high)))


def two_halves(lr_max: Value, div_factor: float = 25.0, final_div: float = 2500.0) -> Schedule:
    """Make the 1cycle of two equal halves: a line up to ``lr_max``, a line down to ``lr_max / final_div``.

    >>> [two_halves(1.0, 10, 100)(p) for p in (0.0, 0.5, 1.0)]
    [0.1, 1.0, 0.01]
    """
    start = lr_max / check_number("div_factor", div_factor, above=0)
    return join((1, linear(start, lr_max)), (1, linear(lr_max, lr_max / check_number("final_div", final_div, above=0))))


def whole_batches(pct_start: float, n_batches: int) -> float:
    """Round the share ``pct_start`` of ``n_batches`` down to whole batches, so that the peak falls on a batch.

    A warm-up that is wanted has at least one batch where there are two or more, so a run starts at its low rate.

    >>> whole_batches(0.3, 386) * 386, whole_batches(0.3, 2), whole_batches(0.3, 1), whole_batches(0.0, 9)
    (115.0, 0.5, 0.0, 0.0)
    """
    batches = int(n_batches * pct_start)
    if pct_start > 0 and n_batches > 1:
        batches = max(1, batches)
    return batches / n_batches
