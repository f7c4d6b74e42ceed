"""Reduce the learning rate when a metric stops improving."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from minifast.callbacks.monitor import TrackerCallback
from minifast.utils.checks import check_count, check_number

if TYPE_CHECKING:
    from minifast.learner.learner import Learner


class ReduceLROnPlateauCallback(TrackerCallback):
    """Multiply the learning rate by ``factor`` after ``patience`` epochs in a row without an improvement.

    Use it with ``fit``: with a schedule of the learning rate, the fit raises ValueError. When the fit ends, the learner
    restores the learning rate from before the fit. fastai v1 waits for one epoch more, and may go below ``min_lr``. A
    patience of 0 is the same as 1.

    Args:
        learn, monitor, mode: see ``TrackerCallback``.
        patience: the number of epochs to wait, also after each reduction.
        factor: in (0, 1).
        min_delta: the smallest change that counts as an improvement.
        min_lr: the lowest learning rate of the last layer group; the other groups keep their ratio to it.

    Raises:
        ValueError: an argument is out of range, or the fit starts with a learning rate that is not above ``min_lr``.

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
            raise ValueError(f"`factor` must be lower than 1, got {factor}.")
        self.min_delta = check_number("min_delta", min_delta, low=0)
        self.min_lr = check_number("min_lr", min_lr, low=0)

    def on_train_begin(self, metrics_names: list[str], skip_validate: bool, **kwargs: Any) -> None:
        """Start counting, and check the monitored value and the learning rate."""
        super().on_train_begin(metrics_names, skip_validate)
        if self.learn.opt.lr <= self.min_lr:
            raise ValueError(
                f"The learning rate is {self.learn.opt.lr:g} and `min_lr` is {self.min_lr:g}, so "
                f"{type(self).__name__} can never lower it; give a lower `min_lr`."
            )

    def on_epoch_end(self, epoch: int, **kwargs: Any) -> None:
        """Compare, and lower the learning rate when the patience is used up."""
        super().on_epoch_end(epoch)
        if self.wait < max(self.patience, 1):
            return
        opt = self.learn.opt
        current, lower = opt.lr, max(opt.lr * self.factor, self.min_lr)
        if lower < current:
            opt.lr = [lower if lr == current else lr * lower / current for lr in opt.read("lr")]
            self._print(f"Learning rate {lower:g} after epoch {epoch}: {self._since()}.")
        self.wait = 0
