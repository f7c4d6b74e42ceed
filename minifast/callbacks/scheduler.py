"""Hyper-parameters that follow schedules while a fit runs."""

from __future__ import annotations

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
    alone where the optimizer works without.

    Args:
        learn: the learner.
        schedules: a schedule for each of ``lr``, ``mom`` and ``wd`` that is to change.
        n_batches: how many batches the schedules span.
    """

    def __init__(self, learn: Learner, schedules: dict[str, Schedule] | None = None, n_batches: int = 1) -> None:
        super().__init__(learn)
        self.schedules = schedules or {}
        self.n_batches = n_batches
        self.first = 0

    def begin(self, schedules: dict[str, Schedule], n_batches: int) -> None:
        """Begin with the first of ``n_batches``."""
        opt = self.learn.opt
        self.schedules = {name: f for name, f in schedules.items() if name != "mom" or opt.has_momentum}
        self._sets = tuple(self.schedules)
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

    def on_batch_end(self, train: bool, iteration: int) -> Any:
        """Set the values of the next batch."""
        if train:
            self._set(self.first + iteration + 1)


GRID = [i / 100 for i in range(101)]  # of progress, on which a schedule is looked at before it trains


def as_schedule(name: str, value: Any, n_groups: int) -> tuple[Schedule, list[list[float]]]:
    """Return a schedule as it is, or a number or a value for each layer group as one that stays; and its values.

    The values are those of each layer group on a grid of progress.

    Raises:
        ValueError, TypeError: it gives what ``name`` cannot be, or another number of values than layer groups.
    """
    if not callable(value):
        value = constant(np.asarray(value, float) if isinstance(value, (list, tuple)) else check_number(name, value))
    values = [per_group(value(p), n_groups, f"{name} at {p:g}") for p in GRID]
    for p, each in zip(GRID, values, strict=True):
        for one in each:
            check_number(f"{name} at {p:g}", one, low=0, high=1 if name == "mom" else None)
    return value, values


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
