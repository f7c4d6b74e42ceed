"""Save the best model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from minifast.checkpoint.model import model_file
from minifast.utils.checks import check_word

if TYPE_CHECKING:
    from minifast.learner.learner import Learner
from minifast.callbacks.monitor import TrackerCallback


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
