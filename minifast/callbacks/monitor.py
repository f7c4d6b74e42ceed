"""The base class of callbacks that monitor a value."""

from __future__ import annotations

import math
import operator
import re
from typing import TYPE_CHECKING, Any

from minifast.errors import DataError
from minifast.training.callback import LearnerCallback
from minifast.utils.checks import check_word, did_you_mean

if TYPE_CHECKING:
    from minifast.learner.learner import Learner


# Names of values that improve when they fall.
LOWER_IS_BETTER = re.compile(r"loss|error|entropy|perplexity|(^|_)(r?mse|mae|msle|rmspe)(_|$)")


class TrackerCallback(LearnerCallback):
    """Monitor a value of the table: its ``best`` so far, the ``best_epoch``, and in ``wait`` the epochs since then.

    This is the base class of callbacks that act on a value. NaN never counts as an improvement. An epoch without a
    value, because it was not validated, is ignored. A resumed run continues with ``best``, ``best_epoch`` and ``wait``.

    Args:
        learn: the learner.
        monitor: ``"train_loss"`` (smoothed), ``"valid_loss"`` or the name of a metric.
        mode: ``"min"`` or ``"max"``; ``"auto"`` decides by the name: lower is better for a loss, an error, an entropy,
            a perplexity, and for mse, rmse, mae, msle and rmspe.

    Raises:
        ValueError: when the fit starts, if it does not have the value.
        DataError: when the fit starts, if the value needs validation and the fit is not validated.
    """

    fit_only = True
    must_match = ("monitor", "mode")  # the best value so far is of these
    min_delta: float = 0.0

    def __init__(self, learn: Learner | None = None, monitor: str = "valid_loss", mode: str = "auto") -> None:
        if isinstance(learn, str):
            raise TypeError(f"`learn` must be a Learner or None, got {learn!r}; write monitor={learn!r}.")
        super().__init__(learn)
        self.monitor = monitor
        self.mode = check_word("mode", mode, ("auto", "min", "max"))
        lower = mode == "min" or (mode == "auto" and LOWER_IS_BETTER.search(monitor.lower()) is not None)
        self.operator = operator.lt if lower else operator.gt
        self._begin()

    def _begin(self) -> None:
        self.best = math.inf if self.operator is operator.lt else -math.inf
        self.best_epoch: int | None = None
        self.wait = 0

    def on_train_begin(self, metrics_names: list[str], skip_validate: bool, **kwargs: Any) -> None:
        """Start counting, and check that this fit has the value."""
        self._begin()
        self.check_monitor(metrics_names, bool(self.learn.data.valid_dl) and not skip_validate)

    def check_monitor(self, metrics_names: list[str], validated: bool) -> None:
        """Raise an error if this fit does not have the value."""
        needs_validation = ["valid_loss", *metrics_names]
        name = type(self).__name__
        if self.monitor in needs_validation and not validated:
            raise DataError(
                f"{name} monitors {self.monitor}, but this fit is not validated; give the DataBunch a valid_dl, or "
                f"monitor train_loss."
            )
        added = [column for column in self.learn.recorder.metrics_names if column not in metrics_names]
        names = ["train_loss", *(needs_validation if validated else []), *added]
        if self.monitor not in names:
            raise ValueError(
                f"{name} monitors {self.monitor}, but this fit has no such value; it has {', '.join(names)}."
                f"{did_you_mean(self.monitor, names)}"
            )

    def get_monitor_value(self) -> float | None:
        """Return the value of this epoch, or None without one."""
        recorder = self.learn.recorder
        value = dict(zip(recorder.names, recorder.rows[-1], strict=True))[self.monitor]
        if not isinstance(value, (float, int, type(None))):
            raise TypeError(f"{type(self).__name__} can monitor a single number only, but {self.monitor} is {value!r}.")
        return value

    def on_epoch_end(self, epoch: int, **kwargs: Any) -> Any:
        """Compare the value of this epoch with the best."""
        value = self.get_monitor_value()
        if value is None:
            return
        delta = -self.min_delta if self.operator is operator.lt else self.min_delta
        if self.operator(value, self.best + delta):
            self.best, self.best_epoch, self.wait = value, epoch, 0
        else:
            self.wait += 1

    def _print(self, line: str) -> None:
        self.learn.recorder.pbar.write(line)

    def _since(self) -> str:
        best = "" if self.best_epoch is None else f" on {self.best:.6g} of epoch {self.best_epoch}"
        return f"{self.monitor} did not improve{best} for {self.wait} epoch{'s' if self.wait > 1 else ''}"
