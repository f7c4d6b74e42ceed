"""Steps that are made of several batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from minifast.errors import MinifastError
from minifast.training.callback import LearnerCallback
from minifast.utils.checks import check_count
from minifast.utils.tensors import count_samples

if TYPE_CHECKING:
    from minifast.learner.learner import Learner


class AccumulateScheduler(LearnerCallback):
    """Makes a step of the optimizer every ``n_step`` batches, with the mean of their gradients over all their items.

    So a step is that of one big batch, but for what the model itself makes of a batch (BatchNorm's statistics). The
    last batches of an epoch, where they are fewer, make a step of their own, divided by the items they have. Schedules
    stand still between steps: each trains at the rate that its first batch came with. A point of ``lr_find`` is a step.
    Losses need not be sums as in fastai v1; where ``reduction`` is ``"sum"``, the gradient is divided by the items too.

    Args:
        learn: the learner.
        n_step: how many batches make a step.
        drop_last: drop what is left at the end of an epoch. In an epoch that a callback ends early it is dropped too.

    Raises:
        MinifastError: with ``drop_last`` an epoch has too few batches for a step.

    >>> from minifast import DataBunch, Learner, simple_ann
    >>> batches = [(torch.randn(8, 4), torch.randint(2, (8,)))] * 10
    >>> loss = torch.nn.CrossEntropyLoss()
    >>> learn = Learner(DataBunch(batches, device="cpu"), simple_ann(4, 2), loss_func=loss, silent=True)
    >>> _ = learn.fit(1, 1e-2, callbacks=AccumulateScheduler(n_step=4))  # steps of 4, 4 and 2 batches
    >>> learn.opt.opt.state[learn.model[1].weight]["step"]
    tensor(3.)
    """

    _order = -40  # before those that look at the gradients of a step
    must_match = ("n_step", "drop_last")

    def __init__(self, learn: Learner | None = None, n_step: int = 1, drop_last: bool = False) -> None:
        super().__init__(learn)
        self.n_step = check_count("n_step", n_step)
        self.drop_last = drop_last
        self._begin()

    def _begin(self) -> None:
        self._batches = 0  # whose gradients are held
        self._items = 0  # in them
        self._unit = 1  # the gradients held are their sum over items, divided by this

    def on_train_begin(self) -> None:
        """Begin with nothing; refuse what could never step."""
        self._begin()
        n_batches = len(self.learn.data.train_dl)
        if self.drop_last and n_batches < self.n_step:
            raise MinifastError(
                f"n_step is {self.n_step} and an epoch has {n_batches} batches, so with drop_last there is never a "
                f"step; lower n_step, or leave drop_last out."
            )

    def on_backward_begin(self, last_target: Any) -> None:
        """Bring what is held into the unit in which this batch's gradient will come."""
        # A mean has its own batch's items in it, a sum has not. Equal batches need no multiplication.
        unit = 1 if getattr(self.learn.loss_func, "reduction", "mean") == "sum" else count_samples(last_target)
        if self._items and unit != self._unit:
            self._multiply(self._unit / unit)
        self._unit = unit

    def on_backward_end(
        self, last_target: Any, num_batch: int, stop_epoch: bool, skip_bwd: bool
    ) -> dict[str, bool] | None:
        """Divide what is held by its items and let the optimizer step, or wait for the next batch."""
        if not skip_bwd:
            self._batches += 1
            self._items += count_samples(last_target)
        if self._batches < self.n_step:
            if not stop_epoch and num_batch + 1 < len(self.learn.data.train_dl):
                return {"skip_step": True, "skip_zero": True}
            if self.drop_last:
                self._begin()
                return {"skip_step": True}
        if self._items and self._items != self._unit:
            self._multiply(self._unit / self._items)
        self._begin()
        return None

    def on_epoch_end(self) -> None:
        """Drop what an epoch that ended early left."""
        if self._items:
            self._begin()
            self.learn.opt.zero_grad()

    def _multiply(self, factor: float) -> None:
        parameters = self.learn.model.parameters()
        torch._foreach_mul_([parameter.grad for parameter in parameters if parameter.grad is not None], factor)
