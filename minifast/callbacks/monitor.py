"""The base class of callbacks that monitor a value."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from minifast import metrics
from minifast.errors import CallbackError, DataError
from minifast.metrics.base import direction_of, may_become
from minifast.metrics.wrappers import name_of
from minifast.training.callback import LearnerCallback, snake_case
from minifast.utils.checks import check_word, did_you_mean

if TYPE_CHECKING:
    from minifast.learner.learner import Learner


# Names of values that improve when they fall.
LOWER_IS_BETTER = re.compile(r"loss|error|entropy|perplexity|(^|_)(r?mse|mae|msle|rmspe)(_|$)")


def guess_direction(name: str) -> str:
    """Return ``"min"`` if the name is one of a value that improves when it falls, else ``"max"``."""
    return "min" if LOWER_IS_BETTER.search(name.lower()) else "max"


def resolve_column(name: str, columns: Sequence[str]) -> str:
    """Return the column that ``name`` means: itself, another name of the metric, or Keras's name of the loss.

    >>> resolve_column("rmse", ["root_mean_squared_error"]), resolve_column("val_loss", ["valid_loss"])
    ('root_mean_squared_error', 'valid_loss')
    """
    if name in columns:
        return name
    function = getattr(metrics, name, None)
    others = [snake_case(name), "valid_loss" if name == "val_loss" else name]
    others += [name_of(function)] if callable(function) else []
    return next((other for other in others if other in columns), name)


class TrackerCallback(LearnerCallback):
    """Monitor a value of the table: its ``best`` so far, the ``best_epoch``, and in ``wait`` the epochs since then.

    This is the base class of callbacks that act on a value. NaN never counts as an improvement. An epoch without a
    value, because it was not validated, is ignored. A resumed run continues with ``best``, ``best_epoch`` and ``wait``.

    Args:
        learn: the learner.
        monitor: ``"train_loss"`` (smoothed), ``"valid_loss"`` or the name of a metric.
        mode: ``"min"`` or ``"max"``, which is better. ``"auto"`` asks the metric (its ``higher_is_better``). If the
            metric does not say, the name decides, which is printed: lower is better for a loss, an error, an
            entropy, a perplexity, and for mse, rmse, mae, msle and rmspe.

    A resumed run needs the same ``monitor`` and direction; other settings, such as a patience, may change.

    Raises:
        ValueError: when the fit starts, if it does not have the value.
        DataError: when the fit starts, if the value needs validation and the fit is not validated.
    """

    fit_only = True
    must_match: tuple[str, ...] = ("monitor",)
    min_delta: float = 0.0

    def __init__(self, learn: Learner | None = None, monitor: str = "valid_loss", mode: str = "auto") -> None:
        super().__init__(learn)
        self.monitor = monitor
        self.mode = check_word("mode", mode, ("auto", "min", "max"))
        self._column = monitor
        self._set_direction(self.mode if self.mode != "auto" else guess_direction(monitor))
        self._begin()

    def _set_direction(self, mode: str) -> None:
        self.lower_is_better = mode == "min"
        self.operator = operator.lt if self.lower_is_better else operator.gt

    def _begin(self) -> None:
        self.best = math.inf if self.operator is operator.lt else -math.inf
        self.best_epoch: int | None = None
        self.wait = 0

    def on_train_begin(self, metrics_names: list[str], skip_validate: bool, **kwargs: Any) -> None:
        """Start counting, check that this fit has the value, and find out which direction is better."""
        self._column = resolve_column(self.monitor, ["valid_loss", *metrics_names])
        if self.mode == "auto" and self.monitor not in ("train_loss", "valid_loss"):
            direction = direction_of(self._column, self.learn.metrics)
            self._set_direction(direction or guess_direction(self._column))
        else:
            direction = self.mode
        self._begin()
        self.check_monitor(metrics_names, bool(self.learn.data.valid_dl) and not skip_validate)
        if direction is None:
            better, other = ("lower", "max") if self.lower_is_better else ("higher", "min")
            self._print(
                f"{type(self).__name__} takes {better} values of {self.monitor} as better, judging by the name; "
                f"mode='{other}' is the opposite."
            )

    def check_monitor(self, metrics_names: list[str], validated: bool) -> None:
        """Raise an error if this fit does not have the value."""
        needs_validation = ["valid_loss", *metrics_names]
        name = type(self).__name__
        if may_become(self._column, needs_validation) and not validated:
            raise DataError(
                f"{name} monitors {self.monitor}, but this fit is not validated; give the DataBunch a valid_dl, or "
                f"monitor train_loss."
            )
        added = [column for column in self.learn.recorder.metrics_names if column not in metrics_names]
        names = ["train_loss", *(needs_validation if validated else []), *added]
        if not may_become(self._column, names):
            raise ValueError(
                f"{name} monitors {self.monitor}, but this fit has no such value; it has {', '.join(names)}."
                f"{did_you_mean(self.monitor, names)}"
            )

    def get_monitor_value(self) -> float | None:
        """Return the value of this epoch, or None without one."""
        recorder = self.learn.recorder
        row = dict(zip(recorder.names, recorder.rows[-1], strict=True))
        if self._column not in row:
            if any(may_become(self._column, [name]) and value is None for name, value in row.items()):
                return None
            raise ValueError(
                f"{type(self).__name__} monitors {self.monitor}, but the table has no such column; it has "
                f"{', '.join(row)}."
            )
        value = row[self._column]
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

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the progress.

        Raises:
            CallbackError: the checkpointed run monitored another value, or in the other direction.
        """
        lower = state.get("lower_is_better", self.lower_is_better)
        if lower != self.lower_is_better:
            raise CallbackError(
                f"{type(self).__name__} of the checkpointed run took {'lower' if lower else 'higher'} values of "
                f"{self.monitor} as better; give the same `mode`, or choose another checkpoint name."
            )
        super().load_state_dict(state)

    def _print(self, line: str) -> None:
        self.learn.recorder.pbar.write(line)

    def _since(self) -> str:
        best = "" if self.best_epoch is None else f" on {self.best:.6g} of epoch {self.best_epoch}"
        return f"{self.monitor} did not improve{best} for {self.wait} epoch{'s' if self.wait > 1 else ''}"
