"""A lock lets one in at a time, although its file is removed whenever it is free."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import filelock
import pytest

from minifast.utils.locks import locked

N, TURNS = 4, 5


@pytest.fixture(autouse=True)
def _often(monkeypatch):
    """Let those who wait look often, so that they meet a file that is being removed."""
    acquire = filelock.FileLock.acquire
    monkeypatch.setattr(filelock.FileLock, "acquire", lambda lock, timeout: acquire(lock, timeout, poll_interval=1e-4))


def test_one_at_a_time_and_nothing_stays(tmp_path):
    inside, most = [], []
    (tmp_path / "new" / ".run_lock").parent.mkdir()
    (tmp_path / "new" / ".run_lock").touch()  # of a process that was killed

    def enter(i):
        for _ in range(TURNS):
            with locked(tmp_path / "new" / "run"):
                inside.append(i)
                most.append(len(inside))
                time.sleep(0.0005)
                inside.remove(i)

    with ThreadPoolExecutor(N) as threads:
        list(threads.map(enter, range(N)))
    assert most == [1] * N * TURNS
    assert not list((tmp_path / "new").iterdir())


def enter_and_fail(path):
    with locked(path, timeout=0.01):
        assert [file.name for file in path.parent.iterdir()] == [".run_lock"]
        raise ValueError("broken")


def test_a_lock_is_removed_after_an_error(tmp_path):
    with pytest.raises(ValueError, match="broken"):
        enter_and_fail(tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_a_lock_is_waited_for_as_long_as_asked(tmp_path):
    with locked(tmp_path / "run"), ThreadPoolExecutor(1) as other:
        failed = other.submit(enter_and_fail, tmp_path / "run")
        assert isinstance(failed.exception(), TimeoutError)


@pytest.mark.parametrize("error", [OSError("read-only"), NotImplementedError("no locks")])
def test_without_locks_all_enter(error, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(filelock.FileLock, "acquire", fail)
    entered = threading.Barrier(2, timeout=10)

    def enter(_):
        with locked(tmp_path / "run"):
            return entered.wait()

    with ThreadPoolExecutor(2) as threads:
        assert sorted(threads.map(enter, range(2))) == [0, 1]
