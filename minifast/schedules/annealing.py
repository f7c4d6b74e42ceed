"""Interpolation between two values, under the names that fastai v1 gives them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from minifast.utils.checks import check_number

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


def as_value(name: str, value: Any) -> Value:
    """Return a number as it is, and a list, tuple or array of numbers, one a layer group, as an array.

    >>> as_value("lr_max", 0.1), as_value("lr_max", [0.1, 1.0]).tolist()
    (0.1, [0.1, 1.0])
    """
    if isinstance(value, (list, tuple, np.ndarray)) and np.ndim(value):
        return np.array([check_number(f"each of {name}", one) for one in value])
    check_number(name, value)
    return value
