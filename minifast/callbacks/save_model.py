"""Save the best model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from minifast.callbacks.monitor import TrackerCallback
from minifast.checkpoint.model import model_file
from minifast.distributed.exchange import from_first
from minifast.training.parallel import group_of
from minifast.utils import files
from minifast.utils.checks import check_word
from minifast.utils.public import warn_caller

if TYPE_CHECKING:
    from minifast.learner.learner import Learner


class SaveModelCallback(TrackerCallback):
    """Save the model and the optimizer when the monitored value improves, and load the best when the fit ends.

    The file is ``path/model_dir/{name}.pth``, written atomically; ``learn.load(name)`` loads it. The best model is also
    loaded after Ctrl-C. After an error the model stays as it is, and the saved files remain. Each fit starts its own
    comparison, and overwrites the file of the previous fit.

    Args:
        learn, monitor, mode: see ``TrackerCallback``.
        every: ``"improvement"``; or ``"epoch"``, to save each epoch as ``{name}_{epoch}`` and load nothing.
        name: the file's name without a suffix.

    Raises:
        OSError: when the fit starts, if the file cannot be written.

    >>> callback = SaveModelCallback(monitor="accuracy", name="most_accurate")
    """

    must_match = ("monitor", "every", "name")
    _order = 6_000  # after callbacks that replace the weights when the fit ends, such as EMACallback

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
        self._ended = False  # whether the best model is loaded; resuming a finished run does not load it again

    def check_monitor(self, metrics_names: list[str], validated: bool) -> None:
        """Raise an error if the file cannot be written or this fit does not have the monitored value."""
        file = model_file(self.learn, self.name if self.every == "improvement" else f"{self.name}_0")
        if isinstance(file, Path):
            from_first(lambda: files.check_writable(file), group_of(self.learn))
        if self.every == "improvement":
            super().check_monitor(metrics_names, validated)

    def on_epoch_end(self, epoch: int, **kwargs: Any) -> None:
        """Save the epoch, or the model if it improved."""
        if self.every == "epoch":
            self.learn.save(f"{self.name}_{epoch}")
            return
        super().on_epoch_end(epoch)
        if self.best_epoch == epoch:
            self.learn.save(self.name)

    def on_train_end(self, exception: Any, **kwargs: Any) -> None:
        """Load the best model."""
        failed = exception and not isinstance(exception, KeyboardInterrupt)
        if failed or self._ended:
            return
        if self.best_epoch is None:
            if self.wait:
                warn_caller(f"SaveModelCallback saved no model: {self.monitor} was NaN in all epochs.")
            return
        self.learn.load(self.name)
        self._ended = True
        self._print(f"Loaded {self.name}, the model of epoch {self.best_epoch}: {self.monitor} {self.best:.6g}.")
