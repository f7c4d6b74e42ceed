"""Callbacks that end a fit early: at a NaN loss, and after a number of batches."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import toy_data, toy_learner
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from minifast import Callback, DataBunch, Learner, SaveModelCallback, StopAfterNBatches, TerminateOnNaNCallback
from minifast.training.averages import Losses


class Spoil(nn.Module):
    """Gives NaN from one forward pass in training on."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.limit, self.n = lambda: at, 0  # a function, so that it is no setting of a run

    def forward(self, x):
        self.n += self.training
        return x * math.nan if self.training and self.n > self.limit() else x


def spoilt(at: int, **options) -> Learner:
    torch.manual_seed(0)
    return Learner(toy_data(), nn.Sequential(nn.Linear(10, 2), Spoil(at)), **{"silent": True} | options)


def finite(learn: Learner) -> bool:
    return all(parameter.isfinite().all() for parameter in learn.model.parameters())


# --- a validation loss that is not finite


class RootOfNegative(nn.Module):
    def forward(self, x):
        return x if self.training else (x - 1000).sqrt()


def nan_in_validation(what: str) -> tuple[DataBunch, nn.Module]:
    torch.manual_seed(0)
    x, y = torch.randn(60, 10), torch.randn(60, 1)
    wrong_x, wrong_y = x.clone(), y.clone()
    if what == "inputs":
        wrong_x[25, 3] = math.inf
    elif what == "targets":
        wrong_y[25] = math.nan
    dls = [DataLoader(TensorDataset(*pair), 20) for pair in ((x, y), (wrong_x, wrong_y))]
    data = DataBunch(*dls, device="cpu")
    return data, nn.Sequential(nn.Linear(10, 1), *([RootOfNegative()] if what == "outputs" else []))


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("inputs", "The inputs of validation batch 1 hold NaN or infinity"),
        ("targets", "The targets of validation batch 1 hold NaN or infinity"),
        ("outputs", "inputs of validation batch 0 are finite, but the model's outputs hold NaN"),
        ("loss", "outputs of validation batch 0 are finite, but their loss is not"),
    ],
)
def test_a_validation_loss_that_is_not_finite_is_one_warning_and_changes_nothing(what, words):
    weights = []
    for validates in (True, False):
        data, model = nan_in_validation(what)
        if not validates:
            data.valid_dl = None
        loss = nn.MSELoss()
        if what == "loss":
            loss = lambda out, target: (out - target).square().mean() / (1 if out.requires_grad else 0)  # noqa: E731
        learn = Learner(data, model, loss_func=loss, silent=True)
        if validates:
            with pytest.warns(UserWarning, match=words) as caught:
                learn.fit(3, 1e-2)
            assert len(caught) == 1
            assert caught[0].filename == __file__
        else:
            learn.fit(3, 1e-2)
        weights.append(model[0].weight)
    assert torch.equal(*weights)


# --- TerminateOnNaN


def test_a_fit_ends_at_nan_with_a_line_and_good_weights(capsys):
    learn = spoilt(4, callbacks=[TerminateOnNaNCallback()], silent=False)
    learn.fit(3, 1e-2)
    assert len(learn.recorder.raw_losses) == 5
    assert finite(learn)
    assert [row[2] is None for row in learn.recorder.rows] == [False, True]
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("The training loss")]
    assert len(said) == 1
    assert said[0].startswith("The training loss is nan at epoch 1, batch 1, learning rate 0.01; try a lower")
    assert said[0].endswith("The fit ends here.")


def test_it_is_made_for_each_fit_from_its_class_too():
    learn = spoilt(4, callback_fns=TerminateOnNaNCallback)
    learn.fit(3, 1e-2)
    learn.fit(3, 1e-2)
    assert [len(run.raw_losses) for run in learn.history] == [5, 1]


def test_the_best_model_is_loaded_after_it(tmp_path):
    learn = spoilt(4, path=tmp_path, callbacks=[TerminateOnNaNCallback(), SaveModelCallback()])
    learn.fit(3, 1e-2)
    best = [value.clone() for value in learn.model.state_dict().values()]
    learn.load("bestmodel")
    assert all(map(torch.equal, best, learn.model.state_dict().values()))


def test_losses_that_stay_on_a_device_end_it_with_the_epoch(monkeypatch):
    def stays(self, loss):
        self._waiting.append(loss.detach().view(()))

    monkeypatch.setattr(Losses, "append", stays)
    learn = spoilt(1, callbacks=[TerminateOnNaNCallback()])
    learn.fit(3, 1e-2)
    assert len(learn.recorder.rows) == 1


def test_weights_that_are_not_finite_end_it_too():
    class Spoils(Callback):
        def on_epoch_end(self, epoch):
            if epoch == 1:
                with torch.no_grad():
                    next(learn.model.parameters()).fill_(math.nan)

        _order = -6

    learn = toy_learner(callbacks=[Spoils(), TerminateOnNaNCallback()])
    learn.fit(4)
    assert len(learn.recorder.rows) == 2


@pytest.mark.parametrize("on_nan", ["restore", "ignore"])
def test_another_on_nan_is_refused(on_nan):
    learn = toy_learner(callbacks=[TerminateOnNaNCallback()])
    with pytest.raises(ValueError, match=f"`on_nan` is '{on_nan}', but TerminateOnNaNCallback .* remove one of them"):
        learn.fit(1, on_nan=on_nan)
    assert learn.recorder.lrs == []


def test_a_kept_run_stays_where_all_was_finite(tmp_path):
    spoilt(4, path=tmp_path, callbacks=[TerminateOnNaNCallback()]).fit(3, 1e-2, checkpoint="run")
    again = spoilt(99, path=tmp_path, callbacks=[TerminateOnNaNCallback()])
    again.fit(3, 1e-2, checkpoint="run")
    assert len(again.recorder.rows) == 3
    assert all(map(math.isfinite, again.recorder.raw_losses))


# --- StopAfterNBatches


@pytest.mark.parametrize("n", [1, 2, 3, 4, 9])
def test_it_stops_after_n_batches_and_does_not_validate(n):
    learn = toy_learner(callbacks=[StopAfterNBatches(n)])
    learn.fit(5)
    assert len(learn.recorder.lrs) == n
    assert learn.recorder.val_losses[-1] is None


def test_two_batches_are_the_default_and_less_than_one_is_refused():
    learn = toy_learner(callbacks=[StopAfterNBatches()])
    learn.fit_one_cycle(5)
    assert len(learn.recorder.lrs) == 2
    with pytest.raises(ValueError, match="`n_batches` must be at least 1, got 0"):
        StopAfterNBatches(0)


def test_the_finder_is_not_stopped():
    learn = toy_learner(callbacks=[StopAfterNBatches(), TerminateOnNaNCallback()])
    assert len(learn.lr_find(num_it=10).lrs) == 10
