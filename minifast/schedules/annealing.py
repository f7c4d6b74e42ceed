"""Functions that interpolate between two values, under their fastai v1 names."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from minifast.utils.checks import check_number

Value = Any  # a float, or an array with one value per layer group
Schedule = Callable[[Any], Value]


def is_array(p: Any) -> bool:
    """Return whether progress is an array of several points."""
    return getattr(p, "ndim", 0) > 0


def annealing_no(start: Value, end: Value, pct: Any) -> Value:
    """Return ``start``, whatever ``end`` and ``pct`` are."""
    return start + 0 * pct


def annealing_linear(start: Value, end: Value, pct: Any) -> Value:
    """Return the value at ``pct`` of a straight line from ``start`` to ``end``.

    >>> annealing_linear(0.0, 2.0, 0.25)
    0.5
    """
    return (1 - pct) * start + pct * end


def annealing_cos(start: Value, end: Value, pct: Any) -> Value:
    """Return the value at ``pct`` of half a cosine from ``start`` to ``end``, which is flat at both ends.

    Source: I. Loshchilov & F. Hutter, "SGDR: Stochastic gradient descent with warm restarts" (2016), equation 5.

    >>> annealing_cos(1.0, 0.0, 0.5)
    0.5
    """
    wave = np.cos(math.pi * pct) if is_array(pct) else math.cos(math.pi * pct)
    return end + (start - end) / 2 * (wave + 1)


def annealing_exp(start: Value, end: Value, pct: Any) -> Value:
    """Return the value at ``pct`` of an exponential curve from ``start`` to ``end``.

    Both must be nonzero and have the same sign.

    >>> round(annealing_exp(1e-4, 1.0, 0.5), 6)
    0.01
    """
    return start * (end / start) ** pct


def annealing_poly(degree: float) -> Callable[[Value, Value, Any], Value]:
    """Return a function of (start, end, pct) that goes from ``start`` to ``end`` as ``(1 - pct) ** degree``.

    >>> annealing_poly(2)(1.0, 0.0, 0.5)
    0.25
    """
    return partial(_polynomial, degree)


def _polynomial(degree: float, start: Value, end: Value, pct: Any) -> Value:
    return end + (start - end) * (1 - pct) ** degree


def as_value(name: str, value: Any) -> Value:
    """Return a number unchanged, and a sequence with one number per layer group as an array.

    >>> as_value("lr_max", 0.1), as_value("lr_max", [0.1, 1.0]).tolist()
    (0.1, [0.1, 1.0])
    """
    if isinstance(value, (list, tuple, np.ndarray)) and np.ndim(value):
        return np.array([check_number(f"each of {name}", number) for number in value])
    check_number(name, value)
    return value
