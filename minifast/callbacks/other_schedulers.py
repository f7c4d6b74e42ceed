"""Schedulers in the manner of Keras, of torch and of fastai v1's phases."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from minifast.callback import LearnerCallback, is_plain
from minifast.callbacks.scheduler import ScheduledParameters
from minifast.errors import MinifastError, arguments_of, check_callable, check_count, check_number, check_word
from minifast.schedules import Schedule, annealing_linear, constant, join

if TYPE_CHECKING:
    from minifast.learner import Learner

Annealing = Callable[[Any, Any, Any], Any]


class LearningRateScheduler(LearnerCallback):
    """Sets the learning rate that a function gives for each epoch, or batch, in Keras's calling convention.

    Args:
        schedule: of the index, from 0 on, or of the index and the rate before; the signature tells which.
        by: ``"epoch"`` or ``"batch"``; batches are counted over the whole fit.

    The rate is that of the last layer group; those before it keep their share of it, as the fit's ``slice`` said.

    Raises:
        TypeError: ``schedule`` takes neither one argument nor two.
        ValueError: it gives a rate that is negative or not finite.

    >>> halved = LearningRateScheduler(lambda epoch, lr: lr / 2 if epoch else lr)
    """

    _sets = ("lr",)

    def __init__(self, schedule: Callable[..., float], by: str = "epoch") -> None:
        super().__init__()
        self.schedule = check_callable("schedule", schedule)
        self.by = check_word("by", by, ("epoch", "batch"))
        names, needed = arguments_of(schedule) or (["index"], 1)
        if needed > 2 or not names:
            raise TypeError(
                f"schedule takes {needed} arguments; it must take the index, or the index and the rate before."
            )
        self._with_rate = needed == 2 or names[1:2] == ["lr"]
        self._at: int | None = None
        self._ratios = [1.0]
        self._first = 0  # the batch of the whole run that this one begins with

    def jump_to_epoch(self, epoch: int) -> None:
        """Count batches from ``epoch`` on."""
        self._first = epoch * len(self.learn.data.train_dl)
        if self.by == "batch":
            self._set(self._first)

    def _set(self, index: int) -> None:
        if index == self._at:  # a run that goes on in the middle of an epoch has its rate already
            return
        self._at = index
        opt = self.learn.opt
        rate = self.schedule(index, opt.lr) if self._with_rate else self.schedule(index)
        rate = check_number(f"schedule({index})", rate.item() if hasattr(rate, "item") else rate, low=0)
        opt.lr = [rate * ratio for ratio in self._ratios]

    def on_train_begin(self, iteration: int) -> None:
        """Set the first rate."""
        self._at, self._first = None, 0
        *_, last = rates = self.learn.opt.read("lr")
        self._ratios = [rate / last for rate in rates]
        if self.by == "batch":
            self._set(iteration)

    def on_epoch_begin(self, epoch: int) -> None:
        """Set the epoch's rate."""
        if self.by == "epoch":
            self._set(epoch)

    def on_batch_end(self, train: bool, iteration: int) -> None:
        """Set the next batch's rate."""
        if train and self.by == "batch":
            self._set(self._first + iteration + 1)


class TorchScheduler(LearnerCallback):
    """Lets any torch scheduler step, after each step of the optimizer or after each epoch.

    When the fit ends the optimizer is as it was, as after every schedule here. A scheduler of torch's counts its own
    steps, so where a fit begins at a later epoch it begins at its beginning.

    Args:
        make: a function of the torch optimizer that returns the scheduler.
        by: ``"batch"`` or ``"epoch"``. A scheduler that watches a value is given the validation loss, an epoch.

    Raises:
        ValueError: it would be given a loss where there is none, or sets a rate that is negative or not finite.

    >>> import torch
    >>> halving = TorchScheduler(lambda opt: torch.optim.lr_scheduler.StepLR(opt, 1, 0.5), by="epoch")
    """

    _sets: tuple[str, ...] = ("lr",)

    def __init__(self, make: Callable[[Any], Any], by: str = "batch") -> None:
        super().__init__()
        self.make = check_callable("make", make)
        self.by = check_word("by", by, ("batch", "epoch"))
        self.scheduler: Any = None
        self._before: tuple[set[str], list[set[str]]] | None = None
        self._stepped = False

    def on_train_begin(self, skip_validate: bool) -> None:
        """Make the scheduler."""
        opt = self.learn.opt.opt
        self._sets = ("lr", "mom")  # some of torch's cycle the momentum too
        self._before = set(vars(opt)), [set(group) for group in opt.param_groups]
        self.scheduler = self.make(opt)
        self._watches_value = "metrics" in inspect.signature(self.scheduler.step).parameters
        name = type(self.scheduler).__name__
        if self._watches_value and self.by == "batch":
            raise ValueError(f"{name} watches the validation loss, which is known an epoch; give by='epoch'.")
        if self._watches_value and (skip_validate or not self.learn.data.valid_dl):
            raise ValueError(f"{name} watches the validation loss; give the data a valid_dl, or another scheduler.")
        self._check()

    def _check(self) -> None:
        for rate in self.learn.opt.read("lr"):
            check_number(f"The rate that {type(self.scheduler).__name__} set", rate, low=0)

    def on_step_end(self, skip_step: bool) -> None:
        """Note whether the optimizer stepped."""
        self._stepped = not skip_step

    def on_batch_end(self, train: bool) -> None:
        """Step where the optimizer has stepped."""
        if train and self.by == "batch" and self._stepped:
            self.scheduler.step()
            self._check()

    def on_epoch_end(self, last_metrics: list[Any]) -> None:
        """Step."""
        if self.by == "epoch" and not (self._watches_value and last_metrics[0] is None):
            self.scheduler.step(*(last_metrics[:1] if self._watches_value else ()))
            self._check()

    def on_train_end(self) -> None:
        """Take away what the scheduler added to the optimizer."""
        if self._before is None:
            return
        opt = self.learn.opt.opt
        (attributes, keys), self._before = self._before, None
        for name in set(vars(opt)) - attributes:
            del vars(opt)[name]
        for group, kept in zip(opt.param_groups, keys, strict=True):
            for name in set(group) - kept:
                del group[name]

    def state_dict(self) -> dict[str, Any]:
        """Return the scheduler's state."""
        if self.scheduler is None:
            return {}
        state = _plain(self.scheduler.state_dict())
        plain = {name: value for name, value in state.items() if is_plain(value)}
        return {"kind": type(self.scheduler).__name__, "scheduler": plain}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Give the scheduler its state back; another kind of scheduler is refused."""
        kind = type(self.scheduler).__name__
        if state["kind"] != kind:
            raise MinifastError(f"The run was begun with the scheduler {state['kind']}, and this is {kind}; give that.")
        self.scheduler.load_state_dict(dict(state["scheduler"]))  # a copy, out of which torch takes parts


def _plain(value: Any) -> Any:
    """Return a state with its counters, which schedulers of schedulers have deep inside, as dicts."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    return [_plain(one) for one in value] if type(value) is list else value


class TrainingPhase:
    """A part of a training: ``length`` batches, and what its hyper-parameters do in them.

    >>> phase = TrainingPhase(100).schedule_hp("lr", (1e-3, 1e-2)).schedule_hp("mom", 0.9)
    """

    def __init__(self, length: int) -> None:
        self.length = check_count("length", length)
        self.scheds: dict[str, tuple[Any, Any, Annealing]] = {}

    def schedule_hp(self, name: str, vals: Any, anneal: Annealing | None = None) -> TrainingPhase:
        """Let ``name`` go from ``vals[0]`` to ``vals[1]``, or stay at one number; returns the phase.

        ``name`` is ``lr``, ``mom``, ``wd`` or another number that the torch optimizer has in its parameter groups.
        ``anneal`` is a function of (start, end, pct), a line unless given; one number with ``anneal`` goes to 0.
        """
        if not isinstance(name, str):
            raise TypeError(f"name is {name!r}; it must be a hyper-parameter's name, such as 'lr'.")
        if isinstance(vals, tuple) and len(vals) != 2:
            raise ValueError(f"vals of {name} is {vals}; it must be (start, end), or one number.")
        ends = [self._value(name, one) for one in (vals if isinstance(vals, tuple) else (vals,))]
        start, end = (*ends, 0 * ends[0] if anneal else ends[0])[:2]
        self.scheds[name] = start, end, annealing_linear if anneal is None else check_callable("anneal", anneal)
        return self

    @staticmethod
    def _value(name: str, value: Any) -> Any:
        if isinstance(value, (list, np.ndarray)):
            return np.array([check_number(f"each value of {name}", one) for one in value])
        return check_number(f"a value of {name}", value)


class GeneralScheduler(ScheduledParameters):
    """Runs phases one after another, each with schedules of its own, and stops the training after the last.

    A hyper-parameter that a phase does not name stays where the phase before left it.

    Args:
        learn: the learner.
        phases: the phases, in order.
        start_epoch: the epoch to begin at, when the epochs before are done already.
    """

    def __init__(self, learn: Learner, phases: Sequence[TrainingPhase], start_epoch: int | None = None) -> None:
        super().__init__(learn)
        self.phases = [phases] if isinstance(phases, TrainingPhase) else list(phases)
        if not self.phases:
            raise ValueError("phases is empty; give one TrainingPhase or more.")
        for phase in self.phases:
            if not isinstance(phase, TrainingPhase):
                raise TypeError(f"phases holds {phase!r}; give TrainingPhase(length).schedule_hp(name, values).")
        self._names = list(dict.fromkeys(name for phase in self.phases for name in phase.scheds))
        self._sets = tuple(self._names)
        self.start_epoch = None if start_epoch is None else check_count("start_epoch", start_epoch, least=0)

    def on_train_begin(self, n_epochs: int, epoch: int) -> dict[str, int] | None:
        """Plan, set the first values, and begin at ``start_epoch`` where one is given."""
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
                parts.append((phase.length, _between(start, before, anneal)))
            else:
                parts.append((phase.length, constant(before)))
        return join(*parts)

    def on_batch_end(self, train: bool, iteration: int, skip_step: bool) -> dict[str, bool] | None:
        """Set the values of the next batch, or stop after the last phase."""
        super().on_batch_end(train, iteration, skip_step)
        if train and self.first + iteration + 1 >= self.n_batches:
            return {"stop_epoch": True, "stop_training": True}
        return None


def _between(start: Any, end: Any, anneal: Annealing) -> Schedule:
    return lambda p: anneal(start, end, p)
