"""Runs that are kept and taken up again: equal to the bit, refused where they differ, whole on disk."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import toy_data, toy_learner

from minifast import (
    Callback,
    DataBunch,
    FileFormatError,
    Learner,
    MinifastError,
    TensorLoader,
    accuracy,
    files,
    simple_ann,
)
from minifast.callbacks.checkpointer import Checkpointer
from minifast.files import MARK

ROOT = Path(__file__).parents[1]


def learner(path: Path, **kwargs) -> Learner:
    torch.manual_seed(0)
    return Learner(toy_data(shuffle=True), simple_ann(10, 2, 8), metrics=[accuracy], path=path, silent=True, **kwargs)


def record(learn: Learner) -> list:
    recorder = learn.recorder
    return [recorder.lrs, recorder.moms, list(recorder.raw_losses), recorder.val_losses, recorder.metrics]


def same(a: Learner, b: Learner) -> bool:
    weights = zip(a.model.state_dict().values(), b.model.state_dict().values(), strict=True)
    return record(a) == record(b) and all(torch.equal(x, y) for x, y in weights)


def stop_at(monkeypatch: pytest.MonkeyPatch, learn: Learner, batch: int, **kwargs) -> None:
    """Fit by one cycle for 4 epochs of 3 batches, and end with an error after ``batch`` batches and their save."""
    original = Checkpointer.on_batch_end

    def stops(self, train, num_batch, stop_epoch):
        original(self, train, num_batch, stop_epoch)
        if train and self._state.iteration + 1 == batch:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpointer, "on_batch_end", stops)
        with pytest.raises(KeyboardInterrupt):
            learn.fit_one_cycle(4, 1e-2, checkpoint="run", **kwargs)


@pytest.mark.parametrize("every", [None, 1, 2, "0s"])
@pytest.mark.parametrize("batch", [1, 2, 3, 4, 6, 11, 12])
def test_a_run_taken_up_again_equals_one_that_was_left_alone(tmp_path, monkeypatch, every, batch):
    alone = learner(tmp_path / "alone")
    alone.fit_one_cycle(4, 1e-2)
    stop_at(monkeypatch, learner(tmp_path), batch, every=every)
    again = learner(tmp_path)
    torch.manual_seed(99)
    again.fit_one_cycle(4, 1e-2, checkpoint="run", every=every)
    if (tmp_path / "models" / "run.checkpoint").exists() and (every is not None or batch > 3):
        assert same(alone, again)
    assert len(again.recorder.lrs) == 12


def test_keeping_a_run_changes_nothing(tmp_path):
    alone, kept = learner(tmp_path / "alone"), learner(tmp_path)
    alone.fit_one_cycle(3, 1e-2)
    kept.fit_one_cycle(3, 1e-2, checkpoint="run", every=1)
    assert same(alone, kept)


def test_a_finished_run_is_shown_and_not_trained_again(tmp_path, capsys):
    first, second = learner(tmp_path), learner(tmp_path)
    first.fit(2, 1e-2, checkpoint="run")
    second.silent = False
    second.fit(2, 1e-2, checkpoint="run")
    assert same(first, second)
    text = capsys.readouterr().out
    assert "The run run is finished" in text
    assert len([line for line in text.splitlines() if line[:3] in ("0  ", "1  ")]) == 2
    second.fit(2, 1e-2, checkpoint="run", resume=False)
    assert not same(first, second)


def test_resume_finds_the_arguments_in_the_file(tmp_path, monkeypatch):
    alone = learner(tmp_path / "alone")
    alone.fit_one_cycle(4, 1e-2)
    stop_at(monkeypatch, learner(tmp_path), 7, every=1)
    again = learner(tmp_path)
    again.resume("run")
    assert same(alone, again)
    with pytest.raises(FileNotFoundError, match=r"There is no checkpoint .*other"):
        again.resume("other")


def of(n_items: int, n_hidden: int):
    """Begin the same run with other data or another model."""

    def begin(path: Path) -> None:
        data, model = toy_data(n_items, shuffle=True), simple_ann(10, 2, n_hidden)
        Learner(data, model, path=path, silent=True).fit_one_cycle(4, 1e-2, checkpoint="run")

    return begin


def with_callback(path: Path) -> None:
    learner(path, callbacks=[Callback()]).fit_one_cycle(4, 1e-2, checkpoint="run")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda path: learner(path).fit_one_cycle(4, 2e-2, checkpoint="run"),
            "call has max_lr = 0.01, .* 0.02",
        ),
        (lambda path: learner(path).fit(4, 1e-2, checkpoint="run"), "its call has .*"),
        (of(60, 9), r"its model has 1.bias = \[8\], and here it is \[9\]"),
        (of(80, 8), "its data has batches = 3, and here it is 4"),
        (with_callback, "was kept with the callbacks"),
    ],
)
def test_another_run_is_refused_with_what_differs(tmp_path, monkeypatch, change, words):
    stop_at(monkeypatch, learner(tmp_path), 5, every=1)
    before = (tmp_path / "models" / "run.checkpoint").read_bytes()
    with pytest.raises(MinifastError, match=words):
        change(tmp_path)
    assert (tmp_path / "models" / "run.checkpoint").read_bytes() == before


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-1], lambda b: b[:10], lambda b: b"", lambda b: b[:200] + b"x" + b[201:]]
)
def test_a_file_that_is_cut_off_is_noticed_and_the_one_before_is_used(tmp_path, monkeypatch, capsys, damage):
    alone = learner(tmp_path / "alone")
    alone.fit_one_cycle(4, 1e-2)
    stop_at(monkeypatch, learner(tmp_path), 8, every=1)
    file = tmp_path / "models" / "run.checkpoint"
    file.write_bytes(damage(file.read_bytes()))
    again = learner(tmp_path)
    again.silent = False
    again.fit_one_cycle(4, 1e-2, checkpoint="run", every=1)
    assert "is not whole; going on from the one before it" in capsys.readouterr().out
    assert same(alone, again)
    for each in file.parent.iterdir():
        each.write_bytes(b"nothing")
    with pytest.raises(FileFormatError, match="so is the one before it; remove both"):
        learner(tmp_path).fit_one_cycle(4, 1e-2, checkpoint="run")


def test_a_run_killed_after_its_last_epoch_ends_well(tmp_path, monkeypatch):
    alone = learner(tmp_path / "alone", callbacks=[Callback()])
    alone.fit(2, 1e-2)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpointer, "on_train_end", lambda self, exception: None)  # killed before it could mark the end
        learner(tmp_path, callbacks=[Callback()]).fit(2, 1e-2, checkpoint="run")
    again = learner(tmp_path, callbacks=[Callback()])
    again.fit(2, 1e-2, checkpoint="run")
    assert same(alone, again)


def test_a_run_that_a_callback_stopped_stays_stopped(tmp_path):
    class Stops(Callback):
        def on_epoch_end(self, epoch):
            return {"stop_training": True} if epoch == 1 else None

    first, second = (learner(tmp_path, callbacks=[Stops()]) for _ in range(2))
    first.fit(5, 1e-2, checkpoint="run")
    second.fit(5, 1e-2, checkpoint="run")
    assert same(first, second)
    assert len(second.recorder.val_losses) == 2


def test_data_in_memory_need_no_seed_to_go_on(tmp_path, monkeypatch):
    def begin(path):
        items = toy_data().train_ds
        train = TensorLoader(*items.tensors, 20, shuffle=True, device="cpu")  # its seed is drawn
        valid = TensorLoader(*items.tensors, 20, device="cpu")
        data = DataBunch(train, valid, device="cpu", path=path)
        torch.manual_seed(0)
        return Learner(data, simple_ann(10, 2, 8), metrics=[accuracy], silent=True)

    torch.manual_seed(1)
    alone = begin(tmp_path / "alone")
    alone.fit_one_cycle(4, 1e-2)
    torch.manual_seed(1)
    stop_at(monkeypatch, begin(tmp_path), 5, every=1)
    torch.manual_seed(2)
    again = begin(tmp_path)
    again.fit_one_cycle(4, 1e-2, checkpoint="run", every=1)
    assert same(alone, again)


def test_a_lost_run_does_not_replace_a_good_file(tmp_path, monkeypatch):
    class Spoils(Callback):
        def on_loss_begin(self, iteration, last_output, train):
            return {"last_output": last_output * float("nan")} if train and iteration == 7 else None

    # As on a device, where nobody knows yet that the loss is lost.
    monkeypatch.setattr("minifast.state.Losses.append", lambda self, loss: self._waiting.append(loss.detach()))
    with pytest.raises(MinifastError, match="training loss is nan at epoch 2, batch 1"):
        learner(tmp_path, callbacks=[Spoils()]).fit(4, 1e-2, checkpoint="run", every=1)
    values = torch.load(io.BytesIO((tmp_path / "models" / "run.checkpoint").read_bytes()[len(MARK) + 32 :]))
    assert values["iteration"] == 7


def test_callbacks_keep_their_own_state(tmp_path, monkeypatch):
    class Counts(Callback):
        def __init__(self):
            self.batches, self.seen = 0, {"losses": []}

        def on_batch_end(self, train, last_loss):
            if train:
                self.batches += 1
                self.seen["losses"].append(last_loss)

    stop_at(monkeypatch, learner(tmp_path, callbacks=[Counts()]), 5, every=1)
    counts = Counts()
    learner(tmp_path, callbacks=[counts]).fit_one_cycle(4, 1e-2, checkpoint="run", every=1)
    assert counts.batches == len(counts.seen["losses"]) == 12


def test_a_disk_that_takes_nothing_does_not_stop_the_training(tmp_path, monkeypatch):
    learn = learner(tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("minifast.files.torch.save", full)
    with pytest.warns(UserWarning, match="No space left on device.*training goes on"):
        learn.fit(1, checkpoint="run")
    assert len(learn.recorder.lrs) == 3
    assert not list((tmp_path / "models").glob("*"))
    with pytest.raises(OSError, match="No space left"):
        learner(tmp_path).fit(1, checkpoint="run", on_write_error="stop")
    with pytest.raises(ValueError, match="on_write_error is 'panic'; it must be one of"):
        learner(tmp_path).fit(1, checkpoint="run", on_write_error="panic")


def test_a_run_is_kept_before_its_first_batch(tmp_path):
    class Fails(Callback):
        def on_batch_begin(self, iteration):
            raise MemoryError("out of memory")

    with pytest.raises(MemoryError) as error:
        learner(tmp_path, callbacks=[Fails()]).fit(2, 1e-2, checkpoint="run")
    assert any("This was in epoch 0 at batch 0 of 3, learning rate 0.01" in note for note in error.value.__notes__)
    assert any("run.checkpoint is of epoch 0, batch 0: the same call goes on" in n for n in error.value.__notes__)
    alone, again = learner(tmp_path / "alone"), learner(tmp_path, callbacks=[])
    alone.fit(2, 1e-2)
    file = tmp_path / "models" / "run.checkpoint"
    assert file.is_file()
    again.callbacks = [Fails()]
    Fails.on_batch_begin = lambda self: None
    again.fit(2, 1e-2, checkpoint="run")
    assert same(alone, again)


def test_a_checkpoint_with_code_in_it_runs_nothing(tmp_path):
    class Code:
        def __reduce__(self):
            return exec, (f"open({str(tmp_path / 'ran')!r}, 'w').close()",)

    (tmp_path / "models").mkdir()
    files.write_checked({"call": Code()}, tmp_path / "models" / "run.checkpoint")
    with pytest.raises(FileFormatError, match="more than tensors and plain values"):
        learner(tmp_path).fit(1, checkpoint="run")
    with pytest.raises(FileFormatError, match="more than tensors and plain values"):
        learner(tmp_path).resume("run")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("every", "error"), [(0, ValueError), (1.5, TypeError), ("soon", ValueError), ("5", ValueError)]
)
def test_every_is_batches_or_seconds(tmp_path, every, error):
    with pytest.raises(error, match="every is"):
        learner(tmp_path).fit(1, checkpoint="run", every=every)


@pytest.mark.parametrize("name", ["../out", "", 3])
def test_a_checkpoint_is_a_name(tmp_path, name):
    learn = toy_learner(path=tmp_path)
    with pytest.raises((TypeError, ValueError)):
        learn.fit(1, checkpoint=name)


def kill(tmp_path: Path, kills: int, kinds: int) -> list[dict]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "tests" / "killed.py"), str(kills), str(tmp_path), str(kinds)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_killed_runs_equal_one_that_was_left_alone(tmp_path, record_property):
    reports = kill(tmp_path, 2, kinds=1)
    assert all(report["kills"] >= 1 and report["equal"] for report in reports), reports
    assert reports[-1]["kills"] == reports[-1]["runs"] == 6
    record_property("cases", sum(report["kills"] for report in reports))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_runs_killed_many_times_equal_one_that_was_left_alone(tmp_path, record_property):
    reports = kill(tmp_path, 12, kinds=5)
    assert sum(report["kills"] for report in reports[:-1]) >= 50
    assert reports[-1]["kills"] == reports[-1]["runs"] == 36
    assert all(report["equal"] for report in reports), reports
    record_property("cases", sum(report["kills"] for report in reports))
