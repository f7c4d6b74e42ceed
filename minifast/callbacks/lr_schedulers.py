"""Learning rate schedulers in the style of Keras and of torch."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from minifast.errors import MinifastError
from minifast.training.callback import LearnerCallback
from minifast.utils.checks import arguments_of, check_callable, check_number, check_word
from minifast.utils.tensors import is_plain

if TYPE_CHECKING:
    pass


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

    controls = ("lr",)

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

    controls: tuple[str, ...] = ("lr",)

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
        self.controls = ("lr", "mom")  # some of torch's cycle the momentum too
        self._before = set(vars(opt)), [set(group) for group in opt.param_groups]
        self.scheduler = self.make(opt)
        self._needs_valid_loss = "metrics" in inspect.signature(self.scheduler.step).parameters
        name = type(self.scheduler).__name__
        if self._needs_valid_loss and self.by == "batch":
            raise ValueError(f"{name} watches the validation loss, which is known an epoch; give by='epoch'.")
        if self._needs_valid_loss and (skip_validate or not self.learn.data.valid_dl):
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
        if self.by == "epoch" and not (self._needs_valid_loss and last_metrics[0] is None):
            self.scheduler.step(*(last_metrics[:1] if self._needs_valid_loss else ()))
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
