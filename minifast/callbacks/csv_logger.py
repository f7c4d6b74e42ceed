"""The callback that writes the table of a fit to a CSV file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from minifast.distributed.exchange import from_first
from minifast.errors import DataError
from minifast.metrics.base import may_be_header
from minifast.training.callback import LearnerCallback
from minifast.training.parallel import group_of
from minifast.utils import files
from minifast.utils.checks import import_optional

if TYPE_CHECKING:
    from minifast.learner.learner import Learner


class CSVLogger(LearnerCallback):
    """Write the table of a fit to ``learn.path/{filename}.csv``, one row at the end of each epoch.

    Numbers have full precision, times are in seconds, and missing values are empty cells. (fastai v1 writes the rounded
    text of its table.) A resumed run has each row once.

    Args:
        learn: the learner; a learner that you pass the callback to sets it.
        filename: the name of the file, without its extension. Default: ``"history"``.
        append: add rows to an existing file; by default each fit starts a new file. A resumed run adds to the rows
            that the file had when the run began.

    Raises:
        DataError: when the fit begins, if the existing rows have other columns.

    >>> logger = CSVLogger(filename="log", append=True)
    """

    fit_only = True

    def __init__(self, learn: Learner | None = None, filename: str = "history", append: bool = False) -> None:
        super().__init__(learn)
        self.filename = filename
        self.append = append
        self._before: list[list[str]] = []

    @property
    def path(self) -> Path:
        """The path of the file."""
        return self.learn.path / f"{self.filename.removesuffix('.csv')}.csv"

    def read_logged_file(self) -> Any:
        """Return the file as a pandas DataFrame."""
        return import_optional("pandas", "read_logged_file", "pandas").read_csv(self.path)

    def on_train_begin(self) -> None:
        """Check that the file is writable and, with ``append``, that its columns are those of this fit."""
        self._before = from_first(self._read, group_of(self.learn))
        names = self.learn.recorder.names
        if self._before and not may_be_header(self._before[0], names):
            self._refuse()

    def _read(self) -> list[list[str]]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a"):
            pass
        return files.read_rows(self.path) if self.append else []

    def _refuse(self) -> None:
        raise DataError(
            f"{self.path} has the columns {', '.join(self._before[0])}, and this fit has "
            f"{', '.join(self.learn.recorder.names)}; give another `filename`, or leave out `append`."
        )

    def on_epoch_end(self) -> None:
        """Write all rows, atomically."""
        recorder = self.learn.recorder
        validated = recorder.val_losses[-1] is not None
        if self._before and validated and self._before[0] != recorder.names:
            self._refuse()
        rows = [*(self._before or [recorder.names]), *recorder.rows]
        from_first(lambda: files.write_rows(rows, self.path), group_of(self.learn))
