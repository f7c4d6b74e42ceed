"""Progress bars, table rows and lines of a run; the only module that imports fastprogress.

A notebook shows a live bar and table, a terminal a bar and rows, a file or log a plain line per epoch. A silent run
shows nothing. The loop sees one interface in all four cases.
"""

from __future__ import annotations

import importlib
import io
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from minifast.utils.text import clock, is_muted, is_terminal, report_closed, write_text

MIN_WIDTH = 8  # of a column of the text table
SECONDS = 30.0  # between two lines of progress where there is no bar
REDRAW = 0.2  # seconds between two displays of a notebook's bars, and of its table


class NullProgress:
    """Show nothing; base class of the others, and the interface that callbacks see as ``pbar``."""

    what = "Epoch"  # what the outer bar counts
    describe: Callable[[], str] | None = None  # returns the text behind the bar, when it is redrawn

    def start(self, n_epochs: int) -> None:
        """Show the start of a run of ``n_epochs``."""

    def track(self, batches: Iterable[Any]) -> Iterable[Any]:
        """Return ``batches`` with their progress shown."""
        return batches

    def write(self, line: str | Sequence[str], table: bool = False) -> None:
        """Write a line of text, or with ``table=True`` a row of cells; the first row is the header."""

    def show(self, draw: Callable[[], Any]) -> None:
        """Show the matplotlib figure that ``draw`` returns in place of the last one, where figures can be shown."""

    def epochs_done(self, epochs: int, n_epochs: int) -> None:
        """Show the number of finished epochs out of ``n_epochs``."""

    def close(self, interrupted: bool = False) -> None:
        """Close the bar; written lines stay."""
        self.describe = None  # it refers to the run, which could then not be pickled


class LineProgress(NullProgress):
    """Plain lines for files, logs and continuous integration: no bar, and each line is flushed.

    In an epoch that takes long, a line of progress follows every 30 seconds.
    """

    def __init__(self) -> None:
        self._widths: list[int] = []
        self._epochs = 0

    def track(self, batches: Any) -> Iterator[Any]:
        """Yield ``batches``; write how many of them are done after each 30 seconds."""
        begin = last = time.monotonic()
        for done, batch in enumerate(batches, 1):
            yield batch
            now = time.monotonic()
            if now - last >= SECONDS:
                last, n = now, len(batches)
                left = clock((now - begin) / done * (n - done))
                text = f", {self.describe()}" if self.describe else ""
                write_text(f"{self.what} {self._epochs}: batch {done} of {n}, {left} left{text}")

    def epochs_done(self, epochs: int, n_epochs: int) -> None:
        """Count the epochs."""
        self._epochs = epochs

    def write(self, line: str | Sequence[str], table: bool = False) -> None:
        """Write a line, or a row of cells in the columns of the header."""
        write_text(line if isinstance(line, str) else self._row(line))

    def _row(self, cells: Sequence[str]) -> str:
        if not self._widths:
            self._widths = [max(MIN_WIDTH, len(cell)) for cell in cells]
        widths = [*self._widths, *([MIN_WIDTH] * len(cells))]
        return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=False)).rstrip()


class BarProgress(LineProgress):
    """fastprogress's bars: one over the epochs, and one below it over the batches of the current epoch."""

    def __init__(self, notebook: bool) -> None:
        super().__init__()
        from fastprogress import fastprogress

        self._notebook = notebook
        self._master_bar = fastprogress.NBMasterBar if notebook else fastprogress.ConsoleMasterBar
        self._progress_bar = fastprogress.NBProgressBar if notebook else fastprogress.ConsoleProgressBar
        self.master: Any = None
        self.child: Any = None
        self._rows: list[Sequence[str]] = []  # of a notebook's table
        self._lines: list[str] = []  # written below it
        self._is_written = True  # fastprogress has these rows and lines
        self._shown = self._last_write = -math.inf
        self._send: Callable[[], None] | None = None  # shows the bars and the table of a notebook
        self._figure: Any = None  # IPython's handle of the figure in a notebook

    def start(self, n_epochs: int) -> None:
        """Show the bar over the epochs."""
        self.master = master = self._master_bar(range(n_epochs), total=n_epochs)
        if self._notebook:
            self._send, master.show = master.show, self._redraw
        self.epochs_done(0, n_epochs)

    def track(self, batches: Any) -> Iterator[Any]:
        """Yield ``batches`` under a bar."""
        if self.master is None:
            yield from batches
            return
        self.child = child = self._progress_bar(batches, total=len(batches), parent=self.master)
        child.prefix = f"{self.what} {self._epochs + 1}/{self.master.main_bar.total} :"
        redraw, end = child.update_bar, child.on_iter_end

        def update_bar(done: int) -> None:
            child.comment = self.describe() if self.describe else ""
            self._draw(redraw, done)

        child.update_bar = update_bar
        child.on_iter_end = lambda: self._draw(end)
        child.update(0)
        try:
            for done, batch in enumerate(batches, 1):
                yield batch
                child.update(done)
        finally:
            if self.child is child:
                child.on_iter_end()

    def _draw(self, draw: Callable[..., None], *arguments: Any) -> None:
        """Draw a bar, unless the terminal is closed; in a notebook errors are raised."""
        try:
            draw(*arguments)
        except (OSError, ValueError) as error:
            if self._notebook:
                raise
            report_closed(sys.stdout, error)

    def write(self, line: str | Sequence[str], table: bool = False) -> None:
        """Write a line or a row: into the notebook's table, or above the terminal's bar."""
        if self.master is not None and self._notebook:
            if table:
                self._rows.append(line)
            else:
                self._lines.append(str(line))
            self._is_written = False
            now = time.monotonic()
            self._redraw(now=now - self._last_write >= REDRAW)  # a row of a long epoch does not wait for a batch
            if len(self._rows) > 1:  # the header says nothing about how long an epoch takes
                self._last_write = now
            return
        if self.child is not None:
            write_text("\r" + " " * self.child.max_len, end="\r")  # the bar is redrawn below the line
        super().write(line, table)

    def _redraw(self, now: bool = False) -> None:
        """Show the bars and the table of a notebook; if not ``now``, only when the last display is some time ago.

        The front end gets the whole table each time, which can take longer than a short epoch.
        """
        if not now and time.monotonic() - self._shown < REDRAW:
            return
        self._fill_table()
        if self._send is not None:
            self._send()
        self._shown = time.monotonic()

    def _fill_table(self) -> None:
        """Give fastprogress the rows and lines; it shows them below the bars, and at the end without bars."""
        if self._is_written or self.master is None:
            return
        self._is_written, self._shown = True, time.monotonic()  # its method `write` calls `_redraw`
        self.master.lines, self.master.text_parts = self._rows[:-1], []
        for row in self._rows[-1:]:
            self.master.write(row, table=True)
        for line in self._lines:
            self.master.write(line)

    def show(self, draw: Callable[[], Any]) -> None:
        """Show the figure that ``draw`` returns below the bar of a notebook, in place of the last one."""
        if not self._notebook:
            return
        display = importlib.import_module("IPython.display")
        content = io.BytesIO()
        draw().savefig(content, format="png")
        image = display.Image(content.getvalue())
        if self._figure is None:
            self._figure = display.display(image, display_id=True)
        else:
            self._figure.update(image)

    def epochs_done(self, epochs: int, n_epochs: int) -> None:
        """Update the bar over the epochs."""
        self._epochs = epochs
        self.master.main_bar.total = n_epochs
        if epochs >= n_epochs:
            self._fill_table()  # fastprogress leaves the bars away now
        self.master.update(epochs)

    def close(self, interrupted: bool = False) -> None:
        """Close the bar; the table of a notebook stays, and an interrupted bar is marked."""
        self._fill_table()
        master, child = self.master, self.child
        self.master = self.child = self.describe = None
        if master is None:
            return
        if not interrupted:
            master.on_iter_end()
        elif self._notebook:
            self._shown = -math.inf
            bar = child or master.main_bar
            bar.on_update(bar.last_v or 0, "interrupted", interrupted=True)
        else:
            write_text()


def _shell() -> Any:
    """Return IPython's shell, or None."""
    ipython = sys.modules.get("IPython")
    return None if ipython is None else ipython.get_ipython()


def in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook, which can show figures and HTML; a fork of it is not."""
    shell = _shell()
    session = getattr(getattr(shell, "kernel", None), "session", None)
    is_kernel = getattr(session, "pid", os.getpid()) == os.getpid()
    return is_kernel and type(shell).__name__ in ("ZMQInteractiveShell", "Shell")


def notebook_cell() -> int | None:
    """Return the number of the notebook's cell that runs; None outside of a notebook."""
    return getattr(_shell(), "execution_count", None) if in_notebook() else None


def make_bar(silent: bool = False) -> NullProgress:
    """Return the progress display for the current output: a notebook, a terminal, a file or, if silent, none."""
    if silent or is_muted():
        return NullProgress()
    if in_notebook():
        return BarProgress(notebook=True)
    if is_terminal(sys.stdout):
        return BarProgress(notebook=False)
    return LineProgress()
