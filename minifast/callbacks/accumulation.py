"""Gradient accumulation: optimizer steps made of several batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from minifast.errors import MinifastError
from minifast.losses import is_summed, loss_weight
from minifast.training.averages import UNCOUNTED, Losses
from minifast.training.callback import LearnerCallback
from minifast.training.groups import trained_parameters
from minifast.utils.checks import check_count

if TYPE_CHECKING:
    from minifast.learner.learner import Learner


class AccumulateScheduler(LearnerCallback):
    """Make one optimizer step every ``n_step`` batches, with the gradient of one big batch of all their samples.

    The gradients are averaged with the weights of ``minifast.losses.loss_weight``: samples, or what the loss divides
    by, such as class weights or targets other than ``ignore_index``. Gradients of a loss with ``reduction="sum"`` are
    added; fastai v1 divided them by the samples, for which you now pass the mean. BatchNorm still sees single batches.

    The last batches of an epoch make a step of their own where they are fewer. A schedule moves once per step, which
    uses the learning rate of its first batch; a point of ``lr_find`` is a step. A batch whose loss counts nothing, such
    as one where all targets are ``ignore_index``, adds nothing to the step. Its loss is recorded as 0, which the
    smoothed training loss leaves out. The smoothed training loss takes the loss of each step as one value, as if its
    batches were one big batch.

    Args:
        learn: the learner.
        n_step: the number of batches in a step.
        drop_last: drop the incomplete step at the end of an epoch. It is always dropped where a callback ends the
            epoch early.

    Raises:
        MinifastError: with ``drop_last``, an epoch has too few batches for a step.

    >>> from minifast import DataBunch, Learner, simple_ann
    >>> batches = [(torch.randn(8, 4), torch.randint(2, (8,)))] * 10
    >>> loss = torch.nn.CrossEntropyLoss()
    >>> learn = Learner(DataBunch(batches, device="cpu"), simple_ann(4, 2), loss_func=loss, silent=True)
    >>> _ = learn.fit(1, 1e-2, callbacks=AccumulateScheduler(n_step=4))  # steps of 4, 4 and 2 batches
    >>> learn.opt.opt.state[learn.model[1].weight]["step"]
    tensor(3.)
    """

    _order = -40  # before the callbacks that read the gradient of a step, and before MixedPrecision unscales it
    must_match = ("n_step", "drop_last")

    def __init__(self, learn: Learner | None = None, n_step: int = 1, drop_last: bool = False) -> None:
        super().__init__(learn)
        self.n_step = check_count("n_step", n_step)
        self.drop_last = drop_last
        self._begin()

    def _begin(self) -> None:
        self._batches = 0  # accumulated so far
        self._weight: Any = 0  # of these batches
        self._batch_weight: Any = 0  # of the current batch
        self._unit: Any = 1  # the accumulated gradients are their weighted sum, divided by this

    def on_train_begin(self) -> None:
        """Start without gradients; raise an error if no step is possible."""
        self._begin()
        n_batches = len(self.learn.data.train_dl)
        if self.drop_last and n_batches < self.n_step:
            raise MinifastError(
                f"`n_step` is {self.n_step} but an epoch has {n_batches} batches, so with `drop_last` there is never a "
                f"step; use a lower `n_step`, or leave out `drop_last`."
            )

    def on_backward_begin(self, last_input: Any, last_target: Any, last_loss: Any, raw_losses: Losses) -> None:
        """Rescale the accumulated gradients so that this batch's gradient can be added to them."""
        if self.n_step == 1 or is_summed(self.learn.loss_func):
            self._batch_weight = 1
            if self.n_step > 1:
                raw_losses.join_step(1, is_first=not self._batches, is_summed=True)
            return
        # The mean of a batch is its sum divided by the weight; where weights are equal, nothing is multiplied.
        parallel = self.learn.parallel  # of several processes, the weight of the whole batch counts
        weight = loss_weight(self.learn.loss_func, last_target, last_input) if parallel is None else parallel.weight
        self._batch_weight = weight
        if isinstance(weight, Tensor):
            unit: Any = torch.where(weight == 0, 1, weight)
            raw_losses.replace_last(torch.where(weight == 0, UNCOUNTED, last_loss.detach()))
        else:
            unit = weight or 1
            if not weight:
                raw_losses.replace_last(torch.tensor(UNCOUNTED))
        raw_losses.join_step(weight, is_first=not self._batches, is_summed=False)
        if self._batches and _differ(unit, self._unit):
            self._multiply(self._unit / unit)
        self._unit = unit

    def on_backward_end(self, num_batch: int, stop_epoch: bool, skip_bwd: bool) -> dict[str, bool] | None:
        """Divide the accumulated gradients by their weight and let the optimizer step, or wait for the next batch."""
        if not skip_bwd:
            self._batches += 1
            self._weight += self._batch_weight
        if self._batches < self.n_step:
            if not stop_epoch and num_batch + 1 < len(self.learn.data.train_dl):
                return {"skip_step": True, "skip_zero": True}
            if self.drop_last:
                self._begin()
                return {"skip_step": True}
        if self._batches > 1 and not is_summed(self.learn.loss_func):
            total = self._weight
            total = torch.where(total == 0, self._unit, total) if isinstance(total, Tensor) else total or self._unit
            if _differ(total, self._unit):
                self._multiply(self._unit / total)
        self._begin()
        return None

    def on_epoch_end(self) -> None:
        """Drop the gradients of an epoch that ended early."""
        if self._batches:
            self._begin()
            self.learn.opt.zero_grad()

    def _multiply(self, factor: Any) -> None:
        parameters = trained_parameters(self.learn)
        torch._foreach_mul_([parameter.grad for parameter in parameters if parameter.grad is not None], factor)


def _differ(first: Any, second: Any) -> bool:
    """Return whether two weights differ; tensors count as different, for to compare them is to wait for a device."""
    return isinstance(first, Tensor) or isinstance(second, Tensor) or first != second
