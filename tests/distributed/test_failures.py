"""A failure of one process ends all, with its own sentence; and processes are started by ``launch`` and the command."""

from __future__ import annotations

import re
import subprocess
import sys
import time

import pytest
from test_processes import HERE, environment, torchrun

from minifast.training import EVENTS

QUICK = ("on_batch_end",)
SLOW = (
    *(event for event in EVENTS if event not in QUICK),
    *("loader", "worker", "loss", "metric", "step", "scheduler", "validation", "preds", "before", "after"),
)
SECONDS = 30  # after the failure


def ended(tmp_path, size: int, rank: int, where: str):
    """The end of processes of which one fails; it must come soon after the failure."""
    file, begin = tmp_path / "failed", time.time()
    done = torchrun(size, "failing.py", file, rank, where)
    assert done.returncode != 0
    failed = file.stat().st_mtime
    # Where other programs keep all cores busy, the start takes longer than that too.
    assert time.time() - failed < max(SECONDS, failed - begin)
    return done


@pytest.mark.parametrize("where", [*QUICK, *(pytest.param(where, marks=pytest.mark.slow) for where in SLOW)])
def test_an_error_in_one_process_ends_all_and_names_process_and_cause(where, tmp_path):
    size, rank = (3, 2) if where in ("loader", "metric", "on_epoch_end") else (2, len(where) % 2)
    done = ended(tmp_path, size, rank, where)
    assert f"ValueError: broken in {where}" in done.stderr
    if where != "before":  # nothing of minifast was used yet, so only torchrun names the process
        assert f"the error above is of process {rank} of {size}" in done.stderr
    assert done.stderr.count("Traceback (most recent call last)") <= 3 + (where == "worker")  # of it, and torchrun's


@pytest.mark.slow
@pytest.mark.parametrize("rank", range(3))
def test_a_killed_process_ends_all(rank, tmp_path):
    done = ended(tmp_path, 3, rank, "kill")
    assert f"rank      : {rank} (local_rank: {rank})\n  exitcode  : -9" in done.stderr.rpartition("Root Cause")[2]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("unused", "MinifastError: The parameter more has no gradient in this batch, but it had one before"),
        ("changed", "MinifastError: The parameter more differs in process 0 and process 1 at the end of epoch 0"),
    ],
)
def test_steps_that_would_differ_between_processes_end_all_with_advice(where, message, rank, tmp_path):
    done = ended(tmp_path, 2, rank, where)
    assert message in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["script", "notebook"])
def test_launch_returns_the_result_of_the_first_process_and_raises_the_error_of_any(kind, tmp_path):
    command = [sys.executable, str(HERE / "launched.py"), kind]
    temporary = environment(TMPDIR=str(tmp_path))
    done = subprocess.run(command, env=temporary, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(("torchelastic", "minifast"))]


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


@pytest.mark.slow
@pytest.mark.parametrize("data", ["nowhere", "mnist_sample"])
def test_a_notice_and_an_error_of_the_command_are_printed_once(data, tmp_path):
    command = [sys.executable, "-m", "minifast", "train", data, "--epochs", "1", "--lr", "0.05", "--bs", "512"]
    command += ["--nproc", "2", "--out", str(tmp_path / "out")]
    unreachable = environment(MINIFAST_HOME=str(tmp_path), https_proxy="http://127.0.0.1:9")
    done = subprocess.run(command, env=unreachable, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    if data == "nowhere":
        assert done.returncode == 2
        assert done.stderr == "minifast: nowhere is neither a folder nor the name of a data set.\n"
    else:
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("Training on generated images") == 1
