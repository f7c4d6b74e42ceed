"""Hyperparameters that follow schedules during a fit."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from minifast.errors import MinifastError
from minifast.schedules.annealing import Schedule, Value
from minifast.schedules.shapes import constant
from minifast.training.callback import LearnerCallback
from minifast.training.groups import check_lr, per_group
from minifast.utils.checks import arguments_of, check_number
from minifast.utils.public import warn_caller

if TYPE_CHECKING:
    from minifast.learner.learner import Learner


class ScheduledParameters(LearnerCallback):
    """Set the optimizer's ``lr``, ``mom`` and ``wd`` by schedules: batch ``i`` of ``n`` trains at ``f(i / n)``.

    ``f(1)`` is set after the last batch. When the fit ends, the learner restores the values from before the fit. The
    schedule of the momentum is ignored if the optimizer works without momentum. It sets ``betas[0]`` of Adam's family
    and ``momentum`` of SGD and RMSprop, and nothing else of what you gave the optimizer.

    The values change only after an optimizer step. With accumulated gradients a step therefore uses the values of its
    first batch, as one big batch would.

    Args:
        learn: the learner.
        schedules: a schedule for each of ``lr``, ``mom`` and ``wd`` that changes during training.
        n_batches: how many batches the schedules span.
    """

    _momentum_is_explicit = True  # whether to warn if the optimizer works without momentum

    def __init__(self, learn: Learner, schedules: dict[str, Schedule] | None = None, n_batches: int = 1) -> None:
        super().__init__(learn)
        self.schedules = schedules or {}
        self.controls = tuple(self.schedules)
        self.n_batches = n_batches
        self.first = 0
        self._planned: dict[str, list[Value]] = {}  # the values of each batch, unless there are very many

    def begin(self, schedules: dict[str, Schedule], n_batches: int) -> None:
        """Check the schedules and set the values of the first of ``n_batches`` batches."""
        opt = self.learn.opt
        if self._momentum_is_explicit and "mom" in schedules and not opt.has_momentum:
            warn_caller(f"{opt.without_momentum}; the schedule of the momentum is ignored.")
        self.schedules = {name: f for name, f in schedules.items() if name != "mom" or opt.has_momentum}
        step = max(1, n_batches // MAX_CHECKED)
        at = [*(i / n_batches for i in range(0, n_batches, step)), 1.0]
        n_groups = len(self.learn.layer_groups)
        planned = {name: check_values(name, schedule, at, n_groups) for name, schedule in self.schedules.items()}
        self._planned = planned if step == 1 else {}
        self.n_batches = n_batches
        self.first = 0
        self._set(0)

    def jump_to_epoch(self, epoch: int) -> None:
        """Continue the schedules at ``epoch``."""
        self.first = epoch * len(self.learn.data.train_dl)
        self._set(self.first)

    def values(self, batch: int) -> dict[str, Value]:
        """Return the scheduled values of batch ``batch``."""
        if self._planned:
            return {name: values[min(batch, self.n_batches)] for name, values in self._planned.items()}
        progress = min(batch / self.n_batches, 1.0)
        return {name: schedule(progress) for name, schedule in self.schedules.items()}

    def _set(self, batch: int) -> None:
        opt = self.learn.opt
        for name, value in self.values(batch).items():
            opt.write(name, value)

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the schedules, and their values on a grid, which identify them."""
        plan = {name: [np.asarray(f(p)).tolist() for p in GRID] for name, f in self.schedules.items()}
        return {"first": self.first, "n_batches": self.n_batches, "plan": plan}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the position.

        Raises:
            MinifastError: the checkpointed run used other schedules.
        """
        mine = self.state_dict()
        if any(state[name] != mine[name] for name in ("plan", "n_batches")):
            raise MinifastError(
                f"The checkpointed run was started with other values of {type(self).__name__}; give the same values."
            )
        self.first = state["first"]

    def check_start(self, epoch: int, n_epochs: int) -> None:
        """Raise ValueError if ``epoch`` is not below ``n_epochs``."""
        if epoch >= n_epochs:
            raise ValueError(f"`start_epoch` must be lower than the number of epochs ({n_epochs}), got {epoch}.")

    def on_train_begin(self, n_epochs: int, epoch: int) -> Any:
        """Set the first values."""
        self.begin(self.schedules, self.n_batches)

    def on_batch_end(self, train: bool, iteration: int, skip_step: bool) -> Any:
        """Set the values of the next batch if the optimizer made a step."""
        if train and not skip_step:
            self._set(self.first + iteration + 1)


GRID = [i / 100 for i in range(101)]  # points of progress at which schedules are compared
UPPER_LIMITS = {"lr": math.inf, "mom": 1.0, "wd": math.inf}
MAX_CHECKED = 100_000  # batches whose values are checked before training; of a longer run an evenly spaced part


def as_schedule(name: str, value: Any, n_groups: int, label: str = "") -> tuple[Schedule, list[list[float]]]:
    """Return ``value`` as a schedule, and its values on a grid of progress for each layer group.

    A number, or a sequence with one number per layer group, becomes a constant schedule. Error messages call the value
    ``label``, by default ``name``.

    Raises:
        ValueError, TypeError: it is not a schedule, a value is out of range for ``name``, or the number of values is
            not the number of layer groups.
    """
    label = label or name
    if callable(value):
        check_schedule(label, value)
    elif isinstance(value, (list, tuple, np.ndarray)) and np.ndim(value):
        value = constant(np.asarray(value, float))
    else:
        value = constant(check_lr(label, value))
    check_values(name, value, GRID, n_groups, label)
    return value, [per_group(value(p), n_groups, label) for p in GRID]


def check_schedule(name: str, value: Any) -> None:
    """Raise TypeError if ``value`` is a function that builds schedules instead of a schedule."""
    names, needed = arguments_of(value) or (["p"], 1)
    builder = getattr(value, "__name__", type(value).__name__)
    if needed > 1 or not names or callable(value(0.0)):
        raise TypeError(
            f"{name} is {builder}, which is not a function of progress alone; call functions that build schedules, "
            f"such as one_cycle(5e-2)."
        )


def check_values(name: str, schedule: Schedule, at: Iterable[float], n_groups: int, label: str = "") -> list[Value]:
    """Check the values of a schedule at some points of progress, and return them.

    Raises:
        ValueError, TypeError: a value is not finite, a learning rate or weight decay is negative, or a momentum is not
            in [0, 1].
    """
    low, high = (0.0, UPPER_LIMITS[name]) if name in UPPER_LIMITS else (-math.inf, math.inf)
    values: list[Value] = []
    for p in at:
        value = schedule(p)
        if not (type(value) is float and low <= value <= high and math.isfinite(value)):
            where = f"{label or name} at {p:.4g} of the run"
            value = per_group(value, n_groups, where)
            for number in value:
                check_number(where, number, low=low, high=high)
        values.append(value)
    return values
