"""The history of a learner: the records of all runs, written to files and read back."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path
from typing import Any

from minifast.callbacks.recorder import Recorder
from minifast.distributed.exchange import from_first
from minifast.distributed.group import current_group
from minifast.errors import FileFormatError
from minifast.utils import files
from minifast.utils.public import suggest_names
from minifast.utils.tensors import as_plain
from minifast.utils.text import html_table, text_table

FORMAT = "minifast history 1"


class History(list[Recorder]):
    """The records of all fits and learning rate finder runs, oldest first: a list with methods that write files.

    ``learn.history`` is a ``History``.

    >>> import tempfile, torch
    >>> from minifast import *
    >>> batches = [(torch.randn(8, 4), torch.randint(2, (8,)))] * 5
    >>> data = DataBunch(batches, batches, device="cpu")
    >>> learn = Learner(data, simple_ann(4, 2), loss_func=torch.nn.CrossEntropyLoss(), silent=True)
    >>> _ = learn.fit(2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     learn.history.to_json(f"{folder}/history.json")
    ...     loaded = read_history(f"{folder}/history.json")
    >>> loaded[0].losses == learn.history[0].losses, loaded[0].call["method"]
    (True, 'fit')
    """

    def rows(self) -> list[list[str]]:
        """Return a header, and one row per run: method, length, maximum learning rate, last losses and metrics."""
        metrics = list(dict.fromkeys(name for run in self for name in run.metrics_names))
        table = [["run", "method", "epochs", "batches", "max lr", "train_loss", "valid_loss", *metrics]]
        for number, run in enumerate(self):
            last = dict(zip(run.names, run.rows[-1], strict=True)) if run.rows else {}
            train_loss = run.losses[-1] if run.losses else None
            values = [train_loss, last.get("valid_loss"), *map(last.get, metrics)]
            cells = [str(number), str(run.call.get("method", "")), str(len(run.nb_batches)), str(len(run.lrs))]
            cells.append(f"{max(run.lrs):.3g}" if run.lrs else "")
            table.append(cells + [f"{value:.4f}" if isinstance(value, float) else "" for value in values])
        return table

    def __repr__(self) -> str:
        """Return the rows as a table."""
        return text_table(self.rows())

    def _repr_html_(self) -> str:
        return html_table(self.rows(), right=2)

    def to_csv(self, file: str | Path) -> None:
        """Write a CSV file with one row per epoch: number and method of the run, then the columns of its table.

        Numbers have full precision, and times are in seconds. A cell is empty where a run has no such column or value.

        Args:
            file: the path of the file.
        """
        columns = list(dict.fromkeys(name for run in self for name in run.names if name != "time"))
        columns += ["time"] if any(run.add_time for run in self) else []
        rows: list[list[Any]] = [["run", "method", *columns]]
        for number, run in enumerate(self):
            for row in run.rows:
                values = dict(zip(run.names, row, strict=True))
                rows.append([number, run.call.get("method"), *map(as_plain, map(values.get, columns))])
        from_first(lambda: files.write_rows(rows, Path(file)), current_group())

    def to_json(self, file: str | Path) -> None:
        """Write all records (``Recorder.to_dict``) to a JSON file; ``read_history`` reads it.

        JSON has no NaN and no infinity, so they are written as the texts ``"NaN"``, ``"Infinity"`` and ``"-Infinity"``.

        Args:
            file: the path of the file.
        """
        values = {"format": FORMAT, "runs": [_encode(run.to_dict()) for run in self]}

        def write() -> None:
            with files.replacing(Path(file)) as temporary:
                temporary.write_text(json.dumps(values, allow_nan=False), encoding="utf-8")

        from_first(write, current_group())


def read_history(file: str | Path) -> History:
    """Read the records that ``learn.history.to_json`` wrote.

    The records belong to no learner; you can plot them. ``learn.history[:0] = read_history(file)`` inserts them before
    the records of a learner.

    Args:
        file: the path of the JSON file.

    Returns:
        The records, oldest first.

    Raises:
        FileNotFoundError: if the file does not exist.
        FileFormatError: if the file is not a history, or is truncated.
    """
    try:
        values = json.loads(Path(file).read_text(encoding="utf-8"))
    except ValueError:
        values = None
    if isinstance(values, dict) and values.get("format") == FORMAT:
        with contextlib.suppress(KeyError, TypeError, AttributeError, IndexError):
            return History(Recorder.from_dict(_decode(run)) for run in values["runs"])
    raise FileFormatError(
        f"{file} is no minifast history, or it is truncated; give a file that learn.history.to_json wrote "
        f"(read the output of to_csv with pandas.read_csv)."
    )


NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def _encode(value: Any) -> Any:
    """Replace each NaN and infinity in a nested value with a text."""
    if isinstance(value, list):
        return [_encode(element) for element in value]
    if isinstance(value, dict):
        return {name: _encode(element) for name, element in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _decode(value: Any) -> Any:
    """Replace each text that ``_encode`` wrote with its number."""
    if isinstance(value, list):
        return [_decode(element) for element in value]
    if isinstance(value, dict):
        return {name: _decode(element) for name, element in value.items()}
    return NON_FINITE.get(value, value) if isinstance(value, str) else value


suggest_names(__name__)
