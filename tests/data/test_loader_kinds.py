"""What loaders yield: pairs work, and everything else raises or warns in one sentence."""

from __future__ import annotations

from collections import namedtuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from minifast import DataBunch, DataError, DatasetType, Learner, TensorDataBunch
from minifast.data import DeviceDataLoader, TensorLoader
from minifast.data.order import EpochOrder

X, Y = torch.randn(24, 4, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 2


def pairs(sizes) -> list:
    return list(zip(X[: sum(sizes)].split(sizes), Y[: sum(sizes)].split(sizes), strict=True))


def learner(train, valid=None, test=None) -> Learner:
    torch.manual_seed(0)
    data = DataBunch(train, valid, test, device="cpu", classes=["a", "b"])
    return Learner(data, nn.Linear(4, 2), silent=True)


class OfLength:
    """A loader that says one length and yields another number of batches."""

    def __init__(self, batches, length) -> None:
        self.batches, self.length = batches, length

    def __len__(self):
        return self.length

    def __iter__(self):
        return iter(self.batches)


NOT_PAIRS = {
    "one": ([X], "a list of 1"),
    "none": ((), "a tuple of 0"),
    "dict": ({"x": X, "y": Y}, "a dict with the keys 'x', 'y'"),
    "tensor": (X, r"one tensor of shape \(24, 4\)"),
    "tensor of two rows": (X[:2], r"one tensor of shape \(2, 4\)"),
    "text": ("ab", "a str"),
    "number": (3, "a int"),
}


@pytest.mark.parametrize("transforms", [False, True], ids=["", "transforms"])
@pytest.mark.parametrize("name", NOT_PAIRS)
def test_a_batch_that_is_no_pair_raises_before_training(name, transforms):
    batch, what = NOT_PAIRS[name]
    learn = learner([batch])
    if transforms:
        learn.data.add_tfm(lambda batch: (lambda x, y: (x * 1, y))(*batch))
    before = learn.model.weight.detach().clone()
    acts = [lambda: learn.fit(1), learn.data.one_batch, learn.data.normalize, lambda: learn.validate([batch])]
    for act in acts:
        with pytest.raises(DataError, match=rf"batch is {what}; it must have inputs and targets"):
            act()
    assert learn.model.weight.equal(before)
    assert learn.data.norm is None


def test_an_error_of_a_transform_on_pairs_stays_as_it_is():
    with pytest.raises(ZeroDivisionError):
        learner(DeviceDataLoader(pairs([4]), "cpu", [lambda batch: 1 / 0])).fit(1)


def test_named_tuples_of_two_are_pairs():
    pair = namedtuple("pair", "inputs targets")
    learner([pair(X, Y)]).fit(1)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=6).filter(sum), st.booleans())
@pytest.mark.filterwarnings("ignore:A .* batch has no samples", "ignore:The training loader has the length")
def test_batches_without_samples_change_nothing(sizes, validate):
    batches, full = pairs(sizes), pairs([size for size in sizes if size])
    first, second = (learner(part, part if validate else None) for part in (batches, full))
    for learn in (first, second):
        learn.fit(2, 0.1)
    assert first.model.weight.equal(second.model.weight)
    assert first.recorder.val_losses == second.recorder.val_losses
    for done in range(len(full) + 1):
        rest = [x for x, _ in first.data.train_dl.batches(done)]
        assert len(rest) == len(full) - done
        assert all(x.equal(y) for x, (y, _) in zip(rest, full[done:], strict=True))


def test_a_batch_without_samples_warns():
    with pytest.warns(UserWarning, match=r"^A validation batch has no samples, and is skipped"):
        learner(pairs([4]), pairs([4, 0])).fit(1)


@pytest.mark.parametrize("length", [1, 5])
def test_a_wrong_length_warns(length):
    with pytest.warns(UserWarning, match=rf"^The training loader has the length {length}, but it gave 3 batches"):
        learner(OfLength(pairs([2, 2, 2]), length)).fit(1)


def test_a_wrong_length_of_validation_data_changes_nothing():
    wrong, right = (learner(pairs([4]), valid) for valid in (OfLength(pairs([4, 8]), 7), pairs([4, 8])))
    for learn in (wrong, right):
        learn.fit(1)
    assert wrong.recorder.val_losses == right.recorder.val_losses


class Endless(IterableDataset):
    def __iter__(self):
        return iter(zip(X, Y, strict=True))


class NotImplementedLength:
    def __len__(self):
        raise NotImplementedError

    def __iter__(self):
        return iter(pairs([4]))


@pytest.mark.parametrize("loader", [DataLoader(Endless(), 4), NotImplementedLength(), iter([])], ids=type)
def test_a_loader_without_a_length_raises_when_the_bunch_is_made(loader):
    with pytest.raises(DataError, match=r"^`train_dl` must have a length"):
        DataBunch(loader, device="cpu")


class Once:
    """A loader that can be read only once."""

    def __init__(self, batches) -> None:
        self.n, self.batches = len(batches), iter(batches)

    def __len__(self):
        return self.n

    def __iter__(self):
        return self.batches


@pytest.mark.parametrize("part", ["training", "validation"])
def test_a_loader_that_can_be_read_once_trains_one_epoch_and_raises_in_the_next(part):
    batches = pairs([4, 4])
    loaders = (Once(batches), batches) if part == "training" else (batches, Once(batches))
    learner(*loaders).fit(1)
    with pytest.raises(DataError, match=rf"^The {part} data gave no batch in epoch 1"):
        learner(*(Once(batches) if isinstance(loader, Once) else loader for loader in loaders)).fit(2)


# --- batches without targets


@pytest.mark.parametrize(
    ("batch", "n"), [(X, 24), ([X], 24), (((X, X),), 24), ({"x": X}, 24), (({"x": X[:3]},), 3)], ids=lambda value: ""
)
def test_test_batches_may_lack_targets(batch, n):
    x, y = DataBunch(pairs([4]), test_dl=[batch], device="cpu").one_batch(DatasetType.Test)
    assert y.tolist() == [0] * n
    assert type(x) is type(batch[0] if isinstance(batch, (list, tuple)) else batch)


def test_a_test_loader_made_with_other_arguments_may_lack_targets_too():
    train, test = DataLoader(TensorDataset(X, Y), 4), DataLoader(TensorDataset(X), 4)
    data = DataBunch(train, test_dl=test, device="cpu", dl_tfms=[lambda batch: batch])
    other = data.test_dl.new(batch_size=24)
    assert [y.tolist() for _, y in other] == [[0] * 24]
    assert other.tfms == data.test_dl.tfms
    assert other.tfms is not data.test_dl.tfms
    data.batch_size = 12
    assert [len(y) for _, y in data.test_dl] == [12, 12]


# --- devices


def test_the_device_is_that_of_the_loaders():
    assert DataBunch(TensorLoader(X, Y, 4, device="meta"), loss_func=nn.MSELoss()).device == torch.device("meta")
    assert DataBunch(TensorLoader(X, Y, 4, device="cpu"), device="cpu").device == torch.device("cpu")


@pytest.mark.parametrize("kind", ["tensors", "wrapped"])
def test_a_loader_on_another_device_raises(kind):
    loader = TensorLoader(X, Y, 4, device="cpu") if kind == "tensors" else DeviceDataLoader(pairs([4]), "cpu")
    with pytest.raises(DataError, match=r"^All loaders must be on the device of the DataBunch, meta, got .* cpu\. "):
        DataBunch(loader, device="meta")
    with pytest.raises(DataError, match=r"^All loaders must be on the device of the DataBunch, cpu, got .* cpu, meta"):
        DataBunch(loader, TensorLoader(X, Y, 4, device="meta"))


# --- looking


def test_the_old_name_of_to_images_warns():
    data = TensorDataBunch.from_arrays(torch.rand(8, 1, 3, 3), Y[:8], device="cpu")
    x, _ = data.one_batch()
    with pytest.warns(DeprecationWarning, match=r"`DataBunch\.pictures` is now `DataBunch\.to_images`"):
        old = data.pictures(x)
    assert all((a == b).all() for a, b in zip(old, data.to_images(x), strict=True))


# --- data sets


def test_a_training_set_without_a_length_or_without_samples_raises():
    with pytest.raises(DataError, match=r"^`train_ds`, a Endless, has no length; give the number .*epoch_length=100"):
        DataBunch.create(Endless(), device="cpu")
    with pytest.raises(DataError, match=r"^`train_ds` has no samples"):
        DataBunch.create(TensorDataset(X[:0], Y[:0]), device="cpu")


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 30), st.integers(1, 12), st.booleans(), st.integers(0, 2**16))
def test_loaders_of_tensors_and_of_torch_give_the_same_batches(n, bs, shuffle, seed):
    x, y = torch.arange(n), torch.arange(n) * 10
    loader = TensorLoader(x, y, bs, shuffle=shuffle, seed=seed, device="cpu")
    drop = shuffle and n >= bs
    other = DataLoader(TensorDataset(x, y), bs, sampler=EpochOrder(n, seed) if shuffle else None, drop_last=drop)
    for _ in range(2):
        first, second = list(loader), list(other)
        assert len(first) == len(second) == len(loader)
        assert all(a.equal(c) and b.equal(d) for (a, b), (c, d) in zip(first, second, strict=True))
    epoch = loader.epoch
    for start in range(len(loader)):
        loader.epoch = epoch - 1
        assert all(a[0].equal(b[0]) for a, b in zip(loader.batches(start), first[start:], strict=True))
    assert sorted(torch.cat([x for x, _ in loader.in_order()]).tolist()) == list(range(n))
