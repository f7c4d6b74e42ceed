"""An exponential moving average of the weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from minifast.distributed.sharding import like
from minifast.training.callback import LearnerCallback
from minifast.utils.checks import check_number

if TYPE_CHECKING:
    from minifast.learner.learner import Learner


class EMACallback(LearnerCallback):
    """Average the weights during training, validate with the average, and leave it in the model after the fit.

    After step ``n`` the average moves by ``1 - decay`` of the way to the weights. In the first steps ``decay`` is at
    most ``(1 + n) / (10 + n)``. Floating-point buffers, such as BatchNorm's statistics, are averaged in the same way.

    Training continues with the weights themselves. From the first validation batch to the start of the next epoch the
    model has the averaged weights, so callbacks save the weights that were validated. After an error or Ctrl-C the
    model has the weights themselves. ``lr_find`` ignores this callback.

    Args:
        learn: the learner.
        decay: in [0, 1]; 0.999 averages over about the last 1,000 steps.

    Source: B. Polyak & A. Juditsky, "Acceleration of stochastic approximation by averaging" (1992).

    >>> from minifast import DataBunch, Learner, simple_ann
    >>> import torch
    >>> batches = [(torch.randn(8, 4), torch.randint(2, (8,)))] * 10
    >>> loss = torch.nn.CrossEntropyLoss()
    >>> learn = Learner(DataBunch(batches, batches, device="cpu"), simple_ann(4, 2), loss_func=loss, silent=True)
    >>> _ = learn.fit_one_cycle(2, 1e-2, callbacks=EMACallback(decay=0.99))
    >>> learn.validate() == learn.recorder.val_losses[-1:]
    True
    """

    _order = 5_000  # after callbacks that change the weights in a step
    fit_only = True
    must_match = ("decay",)

    def __init__(self, learn: Learner | None = None, decay: float = 0.999) -> None:
        super().__init__(learn)
        self.decay = check_number("decay", decay, low=0, high=1)
        self._begin()

    def _begin(self) -> None:
        self._steps = 0
        self._others: list[Tensor] = []  # the averages, or the weights while the model has the averages
        self._swapped = False

    def _tensors(self) -> list[Tensor]:
        model = self.learn.model
        both = (*model.parameters(), *model.buffers())
        return [tensor.detach() for tensor in both if tensor.is_floating_point() or tensor.is_complex()]

    def _swap(self) -> None:
        tensors = self._tensors()
        others, self._others = self._others, [tensor.clone() for tensor in tensors]
        for tensor, other in zip(tensors, others, strict=True):
            tensor.copy_(other)
        self._swapped = not self._swapped

    def on_train_begin(self) -> None:
        """Start without an average."""
        self._begin()

    def on_epoch_begin(self) -> None:
        """Put the weights themselves back."""
        if self._swapped:
            self._swap()

    def on_step_end(self, skip_step: bool) -> None:
        """Update the average after a step."""
        if skip_step:
            return
        tensors = self._tensors()
        if self._others:
            decay = min(self.decay, (1 + self._steps) / (10 + self._steps))
            get_ema_multi_avg_fn(decay)(self._others, tensors, None)  # type: ignore[no-untyped-call]
        else:
            self._others = [tensor.clone() for tensor in tensors]
        self._steps += 1

    def on_batch_begin(self, train: bool) -> None:
        """Put the average into the model for validation."""
        if not train and self._others and not self._swapped:
            self._swap()

    def on_train_end(self, exception: Any) -> None:
        """Leave the average in the model, or the weights themselves after an error."""
        if self._others and self._swapped == bool(exception):
            self._swap()
        self._begin()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the average; the model must already have its weights."""
        super().load_state_dict(state)
        pairs = zip(self._others, self._tensors(), strict=False)  # empty before the first step
        self._others = [like(saved, tensor).to(tensor.device, copy=True) for saved, tensor in pairs]
