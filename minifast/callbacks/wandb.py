"""The callback that writes the record of a fit to Weights & Biases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from minifast.callbacks.logger import RunLogger
from minifast.utils.checks import import_optional

if TYPE_CHECKING:
    from minifast.learner.learner import Learner


class WandbCallback(RunLogger):
    """Write the record of a fit to Weights & Biases: losses, learning rates and momentum, metrics, and the settings.

    Each fit is a run, unless ``wandb.init`` was called before: then the fit is written to that run, which stays open. A
    resumed fit continues its run. See ``RunLogger`` for what is written and when.

    Needs wandb: ``python -m pip install wandb``.

    Args:
        learn: the learner; a learner that you pass the callback to sets it.
        options: arguments of ``wandb.init``, such as ``project="mnist"``, ``name`` and ``mode="offline"``.

    Attributes:
        run_id: the identity of the last run.

    Raises:
        ImportError: if wandb is not installed.
    """

    def __init__(self, learn: Learner | None = None, **options: Any) -> None:
        super().__init__(learn)
        self._module()
        self.options = options
        self.run_id: str | None = None
        self._run: Any = None
        self._is_own = False

    @staticmethod
    def _module() -> Any:
        return import_optional("wandb", "WandbCallback", "wandb")

    def on_train_begin(self) -> None:
        """Begin a new run."""
        super().on_train_begin()
        self.run_id = None

    def open_run(self, config: dict[str, Any]) -> None:
        """Open a run, or take the one that is open."""
        wandb = self._module()
        self._is_own = wandb.run is None
        if self._is_own:
            config = {**config, **self.options.get("config", {})}
            resumed = {} if self.run_id is None else {"id": self.run_id, "resume": "allow"}
            self._run = wandb.init(**{**self.options, **resumed, "config": config})
        else:
            self._run = wandb.run
            self._run.config.update(config, allow_val_change=True)
        self.run_id = self._run.id
        self._first = self._run.step if not self._is_own else 0

    def write(self, rows: list[tuple[int, dict[str, float]]]) -> None:
        """Write values at their steps, which follow those of an open run."""
        for step, values in rows:
            self._run.log(values, step=self._first + step)

    def close_run(self, failed: bool) -> None:
        """Finish a run of its own."""
        if self._is_own:
            self._run.finish(exit_code=int(failed))
        self._run = None
