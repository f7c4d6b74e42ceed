"""The 1cycle policy in three forms: two phases, three phases and two halves."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from minifast.schedules.annealing import Schedule, Value, as_value
from minifast.schedules.shapes import constant, cosine, join, linear
from minifast.utils.checks import check_count, check_number, check_word

WARMUPS = {"linear": linear, "cosine": cosine}


def one_cycle(
    lr_max: Value,
    div_factor: float = 25.0,
    pct_start: float = 0.3,
    final_div: float | None = None,
    warmup: str = "linear",
) -> Schedule:
    """Return the learning rate schedule of the 1cycle policy: from ``lr_max / div_factor`` up, then on a cosine to 0.

    Args:
        lr_max: the maximum learning rate: a float, or an array with one value per layer group.
        div_factor: the first learning rate is ``lr_max / div_factor``.
        pct_start: the fraction of training in which the learning rate rises, in [0, 1].
        final_div: end at ``lr_max / final_div`` instead of 0.
        warmup: ``"linear"`` as in fastai v1's documentation, or ``"cosine"`` as in its code.

    Raises:
        ValueError: an argument is out of range.

    Source: L. Smith, "A disciplined approach to neural network hyper-parameters" (2018); two phases are fastai's form.

    >>> f = one_cycle(1.0)
    >>> [round(f(p), 3) for p in (0.0, 0.15, 0.3, 0.65, 1.0)]
    [0.04, 0.52, 1.0, 0.5, 0.0]
    """
    lr_max = as_value("lr_max", lr_max)
    check_number("div_factor", div_factor, above=0)
    end = 0 * lr_max if final_div is None else lr_max / check_number("final_div", final_div, above=0)
    return _two_phases(lr_max / div_factor, lr_max, end, pct_start, warmup)


def one_cycle_momentum(
    moms: tuple[float, float] = (0.95, 0.85), pct_start: float = 0.3, warmup: str = "linear"
) -> Schedule:
    """Return the momentum schedule of the 1cycle policy: from ``moms[0]`` down to ``moms[1]``, then back on a cosine.

    >>> [round(one_cycle_momentum()(p), 3) for p in (0.0, 0.3, 1.0)]
    [0.95, 0.85, 0.95]
    """
    high, low = moms
    return _two_phases(high, low, high, pct_start, warmup)


def _two_phases(start: Value, peak: Value, end: Value, pct_start: float, warmup: str) -> Schedule:
    pct_start = check_number("pct_start", pct_start, low=0, high=1)
    check_word("warmup", warmup, tuple(WARMUPS))
    return join((pct_start, WARMUPS[warmup](start, peak)), (1 - pct_start, cosine(peak, end)))


def three_phases(
    lr_max: Value, div_factor: float = 25.0, pct_start: float = 0.45, final_div: float | None = None
) -> Schedule:
    """Return the learning rate of Smith's original 1cycle: a line up, a line down, and a third line further down.

    Args:
        lr_max: the maximum learning rate: a float, or an array with one value per layer group.
        div_factor: the first learning rate is ``lr_max / div_factor``.
        pct_start: the fraction of training of each of the first two phases, at most 0.5. At 0.5 there is no third one.
        final_div: end at ``lr_max / final_div``, by default at a hundredth of the first learning rate.

    >>> f = three_phases(1.0, div_factor=10, pct_start=0.4)
    >>> [round(f(p), 4) for p in (0.0, 0.4, 0.8, 1.0)]
    [0.1, 1.0, 0.1, 0.001]
    """
    lr_max = as_value("lr_max", lr_max)
    low = lr_max / check_number("div_factor", div_factor, above=0)
    pct_start = check_number("pct_start", pct_start, low=0, high=0.5)
    end = _low_end(lr_max, div_factor, final_div)
    return join(
        (pct_start, linear(low, lr_max)), (pct_start, linear(lr_max, low)), (1 - 2 * pct_start, linear(low, end))
    )


def three_phases_momentum(moms: tuple[float, float] = (0.95, 0.85), pct_start: float = 0.45) -> Schedule:
    """Return the momentum of Smith's original 1cycle: down, up, then constant at ``moms[0]``."""
    high, low = moms
    pct_start = check_number("pct_start", pct_start, low=0, high=0.5)
    return join((pct_start, linear(high, low)), (pct_start, linear(low, high)), (1 - 2 * pct_start, constant(high)))


def two_halves(
    lr_max: Value, div_factor: float = 25.0, pct_start: float = 0.5, final_div: float | None = None
) -> Schedule:
    """Return the 1cycle learning rate in two halves: a line up to ``lr_max``, and a line down.

    Args:
        lr_max: the maximum learning rate: a float, or an array with one value per layer group.
        div_factor: the first learning rate is ``lr_max / div_factor``.
        pct_start: the fraction of training in which the learning rate rises, in [0, 1].
        final_div: end at ``lr_max / final_div``, by default at a hundredth of the first learning rate.

    >>> [two_halves(1.0, 10)(p) for p in (0.0, 0.5, 1.0)]
    [0.1, 1.0, 0.001]
    """
    lr_max = as_value("lr_max", lr_max)
    start = lr_max / check_number("div_factor", div_factor, above=0)
    pct_start = check_number("pct_start", pct_start, low=0, high=1)
    end = _low_end(lr_max, div_factor, final_div)
    return join((pct_start, linear(start, lr_max)), (1 - pct_start, linear(lr_max, end)))


def _low_end(lr_max: Value, div_factor: float, final_div: float | None) -> Value:
    return lr_max / (div_factor * 100 if final_div is None else check_number("final_div", final_div, above=0))


def whole_batches(pct_start: float, n_batches: int) -> float:
    """Return ``pct_start`` rounded down to whole batches of ``n_batches``, so that the peak is on a batch.

    A positive ``pct_start`` gives at least one batch of warm-up if there are two batches or more.

    >>> whole_batches(0.3, 386) * 386, whole_batches(0.3, 2), whole_batches(0.3, 1), whole_batches(0.0, 9)
    (115.0, 0.5, 0.0, 0.0)
    """
    batches = int(n_batches * pct_start + 1e-9)  # 0.29 * 100 is 28.999999999999996
    if pct_start > 0 and n_batches > 1:
        batches = max(1, batches)
    return batches / n_batches


class Policy(NamedTuple):
    """A form of the 1cycle policy: functions that build learning rate and momentum, and the default ``pct_start``."""

    lr: Callable[..., Schedule]
    mom: Callable[..., Schedule] | None
    pct_start: float


POLICIES = {
    "one_cycle": Policy(one_cycle, one_cycle_momentum, 0.3),
    "three_phases": Policy(three_phases, three_phases_momentum, 0.45),
    "two_halves": Policy(two_halves, None, 0.5),
}


def create_one_cycle_lr_schedule(
    max_lr: float, total_steps: int, div_factor: float = 25.0, final_div: float | None = None
) -> Callable[[int], float]:
    """Return a function of the step that rises on a line for half of ``total_steps`` and falls for the other half.

    Use it with ``LearningRateScheduler``, by epoch or by batch. ``two_halves`` is the same as a function of progress.

    Args:
        max_lr: the maximum learning rate. It is reached exactly on a step.
        total_steps: the number of steps; before step 0 and after the last step the learning rate stays constant.
        div_factor: the first learning rate is ``max_lr / div_factor``.
        final_div: end at ``max_lr / final_div``, by default at a hundredth of the first learning rate.

    >>> schedule = create_one_cycle_lr_schedule(1.0, 10, div_factor=10)
    >>> [round(schedule(step), 3) for step in (0, 5, 10, 11)]
    [0.1, 1.0, 0.001, 0.001]
    """
    n = check_count("total_steps", total_steps)
    schedule = two_halves(check_number("max_lr", max_lr, above=0), div_factor, whole_batches(0.5, n), final_div)
    return partial(_value_of_step, schedule, n)


def _value_of_step(schedule: Schedule, n: int, step: float) -> float:
    return float(schedule(min(max(step, 0) / n, 1.0)))
