"""A failure of one process ends all, with its own sentence; and processes are started by ``launch`` and the command."""

from __future__ import annotations

import re
import subprocess
import sys
import time

import pytest
from test_processes import HERE, environment, torchrun

from minifast.training import EVENTS

WHERE = ("on_batch_end",)
SLOW = ("loader", "before", "worker", "after", *(event for event in EVENTS if event != "on_batch_end"))


@pytest.mark.parametrize("where", [*WHERE, *(pytest.param(where, marks=pytest.mark.slow) for where in SLOW)])
def test_an_error_in_one_process_ends_all_and_names_process_and_cause(where):
    start = time.monotonic()
    done = torchrun(2, "failing.py", where)
    assert time.monotonic() - start < 60  # most of it is the start
    assert done.returncode != 0
    assert f"ValueError: broken in {where}" in done.stderr
    if where != "before":  # nothing of minifast was used yet, so only torchrun names the process
        assert "the error above is of process 1 of 2" in done.stderr
    assert done.stderr.count("Traceback (most recent call last)") <= 3 + (where == "worker")  # of it, and torchrun's


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["script", "notebook"])
def test_launch_returns_the_result_of_the_first_process_and_raises_the_error_of_any(kind):
    command = [sys.executable, str(HERE / "launched.py"), kind]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.usefixtures("pictures")
def test_the_command_trains_in_two_processes(tmp_path):
    command = [sys.executable, "-m", "minifast", "train", "mnist_sample", "--epochs", "1", "--lr", "0.05"]
    command += ["--nproc", "2", "--seed", "1", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("training and") == 1
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written >= {"model.pth", "export.pkl", "history.csv", "options.json", "schedule.png", "report.html"}
    page = (tmp_path / "out" / "report.html").read_text()
    counts = re.search(r"Confusion matrix: \d+ of (\d+) images are right", page)
    assert counts is not None
    assert f"and {counts[1]} validation images" in done.stdout
