"""Training in phases with one schedule each, as in fastai v1."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from minifast.callbacks.scheduler import ScheduledParameters
from minifast.schedules.annealing import Schedule, Value, annealing_linear, annealing_no
from minifast.schedules.shapes import constant, join
from minifast.utils.checks import check_callable, check_count, check_number

if TYPE_CHECKING:
    from minifast.learner.learner import Learner


Annealing = Callable[[Any, Any, Any], Any]


class TrainingPhase:
    """A phase of ``length`` batches, with schedules for its hyperparameters.

    Args:
        length: the number of batches.

    >>> phase = TrainingPhase(100).schedule_hp("lr", (1e-3, 1e-2)).schedule_hp("mom", 0.9)
    """

    def __init__(self, length: int) -> None:
        self.length = check_count("length", length)
        self.scheds: dict[str, tuple[Any, Any, Annealing]] = {}

    def schedule_hp(self, name: str, vals: Any, anneal: Annealing | None = None) -> TrainingPhase:
        """Schedule the hyperparameter ``name`` in this phase, and return the phase.

        Args:
            name: ``lr``, ``mom``, ``wd`` or another number in the parameter groups of the torch optimizer.
            vals: ``(start, end)``; or one number, which stays constant, or with ``anneal`` goes to 0.
            anneal: a function of (start, end, pct) that interpolates; by default a line.
        """
        if not isinstance(name, str):
            raise TypeError(f"`name` must be the name of a hyperparameter, such as 'lr', got {name!r}.")
        if isinstance(vals, tuple) and len(vals) != 2:
            raise ValueError(f"`vals` of {name} must be (start, end) or one number, got {vals}.")
        ends = [self._value(name, value) for value in (vals if isinstance(vals, tuple) else (vals,))]
        start, end = (*ends, 0 * ends[0] if anneal else ends[0])[:2]
        self.scheds[name] = start, end, annealing_linear if anneal is None else check_callable("anneal", anneal)
        return self

    @staticmethod
    def _value(name: str, value: Any) -> Any:
        if isinstance(value, (list, np.ndarray)):
            return np.array([check_number(f"each value of {name}", number) for number in value])
        return check_number(f"a value of {name}", value)


class GeneralScheduler(ScheduledParameters):
    """Run phases one after another, and stop the training after the last one.

    A hyperparameter that a phase does not schedule stays at the last value of the phase before.

    Args:
        learn: the learner.
        phases: the phases, in order.
        start_epoch: the epoch to start at, if earlier epochs are already trained.
    """

    def __init__(self, learn: Learner, phases: Sequence[TrainingPhase], start_epoch: int | None = None) -> None:
        super().__init__(learn)
        self.phases = [phases] if isinstance(phases, TrainingPhase) else list(phases)
        if not self.phases:
            raise ValueError("`phases` must have at least one TrainingPhase, got none.")
        for phase in self.phases:
            if not isinstance(phase, TrainingPhase):
                raise TypeError(
                    f"`phases` must contain TrainingPhase(length).schedule_hp(name, values), got {phase!r}."
                )
        self._names = list(dict.fromkeys(name for phase in self.phases for name in phase.scheds))
        self.controls = tuple(self._names)
        self.start_epoch = None if start_epoch is None else check_count("start_epoch", start_epoch, least=0)

    def on_train_begin(self, n_epochs: int, epoch: int) -> dict[str, int] | None:
        """Plan, set the first values, and start at ``start_epoch`` if given."""
        opt, n_batches = self.learn.opt, sum(phase.length for phase in self.phases)
        plan = {name: self._plan(name, np.array(opt.read(name))) for name in self._names}
        self.begin(plan, n_batches)
        self.check_start(epoch if self.start_epoch is None else self.start_epoch, n_epochs)
        self.jump_to_epoch(epoch if self.start_epoch is None else self.start_epoch)
        return None if self.start_epoch is None else {"epoch": self.start_epoch}

    def _plan(self, name: str, before: Any) -> Schedule:
        parts: list[tuple[float, Schedule]] = []
        for phase in self.phases:
            if name in phase.scheds:
                start, before, anneal = phase.scheds[name]
                parts.append((phase.length, partial(anneal, start, before)))
            else:
                parts.append((phase.length, constant(before)))
        return join(*parts)

    def on_batch_end(self, train: bool, iteration: int, skip_step: bool) -> dict[str, bool] | None:
        """Set the values of the next batch, or stop after the last phase."""
        super().on_batch_end(train, iteration, skip_step)
        if train and self.first + iteration + 1 >= self.n_batches:
            return {"stop_epoch": True, "stop_training": True}
        return None


class Scheduler:
    """Go from one value to another in ``n_iter`` calls of ``step``, for callbacks written for fastai v1.

    Args:
        vals: ``(start, end)``, or one number to start from.
        n_iter: the number of steps.
        func: a function of (start, end, pct); by default linear for a pair and constant for one number.

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
