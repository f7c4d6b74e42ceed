"""The batches of a loader, split over several processes: each trains on its share of every batch."""

from __future__ import annotations

import copy
import hashlib
import pickle
from collections.abc import Callable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import DataLoader, IterableDataset, Sampler

from minifast.data.loaders import DeviceDataLoader, TensorLoader, to_device, with_targets
from minifast.data.stream import EpochStream
from minifast.distributed.agreement import check_same
from minifast.distributed.exchange import as_first, gather, map_batch, share_of, shares
from minifast.distributed.group import Group
from minifast.errors import DataError
from minifast.utils.compat import wait_before_fork
from minifast.utils.random import get_rng_states, set_rng_states
from minifast.utils.tensors import count_samples, map_tensors


class Shards:
    """This process's share of each batch of a loader, from batch ``first`` on.

    The batches are those of a single process, in the same order, and nothing is repeated or left out. A batch with
    fewer samples than processes leaves some without one; they get a stand-in, the first sample of the batch.

    Attributes:
        counts: how many samples of the current batch each process has, 0 for a stand-in.
    """

    def __init__(self, loader: Any, group: Group, first: int = 0, on_start: Callable[[], None] | None = None) -> None:
        self.loader = loader
        self.group = group
        self.first = first
        self.on_start = on_start
        self.counts: list[int] = []

    def __len__(self) -> int:
        return max(0, len(self.loader) - self.first)

    def __iter__(self) -> Iterator[Any]:
        loader = self.loader
        if isinstance(loader, TensorLoader):
            return self._of_tensors(loader)
        inner = unwrap_loader(loader)
        if getattr(inner, "num_workers", 0) > 0:
            wait_before_fork()
        if is_sharded(inner, self.group.size):
            return self._as_they_are(loader)
        if unsplit := unsplit_stream(inner, self.group):
            raise DataError(unsplit)
        if isinstance(inner, DataLoader) and inner.batch_sampler is not None and isinstance(loader, DeviceDataLoader):
            return self._of_data_loader(loader, inner)
        return self._cut(loader, inner)

    @property
    def has_samples(self) -> bool:
        """Whether this process has samples of the current batch, not a stand-in."""
        return self.counts[self.group.rank] > 0

    def _share(self, n: int) -> slice:
        return share_of(n, self.group.rank, self.group.size)

    def _of_tensors(self, loader: TensorLoader) -> Iterator[Any]:
        for rows in loader.rows(self.first, self.on_start):
            self.counts = shares(len(rows), self.group.size)
            yield loader.batch(rows[self._share(len(rows))])

    def _of_data_loader(self, loader: DeviceDataLoader, inner: DataLoader[Any]) -> Iterator[Any]:
        """Yield batches of a DataLoader that reads the samples of this process only."""
        twin = _twin_of(inner)
        sampler = ShareSampler(inner.batch_sampler, self.group)
        if twin._iterator is None:
            vars(twin)["batch_sampler"] = sampler
        else:  # persistent workers: the sampler is theirs
            sampler = twin.batch_sampler  # type: ignore[assignment]
        if self.group.rank and inner.generator is not None:
            # The seeds of the workers, which would be the same in all processes.
            seed = int(torch.empty((), dtype=torch.int64).random_(generator=inner.generator).item())
            vars(twin)["generator"] = torch.Generator().manual_seed((seed + self.group.rank) % 2**63)
        copied = copy.copy(loader)
        copied.dl, copied.keeps_empty = twin, True  # a share without samples must not be skipped
        for i, batch in enumerate(copied.batches(self.first, self.on_start), self.first):
            self.counts = shares(sampler.sizes[i], self.group.size)
            yield batch

    def _cut(self, loader: Any, inner: Any) -> Iterator[Any]:
        """Yield the rows of this process of batches that all processes read."""
        is_ours = isinstance(loader, DeviceDataLoader)
        copied = copy.copy(loader) if is_ours else DeviceDataLoader(inner, getattr(loader, "device", "cpu"))
        if isinstance(inner, DataLoader) and inner.batch_sampler is None:  # its samples are whole batches
            inner = _twin_of(inner)
            vars(inner)["sampler"] = SameSampler(inner.sampler)
        copied.dl = _Cut(self, inner, copy.copy(copied))
        copied.batch_fn = None  # it has made the pairs that are cut
        yield from copied.batches(self.first, self.on_start)

    def _as_they_are(self, loader: Any) -> Iterator[Any]:
        """Yield the batches of a loader that gives each process its own, until the last process has no more."""
        batches = loader.batches(self.first, self.on_start) if isinstance(loader, DeviceDataLoader) else iter(loader)
        last: Any = None
        while True:
            batch = next(batches, None)
            n = 0 if batch is None else count_samples(*reversed(batch)) if _is_pair(batch) else 1
            self.counts = gather(n)
            if not any(self.counts):
                return
            if batch is None and last is None:
                raise DataError(f"Process {self.group.rank} has no batch at all; give each process at least one.")
            last = batch if batch is not None else last
            yield last


class SameSampler(Sampler[Any]):
    """Yield what another sampler yields in process 0."""

    def __init__(self, whole: Any) -> None:
        self.whole = whole

    def __len__(self) -> int:
        return len(self.whole)

    def __iter__(self) -> Iterator[Any]:
        with as_first(get_rng_states, set_rng_states):
            samples = list(self.whole)
        check_same(
            {"the order of the samples": hashlib.sha256(pickle.dumps(samples)).hexdigest()[:16]},
            "Seed the sampler with the same number in each process; or let it give each process its own samples, and "
            "set its attribute `sharded = True`.",
        )
        yield from samples


class ShareSampler(SameSampler):
    """Yield of each batch of another batch sampler the share of this process.

    The batches are sampled with the random generators of process 0.

    Attributes:
        sizes: the numbers of samples of the whole batches in this epoch.
    """

    def __init__(self, whole: Any, group: Group) -> None:
        super().__init__(whole)
        self.group = group
        self.sizes: list[int] = []

    def __iter__(self) -> Iterator[Any]:
        batches = list(map(list, super().__iter__()))
        self.sizes[:] = map(len, batches)
        for batch in batches:
            yield batch[share_of(len(batch), self.group.rank, self.group.size)]


_twins: WeakKeyDictionary[DataLoader[Any], DataLoader[Any]] = WeakKeyDictionary()


def _twin_of(loader: DataLoader[Any]) -> DataLoader[Any]:
    """Return a copy of a DataLoader, always the same one, which shares all settings but can get another sampler."""
    if loader not in _twins:
        _twins[loader] = copy.copy(loader)
        vars(_twins[loader]).update(_iterator=None)
    return _twins[loader]


class _Cut:
    """Batches of any iterable, as pairs cut to the rows of this process."""

    def __init__(self, shards: Shards, batches: Any, loader: DeviceDataLoader) -> None:
        self.shards = shards
        self.batches = batches
        self.loader = loader

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        loader = self.loader
        for i, batch in enumerate(self.batches):
            lacks = loader.may_lack_targets and loader.batch_fn is None
            whole = with_targets(batch, loader.target) if lacks else batch
            if not i:
                check_same(
                    {f"the first batch of a {type(self.batches).__name__}": _checksum(whole)},
                    "Let all processes read the same batches; or if each reads its own, set the attribute "
                    "`sharded = True` of the loader.",
                )
            if loader.batch_fn is not None:  # it takes batches on the device
                whole = to_device(whole, loader.device)
            x, y = loader.as_pair(whole, loader.part or "training")
            n = count_samples(y, x)
            self.shards.counts = shares(n, self.shards.group.size)
            yield tuple(_rows_of(values, self.shards._share(n), n) for values in (x, y))


def unwrap_loader(loader: Any) -> Any:
    """Return the loader inside those of minifast, such as a torch DataLoader."""
    inner = loader.dl if isinstance(loader, DeviceDataLoader) else loader
    return inner.loader if isinstance(inner, EpochStream) else inner


def is_sharded(loader: Any, size: int) -> bool:
    """Return whether a loader gives each of ``size`` processes samples of its own already.

    It does so by a DistributedSampler or another sampler with the attribute ``num_replicas``, or says it with the
    attribute ``sharded = True`` of the loader, its samplers or its data set.
    """
    loader = unwrap_loader(loader)
    parts = [loader, *(getattr(loader, name, None) for name in ("sampler", "batch_sampler", "dataset"))]
    parts.append(getattr(parts[2], "sampler", None))
    return any(getattr(part, "sharded", None) is True or getattr(part, "num_replicas", None) == size for part in parts)


def unsplit_stream(loader: Any, group: Group | None) -> str:
    """Return why the processes cannot share the samples of a loader or data set; "" if they can, or there is one."""
    loader = unwrap_loader(loader)
    dataset = getattr(loader, "dataset", loader)
    if group is None or not isinstance(dataset, IterableDataset) or is_sharded(loader, group.size):
        return ""
    return (
        f"{type(dataset).__name__} is an IterableDataset, whose samples cannot be split over {group.size} processes "
        f"from outside. Let it yield the samples of its process only (by torch.distributed.get_rank()) and set its "
        f"attribute `sharded = True`; or use a data set with a length and indices."
    )


def _is_pair(batch: Any) -> bool:
    return isinstance(batch, (tuple, list)) and len(batch) == 2


def _rows_of(values: Any, rows: slice, n: int) -> Any:
    """Return the rows of a batch of ``n`` samples in tensors and in lists with one value for each sample."""
    return map_batch(
        lambda tensor: tensor[rows] if tensor.ndim and len(tensor) == n else tensor,
        lambda samples: samples[rows],
        _refuse_objects,
        values,
        n,
    )


def _refuse_objects(value: Any) -> Any:
    if isinstance(value, PackedSequence):
        raise DataError(
            "A PackedSequence cannot be split over processes; pack the sequences in collate_fn of a torch DataLoader, "
            "which then packs the share of each process, or in the model."
        )
    raise DataError(
        f"The batches hold a {type(value).__name__}, which cannot be split over processes. Use a torch DataLoader "
        f"whose collate_fn makes it, so that each process makes its own; or pass `batch_fn`, a function that returns "
        f"tensors."
    )


def _checksum(batch: Any) -> str:
    digest = hashlib.sha256()

    def add(tensor: Tensor) -> None:
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())

    map_tensors(add, batch)
    return digest.hexdigest()[:16]
