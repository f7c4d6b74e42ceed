"""Samplers and data sets that draw their order from the epoch, which ``set_epoch`` tells them."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, Sampler, TensorDataset

from minifast import Callback, DataBunch, Learner

torch.set_num_threads(1)
X = torch.arange(40.0)[:, None]
Y = torch.arange(40) % 2


class Epochwise(Sampler[int]):
    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self):
        return iter(torch.randperm(40, generator=torch.Generator().manual_seed(self.epoch)).tolist())

    def __len__(self) -> int:
        return 40


class EpochwiseData(TensorDataset):
    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, i):
        x, y = super().__getitem__(i)
        return x + 100 * self.epoch, y


class OwnBatches:
    """A batch sampler that no torch class is behind."""

    def __init__(self) -> None:
        self.inner = Epochwise()

    def set_epoch(self, epoch: int) -> None:
        self.inner.epoch = epoch

    def __iter__(self):
        return iter(BatchSampler(self.inner, 8, drop_last=False))

    def __len__(self) -> int:
        return 5


KINDS = {
    "sampler": lambda: DataLoader(TensorDataset(X, Y), 8, sampler=Epochwise()),
    "torch's DistributedSampler": lambda: DataLoader(
        TensorDataset(X, Y), 8, sampler=DistributedSampler(TensorDataset(X, Y), num_replicas=1, rank=0)
    ),
    "sampler of a batch sampler": lambda: DataLoader(
        TensorDataset(X, Y), batch_sampler=BatchSampler(Epochwise(), 8, drop_last=False)
    ),
    "batch sampler": lambda: DataLoader(TensorDataset(X, Y), batch_sampler=OwnBatches()),
    "data set": lambda: DataLoader(EpochwiseData(X, Y), 8),
}


class Seen(Callback):
    """Record the inputs of each training batch; stop at one of them."""

    stop: int | None = None

    def __init__(self) -> None:
        self.rows: list[list[float]] = []

    def on_batch_end(self, last_input, train, iteration):
        if train:
            self.rows.append(last_input[:, 0].tolist())
            if iteration == self.stop:
                raise RuntimeError("power cut")


def learner(kind: str, seen: Seen, **kwargs) -> Learner:
    torch.manual_seed(0)
    data = DataBunch(KINDS[kind](), device="cpu", loss_func=nn.functional.cross_entropy)
    return Learner(data, nn.Linear(1, 2), callbacks=[seen], silent=True, **kwargs)


def expected(kind: str, epochs: int) -> list[list[float]]:
    loader, rows = KINDS[kind](), []
    for epoch in range(epochs):
        for owner in (loader.sampler, loader.batch_sampler, getattr(loader.batch_sampler, "sampler", None)):
            if hasattr(owner, "set_epoch"):
                owner.set_epoch(epoch)
        if hasattr(loader.dataset, "set_epoch"):
            loader.dataset.set_epoch(epoch)
        rows += [x[:, 0].tolist() for x, _ in loader]
    return rows


@pytest.mark.parametrize("kind", KINDS)
def test_each_epoch_has_its_own_order(kind) -> None:
    seen = Seen()
    learner(kind, seen).fit(3, 1e-3)
    assert seen.rows == expected(kind, 3)
    assert seen.rows[:5] != seen.rows[5:10]


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_fit_goes_on_with_new_orders(kind) -> None:
    seen = Seen()
    learn = learner(kind, seen)
    learn.fit(2, 1e-3)
    learn.lr_find(num_it=12)
    learn.validate(learn.data.train_dl)
    del seen.rows[10:]
    learn.fit(1, 1e-3)
    assert seen.rows == expected(kind, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_fit_that_stopped_goes_on_in_its_order(kind, tmp_path, monkeypatch) -> None:
    for stop in (6, None):
        seen = Seen()
        learn = learner(kind, seen, path=tmp_path)
        learn.fit(2, 1e-3, checkpoint="first")
        monkeypatch.setattr(Seen, "stop", stop)
        with pytest.raises(RuntimeError, match="power cut") if stop else nullcontext():
            learn.fit(2, 1e-3, checkpoint="second", every=1)
        monkeypatch.setattr(Seen, "stop", None)
    assert seen.rows[-10:] == expected(kind, 4)[10:]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_stopped_in_an_epoch_goes_on_in_its_order(kind, tmp_path, monkeypatch) -> None:
    seen = Seen()
    monkeypatch.setattr(Seen, "stop", 7)
    with pytest.raises(RuntimeError, match="power cut"):
        learner(kind, seen, path=tmp_path).fit(3, 1e-3, checkpoint="run", every=1)
    monkeypatch.setattr(Seen, "stop", None)
    rest = Seen()
    learner(kind, rest, path=tmp_path).fit(3, 1e-3, checkpoint="run")
    assert seen.rows == expected(kind, 3)[:8]
    assert rest.rows == expected(kind, 3)  # the first rows come from the checkpoint


@pytest.mark.parametrize("kind", KINDS)
def test_lr_find_leaves_the_order_alone(kind) -> None:
    seen = Seen()
    learn = learner(kind, seen)
    learn.lr_find(num_it=12)
    seen.rows.clear()
    learn.fit(2, 1e-3)
    assert seen.rows == expected(kind, 2)
