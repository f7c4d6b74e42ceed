"""A fit in TensorBoard."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minifast.training.callback import LearnerCallback
from minifast.utils.checks import import_optional

if TYPE_CHECKING:
    from minifast.learner.learner import Learner


class TensorBoardCallback(LearnerCallback):
    """Writes losses, rates and momentum of each batch, and losses and metrics of each epoch, for TensorBoard.

    Each fit gets a folder of its own in ``learn.path/log_dir``: ``name``, or ``run1``, ``run2`` and so on;
    ``tensorboard --logdir runs`` shows them. The steps are training batches done. All is written when an epoch ends,
    from the recorder, so a batch costs nothing. A run that is taken up again goes on in its folder.

    Needs TensorBoard: ``python -m pip install "minifast[tensorboard]"``.

    Args:
        learn: the learner.
        log_dir: the folder of the runs.
        name: the folder of this fit in it; a second fit of that name replaces what the first has shown.

    Raises:
        ImportError: TensorBoard is not installed.
    """

    fit_only = True

    def __init__(self, learn: Learner | None = None, log_dir: str | Path = "runs", name: str | None = None) -> None:
        super().__init__(learn)
        self._module()
        self.log_dir = str(log_dir)
        self.name = name
        self._run = ""
        self._done = 0  # batches whose values are written
        self._writer: Any = None

    @staticmethod
    def _module() -> Any:
        return import_optional("torch.utils.tensorboard", "TensorBoardCallback", "minifast[tensorboard]")

    @property
    def folder(self) -> Path:
        """Where the last fit was written."""
        return self.learn.path / self.log_dir / self._run

    def on_train_begin(self) -> None:
        """Choose the folder."""
        self._done = 0
        runs = self.learn.path / self.log_dir
        free = (f"run{n}" for n in itertools.count(1) if not (runs / f"run{n}").exists())
        self._run = self.name or next(free)

    def on_epoch_end(self) -> None:
        """Write the epoch."""
        recorder = self.learn.recorder
        self._write_batches()
        row = dict(zip(recorder.names, recorder.rows[-1], strict=True))
        metrics = {f"metrics/{name}": row[name] for name in recorder.metrics_names}
        for tag, value in {"loss/valid": row["valid_loss"], **metrics}.items():
            if isinstance(value, (float, int)):
                self._writer.add_scalar(tag, value, self._done)
        self._writer.flush()

    def _write_batches(self) -> None:
        if self._writer is None:
            # What an earlier process wrote of batches that are done again is hidden.
            self._writer = self._module().SummaryWriter(str(self.folder), purge_step=self._done + 1)
        recorder = self.learn.recorder
        batches = {
            "loss/batch": recorder.raw_losses,
            "loss/train": recorder.losses,
            "rate/lr": recorder.lrs,
            "rate/mom": recorder.moms,
        }
        for i in range(self._done, len(recorder.lrs)):
            for tag, values in batches.items():
                self._writer.add_scalar(tag, values[i], i + 1)
        self._done = len(recorder.lrs)

    def on_train_end(self) -> None:
        """Write the batches of an epoch that was not finished, and close the file."""
        if self._done < len(self.learn.recorder.lrs):
            self._write_batches()
        if self._writer is not None:
            self._writer.close()
            self._writer = None
