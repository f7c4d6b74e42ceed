"""The page on several GPUs: its script runs under torchrun, and the messages that it explains are the real ones."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_processes import environment
from torch.utils.data import DataLoader, IterableDataset

from minifast import DataError, MinifastError
from minifast.data.loaders import DeviceDataLoader
from minifast.data.shards import Shards, _rows_of
from minifast.distributed import group
from minifast.distributed.agreement import compare
from minifast.distributed.exchange import gather_rows
from minifast.distributed.group import Group, _State, _state, current_group, local_gpu
from minifast.training.batch_checks import check_normalization

PAGE = (Path(__file__).parents[2] / "docs" / "how_to" / "several_gpus.md").read_text()
SCRIPT = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)[0]
TABLE = PAGE.partition("## What goes wrong\n")[2]
MESSAGES = re.findall(r"^\| `(.*?)` \|", TABLE, re.MULTILINE)


class Stream(IterableDataset):
    def __iter__(self):
        return iter([])


def read_stream(monkeypatch):
    next(iter(Shards(DeviceDataLoader(DataLoader(Stream()), "cpu"), Group(0, 2))))


def ask_for_group(monkeypatch):
    monkeypatch.setattr(_state, "alone", _State.alone)
    for name, value in {"RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    current_group()


def ask_for_gpu(monkeypatch):
    monkeypatch.setattr(_state, "group", Group(2, 4))
    monkeypatch.setattr(group, "local_rank", lambda: 2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    local_gpu()


def split_object(monkeypatch):
    _rows_of({"x": torch.device("cpu")}, slice(0, 1), 2)


def gather_object(monkeypatch):
    gather_rows(torch.distributions.Normal(0.0, 1.0), 2, True, Group(0, 2))


def compare_calls(monkeypatch):
    compare([{"fit_one_cycle": {"epochs": 1, "max_lr": lr}} for lr in (0.01, 0.02)], "")


def normalize_one_sample(monkeypatch):
    try:
        torch.nn.BatchNorm1d(3)(torch.randn(1, 3))
    except ValueError as error:
        check_normalization(error, [2, 1], 1)


def lose_a_process(monkeypatch):
    waiting = Group(0, 2, torch.distributed.HashStore())
    monkeypatch.setattr(_state, "group", waiting)
    monkeypatch.setattr(group, "PATIENCE", 0.01)
    monkeypatch.setattr(group, "leave", lambda: None)
    waiting.fail(RuntimeError("Connection closed by peer"))


IN_ONE_PROCESS = {
    "ended without an error": lose_a_process,
    "has 1 sample": normalize_one_sample,
    "differ in max_lr": compare_calls,
    "is an IterableDataset": read_stream,
    "are not set: MASTER": ask_for_group,
    "has no GPU": ask_for_gpu,
    "cannot be split over processes": split_object,
    "several processes cannot gather": gather_object,
}
IN_SEVERAL = ("The processes differ in checksum", "has no gradient in this batch", "differs in process 0 and process 1")


def message_with(words: str) -> list[str]:
    """The parts of the message on the page that has these words."""
    (found,) = [message for message in MESSAGES if words in message]
    return [part.strip() for part in found.split("...") if part.strip()]


@pytest.mark.parametrize("words", IN_ONE_PROCESS)
def test_messages_on_the_page_are_raised(words, monkeypatch):
    with pytest.raises((MinifastError, DataError)) as error:
        IN_ONE_PROCESS[words](monkeypatch)
    for part in message_with(words):
        assert part in str(error.value)


def test_each_message_on_the_page_is_tested():
    assert len(MESSAGES) == len(IN_ONE_PROCESS) + len(IN_SEVERAL)
    assert all(message_with(words) for words in IN_SEVERAL)  # test_failures.py and the scripts below raise them


def run(tmp_path: Path, script: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "train.py").write_text(script)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "train.py"]
    return subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_the_script_of_the_page_trains_in_two_processes(tmp_path):
    done = run(tmp_path, SCRIPT)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("train_loss") == done.stdout.count("706 parameters, 706 of them trainable") == 1
    assert (tmp_path / "models").is_dir()
    assert (tmp_path / "losses.png").is_file()


@pytest.mark.slow
def test_random_data_without_a_seed_raise_the_error_on_the_page(tmp_path):
    done = run(tmp_path, SCRIPT.replace("set_seed(0)", "").replace("seed=0, ", "seed=0, device='cpu', "))
    assert done.returncode != 0
    assert message_with("The processes differ in checksum")[0] in done.stderr


@pytest.mark.slow
def test_the_message_after_a_crash_is_that_of_the_page(tmp_path):
    (shown,) = re.findall(r"^```text\n(ValueError: bad .*?)\n```", PAGE, re.DOTALL | re.MULTILINE)
    failing = """
import os
class Fail(Callback):
    def on_batch_end(self):
        if os.environ["RANK"] == "1":
            raise ValueError("bad sample 40")
"""
    script = SCRIPT.replace("set_seed(0)", failing + "set_seed(0)").replace('"run1")', '"run1", callbacks=Fail())')
    done = run(tmp_path, script)
    assert done.returncode != 0
    assert all(line in done.stderr for line in shown.splitlines())
