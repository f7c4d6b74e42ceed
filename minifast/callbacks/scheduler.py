"""Hyper-parameters that follow schedules while a fit runs."""

from __future__ import annotations

import inspect
import math
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from minifast.callback import LearnerCallback
from minifast.errors import check_number
from minifast.groups import per_group
from minifast.schedules import Schedule, Value, annealing_linear, annealing_no, constant

if TYPE_CHECKING:
    from minifast.learner import Learner


class ScheduledParameters(LearnerCallback):
    """Sets the optimizer's ``lr``, ``mom`` and ``wd`` by schedules: batch ``i`` of ``n`` trains at ``f(i / n)``.

    ``f(1)`` is set after the last batch; when the fit ends, the learner puts back what was before. Momentum is left
    alone where the optimizer works without. After a batch without a step of the optimizer the values stay as they are:
    where gradients are accumulated, a step trains at the values of the first of its batches, as one big batch would.

    Args:
        learn: the learner.
        schedules: a schedule for each of ``lr``, ``mom`` and ``wd`` that is to change.
        n_batches: how many batches the schedules span.
    """

    _momentum_is_meant = True  # so that an optimizer without momentum is worth a warning

    def __init__(self, learn: Learner, schedules: dict[str, Schedule] | None = None, n_batches: int = 1) -> None:
        super().__init__(learn)
        self.schedules = schedules or {}
        self._sets = tuple(self.schedules)
        self.n_batches = n_batches
        self.first = 0

    def begin(self, schedules: dict[str, Schedule], n_batches: int) -> None:
        """Begin with the first of ``n_batches``."""
        opt = self.learn.opt
        if self._momentum_is_meant and "mom" in schedules and not opt.has_momentum:
            warnings.warn(f"{opt.without_momentum}; the momentum of the schedule is left out.", stacklevel=2)
        self.schedules = {name: f for name, f in schedules.items() if name != "mom" or opt.has_momentum}
        self.n_batches = n_batches
        self.first = 0
        self._set(0)

    def jump_to_epoch(self, epoch: int) -> None:
        """Take the schedules up at ``epoch``."""
        self.first = epoch * len(self.learn.data.train_dl)
        self._set(self.first)

    def values(self, batch: int) -> dict[str, Value]:
        """Return what batch ``batch`` trains with."""
        progress = min(batch / self.n_batches, 1.0)
        return {name: schedule(progress) for name, schedule in self.schedules.items()}

    def _set(self, batch: int) -> None:
        opt = self.learn.opt
        for name, value in self.values(batch).items():
            opt.write(name, value)

    def state_dict(self) -> dict[str, Any]:
        """Return all but the schedules, which are the call's own."""
        return {name: value for name, value in super().state_dict().items() if name != "schedules"}

    def on_train_begin(self, n_epochs: int, epoch: int) -> Any:
        """Set the first values."""
        self.begin(self.schedules, self.n_batches)

    def on_batch_end(self, train: bool, iteration: int, skip_step: bool) -> Any:
        """Set the values of the next batch, where the optimizer made a step."""
        if train and not skip_step:
            self._set(self.first + iteration + 1)


GRID = [i / 100 for i in range(101)]  # of progress, on which schedules are compared
HIGHEST = {"lr": math.inf, "mom": 1.0, "wd": math.inf}
MOST = 10_000  # batches of a run for which a schedule is looked at before it trains; of more a part, evenly spread


def as_schedule(
    name: str, value: Any, n_batches: int, n_groups: int, called: str = ""
) -> tuple[Schedule, list[list[float]]]:
    """Return a schedule as it is, or a number or a value for each layer group as one that stays; and its values.

    The values are those of each layer group on a grid of progress. ``called`` names it in an error.

    Raises:
        ValueError, TypeError: it gives what ``name`` cannot be, or another number of values than layer groups.
    """
    called = called or name
    if callable(value):
        check_schedule(called, value)
    else:
        value = constant(np.asarray(value, float) if isinstance(value, (list, tuple)) else check_number(called, value))
    check_values(name, value, n_batches, n_groups, called)
    return value, [per_group(value(p), n_groups, called) for p in GRID]


def check_schedule(name: str, value: Any) -> None:
    """Refuse a function that makes schedules where a schedule is meant."""
    maker = getattr(value, "__name__", type(value).__name__)
    try:
        takes = inspect.signature(value).parameters.values()
    except ValueError:  # some of NumPy's and Python's own have none
        takes = ()  # type: ignore[assignment]
    needed = [p for p in takes if p.default is p.empty and p.kind < p.VAR_POSITIONAL]
    if len(needed) > 1 or callable(value(0.0)):
        raise TypeError(
            f"{name} is {maker}, which is no function of progress alone; a maker of schedules is called, "
            f"such as one_cycle(5e-2)."
        )


def check_values(name: str, schedule: Schedule, n_batches: int, n_groups: int, called: str) -> None:
    """Refuse a schedule that would train a batch with what its hyper-parameter cannot be.

    Raises:
        ValueError, TypeError: a value is not finite, a rate or decay is negative, or a momentum is not in [0, 1].
    """
    low, high = (0.0, HIGHEST[name]) if name in HIGHEST else (-math.inf, math.inf)
    for i in range(0, n_batches + 1, max(1, n_batches // MOST)):
        p = i / n_batches if n_batches else 0.0
        for one in per_group(schedule(p), n_groups, f"{called} at {p:.4g} of the run"):
            if not low <= one <= high:
                check_number(f"{called} at {p:.4g} of the run", one, low=low, high=high)


class Scheduler:
    """Goes from one value to another in ``n_iter`` calls of ``step``, for callbacks written in fastai v1's way.

    ``vals`` is ``(start, end)``, or one number to start from; ``func`` is an annealing of ``(start, end, pct)``, linear
    for a pair and constant for one number unless given.

    >>> s = Scheduler((0.0, 1.0), 4)
    >>> s.start, [s.step() for _ in range(4)], s.is_done
    (0.0, [0.25, 0.5, 0.75, 1.0], True)
    """

    def __init__(self, vals: Value | tuple[Value, Value], n_iter: int, func: Any = None) -> None:
        pair = isinstance(vals, tuple)
        self.start: Value = vals[0] if pair else vals
        self.end: Value = vals[1] if pair else 0
        self.n_iter = max(1, n_iter)
        self.func = func or (annealing_linear if pair else annealing_no)
        self.n = 0

    def restart(self) -> None:
        """Go back to the start."""
        self.n = 0

    def step(self) -> Value:
        """Return the next value."""
        self.n += 1
        return self.func(self.start, self.end, self.n / self.n_iter)

    @property
    def is_done(self) -> bool:
        """Whether the end is reached."""
        return self.n >= self.n_iter
