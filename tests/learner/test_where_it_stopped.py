"""A run that ends early says where: at each event, between them, and after Ctrl-C."""

from __future__ import annotations

import itertools
import sys

import pytest
import torch
from conftest import toy_learner
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from minifast import Callback, DataBunch, DataError, Learner, simple_ann
from minifast.training import EVENTS

OF_BATCHES = ("on_batch_begin", "on_loss_begin", "on_batch_end")  # of training and validation
PLACES = {  # where the error occurs in the second epoch, or in a run of two
    "on_train_begin": "before the first batch",
    "on_epoch_begin": "at the beginning of epoch 1",
    **{event: "in epoch 1 at batch 2 of 3" for event in EVENTS if "batch" in event or "back" in event},
    **dict.fromkeys(("on_loss_begin", "on_step_end"), "in epoch 1 at batch 2 of 3"),
    "on_epoch_end": "at the end of epoch 1",
    "on_train_end": "at the end of the run, after 2 epochs",
}
needs_notes = pytest.mark.skipif(sys.version_info < (3, 11), reason="errors have notes from Python 3.11 on")


def failing(event: str, error: BaseException, trains: bool = True) -> Callback:
    """A callback that fails in the second epoch, in a training batch or in the validation, or at an end of the run."""
    passed = itertools.count()  # batches of the validation

    def in_batch(epoch, num_batch, train):
        if epoch == 1 and train == trains and num_batch == (2 if trains else 3) and (trains or next(passed) == 2):
            raise error

    def at_epoch(epoch):
        if epoch == 1:
            raise error

    def at_run():
        raise error

    method = at_run if "train" in event else at_epoch if "epoch" in event else in_batch
    return type("Failing", (Callback,), {event: staticmethod(method)})()


def test_each_event_has_a_place():
    assert PLACES.keys() == EVENTS.keys()


@needs_notes
@pytest.mark.parametrize("event", EVENTS)
def test_an_error_names_the_place_of_its_event(event):
    with pytest.raises(OSError, match="gone") as error:
        toy_learner().fit(2, 1e-2, callbacks=[failing(event, OSError("gone"))])
    assert error.value.__notes__ == [f"The error occurred {PLACES[event]}, learning rate 0.01."]


@needs_notes
@pytest.mark.parametrize("event", OF_BATCHES)
def test_an_error_at_an_event_of_the_validation_names_it(event):
    with pytest.raises(OSError, match="gone") as error:
        toy_learner().fit(2, 1e-2, callbacks=[failing(event, OSError("gone"), trains=False)])
    assert error.value.__notes__ == [
        "The error occurred in the validation of epoch 1 at batch 2 of 3, learning rate 0.01."
    ]


@pytest.mark.parametrize("event", EVENTS)
def test_ctrl_c_names_the_place_of_its_event(event, capsys):
    with pytest.raises(KeyboardInterrupt):
        toy_learner(silent=False).fit(2, 1e-2, callbacks=[failing(event, KeyboardInterrupt())])
    assert f"Stopped {PLACES[event]}; you can continue to train the learner." in capsys.readouterr().out


class Batches:
    """Batches that end with an error in one epoch, counted from 0, before one batch."""

    def __init__(self, epoch: int | None = None, batch: int = 0) -> None:
        self.fails_at, self.epoch = (epoch, batch), -1

    def __len__(self) -> int:
        return 3

    def __iter__(self):
        self.epoch += 1
        for i in range(3):
            if (self.epoch, i) == self.fails_at:
                raise OSError("gone")
            yield torch.randn(4, 10), torch.arange(4) % 2


@needs_notes
@pytest.mark.parametrize(("epoch", "batch"), [(0, 0), (0, 2), (1, 0), (1, 2)])
@pytest.mark.parametrize("part", ["training", "validation"])
def test_an_error_of_the_loader_names_the_batch_that_it_should_give(part, epoch, batch):
    loaders = [Batches(epoch, batch), Batches()][:: 1 if part == "training" else -1]
    learn = Learner(
        DataBunch(*loaders, device="cpu"), simple_ann(10, 2, 8), loss_func=torch.nn.CrossEntropyLoss(), silent=True
    )
    with pytest.raises(OSError, match="gone") as error:
        learn.fit(2, 1e-2)
    place = f"in {'the validation of ' if part == 'validation' else ''}epoch {epoch} at batch {batch} of 3"
    assert error.value.__notes__[0].startswith(f"The error occurred {place}, learning rate 0.01.")


@needs_notes
def test_an_error_while_a_failed_run_ends_does_not_move_its_place():
    callbacks = [failing("on_step_end", OSError("gone")), failing("on_train_end", ValueError("late"))]
    with pytest.raises(OSError, match="gone") as error:
        toy_learner().fit(2, 1e-2, callbacks=callbacks)
    assert f"The error occurred {PLACES['on_step_end']}, learning rate 0.01." in error.value.__notes__


@needs_notes
@pytest.mark.parametrize("method", ["fit", "validate", "get_preds"])
@pytest.mark.parametrize("batch", [0, 2, 3])
def test_a_bad_target_or_input_of_a_later_batch_is_named_with_the_batch(method, batch):
    x, y = torch.randn(16, 10), torch.arange(16) % 2
    train = DataLoader(TensorDataset(x, y), 4)
    x, y = x.clone(), y.clone()
    y[4 * batch + 1] = 7
    if method == "get_preds":
        x[4 * batch + 1, 0] = torch.nan  # the model of this test raises an error for it

    class Model(nn.Sequential):
        def forward(self, x):
            return super().forward(x) if x.isfinite().all() else super().forward(x.double())

    valid = DataLoader(TensorDataset(x, y), 4)
    learn = Learner(DataBunch(train, valid, device="cpu"), Model(nn.Linear(10, 2)), silent=True)
    with pytest.raises((DataError, RuntimeError)) as error:
        learn.fit(1, 1e-2) if method == "fit" else getattr(learn, method)()
    place = f"in the validation of epoch 0 at batch {batch} of 4, " if method == "fit" else f"at batch {batch} of 4."
    assert any(note.startswith(f"The error occurred {place}") for note in error.value.__notes__)


@needs_notes
def test_an_error_after_the_last_batch_names_none():
    learn = toy_learner()
    with pytest.raises(DataError, match="no batch") as error:
        learn.validate([])
    assert not hasattr(error.value, "__notes__")
    learn.loss_func = lambda output, target: output.view(7)
    with pytest.raises(DataError, match="fails on a single sample") as failed:
        learn.get_preds(with_loss=True)
    assert not hasattr(failed.value, "__notes__")
