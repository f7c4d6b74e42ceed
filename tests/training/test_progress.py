"""What a fit shows: bars and rows in a terminal and a notebook, plain lines in a file, nothing when silent."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import re
import signal
import subprocess
import sys
import textwrap
import types
from pathlib import Path

import pytest
from conftest import as_html, toy_learner

import minifast
from minifast import Callback, LearnerCallback
from minifast.training import progress
from minifast.training.progress import BarProgress, LineProgress, NullProgress, in_notebook, make_bar

ROOT = Path(minifast.__file__).parents[1]
HEADER = "epoch     train_loss  valid_loss  accuracy  time"
ROW = r"{}         \d\.\d{{6}}    \d\.\d{{6}}    \d\.\d{{6}}  00:\d\d"


def is_row(line: str, epoch: int) -> bool:
    return re.fullmatch(ROW.format(epoch), line) is not None


def screen(output: str) -> list[str]:
    """What a terminal shows after ``output``: its lines, written over where a carriage return leads back."""
    lines: list[list[str]] = [[]]
    column = 0
    for piece in re.findall(r"\x1b\[\d*K|.", output, re.S):
        line = lines[-1]
        if piece == "\r":
            column = 0
        elif piece == "\n":
            lines.append([])
            column = 0
        elif piece.endswith("K") and len(piece) > 1:  # erase what is right of here, or the whole line
            del line[0 if "2" in piece else column :]
        else:
            line += [" "] * (column + 1 - len(line))
            line[column] = piece
            column += 1
    return ["".join(line).rstrip() for line in lines]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def open_terminal(monkeypatch) -> Terminal:
    """Let the test's output go to a terminal; called in the test, because pytest sets its own output before it."""
    terminal = Terminal()
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "stdout", terminal)
    return terminal


# --- which one


def test_silence_where_it_is_wanted(monkeypatch) -> None:
    open_terminal(monkeypatch)
    assert type(make_bar(silent=True)) is NullProgress


def test_bars_in_a_terminal(monkeypatch) -> None:
    open_terminal(monkeypatch)
    assert type(make_bar()) is BarProgress


def test_lines_in_a_file(monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert type(make_bar()) is LineProgress


def test_a_process_without_an_output_trains_too(monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    learn = toy_learner(silent=False)
    learn.fit(1)
    learn.lr_find(num_it=3)


@pytest.mark.parametrize(
    ("shell", "notebook"),
    [("ZMQInteractiveShell", True), ("Shell", True), ("TerminalInteractiveShell", False), ("NoneType", False)],
)
def test_a_notebook_is_told_by_its_shell(monkeypatch, shell, notebook) -> None:
    ipython = types.ModuleType("IPython")
    ipython.get_ipython = lambda: None if shell == "NoneType" else type(shell, (), {})()
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    assert in_notebook() is notebook
    monkeypatch.delitem(sys.modules, "IPython")
    assert in_notebook() is False


def test_all_answer_to_the_same_names() -> None:
    names = {name for name in vars(NullProgress) if not name.startswith("_")}
    assert names == {"what", "describe", "start", "track", "write", "show", "epochs_done", "close"}
    for kind in (LineProgress, BarProgress):
        assert {name for name in vars(kind) if not name.startswith("_")} <= names


# --- lines


def test_lines_and_rows(capsys) -> None:
    lines = LineProgress()
    lines.start(2)
    lines.write(["epoch", "a long name", "time"], table=True)
    assert list(lines.track([1, 2, 3])) == [1, 2, 3]
    lines.write(["0", "0.5", "00:01"], table=True)
    lines.write("a line as it is")
    lines.write(["10", "0.123456", "00:01", "more", "than the header"], table=True)
    lines.epochs_done(2, 2)
    lines.close()
    assert capsys.readouterr().out.splitlines() == [
        "epoch     a long name  time",
        "0         0.5          00:01",
        "a line as it is",
        "10        0.123456     00:01     more      than the header",
    ]


def test_silent_says_nothing_and_passes_batches_on(capsys) -> None:
    silent = NullProgress()
    silent.start(2)
    batches = [1, 2]
    assert silent.track(batches) is batches
    silent.write("x")
    silent.write(["x"], table=True)
    silent.epochs_done(1, 2)
    silent.close(interrupted=True)
    assert capsys.readouterr().out == ""


# --- a terminal


def test_a_fit_in_a_terminal_shows_bars_and_leaves_the_table(monkeypatch) -> None:
    terminal = open_terminal(monkeypatch)
    toy_learner(silent=False).fit(2)
    output = terminal.getvalue()
    frames = [frame for frame in output.split("\r") if "%" in frame]
    assert any("Epoch 1/2 : |" in frame and "█" in frame for frame in frames)
    assert any("Epoch 2/2 : |" in frame and "100.00% [3/3" in frame for frame in frames)
    assert any(re.search(r"\d\.\d{4}\]", frame) for frame in frames), "the loss stands behind the bar"
    header, first, second, *rest = screen(output)
    assert header == HEADER
    assert is_row(first, 0)
    assert is_row(second, 1)
    assert rest == [""]


def test_a_finder_in_a_terminal_shows_bars_and_leaves_one_line(monkeypatch) -> None:
    terminal = open_terminal(monkeypatch)
    toy_learner(silent=False).lr_find(num_it=7)
    output = terminal.getvalue()
    assert "lr_find, pass 3/3 : |" in output
    line, *rest = screen(output)
    assert line.endswith("learn.recorder.plot() shows the losses.")
    assert "█" not in line
    assert rest == [""]


def test_silence_in_a_terminal(monkeypatch) -> None:
    terminal = open_terminal(monkeypatch)
    learn = toy_learner()
    learn.fit(1)
    learn.lr_find(num_it=3)
    learn.validate()
    learn.get_preds()
    assert terminal.getvalue() == ""


def test_an_epoch_that_is_stopped_and_a_run_that_is_stopped(monkeypatch) -> None:
    terminal = open_terminal(monkeypatch)

    class Stops(Callback):
        def on_batch_end(self, iteration, train):
            return {"stop_epoch": True, "stop_training": iteration > 2} if train else None

    learn = toy_learner(silent=False, callbacks=[Stops()])
    learn.fit(9)
    header, *rows, last = screen(terminal.getvalue())
    assert header == HEADER
    assert [is_row(row, epoch) for epoch, row in enumerate(rows)] == [True] * 4
    assert last == ""


def test_a_run_that_begins_at_a_later_epoch(monkeypatch) -> None:
    terminal = open_terminal(monkeypatch)
    learn = toy_learner(silent=False)
    learn.fit_one_cycle(4, 1e-2, start_epoch=2)
    output = terminal.getvalue()
    assert "Epoch 3/4 : |" in output
    assert "Epoch 1/4" not in output
    header, first, second, last = screen(output)
    assert header == HEADER
    assert is_row(first, 2)
    assert is_row(second, 3)
    assert last == ""


@pytest.mark.parametrize("text", ["hi", "a text that is longer than the bar, " * 5])
def test_a_line_that_a_callback_writes_in_the_middle_stands_alone(monkeypatch, text) -> None:
    terminal = open_terminal(monkeypatch)

    class Writes(Callback):
        def on_batch_end(self, pbar, iteration, train):
            if train and iteration == 1:
                pbar.write(text)

    toy_learner(silent=False, callbacks=[Writes()]).fit(1)
    header, written, row, *rest = screen(terminal.getvalue())
    assert (header, written) == (HEADER, text.rstrip())
    assert is_row(row, 0)
    assert rest == [""]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_bar_is_closed_on_a_line_of_its_own(monkeypatch, error) -> None:
    terminal = open_terminal(monkeypatch)

    class Fails(Callback):
        def on_batch_end(self, iteration):
            if iteration == 4:
                raise error

    learn = toy_learner(silent=False, callbacks=[Fails()])
    with pytest.raises(error):
        learn.fit(3)
    before = len(terminal.getvalue())
    print("what comes next")
    header, row, bar, *rest = screen(terminal.getvalue())
    assert header == HEADER
    assert is_row(row, 0)
    assert bar.startswith("Epoch 2/3 :")
    stopped = (
        ["Stopped in epoch 1 at batch 1 of 3; you can continue to train the learner."]
        if error is KeyboardInterrupt
        else []
    )
    assert rest == [*stopped, "what comes next", ""]
    assert terminal.getvalue()[before:] == "what comes next\n"
    learn.callbacks = []
    learn.fit(1)
    assert is_row(screen(terminal.getvalue())[-2], 0)


@pytest.mark.parametrize("event", ["on_train_begin", "on_epoch_begin", "on_loss_begin", "on_step_end"])
def test_an_error_before_the_first_step_has_no_empty_table_above_it(event, capsys) -> None:
    def fail(self):
        raise RuntimeError

    fails = type("Fails", (Callback,), {event: fail})()
    with pytest.raises(RuntimeError):
        toy_learner(silent=False, callbacks=[fails]).fit(1)
    assert ("epoch" in capsys.readouterr().out) == (event == "on_step_end")


def test_the_bar_is_closed_also_when_the_run_fails_before_its_first_batch(monkeypatch) -> None:
    terminal = open_terminal(monkeypatch)

    class Fails(Callback):
        def on_train_begin(self):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        toy_learner(silent=False, callbacks=[Fails()]).fit(1)
    print("what comes next")
    assert screen(terminal.getvalue())[-2] == "what comes next"


def test_batches_come_one_by_one_and_all(monkeypatch) -> None:
    open_terminal(monkeypatch)
    bars = BarProgress(notebook=False)
    assert list(bars.track([1, 2])) == [1, 2]  # before a run began, as in get_preds
    bars.start(1)
    batches = bars.track(range(100))
    assert next(iter(batches)) == 0
    assert list(bars.track(range(100))) == list(range(100))
    bars.close()
    bars.close()


def test_a_bar_is_not_drawn_for_each_of_many_batches(monkeypatch) -> None:
    open_terminal(monkeypatch)
    bars = BarProgress(notebook=False)
    bars.start(1)
    described = []
    bars.describe = lambda: described.append(1) or "x"
    for _ in bars.track(range(20_000)):
        pass
    bars.close()
    assert len(described) < 100


# --- a real terminal

SCRIPT = """
    import os, signal, torch
    torch.set_num_threads(1)
    from torch.utils.data import DataLoader, TensorDataset
    from minifast import *

    class Interrupts(Callback):
        def on_batch_end(self, iteration):
            if iteration == 4:
                os.kill(os.getpid(), signal.SIGINT)

    items = TensorDataset(torch.randn(60, 10), torch.arange(60) % 2)
    data = DataBunch(DataLoader(items, 20), DataLoader(items, 20), device="cpu")
    learn = Learner(data, simple_ann(10, 2, 4), metrics=[accuracy])
    learn.fit(2)
    try:
        learn.fit(3, callbacks=[Interrupts()])
    except KeyboardInterrupt:
        print("caught")
    learn.fit(1)
"""


@pytest.mark.slow
def test_a_script_in_a_real_terminal(tmp_path) -> None:
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "100", "PYTHONWARNINGS": "error"}
    terminal, other_end = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdin=other_end,
        stdout=other_end,
        stderr=other_end,
        env=os.environ | environment,
        start_new_session=True,
    )
    os.close(other_end)
    output = b""
    try:
        while chunk := os.read(terminal, 4096):
            output += chunk
    except OSError:  # the other end is closed
        pass
    finally:
        os.close(terminal)
        status = process.wait()
    text = output.decode().replace("\r\n", "\n")
    assert status == 0, text
    assert "█" in text
    lines = screen(text)
    assert lines[5].startswith("Epoch 2/3 :")
    assert [lines[i] for i in (0, 3, 8)] == [HEADER] * 3
    assert [is_row(lines[i], epoch) for i, epoch in ((1, 0), (2, 1), (4, 0), (9, 0))] == [True] * 4
    assert lines[6:8] == ["Stopped in epoch 1 at batch 1 of 3; you can continue to train the learner.", "caught"]
    assert lines[10:] == [""]


# --- a notebook


class Display:
    """IPython's display, as far as fastprogress uses it: handles that remember what they showed."""

    def __init__(self) -> None:
        self.shown: list[list[str]] = []

    def __call__(self, html, display_id=False):
        history = [as_html(html)]
        self.shown.append(history)
        return types.SimpleNamespace(update=lambda html: history.append(as_html(html))) if display_id else None


@pytest.fixture
def notebook(monkeypatch):
    from fastprogress import fastprogress

    display = Display()
    ipython = types.ModuleType("IPython.display")
    ipython.display, ipython.HTML = display, lambda text: text
    monkeypatch.setitem(sys.modules, "IPython.display", ipython)  # what later versions of fastprogress import
    monkeypatch.setattr(fastprogress, "_style_shown", True, raising=False)
    monkeypatch.setattr(progress, "in_notebook", lambda: True)
    monkeypatch.setattr(fastprogress, "display", display, raising=False)
    monkeypatch.setattr(fastprogress, "HTML", lambda text: text, raising=False)
    return display


def cells(html: str) -> list[str]:
    return re.findall(r"<t[hd]>(.*?)</t[hd]>", html, re.S)


def test_a_fit_in_a_notebook_shows_bars_and_leaves_the_table(notebook, capsys, monkeypatch) -> None:
    monkeypatch.setattr(progress, "REDRAW", 0.0)
    toy_learner(silent=False).fit(2)
    live = notebook.shown[-1]
    assert any("<progress" in html for html in live)
    assert any("Epoch" in html or "[3/3" in html for html in live)
    found = cells(live[-1])
    assert found[:5] == ["epoch", "train_loss", "valid_loss", "accuracy", "time"]
    assert (found[5], found[10]) == ("0", "1")
    assert "<progress" not in live[-1]
    assert capsys.readouterr().out == ""


def test_an_interrupted_fit_in_a_notebook_is_marked_and_keeps_its_rows(notebook) -> None:
    class Interrupts(Callback):
        def on_batch_end(self, iteration):
            if iteration == 4:
                raise KeyboardInterrupt

    learn = toy_learner(silent=False, callbacks=[Interrupts()])
    with pytest.raises(KeyboardInterrupt):
        learn.fit(3)
    last = notebook.shown[-1][-1]
    assert "interrupted" in last.lower()
    assert cells(last)[5] == "0"
    learn.callbacks = []
    learn.fit(1)
    assert "interrupted" not in notebook.shown[-1][-1].lower()


class Clock:
    """A clock that moves by ``step`` seconds each time it is read."""

    def __init__(self, step: float) -> None:
        self.now, self.step = 0.0, step

    def monotonic(self) -> float:
        self.now += self.step
        return self.now


class Ends(Callback):
    """Write a line, and raise ``error`` in the second batch of the last epoch."""

    def __init__(self, error) -> None:
        self.error = error

    def on_batch_end(self, epoch, n_epochs, num_batch, train, pbar):
        if train and epoch == n_epochs - 1 and num_batch == 1 and self.error:
            pbar.write("the end")
            raise self.error


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, RuntimeError])
def test_short_epochs_in_a_notebook_are_shown_together_and_none_is_lost(notebook, monkeypatch, error) -> None:
    shown = {}
    for step in (0.0, 1.0):
        monkeypatch.setattr(progress, "time", Clock(step))
        with pytest.raises(error) if error else contextlib.nullcontext():
            toy_learner(silent=False, callbacks=[Ends(error)]).fit(40)
        live = notebook.shown[-1]
        assert cells(live[-1])[5::5] == [str(epoch) for epoch in range(39 if error else 40)]
        assert ("the end" in live[-1]) == bool(error)
        shown[step] = len(live)
    assert shown[0.0] <= 6, "all epochs within one moment"
    assert shown[1.0] > 40 * 3, "each of them takes seconds"


def test_the_row_of_a_long_epoch_is_shown_at_once(notebook, monkeypatch) -> None:
    clock = Clock(0.0)
    monkeypatch.setattr(progress, "time", clock)
    seen = []

    class Looks(Callback):
        def on_epoch_begin(self, epoch):
            seen.append(cells(notebook.shown[-1][-1])[5::5])
            clock.now += 1  # this epoch takes a second

    toy_learner(silent=False, callbacks=[Looks()]).fit(3)
    assert seen == [[], ["0"], ["0", "1"]]


def test_a_silent_fit_in_a_notebook_shows_nothing(notebook) -> None:
    toy_learner().fit(1)
    assert notebook.shown == []


def test_a_finder_in_a_notebook_leaves_one_line(notebook, capsys) -> None:
    toy_learner(silent=False).lr_find(num_it=5)
    assert "<progress" not in notebook.shown[-1][-1]
    assert len(capsys.readouterr().out.splitlines()) == 1


# --- Ctrl-C from outside


def test_a_signal_from_outside_stops_a_fit(monkeypatch) -> None:
    terminal = open_terminal(monkeypatch)

    class Signals(LearnerCallback):
        def on_backward_begin(self, iteration):
            if iteration == 1:
                signal.raise_signal(signal.SIGINT)

    learn = toy_learner(silent=False, callback_fns=[Signals])
    with pytest.raises(KeyboardInterrupt):
        learn.fit(1)
    assert screen(terminal.getvalue())[-2].startswith("Stopped in epoch 0 at batch 1 of 3")


def test_without_a_bar_a_line_of_progress_follows_after_some_time(monkeypatch, capsys):
    from minifast.training import progress

    monkeypatch.setattr(progress, "SECONDS", 0.0)
    lines = progress.LineProgress()
    lines.start(2)
    lines.epochs_done(1, 2)
    assert list(lines.track([7, 8])) == [7, 8]
    assert capsys.readouterr().out.splitlines() == [
        "Epoch 1: batch 1 of 2, 00:00 left",
        "Epoch 1: batch 2 of 2, 00:00 left",
    ]
    monkeypatch.setattr(progress, "SECONDS", 60.0)
    assert list(lines.track([7, 8])) == [7, 8]
    assert capsys.readouterr().out == ""
