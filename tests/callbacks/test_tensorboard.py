"""The values written for TensorBoard, read back with its own reader."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from conftest import FailsAt, toy_learner

from minifast import Callback, Learner, TensorBoardCallback
from minifast.training.averages import Losses


@pytest.fixture
def tensorboard(monkeypatch):
    # TensorBoard reads files in the order of their names, which hold the second and a counter of the process: within
    # one second, 10 comes before 9.
    writer = pytest.importorskip("tensorboard.summary.writer.event_file_writer", reason="tensorboard is not installed")
    monkeypatch.setattr(writer, "_global_uid", type(writer._global_uid)(0))
    return pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is not installed"
    )


def curves(reader, folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = reader.EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def rounded(values) -> list:
    return [pytest.approx(value, rel=1e-6) for value in values]


def expected(learn: Learner, n_batches: int = 3) -> dict[str, list]:
    recorder = learn.recorder
    batches = range(1, len(recorder.lrs) + 1)
    ends = range(n_batches, n_batches * len(recorder.rows) + 1, n_batches)
    return {
        "loss/batch": list(zip(batches, rounded(recorder.raw_losses), strict=True)),
        "loss/train": list(zip(batches, rounded(recorder.losses), strict=True)),
        "rate/lr": list(zip(batches, rounded(recorder.lrs), strict=True)),
        "rate/mom": list(zip(batches, rounded(recorder.moms), strict=True)),
        "loss/valid": list(zip(ends, rounded(recorder.val_losses), strict=True)),
        "metrics/accuracy": list(zip(ends, rounded(value for (value,) in recorder.metrics), strict=True)),
    }


def test_all_curves_are_written(tensorboard, tmp_path):
    learn = toy_learner(path=tmp_path, callbacks=[TensorBoardCallback()])
    learn.fit_one_cycle(3, 1e-2)
    assert learn.tensor_board_callback.folder == tmp_path / "runs" / "run1"
    assert curves(tensorboard, tmp_path / "runs" / "run1") == expected(learn)


def test_each_fit_has_a_folder_of_its_own_and_the_finder_none(tensorboard, tmp_path):
    learn = toy_learner(path=tmp_path, callback_fns=TensorBoardCallback)
    learn.lr_find(num_it=5)
    assert list(tmp_path.iterdir()) == []
    learn.fit(1)
    learn.fit(2)
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["run1", "run2"]
    assert curves(tensorboard, tmp_path / "runs" / "run2") == expected(learn)


def test_a_fit_of_the_same_name_replaces_what_the_first_has_shown(tensorboard, tmp_path):
    learn = toy_learner(path=tmp_path, callbacks=[TensorBoardCallback(log_dir="logs", name="mine")])
    learn.fit(3)
    learn.fit(1)
    assert curves(tensorboard, tmp_path / "logs" / "mine") == expected(learn)


def test_what_was_trained_of_an_epoch_that_failed_is_written(tensorboard, tmp_path):
    learn = toy_learner(path=tmp_path, callbacks=[TensorBoardCallback(), FailsAt(5)])
    with pytest.raises(OSError, match="gone"):
        learn.fit(3)
    assert [step for step, _ in curves(tensorboard, tmp_path / "runs" / "run1")["loss/train"]] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("fails_at", [1, 3, 5, 8])
def test_a_resumed_run_continues_in_its_folder(tensorboard, tmp_path, fails_at):
    def learner(at):
        return toy_learner(path=tmp_path, callbacks=[TensorBoardCallback(), FailsAt(at)])

    with pytest.raises(OSError, match="gone"):
        learner(fails_at).fit(4, 1e-2, checkpoint="run", every=2)
    again = learner(None)
    again.fit(4, 1e-2, checkpoint="run", every=2)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["run1"]
    assert curves(tensorboard, tmp_path / "runs" / "run1") == expected(again)
    learner(None).fit(4, 1e-2, checkpoint="run", every=2)  # it is finished
    assert curves(tensorboard, tmp_path / "runs" / "run1") == expected(again)


def test_within_an_epoch_no_loss_is_read(tensorboard, tmp_path, monkeypatch):
    read = []
    original = Losses.read

    class Looks(Callback):
        _order = 1

        def on_batch_end(self, train):
            if train:
                assert read == []

        def on_epoch_end(self):
            read.clear()

    monkeypatch.setattr(Losses, "read", lambda self: read.append(1) or original(self))
    toy_learner(path=tmp_path, callbacks=[TensorBoardCallback(), Looks()]).fit(2)


def test_without_tensorboard_the_error_names_the_install_command(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "tensorboard" or "tensorboard" in name]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    wanted = r'needs a package .*\(.*tensorboard.*\); install it with: python -m pip install "minifast\[tensorboard\]"'
    with pytest.raises(ImportError, match=wanted):
        TensorBoardCallback()
