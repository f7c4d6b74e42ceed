"""The learning rate of ``minifast train --lr auto``: from the finder, or at last a default."""

from __future__ import annotations

import math
import time
from itertools import pairwise
from statistics import median
from typing import Any

from minifast.utils.text import write_text

STEPS = (100, 300)  # of the first try, and of the second one if the first gives no suggestion
LEAST_STEPS = 40  # fewer do not give a curve
SECONDS = 10.0  # that the finder may take, also where an epoch is shorter
START_LR = 1e-6
MAX_LR = 0.05  # the curve of a set of few images may suggest a higher one, with which the training fails


def choose_lr(learn: Any, default: float | None = None) -> tuple[float, Any, str]:
    """Return a learning rate, the figure of the curve or None, and where the learning rate is from.

    The finder takes at most as long as one epoch, or ``SECONDS`` if that is longer: with slow networks and small sets
    it makes fewer steps or none. Without a suggestion it tries again with more steps, if there is time; then takes the
    geometric mean of what the curve shows and ``default``; then ``default``, by default that of ``fit_one_cycle``.
    What the curve gives is at most ``MAX_LR``.
    """
    from minifast.distributed.exchange import broadcast
    from minifast.errors import MinifastError
    from minifast.finder.rules import combine_rules, read_rules
    from minifast.learner.fitting import DEFAULT_LR

    default = DEFAULT_LR.stop if default is None else default
    per_step = broadcast(seconds_per_step(learn))  # several processes must make the same number of steps
    allowed = max(SECONDS, per_step * len(learn.data.train_dl))
    result, last = None, ""
    for steps in STEPS:
        n = min(steps, int(allowed / per_step))
        if n < LEAST_STEPS or (result is not None and n < 1.5 * len(result.lrs)):
            break
        write_text(f"Looking for a learning rate: {n} steps, about {max(2, round(n * per_step))} seconds.")
        result = run_finder(learn, n)
        allowed -= n * per_step
        last = f"{n} steps"
        if result.suggestion is not None:
            reason = "the suggestion of the learning rate finder"
            if result.suggestion > MAX_LR:
                reason = f"because {reason}, {result.suggestion:.2g}, is above the highest that auto uses"
            return min(result.suggestion, MAX_LR), result.plot(return_fig=True), reason
    if result is None:
        return default, None, f"the default: a step takes {per_step:.2g} seconds, too long for the learning rate finder"
    figure = result.plot(return_fig=True) if result.lrs else None
    unclear = (
        f"the loss of the learning rate finder does not fall clearly in {last}; see lr_find.png, or pass one with --lr"
    )
    try:
        shown = combine_rules(read_rules(result.lrs, result.losses, 10, 5, result.curves, learned=True))
    except MinifastError:
        return default, figure, f"the default: {unclear}"
    # The curve is uncertain, so the default counts as much.
    careful = "a careful choice between what the curve shows and the default"
    return min(math.sqrt(shown * default), MAX_LR), figure, f"{careful}: {unclear}"


def run_finder(learn: Any, num_it: int, *others: Any) -> Any:
    """Return the result of the learning rate finder; it shows its progress but prints no line for Python.

    Args:
        learn: the learner.
        num_it: the number of steps.
        others: callbacks that are called too.
    """
    from minifast.callbacks.lr_finder import LRFinder
    from minifast.learner import running

    before = learn.callbacks
    learn.callbacks = [*before, *others]
    try:
        return running.find(learn, [LRFinder(learn, START_LR, 10, num_it)], START_LR, None, {"method": "lr_find"})
    finally:
        learn.callbacks = before


def seconds_per_step(learn: Any) -> float:
    """Return how long a training step takes: the median of a few, without the first ones, which start what steps use.

    In several processes the first step finds the parameters that it uses, and the second one wraps the model.
    """
    from minifast.training.callback import Callback

    ends: list[float] = []

    class Clock(Callback):
        def on_batch_end(self, train: bool) -> None:
            if train:
                ends.append(time.monotonic())

    silent, learn.silent = learn.silent, True
    try:
        run_finder(learn, 6, Clock())
    finally:
        learn.silent = silent
    seconds = [end - begin for begin, end in pairwise(ends[1:])]
    return max(median(seconds), 1e-4)
