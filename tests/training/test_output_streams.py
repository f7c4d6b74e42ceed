"""Text on streams that cannot take it: a small encoding, a closed file, a broken pipe."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest
from conftest import toy_learner
from hypothesis import given, settings
from hypothesis import strategies as st

from minifast import DataBunch, Learner, simple_ann
from minifast.cli import main
from minifast.utils.text import write_text


class BrokenPipe(io.StringIO):
    """A stream whose reader is gone after some writes; a terminal if asked."""

    def __init__(self, writes: int, terminal: bool) -> None:
        super().__init__()
        self.writes, self.terminal = writes, terminal

    def isatty(self) -> bool:
        return self.terminal

    def write(self, text: str) -> int:
        self.writes -= 1
        if self.writes < 0:
            raise BrokenPipeError(32, "Broken pipe")
        return super().write(text)


@settings(deadline=None, max_examples=50)
@given(text=st.text(), encoding=st.sampled_from(["ascii", "latin-1", "cp1252", "utf-8"]))
def test_any_text_fits_any_encoding(text, encoding) -> None:
    content = io.BytesIO()
    stream = io.TextIOWrapper(content, encoding=encoding, newline="")
    write_text(text, stream=stream)
    written = content.getvalue().decode(encoding)
    assert written == text.encode(encoding, "backslashreplace").decode(encoding) + "\n"


def learner_beyond_ascii() -> Learner:
    import torch

    def metric(outputs, targets):
        return (outputs.argmax(1) == targets).float().mean()

    metric.__name__ = "précision"
    batches = [(torch.randn(8, 4), torch.randint(2, (8,)))] * 3
    data = DataBunch(batches, batches, device="cpu", classes=["ü", "b"])
    return Learner(data, simple_ann(4, 2), metrics=[metric])


@pytest.mark.parametrize("name", ["fit", "fit_one_cycle", "show_results", "summary", "check"])
def test_methods_of_a_learner_with_an_ascii_stdout(name, monkeypatch) -> None:
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stdout)
    learn = learner_beyond_ascii()
    if name in ("summary", "check"):
        print(getattr(learn, name)())
    elif name == "show_results":
        learn.show_results()
    else:
        getattr(learn, name)(1)
    stdout.flush()
    assert stdout.buffer.getvalue().decode("ascii")


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("writes", [0, 1, 3, 5])
def test_a_broken_pipe_ends_no_training(writes, terminal, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "stdout", BrokenPipe(writes, terminal))
    learn = toy_learner()
    learn.silent = False
    learn.fit_one_cycle(2, 1e-2)
    assert len(learn.recorder.val_losses) == 2
    assert capsys.readouterr().err.count("Broken pipe") == 1


def test_a_closed_stdout_ends_no_training(monkeypatch, capsys) -> None:
    stdout = io.StringIO()
    stdout.close()
    monkeypatch.setattr(sys, "stdout", stdout)
    learn = toy_learner()
    learn.silent = False
    learn.fit(2, 1e-2)
    assert len(learn.recorder.val_losses) == 2
    assert capsys.readouterr().err.count("I/O operation on closed file") == 1


@pytest.mark.parametrize("arguments", [["cache"], ["env"], ["schedule", "--list"]])
@pytest.mark.parametrize("stream", [BrokenPipe(0, False), None])
def test_a_command_whose_output_is_its_result_fails_without_it(
    stream, arguments, monkeypatch, capsys, tmp_path
) -> None:
    if stream is None:
        stream = io.StringIO()
        stream.close()
    monkeypatch.setenv("MINIFAST_HOME", str(tmp_path))
    assert main(arguments) == 0
    monkeypatch.setattr(sys, "stdout", stream)
    assert main(arguments) == 1
    assert "The output cannot be written (" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "predict", "compare", "schedule"])
def test_help_of_the_command_line_in_ascii(command) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    process = subprocess.run(
        [sys.executable, "-m", "minifast", command, "--help"], env=environment, capture_output=True
    )
    assert process.returncode == 0, process.stderr
