"""Learning rate schedulers with the calling conventions of Keras and of torch."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from minifast.errors import MinifastError
from minifast.training.callback import LearnerCallback
from minifast.utils.checks import arguments_of, check_callable, check_number, check_word
from minifast.utils.tensors import is_plain


class LearningRateScheduler(LearnerCallback):
    """Set the learning rate that a function returns for each epoch or batch, as in Keras.

    The learning rate is that of the last layer group that has one above 0. The other groups keep their ratio to it, as
    given to ``fit``.

    Args:
        schedule: a function of the index, which counts from 0, or of the index and the current learning rate. Its
            signature decides.
        by: ``"epoch"`` or ``"batch"``; batches are counted over the whole fit.

    Raises:
        TypeError: ``schedule`` takes neither one argument nor two.
        ValueError: it returns a learning rate that is negative or not finite.

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
                f"`schedule` must take the index, or the index and the learning rate; it takes {needed} arguments."
            )
        self._takes_lr = needed == 2 or names[1:2] == ["lr"]
        self._at: int | None = None
        self._ratios = [1.0]
        self._leader = 0  # the layer group with the ratio 1
        self._first = 0  # the index of this fit's first batch

    def jump_to_epoch(self, epoch: int) -> None:
        """Count batches from the start of ``epoch``."""
        self._first = epoch * len(self.learn.data.train_dl)
        if self.by == "batch":
            self._set(self._first)

    def _set(self, index: int) -> None:
        if index == self._at:  # a run resumed in the middle of an epoch has its learning rate already
            return
        self._at = index
        opt = self.learn.opt
        lr = self.schedule(index, opt.read("lr")[self._leader]) if self._takes_lr else self.schedule(index)
        lr = check_number(f"schedule({index})", lr.item() if hasattr(lr, "item") else lr, low=0)
        opt.lr = [lr * ratio for ratio in self._ratios]

    def on_train_begin(self, iteration: int) -> None:
        """Set the first learning rate."""
        self._at, self._first = None, 0
        lrs = self.learn.opt.read("lr")
        self._leader = max(i for i, lr in enumerate(lrs) if lr > 0)
        self._ratios = [lr / lrs[self._leader] for lr in lrs]
        if self.by == "batch":
            self._set(iteration)

    def on_epoch_begin(self, epoch: int) -> None:
        """Set the learning rate of the epoch."""
        if self.by == "epoch":
            self._set(epoch)

    def on_batch_end(self, train: bool, iteration: int) -> None:
        """Set the learning rate of the next batch."""
        if train and self.by == "batch":
            self._set(self._first + iteration + 1)


class TorchScheduler(LearnerCallback):
    """Step any torch scheduler after each optimizer step or after each epoch.

    A scheduler of timm steps by what it counts itself, epochs or updates, whatever ``by`` says, and applies the
    ``lr_scale`` of timm's layer-wise decay.

    When the fit ends, the optimizer's hyperparameters are as before the fit. A torch scheduler counts its own steps, so
    it starts from its beginning in a fit with a ``start_epoch``.

    Args:
        make: a function of the torch optimizer that returns the scheduler.
        by: ``"batch"`` or ``"epoch"``. ``ReduceLROnPlateau`` needs ``"epoch"``; it gets the validation loss.

    Raises:
        ValueError: the scheduler needs a validation loss that the fit does not have, or sets a learning rate that is
            negative or not finite.

    >>> import torch
    >>> halving = TorchScheduler(lambda opt: torch.optim.lr_scheduler.StepLR(opt, 1, 0.5), by="epoch")
    """

    controls: tuple[str, ...] = ("lr",)

    def __init__(self, make: Callable[[Any], Any], by: str = "batch") -> None:
        super().__init__()
        self.make = check_callable("make", make)
        self.by = check_word("by", by, ("batch", "epoch"))
        self.scheduler: Any = None
        self._is_timm = False
        self._added: tuple[dict[str, Any], list[set[str]]] | None = None
        self._stepped = False
        self._updates = 0  # optimizer steps in this fit

    def _make(self, opt: Any) -> Any:
        """Return the scheduler; one of timm gets learning rates without the scales that it multiplies them by."""
        before = [{"lr": group["lr"]} for group in opt.param_groups]
        scheduler, self._is_timm = self.make(opt), False
        if not (callable(getattr(scheduler, "step_update", None)) and hasattr(scheduler, "update_groups")):
            return scheduler
        self._is_timm = True
        if not any("lr_scale" in group for group in opt.param_groups):
            return scheduler
        plain = [rate["lr"] / group.get("lr_scale", 1.0) for rate, group in zip(before, opt.param_groups, strict=True)]
        for group, lr in zip(opt.param_groups, plain, strict=True):
            group["lr"] = lr
            group.pop("initial_lr", None)
        scheduler = self.make(opt)
        for group, lr in zip(opt.param_groups, plain, strict=True):
            if group["lr"] == lr:  # without a warm-up, it sets none before its first step
                group["lr"] = lr * group.get("lr_scale", 1.0)
        return scheduler

    def on_train_begin(self, skip_validate: bool) -> None:
        """Create the scheduler."""
        opt = self.learn.opt.opt
        self.controls = ("lr", "mom")  # some of torch's cycle the momentum too
        attributes, keys = dict(vars(opt)), [set(group) for group in opt.param_groups]
        try:
            self._updates = 0
            self.scheduler = self._make(opt)
        finally:
            # Only what the scheduler added: the optimizer may add attributes of its own during the fit.
            names = {*vars(opt)} - {*attributes} | {"step", "_opt_called"}
            added = [{*group} - before for group, before in zip(opt.param_groups, keys, strict=True)]
            self._added = {name: attributes.get(name) for name in names}, added
        self._needs_valid_loss = "metrics" in inspect.signature(self.scheduler.step).parameters
        if self._is_timm:
            self._needs_valid_loss = type(self.scheduler).__name__.startswith("Plateau")
        name = type(self.scheduler).__name__
        if self._needs_valid_loss and self.by == "batch" and not self._is_timm:
            raise ValueError(f"{name} monitors the validation loss, which is computed once per epoch; give by='epoch'.")
        if self._needs_valid_loss and (skip_validate or not self.learn.data.valid_dl):
            raise ValueError(
                f"{name} monitors the validation loss; give the data a valid_dl, or use another scheduler."
            )
        self._check()

    def _check(self) -> None:
        for lr in self.learn.opt.read("lr"):
            check_number(f"The learning rate set by {type(self.scheduler).__name__}", lr, low=0)

    def on_step_end(self, skip_step: bool) -> None:
        """Record whether the optimizer made a step."""
        self._stepped = not skip_step

    def on_batch_end(self, train: bool) -> None:
        """Step the scheduler if the optimizer made a step."""
        if train and self._stepped and self._is_timm:
            self._updates += 1
            self.scheduler.step_update(self._updates)
            self._check()
        elif train and self.by == "batch" and self._stepped:
            self.scheduler.step()
            self._check()

    def on_epoch_end(self, last_metrics: list[Any], epoch: int) -> None:
        """Step the scheduler."""
        if self._is_timm:
            self.scheduler.step(epoch + 1, last_metrics[0])
            self._check()
        elif self.by == "epoch" and not (self._needs_valid_loss and last_metrics[0] is None):
            self.scheduler.step(*(last_metrics[:1] if self._needs_valid_loss else ()))
            self._check()

    def on_train_end(self) -> None:
        """Remove what the scheduler added to the optimizer."""
        if self._added is None:
            return
        opt = self.learn.opt.opt
        (attributes, keys), self._added = self._added, None
        for name, before in attributes.items():
            if before is None:
                vars(opt).pop(name, None)
            else:
                vars(opt)[name] = before
        for group, names in zip(opt.param_groups, keys, strict=True):
            for name in names:
                group.pop(name, None)

    def state_dict(self) -> dict[str, Any]:
        """Return the scheduler's state."""
        if self.scheduler is None:
            return {}
        state = _plain(self.scheduler.state_dict())
        plain = {name: value for name, value in state.items() if is_plain(value)}
        counted = {"updates": self._updates} if self._is_timm else {}
        return {"kind": type(self.scheduler).__name__, "by": self.by, "scheduler": plain, **counted}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the scheduler's state.

        Raises:
            MinifastError: the checkpointed run used another kind of scheduler.
        """
        kind = type(self.scheduler).__name__
        if state["kind"] != kind:
            raise MinifastError(
                f"The checkpointed run used the scheduler {state['kind']}, but this is {kind}; give {state['kind']}."
            )
        if state.get("by", self.by) != self.by:
            raise MinifastError(
                f"The checkpointed run stepped {kind} by {state['by']!r}, but here it is by {self.by!r}."
            )
        self._updates = state.get("updates", 0)
        self.scheduler.load_state_dict(dict(state["scheduler"]))  # a copy, because torch removes entries


def _plain(value: Any) -> Any:
    """Return a state with its Counters, which nested schedulers have, as dicts."""
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    return [_plain(entry) for entry in value] if type(value) is list else value
