"""Callbacks that watch a value from epoch to epoch: stop, save, or lower the rate by it."""

from __future__ import annotations

import math
import operator
import re
from typing import TYPE_CHECKING, Any

from minifast.callback import LearnerCallback
from minifast.checkpoint import model_file
from minifast.errors import DataError, check_count, check_number, check_word, did_you_mean

if TYPE_CHECKING:
    from minifast.learner import Learner

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

    _watches = True
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


class SaveModelCallback(TrackerCallback):
    """Saves the model, with the optimizer, when it is better than before, and loads the best when the fit ends.

    The file is ``path/model_dir/{name}.pth``, written whole or not at all; ``learn.load(name)`` loads it. The best is
    loaded after Ctrl-C too; after an error the model is left as it is, and what was saved stays. Each fit has a best
    of its own, and takes the place of the file of the fit before.

    Args:
        learn, monitor, mode: see ``TrackerCallback``.
        every: ``"improvement"``; or ``"epoch"``, to save each epoch as ``{name}_{epoch}`` and load nothing.
        name: of the file.

    >>> callback = SaveModelCallback(monitor="accuracy", name="most_accurate")
    """

    _order = 6_000  # after those that leave weights of their own at the end, such as EMACallback, lest they replace it

    def __init__(
        self,
        learn: Learner | None = None,
        monitor: str = "valid_loss",
        mode: str = "auto",
        every: str = "improvement",
        name: str = "bestmodel",
    ) -> None:
        super().__init__(learn, monitor, mode)
        self.every = check_word("every", every, ("improvement", "epoch"))
        self.name = name

    def _begin(self) -> None:
        super()._begin()
        self._ended = False  # whether the best was loaded: a finished run that is shown again is left as it ended

    def check_monitor(self, metrics_names: list[str], validated: bool) -> None:
        """Refuse a name that is none, and where it matters a value that this fit will not have."""
        model_file(self.learn, self.name)
        if self.every == "improvement":
            super().check_monitor(metrics_names, validated)

    def on_epoch_end(self, epoch: int, **kwargs: Any) -> None:
        """Save, if it is time."""
        if self.every == "epoch":
            self.learn.save(f"{self.name}_{epoch}")
            return
        super().on_epoch_end(epoch)
        if self.best_epoch == epoch:
            self.learn.save(self.name)

    def on_train_end(self, exception: Any, **kwargs: Any) -> None:
        """Load the best."""
        failed = exception and not isinstance(exception, KeyboardInterrupt)
        if failed or self._ended or self.best_epoch is None:
            return
        self.learn.load(self.name)
        self._ended = True
        self._say(f"Loaded {self.name}, the model of epoch {self.best_epoch}: {self.monitor} {self.best:.6g}.")


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

    _sets = ("lr",)

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
