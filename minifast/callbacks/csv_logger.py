"""The table of a fit in a CSV file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from minifast.errors import DataError
from minifast.training.callback import LearnerCallback
from minifast.utils import files
from minifast.utils.checks import import_optional

if TYPE_CHECKING:
    from minifast.learner.learner import Learner


class CSVLogger(LearnerCallback):
    """Writes the table's columns to ``learn.path/{filename}.csv``, a row an epoch, on the disk when the epoch ends.

    Numbers are written in full, the time in seconds, and what is missing as an empty cell, so that the file can be
    computed with (fastai v1 writes what its table shows). A run that is taken up again has each row once.

    Args:
        learn: the learner.
        filename: without its ending.
        append: go on below the rows of the file that is there; by default each fit begins a new one. A run that is
            taken up again goes on below the rows that were there when it began.

    Raises:
        DataError: when the fit begins: the rows that are there have other columns.

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
        """The file."""
        return self.learn.path / f"{self.filename.removesuffix('.csv')}.csv"

    def read_logged_file(self) -> Any:
        """Return the file as a pandas DataFrame."""
        return import_optional("pandas", "read_logged_file", "pandas").read_csv(self.path)

    def on_train_begin(self) -> None:
        """See that the file can be written, and that its columns are the same where rows are appended."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a"):
            pass
        self._before = files.read_rows(self.path) if self.append else []
        names = self.learn.recorder.names
        if self._before and self._before[0] != names:
            raise DataError(
                f"{self.path} has the columns {', '.join(self._before[0])}, and this fit has {', '.join(names)}; give "
                f"another filename, or leave out append."
            )

    def on_epoch_end(self) -> None:
        """Write the file with one more row."""
        recorder = self.learn.recorder
        files.write_rows([*(self._before or [recorder.names]), *recorder.rows], self.path)
