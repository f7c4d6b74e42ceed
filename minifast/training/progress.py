"""Bars, table rows and lines: the only file that knows fastprogress.

In a notebook a live bar and table, in a terminal a bar and rows, in a file or a log a plain line an epoch, and silence
where silence is wanted. All four answer to the same names, so the loop does not know which one it has.
"""

from __future__ import annotations

import importlib
import io
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from minifast.utils.text import is_terminal

NARROWEST = 8  # a column of the text table


class NullProgress:
    """Says nothing. The base of the others, and the interface that callbacks see as ``pbar``."""

    what = "Epoch"  # of which the outer bar counts
    describe: Callable[[], str] | None = None  # what stands behind the bar; asked for only when the bar is redrawn

    def start(self, n_epochs: int) -> None:
        """Show that a run of ``n_epochs`` begins."""

    def track(self, batches: Iterable[Any]) -> Iterable[Any]:
        """Return ``batches``, shown as they go by."""
        return batches

    def write(self, line: str | Sequence[str], table: bool = False) -> None:
        """Write a line of text, or with ``table=True`` a row of cells, the first of them the header."""

    def show(self, draw: Callable[[], Any]) -> None:
        """Show the matplotlib figure that ``draw`` makes, in place of the one before; where none can be, do nothing."""

    def epochs_done(self, epochs: int, n_epochs: int) -> None:
        """Show how many epochs are done, of how many."""

    def close(self, interrupted: bool = False) -> None:
        """Close the bar; what was written stays."""
        self.describe = None  # it refers to the run, which could then not be pickled


class LineProgress(NullProgress):
    """Plain lines for files, logs and continuous integration: no bar, each line written out at once."""

    def __init__(self) -> None:
        self._widths: list[int] = []

    def write(self, line: str | Sequence[str], table: bool = False) -> None:
        """Write a line, or a row of cells under the header's columns."""
        print(line if isinstance(line, str) else self._row(line), flush=hasattr(sys.stdout, "flush"))

    def _row(self, cells: Sequence[str]) -> str:
        if not self._widths:
            self._widths = [max(NARROWEST, len(cell)) for cell in cells]
        widths = [*self._widths, *([NARROWEST] * len(cells))]
        return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=False)).rstrip()


class BarProgress(LineProgress):
    """fastprogress's bars: over epochs, and below it over the batches of the running epoch."""

    def __init__(self, notebook: bool) -> None:
        super().__init__()
        from fastprogress import fastprogress

        self._notebook = notebook
        self._master_bar = fastprogress.NBMasterBar if notebook else fastprogress.ConsoleMasterBar
        self._progress_bar = fastprogress.NBProgressBar if notebook else fastprogress.ConsoleProgressBar
        self.master: Any = None
        self.child: Any = None
        self._lines: list[str] = []  # written below a notebook's table
        self._picture: Any = None  # what shows a notebook's picture

    def start(self, n_epochs: int) -> None:
        """Draw the bar over epochs."""
        self.master = self._master_bar(range(n_epochs), total=n_epochs)
        self.epochs_done(0, n_epochs)

    def track(self, batches: Any) -> Iterator[Any]:
        """Yield ``batches`` under a bar."""
        if self.master is None:
            yield from batches
            return
        self.child = child = self._progress_bar(batches, total=len(batches), parent=self.master)
        child.prefix = f"{self.what} {self._epochs + 1}/{self.master.main_bar.total} :"
        redraw = child.update_bar

        def update_bar(done: int) -> None:
            child.comment = self.describe() if self.describe else ""
            redraw(done)

        child.update_bar = update_bar
        child.update(0)
        try:
            for done, batch in enumerate(batches, 1):
                yield batch
                child.update(done)
        finally:
            if self.child is child:
                child.on_iter_end()

    def write(self, line: str | Sequence[str], table: bool = False) -> None:
        """Write a line or a row: into the notebook's table, or above the terminal's bar."""
        if self.master is not None and self._notebook:
            self.master.write(line, table=table)
            if table:  # fastprogress writes the table again, without the lines written before
                for earlier in self._lines:
                    self.master.write(earlier)
            else:
                self._lines.append(str(line))
            self.master.show()
            return
        if self.child is not None:
            print("\r" + " " * self.child.max_len, end="\r")  # the bar is drawn anew below the line
        super().write(line, table)

    def show(self, draw: Callable[[], Any]) -> None:
        """Show a notebook the figure that ``draw`` makes, below the bar, in place of the one before."""
        if not self._notebook:
            return
        display = importlib.import_module("IPython.display")
        content = io.BytesIO()
        draw().savefig(content, format="png")
        image = display.Image(content.getvalue())
        if self._picture is None:
            self._picture = display.display(image, display_id=True)
        else:
            self._picture.update(image)

    def epochs_done(self, epochs: int, n_epochs: int) -> None:
        """Move the bar over epochs on."""
        self._epochs = epochs
        self.master.main_bar.total = n_epochs
        self.master.update(epochs)

    def close(self, interrupted: bool = False) -> None:
        """Close the bar; the notebook's table stays, and an interrupted bar is marked."""
        master, child = self.master, self.child
        self.master = self.child = self.describe = None
        if master is None:
            return
        if not interrupted:
            master.on_iter_end()
        elif self._notebook:
            bar = child or master.main_bar
            bar.on_update(bar.last_v or 0, "interrupted", interrupted=True)
        else:
            print(flush=True)


def in_notebook() -> bool:
    """Whether this process is a notebook's kernel, so that pictures and HTML can be shown."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and type(ipython.get_ipython()).__name__ in ("ZMQInteractiveShell", "Shell")


def make_bar(silent: bool = False) -> NullProgress:
    """Return what fits where the output goes: a notebook, a terminal, a file, or nothing at all."""
    if silent:
        return NullProgress()
    if in_notebook():
        return BarProgress(notebook=True)
    if is_terminal(sys.stdout):
        return BarProgress(notebook=False)
    return LineProgress()
