"""Data sets without a length, samplers, and other data sets of torch as people have them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset, WeightedRandomSampler

from minifast import Callback, DataBunch, DataError, Learner, accuracy


class Numbers(IterableDataset):
    """``n`` samples that count from 0, or without end; in each pass from another number."""

    def __init__(self, n=None):
        self.n = n
        self.epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        i = 0
        while self.n is None or i < self.n:
            yield torch.full((2,), float(i + 1000 * self.epoch)), i % 2
            i += 1


class Random(IterableDataset):
    """Samples from the global generator and from one of its own."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(1)

    def __iter__(self):
        while True:
            x = torch.randn(2) + torch.randn(2, generator=self.generator)
            yield x, int(x[0] > 0)


class Seen(Callback):
    def __init__(self):
        self.values = []

    def on_batch_begin(self, last_input, train):
        if train:
            self.values += last_input[:, 0].tolist()


def learner(data, path="."):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.5), nn.Linear(4, 2))
    return Learner(data, model, loss_func=nn.CrossEntropyLoss(), silent=True, path=path)


@settings(deadline=None, max_examples=25)
@given(n=st.none() | st.integers(1, 12), bs=st.integers(1, 4), length=st.integers(1, 5), epochs=st.integers(1, 3))
def test_epochs_continue_the_stream_and_begin_it_anew_at_its_end(n, bs, length, epochs):
    data = DataBunch.create(Numbers(n), bs=bs, epoch_length=length, device="cpu")
    seen = []
    if n is not None and n < bs:  # an incomplete batch is dropped, so there is none
        with pytest.raises(DataError, match="Numbers yields no batch"):
            next(iter(data.train_dl))
        return
    for _ in range(epochs):
        batches = [x[:, 0].tolist() for x, _ in data.train_dl]
        assert len(batches) == length == len(data.train_dl)
        seen += [value for batch in batches for value in batch]
    whole = 10**6 if n is None else n // bs * bs
    assert seen == [i % whole + 1000 * (i // whole) for i in range(len(seen))]


@pytest.mark.parametrize("make", [Numbers, lambda: Numbers(13), Random], ids=["endless", "finite", "random"])
def test_lr_find_and_one_batch_do_not_move_the_stream(make):
    def train(look):
        learn, seen = learner(DataBunch.create(make(), bs=3, epoch_length=4, seed=0, device="cpu")), Seen()
        if look:
            learn.lr_find(num_it=6)
            learn.data.one_batch()
        learn.fit(1, callbacks=[seen])
        if look:
            learn.lr_find(num_it=3)
        learn.fit(1, callbacks=[seen])
        return seen.values, learn.model[0].weight

    (plain, weight), (looked, other) = train(False), train(True)
    assert plain == looked
    assert torch.equal(weight, other)


@pytest.mark.parametrize("stop_at", [2, 4, 7])
@pytest.mark.parametrize("make", [Numbers, lambda: Numbers(13), Random], ids=["endless", "finite", "random"])
def test_a_resumed_run_continues_the_stream_bit_for_bit(make, stop_at, tmp_path):
    class StopError(Exception):
        pass

    def run(path):
        learn = learner(DataBunch.create(make(), bs=3, epoch_length=4, seed=0, device="cpu"), path)
        learn.fit(2, checkpoint="run", every=1)
        return learn.model[0].weight

    whole = run(tmp_path / "whole")
    learn = learner(DataBunch.create(make(), bs=3, epoch_length=4, seed=0, device="cpu"), tmp_path / "parts")
    forward, steps = learn.model.forward, []

    def stopping(x):
        steps.append(0)
        if len(steps) > stop_at:
            raise StopError
        return forward(x)

    learn.model.forward = stopping
    with pytest.raises(StopError):
        learn.fit(2, checkpoint="run", every=1)
    assert torch.equal(whole, run(tmp_path / "parts"))


def test_validation_of_a_stream_sees_the_same_batches_each_time():
    data = DataBunch.create(Numbers(), Numbers(), bs=3, epoch_length=2, val_length=4, device="cpu")
    for _ in range(2):
        assert [x[0, 0].item() for x, _ in data.valid_dl] == [0, 3, 6, 9]
    learn = learner(data)
    learn.fit(2)
    assert len(learn.recorder.val_losses) == 2


def test_a_stream_with_a_length_needs_no_epoch_length():
    class Sized(Numbers):
        def __len__(self):
            return self.n

    data = DataBunch.create(Sized(10), Sized(5), bs=4, device="cpu")
    assert (len(data.train_dl), len(data.valid_dl)) == (2, 2)
    learner(data).fit(1)


@pytest.mark.parametrize("part", ["train", "valid"])
def test_a_stream_without_a_length_asks_for_the_length_of_an_epoch(part):
    streams = (Numbers(), None) if part == "train" else ([(torch.zeros(2), 0)] * 4, Numbers())
    name = "epoch_length" if part == "train" else "val_length"
    with pytest.raises(DataError, match=rf"^`{part}_ds`, a Numbers, has no length; .* such as {name}=100"):
        DataBunch.create(*streams, device="cpu")


def test_epoch_length_for_a_sized_data_set_raises():
    with pytest.raises(DataError, match="`epoch_length` is for a data set without a length"):
        DataBunch.create([(torch.zeros(2), 0)] * 4, epoch_length=3, device="cpu")


def test_a_stream_that_can_be_read_once_says_so():
    class Once(IterableDataset):
        def __init__(self):
            self.samples = iter([(torch.zeros(2), 0)] * 6)

        def __iter__(self):
            return self.samples

    data = DataBunch.create(Once(), bs=2, epoch_length=4, device="cpu")
    with pytest.raises(DataError, match="Once can be iterated only once, and ended after 3 batches"):
        list(data.train_dl)


def test_a_weighted_sampler_decides_the_order_and_the_length():
    x = torch.arange(10.0)[:, None].repeat(1, 2)
    dataset = TensorDataset(x, torch.arange(10) % 2)
    sampler = WeightedRandomSampler([0.0] * 8 + [1.0, 1.0], 40)
    data = DataBunch.create(dataset, dataset, bs=8, sampler=sampler, device="cpu", seed=3)
    assert len(data.train_dl) == 5
    assert {float(value) for x, _ in data.train_dl for value in x[:, 0]} == {8.0, 9.0}
    assert torch.equal(torch.cat([x for x, _ in data.valid_dl]), x)
    learner(data).fit_one_cycle(1, 1e-2)


def test_torchvision_data_sets_with_transforms_v2_train():
    datasets = pytest.importorskip("torchvision.datasets")
    v2 = pytest.importorskip("torchvision.transforms.v2")
    pipeline = v2.Compose([v2.ToImage(), v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True)])
    dataset = datasets.FakeData(24, (3, 8, 8), num_classes=4, transform=pipeline)
    data = DataBunch.create(dataset, dataset, bs=8, device="cpu")
    assert data.c == 4
    assert DataBunch.create(Subset(dataset, [0, 3]), bs=1, device="cpu").c == 4
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, data.c))
    learn = Learner(data, model, metrics=[accuracy], silent=True)
    learn.fit(1)
    assert isinstance(learn.loss_func, nn.CrossEntropyLoss)
    assert learn.get_preds()[0].shape == (24, 4)


def test_a_loader_of_a_stream_names_create():
    with pytest.raises(DataError, match=r"DataBunch.create\(train_ds, epoch_length=100\)"):
        DataBunch(DataLoader(Numbers(), 4), device="cpu")
