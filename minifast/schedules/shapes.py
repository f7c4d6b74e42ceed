"""Functions that build a schedule, and functions that combine schedules."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np

from minifast.schedules.annealing import (
    Schedule,
    Value,
    annealing_cos,
    annealing_exp,
    annealing_linear,
    annealing_no,
    annealing_poly,
    as_value,
    is_array,
)
from minifast.utils.checks import check_count, check_number, shown


def constant(value: Value) -> Schedule:
    """Return the schedule that stays at ``value``."""
    value = as_value("value", value)
    return partial(annealing_no, value, value)


def linear(start: Value, end: Value) -> Schedule:
    """Return the schedule that goes from ``start`` to ``end`` on a straight line."""
    return partial(annealing_linear, as_value("start", start), as_value("end", end))


def cosine(start: Value, end: Value) -> Schedule:
    """Return the schedule that goes from ``start`` to ``end`` on half a cosine."""
    return partial(annealing_cos, as_value("start", start), as_value("end", end))


def exponential(start: Value, end: Value) -> Schedule:
    """Return the schedule that goes from ``start`` to ``end`` on an exponential curve (equal ratios per step).

    Raises:
        ValueError: ``start`` or ``end`` is 0, or their signs differ.
    """
    start, end = as_value("start", start), as_value("end", end)
    if not np.all(start * end > 0):
        raise ValueError(
            f"`exponential` needs nonzero values of the same sign, got {start} and {end}. Equal ratios never reach 0: "
            f"give an end such as start / 1000, or use linear or cosine."
        )
    return partial(annealing_exp, start, end)


def polynomial(start: Value, end: Value, degree: float) -> Schedule:
    """Return the schedule that goes from ``start`` to ``end`` as ``(1 - p) ** degree``; ``degree`` must be positive."""
    start, end = as_value("start", start), as_value("end", end)
    return partial(annealing_poly(check_number("degree", degree, above=0)), start, end)


def step(start: Value, factor: float, steps: int) -> Schedule:
    """Return the schedule that starts at ``start`` and is multiplied by ``factor`` at ``steps`` evenly spaced points.

    >>> [step(1.0, 0.5, 2)(p) for p in (0.0, 0.33, 0.34, 0.67, 1.0)]
    [1.0, 1.0, 0.5, 0.25, 0.25]
    """
    start = as_value("start", start)
    factor, steps = check_number("factor", factor, above=0), check_count("steps", steps, least=0)
    return join(*((1, constant(start * factor**k)) for k in range(steps + 1)))


def join(*parts: tuple[float, Schedule]) -> Schedule:
    """Return the schedule that follows several schedules one after another.

    Args:
        parts: pairs of (share, schedule). Shares are proportions of the whole; they need not sum to 1. A schedule with
            a share of 0 is skipped. At a boundary the later schedule applies. To put the boundaries exactly on batches,
            give numbers of batches as shares.

    Raises:
        TypeError: a part is not a pair of a share and a schedule.
        ValueError: a share is negative or not finite, or none is positive.

    >>> f = join((1, linear(0.0, 1.0)), (3, linear(1.0, 0.0)))
    >>> [f(p) for p in (0.0, 0.125, 0.25, 0.625, 1.0)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    for part in parts:
        if not isinstance(part, tuple) or len(part) != 2 or not callable(part[1]):
            raise TypeError(f"`join` takes pairs of a share and a schedule, such as (1, linear(0, 0.1)), got {part!r}.")
    shares = [check_number("a share of join", share, low=0) for share, _ in parts]
    total = math.fsum(shares)
    if not total > 0:
        raise ValueError(
            "`join` needs at least one positive share, such as (0.3, linear(0, 1)); all shares are 0 or absent."
        )
    pieces = []
    done = 0.0
    for share, (_, schedule) in zip(shares, parts, strict=True):
        if share > 0:
            pieces.append((done / total, (done + share) / total, schedule))
            done += share
    return partial(_concatenate, pieces)


def _concatenate(pieces: list[tuple[float, float, Schedule]], p: Any) -> Value:
    if is_array(p):
        return np.array([_concatenate(pieces, float(q)) for q in p])
    for begin, end, schedule in pieces[:-1]:
        if p < end:
            return schedule((p - begin) / (end - begin))
    begin, _, schedule = pieces[-1]
    return schedule((p - begin) / (1 - begin))


def repeat(schedule: Schedule, n: int, mult: float = 1) -> Schedule:
    """Return the schedule that repeats ``schedule`` ``n`` times, each time ``mult`` times as long as before.

    >>> saw = repeat(linear(0.0, 1.0), 2)
    >>> [saw(p) for p in (0.0, 0.25, 0.5, 0.75, 1.0)]
    [0.0, 0.5, 0.0, 0.5, 1.0]
    """
    if not callable(schedule):
        raise TypeError(f"`schedule` must be a function of progress, such as linear(0, 0.1), got {shown(schedule)}.")
    n, mult = check_count("n", n), check_number("mult", mult, above=0)
    return join(*((mult**k, schedule) for k in range(n)))
