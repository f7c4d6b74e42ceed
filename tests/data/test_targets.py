"""The default loss and the classes follow from the targets that training uses, in every form of batches."""

from __future__ import annotations

from collections import UserDict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate

from minifast import DataBunch, DataError, Learner
from minifast.data.targets import N_LOOKED
from minifast.losses import MSELossFlat

N = 12
TARGETS = {
    "class numbers": (torch.arange(N) % 3, nn.CrossEntropyLoss),
    "floats": (torch.linspace(-1, 1, N), MSELossFlat),
    "float columns": (torch.randn(N, 3), MSELossFlat),
    "one float column": (torch.randn(N, 1), MSELossFlat),
    "one column of 0 and 1": ((torch.arange(N)[:, None] % 2).float(), MSELossFlat),
    "rows of 0 and 1": (torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]]).repeat(N // 2, 1), nn.BCEWithLogitsLoss),
    "floats that begin with rows of 0 and 1": (torch.cat([torch.eye(3), torch.randn(N - 3, 3)]), MSELossFlat),
    "zeros": (torch.zeros(N, 3), MSELossFlat),
    "integer rows": (torch.ones(N, 3, dtype=torch.int64), type(None)),
    "float maps": (torch.randn(N, 2, 2), MSELossFlat),
}
INPUTS = {
    "floats": torch.randn(N, 3),
    "class numbers": torch.arange(N) % 5,
    "rows of 0 and 1": torch.ones(N, 3).tril(),
    "one float": torch.randn(N, 1),
    "integer rows": torch.zeros(N, 2, dtype=torch.int64),
}


class Wrapped:
    """A loader that is not torch's, around one that is."""

    def __init__(self, loader):
        self.loader, self.dataset = loader, loader.dataset

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        return iter(self.loader)


class Batches(Dataset):
    """A data set whose samples are batches."""

    def __init__(self, *tensors):
        self.tensors = tensors

    def __len__(self):
        return 4

    def __getitem__(self, i):
        return tuple(tensor[3 * i : 3 * i + 3] for tensor in self.tensors)


def rows(*tensors):
    return list(zip(*tensors, strict=True))


def loader_of(samples, **options):
    return DataLoader(list(samples), 4, **options)


# Each makes a loader of two inputs and targets.
FORMS = {
    "pair": lambda a, b, y: loader_of(rows(a, y)),
    "nested": lambda a, b, y: loader_of(((p, q), t) for p, q, t in rows(a, b, y)),
    "tuple of three": lambda a, b, y: DataLoader(TensorDataset(a, b, y), 4),
    "shuffled": lambda a, b, y: DataLoader(TensorDataset(a, b, y), 4, shuffle=True, num_workers=0),
    "list of three": lambda a, b, y: loader_of([p, q, t] for p, q, t in rows(a, b, y)),
    "four": lambda a, b, y: DataLoader(TensorDataset(a, b, b, y), 4),
    "labels": lambda a, b, y: loader_of({"labels": t, "a": p, "b": q} for p, q, t in rows(a, b, y)),
    "label": lambda a, b, y: loader_of({"b": q, "label": t, "a": p} for p, q, t in rows(a, b, y)),
    "mapping": lambda a, b, y: loader_of(
        rows(a, b, y),
        collate_fn=lambda batch: UserDict(zip(("a", "b", "labels"), default_collate(batch), strict=True)),
    ),
    "collated in another order": lambda a, b, y: loader_of(
        [(t, q, p) for p, q, t in rows(a, b, y)], collate_fn=lambda batch: default_collate([row[::-1] for row in batch])
    ),
    "batches as samples": lambda a, b, y: DataLoader(Batches(a, b, y), batch_size=None),
    "another loader": lambda a, b, y: Wrapped(DataLoader(TensorDataset(a, b, y), 4)),
}


def about(loader, **options):
    data = DataBunch(loader, device="cpu", **options)
    return type(data.loss_func), data.classes, data.c


@pytest.mark.parametrize("form", FORMS)
@settings(deadline=None, max_examples=12)
@given(
    first=st.sampled_from(sorted(INPUTS)),
    second=st.sampled_from(sorted(INPUTS)),
    kind=st.sampled_from(sorted(TARGETS)),
    classes=st.sampled_from([None, ["p", "q", "r"]]),
)
def test_loss_and_classes_are_those_of_the_pair_with_the_same_targets(form, first, second, kind, classes):
    y, expected = TARGETS[kind]
    plain = about(DataLoader(TensorDataset(INPUTS[first], y), 4), classes=classes)
    assert about(FORMS[form](INPUTS[first], INPUTS[second], y), classes=classes) == plain
    if classes is None:
        assert plain[0] is expected


@pytest.mark.parametrize("kind", TARGETS)
def test_a_named_target_decides_and_several_decide_nothing(kind):
    y, expected = TARGETS[kind]
    samples = [{"labels": torch.tensor(0), "kind": t, "x": torch.zeros(3)} for t in y]
    assert about(loader_of(samples), target="kind")[0] is expected
    assert about(loader_of(samples), target=["kind", "labels"])[0] is type(None)
    assert about(loader_of(samples))[0] is nn.CrossEntropyLoss


def test_a_float_target_after_an_integer_input_trains_as_a_pair_does():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 1)

        def forward(self, a, b):
            return self.layer(torch.cat([a, b[:, None].float()], 1))

    a, b, y = torch.randn(N, 3), torch.arange(N) % 2, torch.randn(N, 1)
    loader = DataLoader(TensorDataset(a, b, y), N)
    learn = Learner(DataBunch(loader, loader, device="cpu"), Two(), silent=True)
    with torch.no_grad():
        expected = float(nn.functional.mse_loss(learn.model(a, b), y))
    assert learn.validate()[0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("n", [N_LOOKED - 1, N_LOOKED, N_LOOKED + 1, 3 * N_LOOKED])
def test_rows_of_0_and_1_that_end_with_other_floats_are_regression_targets(n):
    y = torch.tensor([[1.0, 1.0, 0.0]]).repeat(n, 1)
    assert about(DataLoader(TensorDataset(y, y), 4))[0] is nn.BCEWithLogitsLoss
    y[-1, 0] = 0.5
    assert about(DataLoader(TensorDataset(y, y), 4))[0] is MSELossFlat


def test_named_classes_with_one_1_in_each_row_stay_cross_entropy():
    one_hot, several = torch.eye(3).repeat(4, 1), torch.ones(3, 3).tril().repeat(4, 1)
    assert about(DataLoader(TensorDataset(one_hot, one_hot), 4), classes=list("pqr"))[0] is nn.CrossEntropyLoss
    assert about(DataLoader(TensorDataset(several, several), 4), classes=list("pqr"))[0] is nn.BCEWithLogitsLoss


def test_class_numbers_that_the_collate_function_mixes_stay_classes():
    def mix(samples):
        x, y = default_collate(samples)
        share = torch.rand(())
        y = nn.functional.one_hot(y, 3).float()
        return torch.lerp(x, x.flip(0), share), torch.lerp(y, y.flip(0), share)

    loader = DataLoader(TensorDataset(torch.randn(N, 3), torch.arange(N) % 3), 4, collate_fn=mix)
    before = torch.get_rng_state()
    assert about(loader)[0] is nn.CrossEntropyLoss
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("form", ["tuple of three", "labels", "collated in another order"])
def test_the_reason_for_no_loss_is_that_of_the_targets(form):
    a, b, _ = INPUTS["floats"], INPUTS["class numbers"], None
    loader = FORMS[form](a, b, torch.ones(N, 1, dtype=torch.int64))
    with pytest.raises(DataError, match=r"integers of shape \(n, 1\); give class numbers as \(n,\)"):
        Learner(DataBunch(loader, device="cpu"), nn.Linear(3, 2))


def test_a_collate_function_that_fails_leaves_the_error_to_the_first_batch():
    loader = DataLoader(TensorDataset(torch.zeros(N, 3), torch.zeros(N)), 4, collate_fn=lambda samples: 1 / 0)
    with pytest.raises(DataError, match="No loss can be chosen from the data; pass `loss_func`"):
        Learner(DataBunch(loader, device="cpu"), nn.Linear(3, 1))
    learn = Learner(DataBunch(loader, device="cpu"), nn.Linear(3, 1), loss_func=MSELossFlat(), silent=True)
    with pytest.raises(ZeroDivisionError):
        learn.fit(1)


class WithoutLength:
    def __getitem__(self, index):
        return torch.zeros(4), torch.tensor([0.0, 1.0, 1.0])


def test_a_data_set_without_a_length_has_a_loss():
    loader = DataLoader(WithoutLength(), batch_sampler=[[0, 1], [2, 3]])
    assert isinstance(DataBunch(loader, loader, device="cpu").loss_func, MSELossFlat)
