"""Copy and pickle a learner: the copy owns copies of the model, the optimizer, the data and the callbacks."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from minifast.training.callback import Callback, LearnerCallback
from minifast.utils.walk import deep_copy

if TYPE_CHECKING:
    from minifast.learner.learner import Learner


def state_of(learn: Learner) -> dict[str, Any]:
    """Return the attributes to copy or pickle.

    The schedulers of past fits are not among them, because their schedules may be functions that cannot be pickled.
    """
    past = {name for name, value in vars(learn).items() if isinstance(value, Callback) and value.controls}
    return {name: value for name, value in vars(learn).items() if name not in past or value in learn.callbacks}


def restore(learn: Learner, state: dict[str, Any]) -> None:
    """Set the attributes of a copy, and let its callbacks belong to it."""
    vars(learn).update(state)
    waiting: list[Any] = [value for value in state.values() if isinstance(value, (Callback, list))]
    seen: set[int] = set()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, LearnerCallback) and "_learn" not in vars(value):
            value.learn = learn
        parts = vars(value).values() if isinstance(value, Callback) else value
        waiting += [part for part in parts if isinstance(part, (Callback, list, tuple))]


def deep_copy_learner(learn: Learner, memo: dict[int, Any]) -> Learner:
    """Return a deep copy; tensors with a graph that the model or the loss stores are copied without it."""
    memo[id(learn)] = copied = type(learn).__new__(type(learn))
    deep_copy([learn.model, learn.loss_func], memo)
    restore(copied, copy.deepcopy(state_of(learn), memo))
    return copied
