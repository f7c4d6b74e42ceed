"""Files of tensors: whole or not at all, with the permissions others get, and read without running code."""

from __future__ import annotations

import io
import os
import pickle
import random
import threading
import tracemalloc
from pathlib import Path

import pytest
import torch
from conftest import FailsAt, toy_learner

from minifast import SaveModelCallback
from minifast.errors import FileFormatError
from minifast.utils import files

VALUES = {"weights": torch.arange(6.0).view(2, 3), "epoch": 3, "names": ["a", "b"]}


class Code:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_a_folder_stays_only_if_something_is_written_into_it(tmp_path):
    file = tmp_path / "models" / "a"
    files.check_writable(file)
    with pytest.raises(OSError, match="full"), files.replacing(file):
        raise OSError("full")
    learn = toy_learner(path=tmp_path)
    for options in ({}, {"callbacks": [SaveModelCallback()]}):
        with pytest.raises(OSError, match="gone"):
            learn.fit(1, **{**options, "callbacks": [*options.get("callbacks", []), FailsAt(0)]})
    assert not (tmp_path / "models").exists()
    (tmp_path / "models").mkdir()
    files.check_writable(file)
    assert (tmp_path / "models").is_dir()


def same(found, wanted) -> bool:
    return found["weights"].equal(wanted["weights"]) and {**found, "weights": 0} == {**wanted, "weights": 0}


@pytest.fixture
def umask():
    """Set the umask, and restore the test's own."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


# --- writing


@pytest.mark.parametrize("mmap", [False, True])
def test_what_was_written_is_read_back(tmp_path, mmap):
    file = tmp_path / "new" / "folder" / "x.pth"
    files.write(VALUES, file)
    assert same(files.read(file, mmap=mmap), VALUES)
    assert [path.name for path in file.parent.iterdir()] == ["x.pth"]


def test_an_open_file_is_written_and_read_in_place():
    stream = io.BytesIO()
    files.write(VALUES, stream)
    stream.seek(0)
    assert same(files.read(stream), VALUES)


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("step", ["save", "sync", "move"])
def test_a_failure_on_the_way_leaves_the_old_file_and_nothing_beside_it(tmp_path, monkeypatch, failure, step):
    file = tmp_path / "x.pth"
    files.write(VALUES, file)
    before = file.read_bytes()

    owner, name = {"save": (torch, "save"), "sync": (os, "fsync"), "move": (Path, "replace")}[step]
    save = torch.save

    def fail(*args, **kwargs):
        if step == "save":
            save(*args, **kwargs)  # so that there is something to leave behind
        raise failure

    monkeypatch.setattr(owner, name, fail)
    with pytest.raises(type(failure)):
        files.write({"weights": torch.zeros(1)}, file)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_what_cannot_be_pickled_leaves_the_old_file(tmp_path):
    file = tmp_path / "x.pth"
    files.write(VALUES, file)
    with pytest.raises((pickle.PicklingError, AttributeError)):
        files.write({"weights": torch.zeros(1), "function": lambda: None}, file)
    assert same(files.read(file), VALUES)
    assert list(tmp_path.iterdir()) == [file]


def test_other_kinds_of_files_are_replaced_in_the_same_way(tmp_path):
    file = tmp_path / "new" / "history.csv"

    def write(text: str) -> None:
        with files.replacing(file) as beside:
            beside.write_text(text)
            assert file.exists() is (text == "new")  # the one of before, as long as the new one is not done
            if text == "new":
                raise RuntimeError

    write("old")
    with pytest.raises(RuntimeError):
        write("new")
    assert file.read_text() == "old"
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_file_has_the_permissions_that_the_umask_says(tmp_path, umask, mask, mode):
    umask(mask)
    files.write(VALUES, tmp_path / "x.pth")
    assert (tmp_path / "x.pth").stat().st_mode & 0o777 == mode
    assert umask(mask) == mask  # and the umask is as it was


def test_the_umask_is_not_changed_for_other_threads(tmp_path, umask):
    umask(0o077)
    stop, modes = threading.Event(), set()

    def create():
        i = 0
        while not stop.is_set():
            path = tmp_path / f"other{i}"
            path.touch()
            modes.add(path.stat().st_mode & 0o777)
            path.unlink()
            i += 1

    thread = threading.Thread(target=create)
    thread.start()
    for _ in range(100):
        files.write_rows([["a"]], tmp_path / "x.csv")
    stop.set()
    thread.join()
    assert modes == {0o600}


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664])
def test_a_file_that_is_replaced_keeps_its_permissions(tmp_path, umask, mode):
    file = tmp_path / "x.pth"
    files.write(VALUES, file)
    file.chmod(mode)
    seen = []
    with files.replacing(file) as temporary:
        seen.append(temporary.stat().st_mode & 0o777)
        temporary.write_bytes(b"new")
    assert file.stat().st_mode & 0o777 == mode
    assert seen[0] & ~mode == 0, "nobody else may read the file while it is written"


# --- with a checksum


@pytest.mark.parametrize("name", ["run", "lr[1]", "run?", "*"])
def test_only_the_leftovers_of_the_same_name_are_removed(tmp_path, name):
    file = tmp_path / f"{name}.checkpoint"
    own, other = tmp_path / f".{name}.checkpoint.123", tmp_path / ".run1.checkpoint.456"
    own.touch()
    other.touch()
    files.CheckedFile(file).write(VALUES)
    assert not own.exists()
    assert other.exists()
    assert same(files.read_checked(file)[0], VALUES)


def test_a_damaged_file_does_not_replace_the_previous_one(tmp_path):
    file = tmp_path / "run.checkpoint"
    first, second = files.CheckedFile(file), files.CheckedFile(file)
    first.write(VALUES)
    first.write({**VALUES, "epoch": 4})
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    second.write({**VALUES, "epoch": 5})
    assert files.is_complete(files.previous(file))
    file.unlink()
    assert same(files.read_checked(file)[0], VALUES)
    first.write({**VALUES, "epoch": 6})
    file.write_bytes(b"damaged while the same process goes on")
    first.write({**VALUES, "epoch": 7})
    assert not files.previous(file).read_bytes().startswith(b"damaged")


def test_a_save_needs_no_copy_of_the_tensors_and_does_not_read_its_last_file(tmp_path, monkeypatch):
    values = {f"weight{i}": torch.randn(500_000) for i in range(10)}  # 20 MB
    largest, reads = [0], []
    write = files._HashingWriter.write

    def note_size(self, data):
        largest[0] = max(largest[0], memoryview(data).nbytes)
        return write(self, data)

    monkeypatch.setattr(files._HashingWriter, "write", note_size)
    monkeypatch.setattr(files, "is_complete", lambda file: reads.append(file))
    file = files.CheckedFile(tmp_path / "run.checkpoint")
    tracemalloc.start()
    for _ in range(3):
        file.write(values)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000
    assert largest[0] <= 2_000_000, "one tensor at most"
    assert len(reads) == 1, "of a file that another process may have written"
    monkeypatch.undo()
    found, newest = files.read_checked(file.file)
    assert newest
    assert all(torch.equal(found[name], value) for name, value in values.items())


# --- reading


@pytest.mark.parametrize(
    ("there", "said"), [(["b", "a"], r"a, b\.$"), ([], r"no saved models\.$")], ids=["some", "none"]
)
def test_a_missing_file_is_named_with_what_is_there(tmp_path, there, said):
    for name in there:
        files.write(VALUES, tmp_path / f"{name}.pth")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FileNotFoundError, match=rf"There is no file .*x\.pth; its folder has {said}"):
        files.read(tmp_path / "x.pth")


def test_a_missing_folder_is_no_other_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no file .*x\.pth"):
        files.read(tmp_path / "no" / "such" / "x.pth")


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_file_that_is_cut_off_is_named(tmp_path, share, mmap):
    file = tmp_path / "x.pth"
    files.write(VALUES, file)
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(FileFormatError, match=r"x\.pth .*\.$"):
        files.read(file, mmap=mmap)


@pytest.mark.parametrize(
    "content",
    [b"epoch,loss\n0,0.5\n", b"\x89PNG\r\n\x1a\n", b"<html></html>", b"\x80\x02", b"\x80\x04}.", b"0", b"a"],
)
def test_a_file_of_another_kind_is_named(tmp_path, content):
    file = tmp_path / "x.pth"
    file.write_bytes(content)
    with pytest.raises(FileFormatError, match=r"x\.pth .*\.$"):
        files.read(file)


def test_whatever_the_bytes_are_reading_them_ends_in_one_kind_of_error(tmp_path):
    file = tmp_path / "x.pth"
    old = io.BytesIO()
    torch.save(VALUES, old, _use_new_zipfile_serialization=False)
    rng = random.Random(0)
    contents = [rng.randbytes(rng.choice([1, 5, 50])) for _ in range(60)]
    contents += [old.getvalue()[:length] for length in range(0, len(old.getvalue()), 9)]
    for content in contents:
        file.write_bytes(content)
        with pytest.raises(FileFormatError, match=r"x\.pth"):
            files.read(file)


@pytest.mark.parametrize("kind", ["torch", "old torch", "pickle"])
def test_code_in_a_file_is_not_run(tmp_path, kind):
    file, trace = tmp_path / "x.pth", tmp_path / "trace"
    values = {"weights": torch.zeros(1), "extra": Code(f"touch {trace}")}
    if kind == "pickle":
        file.write_bytes(pickle.dumps(values, protocol=2))
    else:
        torch.save(values, file, _use_new_zipfile_serialization=kind == "torch")
    with pytest.raises(FileFormatError, match=r"x\.pth holds more than tensors .* can run code"):
        files.read(file)
    assert not trace.exists()


def test_a_whole_model_is_refused_too(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "x.pth")
    with pytest.raises(FileFormatError, match=r"x\.pth holds more than tensors"):
        files.read(tmp_path / "x.pth")


def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    files.write(VALUES, tmp_path / "x.pth")

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(torch, "load", refuse)
    with pytest.raises((FileFormatError, PermissionError), match=r"Permission denied"):
        files.read(tmp_path / "x.pth")


def test_load_the_weights_of_a_data_parallel_model(tmp_path) -> None:
    learn, other = toy_learner(), toy_learner()
    for parameter in other.model.parameters():
        parameter.data.add_(1)
    file = tmp_path / "parallel.pth"
    torch.save(torch.nn.DataParallel(other.model).state_dict(), file)
    learn.load(file)
    assert all(map(torch.equal, learn.model.state_dict().values(), other.model.state_dict().values()))
