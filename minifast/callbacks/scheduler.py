"""Hyper-parameters that follow schedules while a fit runs."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from minifast.errors import MinifastError
from minifast.schedules.annealing import Schedule, Value
from minifast.schedules.shapes import constant
from minifast.training.callback import LearnerCallback
from minifast.training.groups import check_rate, per_group
from minifast.utils.checks import arguments_of, check_number

if TYPE_CHECKING:
    from minifast.learner.learner import Learner


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
        self.controls = tuple(self.schedules)
        self.n_batches = n_batches
        self.first = 0

    def begin(self, schedules: dict[str, Schedule], n_batches: int) -> None:
        """Begin with the first of ``n_batches``."""
        opt = self.learn.opt
        if self._momentum_is_meant and "mom" in schedules and not opt.has_momentum:
            warnings.warn(f"{opt.without_momentum}; the momentum of the schedule is left out.", stacklevel=2)
        self.schedules = {name: f for name, f in schedules.items() if name != "mom" or opt.has_momentum}
        for name, schedule in self.schedules.items():
            at = {i / n_batches for i in range(0, n_batches, max(1, n_batches // MOST))} | {1.0}
            check_values(name, schedule, sorted(at), len(self.learn.layer_groups))
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
        """Return the place in the schedules, and their values on a grid, by which they are known."""
        plan = {name: [np.asarray(f(p)).tolist() for p in GRID] for name, f in self.schedules.items()}
        return {"first": self.first, "n_batches": self.n_batches, "plan": plan}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the place; schedules that are others than those of the run are refused."""
        mine = self.state_dict()
        if any(state[name] != mine[name] for name in ("plan", "n_batches")):
            raise MinifastError(f"The run was begun with other values of {type(self).__name__}; give those again.")
        self.first = state["first"]

    def check_start(self, epoch: int, n_epochs: int) -> None:
        """Refuse to start at an epoch that the fit has not."""
        if epoch >= n_epochs:
            raise ValueError(f"start_epoch is {epoch}, but the fit ends after {n_epochs} epochs; raise those above it.")

    def on_train_begin(self, n_epochs: int, epoch: int) -> Any:
        """Set the first values."""
        self.begin(self.schedules, self.n_batches)

    def on_batch_end(self, train: bool, iteration: int, skip_step: bool) -> Any:
        """Set the values of the next batch, where the optimizer made a step."""
        if train and not skip_step:
            self._set(self.first + iteration + 1)


GRID = [i / 100 for i in range(101)]  # of progress, on which schedules are compared


HIGHEST = {"lr": math.inf, "mom": 1.0, "wd": math.inf}


MOST = 100_000  # batches of a run that are looked at before it trains; of more a part, evenly spread


def as_schedule(name: str, value: Any, n_groups: int, called: str = "") -> tuple[Schedule, list[list[float]]]:
    """Return a schedule as it is, or a number or a value for each layer group as one that stays; and its values.

    The values are those of each layer group on a grid of progress. ``called`` names it in an error.

    Raises:
        ValueError, TypeError: it is no schedule, gives what ``name`` cannot be, or another number of values than
            layer groups.
    """
    called = called or name
    if callable(value):
        check_schedule(called, value)
    elif isinstance(value, (list, tuple, np.ndarray)) and np.ndim(value):
        value = constant(np.asarray(value, float))
    else:
        value = constant(check_rate(called, value))
    check_values(name, value, GRID, n_groups, called)
    return value, [per_group(value(p), n_groups, called) for p in GRID]


def check_schedule(name: str, value: Any) -> None:
    """Refuse a function that makes schedules where a schedule is meant."""
    names, needed = arguments_of(value) or (["p"], 1)
    maker = getattr(value, "__name__", type(value).__name__)
    if needed > 1 or not names or callable(value(0.0)):
        raise TypeError(
            f"{name} is {maker}, which is no function of progress alone; a maker of schedules is called, "
            f"such as one_cycle(5e-2)."
        )


def check_values(name: str, schedule: Schedule, at: Iterable[float], n_groups: int, called: str = "") -> None:
    """Refuse a schedule that at one of these points gives what its hyper-parameter cannot be.

    Raises:
        ValueError, TypeError: a value is not finite, a rate or decay is negative, or a momentum is not in [0, 1].
    """
    low, high = (0.0, HIGHEST[name]) if name in HIGHEST else (-math.inf, math.inf)
    for p in at:
        value = schedule(p)
        if type(value) is float and low <= value <= high and math.isfinite(value):
            continue
        where = f"{called or name} at {p:.4g} of the run"
        for one in per_group(value, n_groups, where):
            check_number(where, one, low=low, high=high)
