"""The order of samples in an epoch, as a function of the seed and the epoch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

from minifast.distributed.exchange import broadcast
from minifast.utils.checks import check_count, check_number


def order_of(n: int, seed: int, epoch: int) -> Tensor:
    """Return the order of ``n`` samples in an epoch, which depends on the arguments alone.

    >>> torch.equal(order_of(10, 1, 2), order_of(10, 1, 2)), torch.equal(order_of(10, 1, 2), order_of(10, 1, 3))
    (True, False)
    """
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    return torch.randperm(n, generator=generator)


def split_rows(n: int, valid_pct: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return the indices of the training samples and of the validation samples, chosen at random.

    ``n`` is at least 2, and each part gets at least one sample.

    >>> [len(part) for part in split_rows(10, 0.2, seed=0)], [len(part) for part in split_rows(2, 0.01, seed=0)]
    ([8, 2], [1, 1])
    """
    order = order_of(n, seed, 0)
    n_valid = max(1, int(n * check_number("valid_pct", valid_pct, above=0, high=0.99)))
    return order[n_valid:], order[:n_valid]


def resolve_seed(seed: int | None) -> int:
    """Return a checked seed; for None, one sampled from torch's generator, in all processes that of the first."""
    if seed is not None:
        return check_count("seed", seed, least=0)
    return broadcast(int(torch.randint(2**31, ()).item()))


class EpochOrder(Sampler[int]):
    """Sampler for torch's DataLoader that gives the same order as ``TensorLoader`` with this seed."""

    def __init__(self, n: int, seed: int) -> None:
        self.n = n
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[int]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        return iter(order_of(self.n, self.seed, epoch).tolist())


def set_epoch(loader: Any, epoch: int) -> bool:
    """Call ``set_epoch`` of a loader's samplers and data set, such as torch's DistributedSampler, if they have it.

    They draw the order from the epoch, and would repeat that of the first one. Returns whether one of them has it.
    """
    inner = getattr(loader, "dl", loader)
    batch_sampler = getattr(inner, "batch_sampler", None)
    samplers = [getattr(inner, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None)]
    owners = {id(owner): owner for owner in (inner, getattr(inner, "dataset", None), *samplers)}
    methods = [getattr(owner, "set_epoch", None) for owner in owners.values()]
    for method in filter(callable, methods):
        method(epoch)
    return any(map(callable, methods))


class EpochCounter:
    """A loader that counts epochs over all fits for ``set_epoch``, as ``EpochOrder`` counts them."""

    dl: Any
    epochs_begun: int | None = None  # None too where nothing has set_epoch

    def begin_epoch(self, epoch: int) -> None:
        """Tell samplers and data set the number of the epoch, at first that of the epoch in the fit."""
        number = epoch if self.epochs_begun is None else self.epochs_begun
        if set_epoch(self.dl, number):
            self.epochs_begun = number + 1
