"""Data that cannot be trained or validated raise one clear sentence before the first step."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from minifast import DataBunch, Learner
from minifast.errors import DataError

X, Y = torch.randn(32, 4), torch.arange(32) % 2
WORDS = [(x, ["cat", "dog"][int(y)]) for x, y in zip(X, Y, strict=True)]


@pytest.mark.parametrize(
    ("dataset", "n_outputs", "loss", "message"),
    [
        (TensorDataset(X, Y[:, None]), 1, nn.BCEWithLogitsLoss(), "int64, but BCEWithLogitsLoss needs floats"),
        (TensorDataset(X, Y.int()), 2, nn.CrossEntropyLoss(), "int32, but CrossEntropyLoss needs int64"),
        (TensorDataset(X, Y.bool()), 2, nn.CrossEntropyLoss(), "bool, but CrossEntropyLoss needs int64"),
        (TensorDataset(X, Y.float()), 2, nn.CrossEntropyLoss(), "float32, but CrossEntropyLoss needs class numbers"),
        (TensorDataset(X, Y[:, None]), 2, nn.functional.cross_entropy, r"\(8, 1\), but cross_entropy needs \(8,\)"),
        (TensorDataset(X.double(), Y), 2, nn.CrossEntropyLoss(), "inputs are float64, but .* float32"),
        (WORDS, 2, nn.CrossEntropyLoss(), "The targets are texts"),
    ],
)
def test_types_and_shapes_that_do_not_fit_raise_one_sentence(dataset, n_outputs, loss, message) -> None:
    data = DataBunch(DataLoader(dataset, 8), device="cpu")
    learn = Learner(data, nn.Linear(4, n_outputs), loss_func=loss, silent=True)
    with pytest.raises(DataError, match=message):
        learn.fit(1)


def test_another_error_of_the_model_stays_as_it_is() -> None:
    class Failing(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no memory")

    learn = Learner(DataBunch([(X.double(), Y)], device="cpu", classes="ab"), Failing(4, 2), silent=True)
    with pytest.raises(RuntimeError, match="no memory"):
        learn.fit(1)


def test_validation_data_without_a_batch_warn_before_training() -> None:
    valid = DataLoader(TensorDataset(X[:5], Y[:5]), 16, drop_last=True)
    learn = Learner(DataBunch([(X, Y)], valid, device="cpu", classes="ab"), nn.Linear(4, 2), silent=True)
    with pytest.warns(UserWarning, match="validation data have no batch"):
        learn.fit(1)


LOADER = DataLoader(TensorDataset(X, Y), 8)


@pytest.mark.parametrize(
    ("valid", "message"),
    [
        ([LOADER, LOADER], "one loader, got a list of several"),
        ({"a": LOADER}, "one loader, got a dict of several"),
    ],
)
def test_several_validation_loaders_raise_when_the_data_are_made(valid, message) -> None:
    with pytest.raises(DataError, match=message):
        DataBunch(LOADER, valid, device="cpu")


def test_a_list_of_validation_batches_that_are_no_pairs_raises_before_training() -> None:
    learn = Learner(DataBunch(LOADER, [(X, Y, Y)], device="cpu", classes="ab"), nn.Linear(4, 2), silent=True)
    with pytest.raises(DataError, match="validation batch is a tuple of 3"):
        learn.fit(1)
    assert learn.opt is None
