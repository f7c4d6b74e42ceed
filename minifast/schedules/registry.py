"""Further complete schedules, and ``SCHEDULES``, which holds all complete schedules by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from minifast.schedules.annealing import Schedule, Value, as_value
from minifast.schedules.one_cycle import one_cycle, one_cycle_momentum, three_phases, three_phases_momentum, two_halves
from minifast.schedules.shapes import constant, cosine, exponential, join, linear, polynomial, repeat, step
from minifast.utils.checks import check_count, check_number


def flat_cosine(lr: Value, pct_start: float = 0.75, final_div: float | None = None) -> Schedule:
    """Return the schedule that stays at ``lr`` for ``pct_start``, then goes down a cosine to 0 or ``lr / final_div``.

    >>> [flat_cosine(1.0, 0.5)(p) for p in (0.0, 0.5, 0.75, 1.0)]
    [1.0, 1.0, 0.5, 0.0]
    """
    lr = as_value("lr", lr)
    pct_start = check_number("pct_start", pct_start, low=0, high=1)
    end = 0 * lr if final_div is None else lr / check_number("final_div", final_div, above=0)
    return join((pct_start, constant(lr)), (1 - pct_start, cosine(lr, end)))


def warm_restarts(lr_max: Value, n_cycles: int, cycle_mult: float = 1, lr_min: Value = 0.0) -> Schedule:
    """Return ``n_cycles`` cosines from ``lr_max`` to ``lr_min``, each ``cycle_mult`` times as long as the previous one.

    Source: I. Loshchilov & F. Hutter, "SGDR: Stochastic gradient descent with warm restarts" (2016), equation 5.

    >>> f = warm_restarts(1.0, 2, cycle_mult=3)
    >>> [round(f(p), 3) for p in (0.0, 0.125, 0.25, 0.625, 1.0)]
    [1.0, 0.5, 1.0, 0.5, 0.0]
    """
    n_cycles, cycle_mult = check_count("n_cycles", n_cycles), check_number("cycle_mult", cycle_mult, above=0)
    return repeat(cosine(lr_max, lr_min), n_cycles, cycle_mult)


class Named(NamedTuple):
    """A named schedule: functions that build learning rate and momentum, and a short description.

    ``lr`` takes the maximum learning rate only.
    """

    lr: Callable[[float], Schedule]
    mom: Callable[[], Schedule] | None
    does: str

    def of(self, lr: float) -> dict[str, Schedule]:
        """Return the schedules for a maximum learning rate, as ``fit_schedule`` and ``compare`` take them."""
        return {"lr": self.lr(lr), **({"mom": self.mom()} if self.mom else {})}


SCHEDULES = {
    "constant": Named(constant, None, "constant"),
    "linear": Named(lambda lr: linear(lr, 0.0), None, "linear to 0"),
    "cosine": Named(lambda lr: cosine(lr, 0.0), None, "half a cosine to 0"),
    "exponential": Named(lambda lr: exponential(lr, lr / 100), None, "exponential to a hundredth"),
    "polynomial": Named(lambda lr: polynomial(lr, 0.0, 2), None, "a parabola to 0"),
    "step": Named(lambda lr: step(lr, 0.1, 2), None, "divided by ten after each third"),
    "flat_cosine": Named(flat_cosine, None, "constant for three quarters, then a cosine to 0"),
    "warm_restarts": Named(lambda lr: warm_restarts(lr, 3, 2), None, "three cosines, each twice as long (SGDR)"),
    "one_cycle": Named(one_cycle, one_cycle_momentum, "a line up, then a cosine to 0"),
    "three_phases": Named(three_phases, three_phases_momentum, "Smith's original: up, down, then further down"),
    "two_halves": Named(two_halves, None, "a line up and a line down, half each"),
    "repeated_cycle": Named(
        lambda lr: repeat(one_cycle(lr), 3), lambda: repeat(one_cycle_momentum(), 3), "one cycle, three times"
    ),
}
