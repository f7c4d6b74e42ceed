"""The runs of a comparison: make a learner for a seed, check it, train it with a configuration."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from minifast.callbacks.scheduler import as_schedule, check_values
from minifast.comparison.first_states import FirstStates
from minifast.comparison.result import Run
from minifast.errors import MinifastError, NonFiniteLossError
from minifast.learner.learner import Learner
from minifast.metrics.base import columns_of, direction_of
from minifast.utils.checks import arguments_of, check_word
from minifast.utils.random import set_seed


@dataclass
class Plan:
    """What all runs of a comparison share.

    Attributes:
        direction: which values of ``by`` are better, ``"max"`` or ``"min"``, once a learner was checked.
    """

    make_learner: Callable[..., Learner]
    configurations: Mapping[str, Any]
    epochs: int
    by: str | None
    direction: str | None = None

    def learner(self, seed: int, first_states: FirstStates) -> Learner:
        """Seed the global generators and return a new learner.

        Args:
            seed: the seed.
            first_states: the first states of the loaders that learners of this process share.
        """
        set_seed(seed)
        names, n_required = arguments_of(self.make_learner) or ([], 0)
        takes_seed = "seed" in names or n_required > 0
        learn = self.make_learner(seed) if takes_seed else self.make_learner()
        check_learner(learn, self.by)
        if not takes_seed:
            first_states.begin_run(learn.data.train_dl, learn.data.valid_dl)
        return learn

    def check(self, learn: Learner) -> None:
        """Raise an error if a configuration has values that the learner cannot train with."""
        self.direction = None if self.by is None else direction_of(self.by, learn.metrics)
        check_configurations(learn, self.configurations, self.epochs)

    def run(self, learn: Learner, name: str, seed: int) -> Run:
        """Train a new learner with a configuration."""
        return train_once(learn, as_fit_function(name, self.configurations[name]), self.epochs, seed)


def run_in_turn(plan: Plan, jobs: Iterable[tuple[int, str]]) -> Generator[Run, None, None]:
    """Yield the runs for pairs of a seed and a configuration, trained one after another.

    At the end, the loaders that the learners share have the order of data that they had before.
    """
    first_states = FirstStates()
    try:
        for i, (seed, name) in enumerate(jobs):
            learn = plan.learner(seed, first_states)
            if not i:
                plan.check(learn)
            yield plan.run(learn, name, seed)
            del learn  # before the next one is made
    finally:
        first_states.restore()


def check_learner(learn: Any, by: str | None) -> None:
    """Raise an error unless ``learn`` is a new learner with validation data and the metric ``by``."""
    if not isinstance(learn, Learner):
        raise TypeError(f"`make_learner` must return a Learner, got {learn!r}.")
    if learn.history:
        raise MinifastError("`make_learner` returned a trained learner; it must make a new one in each call.")
    if not learn.data.valid_dl:
        raise MinifastError("The learner has no validation data to compare by; give the DataBunch a valid_dl.")
    if by is not None:
        check_word("by", by, ["valid_loss", *columns_of(learn.metrics)])


def check_configurations(learn: Learner, configurations: Mapping[str, Any], epochs: int) -> None:
    """Raise an error if a schedule has values that the learner cannot train with."""
    n_batches, n_groups = epochs * len(learn.data.train_dl), len(learn.layer_groups)
    for name, configuration in configurations.items():
        if isinstance(configuration, Mapping):
            schedules = configuration
        else:
            schedules = {} if is_fit_function(configuration) else {"lr": configuration}
        for parameter, value in schedules.items():
            called = f"{parameter} of the configuration {name}"
            schedule, _ = as_schedule(parameter, value, n_groups, called)
            check_values(parameter, schedule, (i / n_batches for i in range(n_batches)), n_groups, called)


def is_fit_function(configuration: Any) -> bool:
    """Return whether a configuration is a function of (learner, epochs) that trains; epochs may have a default."""
    names, n_required = (arguments_of(configuration) if callable(configuration) else None) or ([], 0)
    return n_required == 2 or (len(names) > 1 and names[0] in ("learn", "learner"))


def as_fit_function(name: str, configuration: Any) -> Callable[[Learner, int], Any]:
    """Return a function of (learner, epochs) that trains with a configuration."""
    if isinstance(configuration, Mapping):
        if "lr" not in configuration or not configuration.keys() <= {"lr", "mom", "wd"}:
            raise ValueError(
                f"The configuration {name} must be a dict with lr, and optionally mom and wd, "
                f"got {', '.join(configuration)}."
            )
        return lambda learn, epochs: learn.fit_schedule(epochs, **configuration)
    if is_fit_function(configuration):
        return configuration  # type: ignore[no-any-return]
    if callable(configuration) and (arguments_of(configuration) or (["p"], 1))[0] in ([], ["learn"], ["learner"]):
        raise TypeError(f"The configuration {name} must take (learner, epochs), or as a schedule the progress.")
    if not callable(configuration) and (isinstance(configuration, bool) or not isinstance(configuration, (int, float))):
        raise TypeError(
            f"The configuration {name} must be a learning rate, a schedule, a dict of schedules or a function, "
            f"got {configuration!r}."
        )
    return lambda learn, epochs: learn.fit_schedule(epochs, configuration)


def train_once(learn: Learner, fit: Callable[[Learner, int], Any], epochs: int, seed: int) -> Run:
    """Train a learner and return its record and final metrics."""
    learn.silent = True
    start = time.perf_counter()
    diverged = False
    try:
        fit(learn, epochs)
    except NonFiniteLossError:
        diverged = True
    seconds = time.perf_counter() - start
    recorder = learn.recorder
    if not diverged and not recorder.val_losses:
        raise MinifastError("A configuration's function trained nothing; it must fit the learner it gets.")
    if not diverged and recorder.val_losses[-1] is None:
        raise MinifastError("A run ended without validation, so there is nothing to compare; do not skip it.")
    values = [math.nan] * (1 + len(recorder.metrics_names))
    valid_loss = None if diverged else recorder.val_losses[-1]
    if valid_loss is not None and math.isfinite(valid_loss):
        values = [valid_loss, *(recorder.metrics[-1] if recorder.metrics else [])]
    reached = dict(zip(["valid_loss", *recorder.metrics_names], values, strict=True))
    return Run(seed, list(recorder.lrs), list(recorder.losses), reached, seconds)
