"""Checkpointed runs: they resume bit for bit, raise where they differ, and are complete on disk."""

from __future__ import annotations

import io
import itertools
import json
import os
import subprocess
import sys
from collections import deque
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import FailsAt, slow, toy_data, toy_learner, write_images
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from minifast import (
    Callback,
    DataBunch,
    FileFormatError,
    ImageDataBunch,
    Learner,
    MinifastError,
    NonFiniteLossError,
    TensorLoader,
    accuracy,
    simple_ann,
    simple_cnn,
)
from minifast.checkpoint.fingerprint import run_fingerprint
from minifast.checkpoint.run import Checkpointer
from minifast.utils import files
from minifast.utils.files import MARK

ROOT = Path(__file__).parents[2]


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


STOPS = list(itertools.product([1, 2, 3, 4, 6, 11, 12], [None, 1, 2, "0s"]))
QUICK = [(1, 1), (2, "0s"), (3, None), (4, 2), (4, None), (6, 1), (11, "0s"), (12, 2)]


@pytest.mark.parametrize(("batch", "every"), [*QUICK, *slow(*(stop for stop in STOPS if stop not in QUICK))])
def test_a_resumed_run_equals_an_uninterrupted_run(tmp_path, monkeypatch, every, batch):
    alone = learner(tmp_path / "alone")
    alone.fit_one_cycle(4, 1e-2)
    stop_at(monkeypatch, learner(tmp_path), batch, every=every)
    again = learner(tmp_path)
    torch.manual_seed(99)
    again.fit_one_cycle(4, 1e-2, checkpoint="run", every=every)
    if (tmp_path / "models" / "run.checkpoint").exists() and (every is not None or batch > 3):
        assert same(alone, again)
    assert len(again.recorder.lrs) == 12


def test_saving_checkpoints_changes_nothing(tmp_path):
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
    assert "The run 'run' is finished" in text
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


def of(count_samples: int, n_hidden: int):
    """Begin the same run with other data or another model."""

    def begin(path: Path) -> None:
        data, model = toy_data(count_samples, shuffle=True), simple_ann(10, 2, n_hidden)
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
        (of(60, 9), r"its model has 1.bias = \[8\], and this run has \[9\]"),
        (of(80, 8), "its data has batches of training = 3, and this run has 4"),
        (with_callback, "saved with other callbacks: Callback is new"),
    ],
)
def test_another_run_raises_with_the_difference(tmp_path, monkeypatch, change, words):
    stop_at(monkeypatch, learner(tmp_path), 5, every=1)
    before = (tmp_path / "models" / "run.checkpoint").read_bytes()
    with pytest.raises(MinifastError, match=words):
        change(tmp_path)
    assert (tmp_path / "models" / "run.checkpoint").read_bytes() == before


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-1], lambda b: b[:200] + b"x" + b[201:], *slow(lambda b: b[:10], lambda b: b"")]
)
def test_a_truncated_file_is_detected_and_the_previous_one_is_used(tmp_path, monkeypatch, capsys, damage):
    alone = learner(tmp_path / "alone")
    alone.fit_one_cycle(4, 1e-2)
    stop_at(monkeypatch, learner(tmp_path), 8, every=1)
    file = tmp_path / "models" / "run.checkpoint"
    file.write_bytes(damage(file.read_bytes()))
    again = learner(tmp_path)
    again.silent = False
    again.fit_one_cycle(4, 1e-2, checkpoint="run", every=1)
    said = "is damaged; using the file before it. Resuming the run 'run' at epoch 2, batch 1."
    assert said in capsys.readouterr().out
    assert same(alone, again)
    for each in file.parent.iterdir():
        each.write_bytes(b"nothing")
    with pytest.raises(FileFormatError, match="so is the file before it; remove both"):
        learner(tmp_path).fit_one_cycle(4, 1e-2, checkpoint="run")


def test_a_run_killed_after_its_last_epoch_ends_well(tmp_path, monkeypatch):
    alone = learner(tmp_path / "alone", callbacks=[Callback()])
    alone.fit(2, 1e-2)
    with monkeypatch.context() as patch:  # killed before it could mark the end
        patch.setattr(
            Checkpointer, "on_train_end", lambda self, exception: self._unlock()
        )  # killed before it could mark the end
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


def test_data_in_memory_need_no_seed_to_resume(tmp_path, monkeypatch):
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


def test_a_diverged_run_does_not_replace_a_good_checkpoint(tmp_path, monkeypatch):
    class Spoils(Callback):
        def on_loss_begin(self, iteration, last_output, train):
            return {"last_output": last_output * float("nan")} if train and iteration == 7 else None

    # As on a device, where nobody knows yet that the loss is lost.
    monkeypatch.setattr(
        "minifast.training.averages.Losses.append", lambda self, loss: self._waiting.append(loss.detach())
    )
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
    def full(*_):
        raise OSError(28, "No space left on device")

    class Fills(Callback):
        def on_batch_end(self):
            monkeypatch.setattr("minifast.utils.files.torch.save", full)

    learn = learner(tmp_path, callbacks=[Fills()])
    with pytest.warns(UserWarning, match="No space left on device.*training continues") as warned:
        learn.fit(3, checkpoint="run", every=1)
    assert len(warned) == 1
    assert len(learn.recorder.lrs) == 9
    assert [path.name for path in (tmp_path / "models").glob("*")] == ["run.checkpoint"]
    monkeypatch.undo()
    with pytest.raises(OSError, match="No space left"):
        learner(tmp_path, callbacks=[Fills()]).fit(1, checkpoint="other", on_write_error="stop")


def test_a_folder_that_takes_nothing_from_the_beginning_is_an_error_before_any_work(tmp_path):
    learn = learner(tmp_path)
    (tmp_path / "models").write_text("a file in the place of the folder")
    with pytest.raises(MinifastError, match=r"cannot be written .* so the run cannot be saved"):
        learn.fit(1, checkpoint="run")
    assert not learn.recorder.lrs


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"on_write_error": "panic"}, ValueError, "`on_write_error` must be one of 'continue', 'stop', got 'panic'"),
        ({"on_nan": "pray"}, ValueError, "`on_nan` must be one of 'stop', 'restore', 'ignore', got 'pray'"),
        ({"every": 5}, ValueError, "`every` is 5, but the run has no checkpoint; name one"),
        ({"resume": "nope"}, TypeError, "`resume` must be True or False, got 'nope'"),
        ({"callbacks": [3]}, TypeError, "callbacks holds 3"),
    ],
)
def test_arguments_that_raise_change_nothing(tmp_path, arguments, error, message):
    learn = learner(tmp_path)
    learn.fit(1, 1e-2)
    recorder = learn.recorder
    with pytest.raises(error, match=message):
        learn.fit(1, 0.5, **arguments)
    assert learn.opt.lr == 1e-2
    assert learn.recorder is recorder
    assert learn.history == [recorder]


@pytest.mark.parametrize(
    ("extra", "lr", "words"),
    [(0, 0.5, "holds another run"), (1, 1e-2, "saved with other callbacks: Callback is new")],
)
def test_a_checkpoint_of_another_run_changes_nothing(tmp_path, extra, lr, words):
    learner(tmp_path).fit(1, 1e-2, checkpoint="run")
    learn = learner(tmp_path)
    learn.fit(1, 3e-3)
    recorder, before = learn.recorder, [p.clone() for p in learn.model.parameters()]
    with pytest.raises(MinifastError, match=words):
        learn.fit(1, lr, callbacks=[Callback()] * extra, checkpoint="run")
    assert learn.opt.lr == 3e-3
    assert learn.recorder is recorder
    assert learn.history == [recorder]
    assert all(torch.equal(p, q) for p, q in zip(before, learn.model.parameters(), strict=True))


def changed(what: str, path: Path) -> Learner:
    """The learner of a run but for one thing that shapes and counts do not show."""
    x = torch.randn(60, 10, generator=torch.Generator().manual_seed(9 if what == "items" else 0))
    y = torch.randint(2, (60,), generator=torch.Generator().manual_seed(0))
    train = TensorLoader(x, y, 20, shuffle=True, seed=0, device="cpu")
    if what == "loader":
        train = DataLoader(TensorDataset(x, y), 20)
    valid = TensorLoader(x, y.flip(0) if what == "split" else y, 20, device="cpu")
    torch.manual_seed(0)
    activation = nn.Tanh() if what == "layers" else nn.ReLU()
    model = nn.Sequential(nn.Linear(10, 4), activation, nn.Linear(4, 2))
    loss = nn.CrossEntropyLoss(label_smoothing=0.1 if what == "loss" else 0.0)
    loss = nn.functional.cross_entropy if what == "loss function" else loss
    opt = partial(torch.optim.AdamW, betas=(0.9, 0.9 if what == "betas" else 0.99))
    wd = 0.5 if what == "wd" else 1e-2
    return Learner(DataBunch(train, valid, device="cpu"), model, opt, loss, wd=wd, path=path, silent=True)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("items", "its data has checksum of training samples"),
        ("split", "its data has checksum of validation samples"),
        ("loader", "its data has"),
        ("layers", "its model has layers"),
        ("loss", "its loss has function"),
        ("loss function", "its loss has function"),
        ("betas", "its opt has betas"),
        ("wd", "its opt has weight decay"),
    ],
)
def test_a_run_of_other_content_in_the_same_shapes_raises(tmp_path, what, words):
    changed("nothing", tmp_path).fit(2, 1e-2, checkpoint="run")
    changed("nothing", tmp_path).fit(2, 1e-2, checkpoint="run")
    with pytest.raises(MinifastError, match=f"holds another run: {words}"):
        changed(what, tmp_path).fit(2, 1e-2, checkpoint="run")


def test_a_run_of_an_older_torch_resumes(tmp_path, monkeypatch):
    def begin(at=None):
        learn = toy_learner(path=tmp_path)
        learn.fit(2, 1e-2, callbacks=[FailsAt(at)], checkpoint="run", every=1)

    def older(learn):
        parts = run_fingerprint(learn)
        parts["opt"].pop("decoupled_weight_decay", None)  # torch 2.6 does not have it
        return parts

    with monkeypatch.context() as patch:
        patch.setattr("minifast.checkpoint.run.run_fingerprint", older)
        with pytest.raises(OSError, match="gone"):
            begin(4)
    begin()


def test_another_random_split_raises(tmp_path):
    for name in "ab":
        write_images(tmp_path / "data" / name, 20, (6, 6), "L", ord(name))

    def begin(seed):
        data = ImageDataBunch.from_folder(tmp_path / "data", valid_pct=0.3, seed=seed, bs=4, device="cpu")
        torch.manual_seed(0)
        Learner(data, simple_cnn((3, 2)), path=tmp_path, silent=True).fit(1, 1e-2, checkpoint="run")

    begin(1)
    begin(1)
    with pytest.raises(
        MinifastError, match=r"checksum of training samples .* If the data or their split are random, call set_seed"
    ):
        begin(2)


ON_NAN = list(itertools.product(["stop", "restore", "ignore"], repeat=2))
CHANGES = [("stop", "ignore"), ("restore", "stop"), ("ignore", "restore")]


@pytest.mark.parametrize(("first", "again"), [*CHANGES, *slow(*(pair for pair in ON_NAN if pair not in CHANGES))])
def test_a_run_resumes_with_another_on_nan(tmp_path, monkeypatch, first, again):
    stop_at(monkeypatch, learner(tmp_path), 4, every=1, on_nan=first)
    learn = learner(tmp_path)
    learn.resume("run", on_nan=again)
    assert len(learn.recorder.lrs) == 12


def test_on_nan_is_what_this_call_says(tmp_path):
    class Spoils(Callback):
        def on_batch_begin(self, iteration, train):
            if train and iteration == 4:
                return {"last_input": torch.full((20, 10), float("nan"))}
            return None

    def begin(**options):
        learn = learner(tmp_path, callbacks=[Spoils()])
        learn.fit_one_cycle(4, 1e-2, checkpoint="run", every=1, **options)
        return learn

    for _ in range(2):
        with pytest.raises(NonFiniteLossError, match="fix the data"):
            begin()
    with pytest.warns(UserWarning, match=r"The weights of epoch 1, batch 1 are restored"):
        learn = begin(on_nan="restore")
    assert all(torch.isfinite(p).all() for p in learn.model.parameters())
    assert learn.last_finite_weights._copy is None
    learn = begin(on_nan="ignore")
    assert len(learn.recorder.lrs) == 12
    assert files.read_checked(tmp_path / "models" / "run.checkpoint")[0]["finished"]


def test_weights_that_are_not_finite_do_not_replace_a_good_checkpoint(tmp_path):
    class Root(nn.Module):
        """Adds nothing, with a gradient that is NaN at one batch: that of the root of 0."""

        n = 0

        def forward(self, x):
            self.n += self.training
            return x + (torch.sqrt((x * 0).sum()) if self.training and self.n == 3 else 0)

    learn = Learner(toy_data(), nn.Sequential(nn.Linear(10, 2), Root()), path=tmp_path, silent=True)
    with pytest.raises(
        NonFiniteLossError, match=r"weights are NaN or infinite at the end of epoch 0.*gradient was not"
    ):
        learn.fit(2, 1e-2, checkpoint="run")
    values, _ = files.read_checked(tmp_path / "models" / "run.checkpoint")
    assert (values["epoch"], values["num_batch"]) == (0, 0)
    assert all(torch.isfinite(value).all() for value in values["weights"].values())


def test_epochs_that_a_callback_added_are_saved(tmp_path):
    class Longer(Callback):
        def on_epoch_end(self, epoch):
            return {"n_epochs": 4} if epoch == 1 else None

    with pytest.raises(OSError, match="gone"):
        learner(tmp_path, callbacks=[Longer(), FailsAt(10)]).fit(2, 1e-2, checkpoint="run")
    learn = learner(tmp_path, callbacks=[Longer(), FailsAt(None)])
    learn.fit(2, 1e-2, checkpoint="run")
    assert len(learn.recorder.lrs) == 12


@pytest.mark.skipif(sys.version_info < (3, 11), reason="errors have notes from Python 3.11 on")
def test_a_resumed_run_that_fails_at_once_names_its_checkpoint(tmp_path):
    for at in (5, 5):
        with pytest.raises(OSError, match="gone") as error:
            learner(tmp_path, callbacks=[FailsAt(at)]).fit_one_cycle(4, 1e-2, checkpoint="run", every=1)
        assert "run.checkpoint holds epoch 1, batch 2" in error.value.__notes__[0]


def test_frozen_layers_and_non_persistent_buffers_are_saved(tmp_path):
    class Averages(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.zeros(10), persistent=False)

        def forward(self, x):
            if self.training:
                self.mean.mul_(0.9).add_(0.1 * x.mean(0))
            return x - self.mean

    class Unfreezes(Callback):
        def __init__(self, layer):
            self.layer = layer

        def on_epoch_begin(self, epoch):
            if epoch == 1:
                self.layer.requires_grad_(True)

    def begin(path, at=None):
        torch.manual_seed(0)
        model = nn.Sequential(Averages(), nn.Linear(10, 4), nn.ReLU(), nn.Linear(4, 2))
        model[1].requires_grad_(False)
        learn = Learner(toy_data(shuffle=True), model, path=path, silent=True)
        learn.fit(3, 1e-2, callbacks=[Unfreezes(model[1]), FailsAt(at)], checkpoint="run", every=1)
        return learn

    alone = begin(tmp_path / "alone")
    with pytest.raises(OSError, match="gone"):
        begin(tmp_path, 7)
    assert same(alone, begin(tmp_path))


def test_state_that_is_not_saved_is_named_in_a_warning(tmp_path):
    class Window(Callback):
        def __init__(self):
            self.recent = deque(maxlen=3)

    with pytest.warns(UserWarning, match="Window.recent is a deque, which a checkpoint does not save; give Window the"):
        learner(tmp_path, callbacks=[Window()]).fit(1, checkpoint="run")


@pytest.mark.parametrize(("batch", "every"), [(1, 1), (4, 1), (5, 1), (4, None), (8, None)])
def test_the_data_order_of_the_global_generator_resumes_mid_epoch(tmp_path, monkeypatch, batch, every):
    def begin(path):
        torch.manual_seed(0)
        items = toy_data().train_ds
        data = DataBunch(DataLoader(items, 20, shuffle=True), DataLoader(items, 20), device="cpu")
        model = nn.Sequential(nn.Linear(10, 8), nn.Dropout(0.5), nn.Linear(8, 2))
        return Learner(data, model, metrics=[accuracy], path=path, silent=True)

    alone = begin(tmp_path / "alone")
    alone.fit_one_cycle(4, 1e-2)
    stop_at(monkeypatch, begin(tmp_path), batch, every=every)
    again = begin(tmp_path)
    torch.manual_seed(99)
    again.fit_one_cycle(4, 1e-2, checkpoint="run", every=every)
    assert same(alone, again)


def test_a_damaged_checkpoint_does_not_replace_the_good_one(tmp_path, monkeypatch):
    stop_at(monkeypatch, learner(tmp_path), 8, every=1)
    file = tmp_path / "models" / "run.checkpoint"
    file.write_bytes(file.read_bytes()[:-1])
    stop_at(monkeypatch, learner(tmp_path), 8, every=1)
    assert files.is_complete(file)
    assert files.is_complete(files.previous(file))


def test_a_second_fit_of_the_same_run_raises(tmp_path, monkeypatch):
    monkeypatch.setattr("minifast.checkpoint.run.LOCK_SECONDS", 0.1)

    class Nested(Callback):
        def on_epoch_begin(self):
            learner(tmp_path).fit(1, 1e-2, checkpoint="run", resume=False)

    with pytest.raises(MinifastError, match=r"Another process or fit trains the run .*run\.checkpoint now"):
        learner(tmp_path, callbacks=[Nested()]).fit(1, 1e-2, checkpoint="run")
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["run.checkpoint"]
    learner(tmp_path, callbacks=[Callback()]).fit(1, 1e-2, checkpoint="run", resume=False)  # the lock is gone


def test_an_optimizer_inside_the_optimizer_is_saved(tmp_path):
    class Outer(torch.optim.Optimizer):
        """Works with an optimizer whose groups it shares, and counts its steps."""

        def __init__(self, params, lr):
            self.base = torch.optim.SGD(params, lr, momentum=0.9)
            super().__init__(self.base.param_groups, {"lr": lr})
            self.param_groups = self.base.param_groups
            self.steps = 0

        def step(self, closure=None):
            self.steps += 1
            for group in self.param_groups:
                group["lr"] = 1e-2 / self.steps
            return self.base.step(closure)

    alone = learner(tmp_path / "alone", opt_func=Outer)
    alone.fit(3, 1e-2)
    with pytest.raises(OSError, match="gone"):
        learner(tmp_path, opt_func=Outer).fit(3, 1e-2, checkpoint="run", every=1, callbacks=FailsAt(5))
    again = learner(tmp_path, opt_func=Outer)
    again.fit(3, 1e-2, checkpoint="run", every=1, callbacks=FailsAt(None))
    assert list(again.recorder.raw_losses) == list(alone.recorder.raw_losses)
    base = again.opt.opt.base
    assert base.param_groups is again.opt.opt.param_groups
    assert again.opt.opt.steps == 9


def test_another_process_that_writes_the_file_raises_a_warning(tmp_path):
    class Meddles(Callback):
        def on_epoch_end(self):
            os.utime(tmp_path / "models" / "run.checkpoint", ns=(1, 1))

    with pytest.warns(UserWarning, match="Another process writes .* too"):
        learner(tmp_path, callbacks=[Meddles()]).fit(3, checkpoint="run")


def test_starting_again_leaves_nothing_of_the_old_run(tmp_path):
    learner(tmp_path).fit(2, 1e-2, checkpoint="run")
    assert (tmp_path / "models" / "run.previous.checkpoint").exists()
    with pytest.raises(OSError, match="gone"):
        learner(tmp_path, callbacks=[FailsAt(0)]).fit(2, 1e-2, checkpoint="run", resume=False)
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["run.checkpoint"]


def test_a_run_is_saved_before_its_first_batch(tmp_path):
    class Fails(Callback):
        def on_batch_begin(self, iteration):
            raise MemoryError("out of memory")

    with pytest.raises(MemoryError) as error:
        learner(tmp_path, callbacks=[Fails()]).fit(2, 1e-2, checkpoint="run")
    if sys.version_info >= (3, 11):
        (said,) = error.value.__notes__
        assert "The error occurred in epoch 0 at batch 0 of 3, learning rate 0.01" in said
        assert "run.checkpoint holds epoch 0, batch 0: repeat the same call to resume" in said
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
    files.CheckedFile(tmp_path / "models" / "run.checkpoint").write({"call": Code()})
    with pytest.raises(FileFormatError, match="more than tensors and plain values"):
        learner(tmp_path).fit(1, checkpoint="run")
    with pytest.raises(FileFormatError, match="more than tensors and plain values"):
        learner(tmp_path).resume("run")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("every", "error"), [(0, ValueError), (1.5, TypeError), ("soon", ValueError), ("5", ValueError)]
)
def test_every_is_batches_or_seconds(tmp_path, every, error):
    with pytest.raises(error, match=r"`?every`? (must be|is)"):
        learner(tmp_path).fit(1, checkpoint="run", every=every)


@pytest.mark.parametrize("name", ["../out", "", 3])
def test_a_checkpoint_is_a_name(tmp_path, name):
    learn = toy_learner(path=tmp_path)
    with pytest.raises((TypeError, ValueError)):
        learn.fit(1, checkpoint=name)


def kill(tmp_path: Path, kills: int, kinds: int) -> list[dict]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(Path(__file__).with_name("killed.py")), str(kills), str(tmp_path), str(kinds)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.slow
def test_killed_runs_equal_an_uninterrupted_run(tmp_path, record_property):
    reports = kill(tmp_path, 2, kinds=1)
    assert all(report["kills"] >= 1 and report["equal"] for report in reports), reports
    assert reports[-1]["kills"] == reports[-1]["runs"] == 6
    record_property("cases", sum(report["kills"] for report in reports))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_runs_killed_many_times_equal_an_uninterrupted_run(tmp_path, record_property):
    reports = kill(tmp_path, 12, kinds=5)
    assert sum(report["kills"] for report in reports[:-1]) >= 50
    assert reports[-1]["kills"] == reports[-1]["runs"] == 36
    assert all(report["equal"] for report in reports), reports
    record_property("cases", sum(report["kills"] for report in reports))


def test_a_checksum_tells_data_of_every_kind_apart():
    from minifast.checkpoint.fingerprint import checksum

    different = [
        np.array(["a/1.png", "a/2.png"]), np.array(["a/1.png", "a/3.png"]), np.array([1, 2]), np.array([1.5, 2.5]),
        [np.int64(1)], [np.int64(2)], torch.zeros(0, 3), torch.zeros(3), torch.tensor(2.0), {"a": 1}, {"a": 2}, "x",
    ]  # fmt: skip
    assert len({checksum(one) for one in different}) == len(different)
    assert checksum(np.array([1, 2])) == checksum(np.array([1, 2]))
