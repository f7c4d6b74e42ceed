"""Stop training when a metric stops improving."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from minifast.utils.checks import check_count, check_number

if TYPE_CHECKING:
    from minifast.learner.learner import Learner
from minifast.callbacks.monitor import TrackerCallback


class EarlyStoppingCallback(TrackerCallback):
    """Ends the fit after ``patience`` epochs in a row without an improvement.

    (fastai v1 waits for one more.) Without patience, which is 0, the first such epoch is the last, as with 1.

    Args:
        learn, monitor, mode: see ``TrackerCallback``.
        min_delta: a smaller change is no improvement.
        patience: how many epochs to wait.

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
        """Compare, and stop where patience is at its end."""
        super().on_epoch_end(epoch)
        if self.wait < max(self.patience, 1):
            return None
        self._say(f"Stopped after epoch {epoch}: {self._since()}.")
        return {"stop_training": True}
