"""The records of all runs of a learner, to files and back."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path
from typing import Any

from minifast.callbacks.recorder import Recorder, as_plain
from minifast.errors import FileFormatError
from minifast.utils import files
from minifast.utils.text import text_table

FORMAT = "minifast history 1"


class History(list[Recorder]):
    """The records of every fit and finder run, the first one first: ``learn.history``, a list that goes to files.

    >>> import tempfile, torch
    >>> from minifast import *
    >>> items = [(torch.randn(8, 4), torch.randint(2, (8,)))] * 5
    >>> data = DataBunch(items, items, device="cpu")
    >>> learn = Learner(data, simple_ann(4, 2), loss_func=torch.nn.CrossEntropyLoss(), silent=True)
    >>> _ = learn.fit(2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     learn.history.to_json(f"{folder}/history.json")
    ...     kept = read_history(f"{folder}/history.json")
    >>> kept[0].losses == learn.history[0].losses, kept[0].call["method"]
    (True, 'fit')
    """

    def __repr__(self) -> str:
        """Write a row a run: what it was, how long, at which highest rate, and the last losses and metrics."""
        metrics = list(dict.fromkeys(name for run in self for name in run.metrics_names))
        table = [["run", "method", "epochs", "batches", "highest lr", "train_loss", "valid_loss", *metrics]]
        for number, run in enumerate(self):
            last = dict(zip(run.names, run.rows[-1], strict=True)) if run.rows else {}
            train_loss = run.losses[-1] if run.losses else None
            values = [train_loss, last.get("valid_loss"), *map(last.get, metrics)]
            cells = [str(number), str(run.call.get("method", "")), str(len(run.nb_batches)), str(len(run.lrs))]
            cells.append(f"{max(run.lrs):.3g}" if run.lrs else "")
            table.append(cells + [f"{one:.4f}" if isinstance(one, float) else "" for one in values])
        return text_table(table)

    def to_csv(self, file: str | Path) -> None:
        """Write a row an epoch, for pandas and spreadsheets: number and method of the run, and the table's columns.

        Numbers are written in full, the time in seconds. A cell is empty where there is no value, or a run has not
        that column.
        """
        columns = list(dict.fromkeys(name for run in self for name in run.names if name != "time"))
        columns += ["time"] if any(run.add_time for run in self) else []
        rows: list[list[Any]] = [["run", "method", *columns]]
        for number, run in enumerate(self):
            for row in run.rows:
                values = dict(zip(run.names, row, strict=True))
                rows.append([number, run.call.get("method"), *map(as_plain, map(values.get, columns))])
        files.write_rows(rows, Path(file))

    def to_json(self, file: str | Path) -> None:
        """Write all of each record (``Recorder.to_dict``); ``read_history`` reads it.

        A number that is NaN or infinite is written as the text ``"NaN"``, ``"Infinity"`` or ``"-Infinity"``, since JSON
        has none.
        """
        values = {"format": FORMAT, "runs": [_spelt(run.to_dict()) for run in self]}
        with files.replacing(Path(file)) as beside:
            beside.write_text(json.dumps(values, allow_nan=False), encoding="utf-8")


def read_history(file: str | Path) -> History:
    """Return the records that ``learn.history.to_json`` wrote; they belong to no learner, and can be plotted.

    ``learn.history[:0] = read_history(file)`` puts them before those of this learner.

    Raises:
        FileNotFoundError: there is no such file.
        FileFormatError: it is no history, or it is cut off.
    """
    try:
        values = json.loads(Path(file).read_text(encoding="utf-8"))
    except ValueError:
        values = None
    if isinstance(values, dict) and values.get("format") == FORMAT:
        with contextlib.suppress(KeyError, TypeError, AttributeError, IndexError):
            return History(Recorder.from_dict(_read(run)) for run in values["runs"])
    raise FileFormatError(
        f"{file} is no history that minifast can read, or it is cut off; give a file that learn.history.to_json "
        f"wrote (what to_csv wrote is for pandas.read_csv)."
    )


SPELT = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def _spelt(value: Any) -> Any:
    """Return a value with a text for each number that JSON has not."""
    if isinstance(value, list):
        return [_spelt(one) for one in value]
    if isinstance(value, dict):
        return {name: _spelt(one) for name, one in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _read(value: Any) -> Any:
    """Return a value with the numbers that ``_spelt`` wrote as texts."""
    if isinstance(value, list):
        return [_read(one) for one in value]
    if isinstance(value, dict):
        return {name: _read(one) for name, one in value.items()}
    return SPELT.get(value, value) if isinstance(value, str) else value
