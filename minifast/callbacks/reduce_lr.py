"""Reduce the learning rate when a metric stops improving."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from minifast.utils.checks import check_count, check_number

if TYPE_CHECKING:
    from minifast.learner.learner import Learner
from minifast.callbacks.monitor import TrackerCallback


class ReduceLROnPlateauCallback(TrackerCallback):
    """Multiplies the learning rate by ``factor`` after ``patience`` epochs in a row without an improvement.

    (fastai v1 waits for one more, and may go below ``min_lr``.) Without patience, which is 0, each such epoch lowers
    it, as with 1. It is for ``fit``; beside a schedule of the learning rate it is refused, since that would set another
    rate at the next batch. When the fit ends the learner puts back the rate from before.

    Args:
        learn, monitor, mode: see ``TrackerCallback``.
        patience: how many epochs to wait, also after each time that the rate was lowered.
        factor: in (0, 1).
        min_delta: a smaller change is no improvement.
        min_lr: the rate of the last layer group does not go below; those of the others keep their proportions to it.

    Raises:
        ValueError: also when the fit begins with a rate that is not above ``min_lr``.

    >>> callback = ReduceLROnPlateauCallback(patience=2, factor=0.5, min_lr=1e-5)
    """

    controls = ("lr",)

    def __init__(
        self,
        learn: Learner | None = None,
        monitor: str = "valid_loss",
        mode: str = "auto",
        patience: int = 0,
        factor: float = 0.2,
        min_delta: float = 0,
        min_lr: float = 0.001,
    ) -> None:
        super().__init__(learn, monitor, mode)
        self.patience = check_count("patience", patience, least=0)
        self.factor = check_number("factor", factor, above=0)
        if self.factor >= 1:
            raise ValueError(f"factor is {factor}; it must be less than 1, to lower the rate.")
        self.min_delta = check_number("min_delta", min_delta, low=0)
        self.min_lr = check_number("min_lr", min_lr, low=0)

    def on_train_begin(self, metrics_names: list[str], skip_validate: bool, **kwargs: Any) -> None:
        """Begin anew, and refuse a value that this fit will not have, and a rate that cannot be lowered."""
        super().on_train_begin(metrics_names, skip_validate)
        if self.learn.opt.lr <= self.min_lr:
            raise ValueError(
                f"The learning rate is {self.learn.opt.lr:g} and min_lr is {self.min_lr:g}, so "
                f"{type(self).__name__} could never lower it; give it a lower min_lr."
            )

    def on_epoch_end(self, epoch: int, **kwargs: Any) -> None:
        """Compare, and lower the rate where patience is at its end."""
        super().on_epoch_end(epoch)
        if self.wait < max(self.patience, 1):
            return
        opt = self.learn.opt
        rate, lower = opt.lr, max(opt.lr * self.factor, self.min_lr)
        if lower < rate:
            opt.lr = [lower if one == rate else one * lower / rate for one in opt.read("lr")]
            self._say(f"Learning rate {lower:g} after epoch {epoch}: {self._since()}.")
        self.wait = 0
