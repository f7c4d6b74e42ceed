"""Callbacks that end a fit early: at a NaN loss, and after a number of batches."""

from __future__ import annotations

from minifast.training.callback import Callback, LearnerCallback
from minifast.utils.checks import check_count


class TerminateOnNaNCallback(LearnerCallback):
    """End the fit at a training loss that is NaN or infinite, with a printed line instead of an error.

    Without this callback, the fit raises NonFiniteLossError. The optimizer does not step on that batch. On a GPU the
    losses are checked at the end of each epoch, so the fit ends there.

    Raises:
        ValueError: the fit has another ``on_nan``.
    """

    fit_only = True

    def on_train_begin(self, on_nan: str) -> dict[str, str]:
        """End the fit without an error at a loss that is NaN or infinite."""
        if on_nan not in ("stop", "end"):
            raise ValueError(
                f"`on_nan` is {on_nan!r}, but TerminateOnNaNCallback ends the fit at NaN; remove one of them."
            )
        return {"on_nan": "end"}


class StopAfterNBatches(Callback):
    """End the fit after ``n_batches`` training batches, without validation, as a quick test.

    Args:
        n_batches: the number of training batches, at least 1.

    >>> callback = StopAfterNBatches(n_batches=1)
    """

    fit_only = True

    def __init__(self, n_batches: int = 2) -> None:
        self.n_batches = check_count("n_batches", n_batches)

    def on_batch_end(self, train: bool, iteration: int) -> dict[str, bool] | None:
        """Count training batches, and stop after the last."""
        if not train or iteration + 1 < self.n_batches:
            return None
        return {"stop_epoch": True, "stop_training": True, "skip_validate": True}
