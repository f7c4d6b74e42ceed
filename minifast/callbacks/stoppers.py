"""Callbacks that end a fit early: at a loss that is not finite, and after a few batches."""

from __future__ import annotations

from minifast.training.callback import Callback, LearnerCallback
from minifast.utils.checks import check_count


class TerminateOnNaNCallback(LearnerCallback):
    """Ends the fit with a line, instead of an error, at a training loss that is NaN or infinite.

    A fit stops there anyway, with an error; this is for scripts that go on. The step of that batch is not made (on a
    device the losses are looked at when an epoch ends, so there it comes later).

    Raises:
        ValueError: the fit is asked for another ``on_nan``.
    """

    fit_only = True

    def on_train_begin(self, on_nan: str) -> dict[str, str]:
        """End the fit without an error at a loss that is not finite."""
        if on_nan not in ("stop", "end"):
            raise ValueError(
                f"on_nan is {on_nan!r}, and TerminateOnNaNCallback is there to end the fit at NaN; leave one out."
            )
        return {"on_nan": "end"}


class StopAfterNBatches(Callback):
    """Ends the fit after ``n_batches`` training batches, without validation: to see that all fits together.

    >>> callback = StopAfterNBatches(n_batches=1)
    """

    fit_only = True

    def __init__(self, n_batches: int = 2) -> None:
        self.n_batches = check_count("n_batches", n_batches)

    def on_batch_end(self, train: bool, iteration: int) -> dict[str, bool] | None:
        """Count."""
        if not train or iteration + 1 < self.n_batches:
            return None
        return {"stop_epoch": True, "stop_training": True, "skip_validate": True}
