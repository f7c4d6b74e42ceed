"""A pass over a loader is not disturbed by another one over the same loader."""

from __future__ import annotations

import threading
from itertools import islice

import pytest
import torch
from torch.utils.data import DataLoader

from minifast import DataBunch

N, BS = 14, 4


class Numbers(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return torch.tensor([float(i)]), i % 2


def loader(workers: int):
    dataset = Numbers()
    train = DataLoader(dataset, BS, num_workers=workers, persistent_workers=workers > 0)
    return DataBunch(train, DataLoader(dataset, BS), device="cpu").train_dl


def numbers(batches) -> list[int]:
    return [int(value) for x, _ in batches for value in x[:, 0]]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_pass_within_a_pass_gives_all_samples_of_both(workers):
    dl = loader(workers)
    outer = []
    for x, _ in dl:
        outer += x[:, 0].int().tolist()
        assert numbers(dl) == list(range(N))
    assert outer == list(range(N))
    assert [(a.tolist(), b.tolist()) for (a, _), (b, _) in zip(dl, dl, strict=True)] == [
        (x.tolist(), x.tolist()) for x, _ in dl
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_pass_that_began_goes_on_after_others(workers):
    dl = loader(workers)
    begun = iter(dl)
    first = numbers(islice(begun, 1))
    for _ in range(2):
        assert numbers(islice(dl, 2)) == list(range(2 * BS))
        assert numbers(dl) == list(range(N))
    assert first + numbers(begun) == list(range(N))


def test_passes_in_two_threads_give_all_samples():
    dl, found = loader(2), []
    threads = [threading.Thread(target=lambda: found.append(numbers(dl))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [list(range(N))] * 2


def test_the_workers_of_a_loader_stay_for_its_next_pass():
    dl = loader(2)
    numbers(dl)
    workers = [worker.pid for worker in dl.dl._iterator._workers]
    assert numbers(islice(dl, 1)) == list(range(BS))
    numbers(dl)
    assert [worker.pid for worker in dl.dl._iterator._workers] == workers
