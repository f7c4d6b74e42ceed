"""The callback that lets Optuna end trials early."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from minifast.callbacks.monitor import TrackerCallback
from minifast.utils.checks import import_optional

if TYPE_CHECKING:
    from minifast.learner.learner import Learner


class OptunaPruningCallback(TrackerCallback):
    """Report a value of each epoch to a trial of Optuna, and end the fit when its pruner ends the trial.

    Needs Optuna: ``python -m pip install optuna``.

    Args:
        trial: the trial that ``study.optimize`` passes to the objective.
        monitor: ``"valid_loss"``, ``"train_loss"`` or the name of a metric.
        mode: which is better, see ``TrackerCallback``.
        learn: the learner; a learner that you pass the callback to sets it.

    Raises:
        ImportError: if Optuna is not installed.
        optuna.TrialPruned: at the end of an epoch, which Optuna expects.
        ValueError: when the fit starts, if the study looks for the opposite direction.
    """

    def __init__(
        self, trial: Any, monitor: str = "valid_loss", mode: str = "auto", learn: Learner | None = None
    ) -> None:
        super().__init__(learn, monitor, mode)
        self._optuna = import_optional("optuna", "OptunaPruningCallback", "optuna")
        self.trial = trial

    def on_train_begin(self, metrics_names: list[str], skip_validate: bool, **kwargs: Any) -> None:
        """Check that this fit has the value, and that the study looks for its direction."""
        super().on_train_begin(metrics_names=metrics_names, skip_validate=skip_validate, **kwargs)
        direction = self.trial.study.direction.name.lower()
        if direction != ("minimize" if self.lower_is_better else "maximize"):
            other = "maximize" if direction == "minimize" else "minimize"
            raise ValueError(
                f"The study has the direction {direction!r}, but {'lower' if self.lower_is_better else 'higher'} "
                f"values of {self.monitor} are better; create it with direction={other!r}, or pass `mode`."
            )

    def on_epoch_end(self, epoch: int, **kwargs: Any) -> None:
        """Report the value, and raise if the trial is to end."""
        super().on_epoch_end(epoch=epoch, **kwargs)
        value = self.get_monitor_value()
        if value is None:
            return
        self.trial.report(value, epoch)
        if self.trial.should_prune():
            raise self._optuna.TrialPruned(f"Epoch {epoch}: {self.monitor} is {value:.6g}.")
