"""The callback that writes the record of a fit for TensorBoard."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minifast.callbacks.logger import RunLogger
from minifast.distributed.exchange import from_first
from minifast.training.parallel import group_of
from minifast.utils.checks import import_optional

if TYPE_CHECKING:
    from minifast.learner.learner import Learner


class TensorBoardCallback(RunLogger):
    """Write losses, learning rates and momentum of each batch, and losses and metrics of each epoch, for TensorBoard.

    Each fit has its own folder in ``learn.path/log_dir``: ``name``, or ``run1``, ``run2`` and so on. To view them, run
    ``tensorboard --logdir runs``. The step of each point is the number of training batches so far. The values are
    written from the recorder when an epoch ends, so a batch costs nothing. A resumed run continues in its folder.

    Needs TensorBoard: ``python -m pip install "minifast[tensorboard]"``.

    Args:
        learn: the learner; a learner that you pass the callback to sets it.
        log_dir: the folder of all runs, relative to ``learn.path``. Default: ``"runs"``.
        name: the folder of this fit inside ``log_dir``; a second fit of the same name replaces the first one's curves.

    Raises:
        ImportError: if TensorBoard is not installed.
    """

    def __init__(self, learn: Learner | None = None, log_dir: str | Path = "runs", name: str | None = None) -> None:
        super().__init__(learn)
        self._module()
        self.log_dir = str(log_dir)
        self.name = name
        self._run = ""
        self._writer: Any = None

    @staticmethod
    def _module() -> Any:
        return import_optional("torch.utils.tensorboard", "TensorBoardCallback", "minifast[tensorboard]")

    @property
    def folder(self) -> Path:
        """The folder of the last fit."""
        return self.learn.path / self.log_dir / self._run

    def on_train_begin(self) -> None:
        """Choose the folder of this fit."""
        super().on_train_begin()
        runs = self.learn.path / self.log_dir
        free = (f"run{n}" for n in itertools.count(1) if not (runs / f"run{n}").exists())
        self._run = self.name or from_first(lambda: next(free), group_of(self.learn))

    def write(self, rows: list[tuple[int, dict[str, float]]]) -> None:
        """Write values, in a file that hides what an earlier process wrote of batches that a resumed run repeats."""
        if self._writer is None:
            self._writer = self._module().SummaryWriter(str(self.folder), purge_step=rows[0][0])
        for step, values in rows:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close_run(self, failed: bool) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
