"""The base of callbacks that monitor a metric."""

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


# Values that are better when they are lower, by their names.
LOWER_IS_BETTER = re.compile(r"loss|error|entropy|perplexity|(^|_)(r?mse|mae|msle|rmspe)(_|$)")


class TrackerCallback(LearnerCallback):
    """Watches a value of the table: ``best`` is the best so far, ``best_epoch`` its epoch, ``wait`` the epochs since.

    The base of the callbacks that act on it. NaN never counts as an improvement. An epoch that has no value, because it
    was not validated, counts for nothing. All of it survives a run that is kept and taken up again.

    Args:
        learn: the learner.
        monitor: ``"train_loss"`` (smoothed), ``"valid_loss"`` or the name of a metric.
        mode: ``"min"`` or ``"max"``, which is better; ``"auto"`` goes by the name: lower is better for a loss, an
            error, an entropy, a perplexity, and for mse, rmse, mae, msle and rmspe.

    Raises:
        ValueError: when the fit begins: there is no such value, or the value needs validation and there is none.
    """

    fit_only = True
    min_delta: float = 0.0

    def __init__(self, learn: Learner | None = None, monitor: str = "valid_loss", mode: str = "auto") -> None:
        if isinstance(learn, str):
            raise TypeError(f"learn is {learn!r}; a learner comes first, or nothing: give monitor={learn!r} by name.")
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
        """Begin anew, and refuse a value that this fit will not have."""
        self._begin()
        self.check_monitor(metrics_names, bool(self.learn.data.valid_dl) and not skip_validate)

    def check_monitor(self, metrics_names: list[str], validated: bool) -> None:
        """Refuse a value that this fit will not have."""
        needs_validation = ["valid_loss", *metrics_names]
        name = type(self).__name__
        if self.monitor in needs_validation and not validated:
            raise DataError(
                f"{name} watches {self.monitor}, but this fit is not validated; give the DataBunch a valid_dl, or "
                f"watch train_loss."
            )
        added = [one for one in self.learn.recorder.metrics_names if one not in metrics_names]
        names = ["train_loss", *(needs_validation if validated else []), *added]
        if self.monitor not in names:
            raise ValueError(
                f"{name} watches {self.monitor}, and there is no such value; there are {', '.join(names)}."
                f"{did_you_mean(self.monitor, names)}"
            )

    def get_monitor_value(self) -> float | None:
        """Return the value after this epoch, or None where there is none."""
        recorder = self.learn.recorder
        value = dict(zip(recorder.names, recorder.rows[-1], strict=True))[self.monitor]
        if not isinstance(value, (float, int, type(None))):
            raise TypeError(f"{self.monitor} is {value!r}; {type(self).__name__} can watch a single number only.")
        return value

    def on_epoch_end(self, epoch: int, **kwargs: Any) -> Any:
        """Compare."""
        value = self.get_monitor_value()
        if value is None:
            return
        delta = -self.min_delta if self.operator is operator.lt else self.min_delta
        if self.operator(value, self.best + delta):
            self.best, self.best_epoch, self.wait = value, epoch, 0
        else:
            self.wait += 1

    def _say(self, line: str) -> None:
        self.learn.recorder.pbar.write(line)

    def _since(self) -> str:
        best = "" if self.best_epoch is None else f" than {self.best:.6g} in epoch {self.best_epoch}"
        return f"{self.monitor} was not better{best} for {self.wait} epoch{'s' if self.wait > 1 else ''}"
