"""Stop training when a metric stops improving."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from minifast.callbacks.monitor import TrackerCallback
from minifast.utils.checks import check_count, check_number

if TYPE_CHECKING:
    from minifast.learner.learner import Learner


class EarlyStoppingCallback(TrackerCallback):
    """End the fit after ``patience`` epochs in a row without an improvement.

    A patience of 0 is the same as 1: the first epoch without an improvement ends the fit. fastai v1 waits for one epoch
    more.

    Args:
        learn, monitor, mode: see ``TrackerCallback``.
        min_delta: the smallest change that counts as an improvement.
        patience: the number of epochs to wait.

    >>> callback = EarlyStoppingCallback(monitor="accuracy", min_delta=0.01, patience=3)
    """

    def __init__(
        self,
        learn: Learner | None = None,
        monitor: str = "valid_loss",
        mode: str = "auto",
        min_delta: float = 0,
        patience: int = 0,
    ) -> None:
        super().__init__(learn, monitor, mode)
        self.min_delta = check_number("min_delta", min_delta, low=0)
        self.patience = check_count("patience", patience, least=0)

    def on_epoch_end(self, epoch: int, **kwargs: Any) -> dict[str, bool] | None:
        """Compare, and stop when the patience is used up."""
        super().on_epoch_end(epoch)
        if self.wait < max(self.patience, 1):
            return None
        self._print(f"Stopped after epoch {epoch}: {self._since()}.")
        return {"stop_training": True}
