"""A validation set that does not fit the model ends a fit before its first step, and trying it changes nothing."""

from __future__ import annotations

import pytest
import torch
from conftest import toy_items
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from minifast import DataBunch, DataError, Learner, accuracy


class Noisy(nn.Module):
    """A model with dropout, buffers and numbers of its own that each forward pass changes."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(10, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 2))
        self.seen = 0

    def forward(self, x):
        self.seen += 1
        return self.layers(x + 0.01 * torch.rand_like(x))


class Shaken(TensorDataset):
    """A data set that samples noise."""

    def __getitem__(self, i):
        x, y = super().__getitem__(i)
        return x + torch.rand(()), y


def learner(valid, model=None, metrics=None, bs=20):
    torch.manual_seed(0)
    train_dl = DataLoader(toy_items(), bs, shuffle=True)
    data = DataBunch(train_dl, valid if isinstance(valid, list) else DataLoader(valid, 7), device="cpu")
    return Learner(data, Noisy() if model is None else model, metrics=metrics, silent=True)


WRONG = {
    "inputs": (torch.zeros(9, 11), torch.zeros(9, dtype=torch.int64), "cannot be multiplied|wrong shape|shape"),
    "type": (torch.zeros(9, 10, dtype=torch.float64), torch.zeros(9, dtype=torch.int64), "inputs are float64"),
    "classes": (torch.zeros(9, 10), torch.full((9,), 2), "targets go from 2 to 2"),
    "target shape": (torch.zeros(9, 10), torch.zeros(9, 1, dtype=torch.int64), r"targets have the shape \(7, 1\)"),
    "target type": (torch.zeros(9, 10), torch.zeros(9), "targets are float32"),
}


@pytest.mark.parametrize("in_list", [False, True])
@pytest.mark.parametrize("kind", WRONG)
def test_a_validation_set_that_does_not_fit_ends_the_fit_before_the_first_step(kind, in_list):
    x, y, words = WRONG[kind]
    learn = learner([(x[:7], y[:7]), (x[7:], y[7:])] if in_list else TensorDataset(x, y))
    before = [parameter.detach().clone() for parameter in learn.model.parameters()]
    with pytest.raises((DataError, RuntimeError), match=words) as raised:
        learn.fit(2)
    notes = "".join(getattr(raised.value, "__notes__", ()))
    assert "check() finds" not in notes  # the fit has checked it, and no epoch is lost
    assert "at batch" not in notes
    assert any("tried before the first step" in note for note in getattr(raised.value, "__notes__", ())) or not hasattr(
        BaseException, "add_note"
    )
    assert all(map(torch.equal, before, learn.model.parameters()))


@settings(deadline=None, max_examples=8)
@given(epochs=st.integers(1, 2), seed=st.integers(0, 99))
def test_trying_changes_nothing(epochs, seed):
    def run(tries):
        with pytest.MonkeyPatch.context() as patch:
            if not tries:
                patch.setattr("minifast.callbacks.first_batch.try_validation", lambda learn: None)
            torch.manual_seed(seed)
            learn = learner(Shaken(*toy_items(25).tensors), metrics=[accuracy])
            learn.fit(epochs)
        numbers = torch.cat([tensor.flatten().float() for tensor in learn.model.state_dict().values()])
        return numbers, learn.model.seen, learn.recorder.val_losses, learn.recorder.raw_losses, torch.rand(3).tolist()

    first, second = run(tries=True), run(tries=False)
    assert torch.equal(first[0], second[0])
    assert first[1:] == second[1:]


def test_a_model_that_needs_several_samples_trains():
    class Pairs(nn.Linear):
        def forward(self, x):
            if len(x) < 2:
                raise RuntimeError("one sample")
            return super().forward(x)

    learn = learner(TensorDataset(*toy_items(14).tensors), Pairs(10, 2))
    assert learn.fit(1).val_losses


def test_a_large_data_set_is_not_read():
    class Counting(TensorDataset):
        read: list[int] = []  # noqa: RUF012

        def __getitem__(self, i):
            Counting.read.append(i)
            return super().__getitem__(i)

    learner(Counting(*toy_items(14).tensors)).fit(1)
    assert Counting.read == [0, *range(14)]
