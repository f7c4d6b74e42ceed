"""Loaders: batches of tensors in memory, and torch DataLoaders that move batches to a device."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset, TensorDataset

from minifast.data.devices import as_device, default_device
from minifast.data.order import EpochCounter, order_of, resolve_seed
from minifast.data.passes import own_pass
from minifast.data.resume import batches_before
from minifast.errors import DataError
from minifast.utils.checks import check_count, passed_on
from minifast.utils.memory import empty_floats
from minifast.utils.public import warn_caller
from minifast.utils.tensors import as_pair, count_samples, map_tensors, target_names

Transform = Callable[[tuple[Any, Any]], tuple[Any, Any]]  # takes and returns a batch (x, y)
BatchFn = Callable[[Any], tuple[Any, Any]]  # takes a batch of a loader and returns (inputs, targets)
Target = str | Sequence[str] | None  # the name of the targets in batches that are dicts, or several

LOADER_ARGUMENTS = [  # arguments that a DataLoader stores as attributes of the same name
    *("dataset", "batch_size", "drop_last", "num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn"),
    *("multiprocessing_context", "generator", "prefetch_factor", "persistent_workers", "in_order"),
]


def to_device(values: Any, device: torch.device) -> Any:
    """Move tensors to ``device``, also in tuples, lists and dicts, and objects with a method ``to``."""
    if type(values) in (tuple, list) and all(isinstance(x, Tensor) and x.device == device for x in values):
        return type(values)(values)  # the common case; a list is copied
    return map_tensors(
        lambda x: x if x.device == device else x.to(device, non_blocking=True),
        values,
        lambda value: value.to(device) if callable(getattr(value, "to", None)) else value,
    )


def with_targets(batch: Any, target: Target = None) -> Any:
    """Return a batch with targets: a batch of inputs alone gets the target 0 for each sample."""
    if isinstance(batch, (list, tuple)) and len(batch) == 1:
        batch = batch[0]
    elif (isinstance(batch, (list, tuple)) and batch) or target_names(batch, target):
        return batch
    batch = dict(batch) if isinstance(batch, Mapping) else batch
    return batch, torch.zeros(count_samples(None, batch), dtype=torch.int64)


def scaled(batch: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
    """Return a batch of uint8 images as floats in [0, 1]."""
    return as_images(batch[0]), batch[1]


def scaled_gray(batch: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
    """Return a batch of uint8 images as floats in [0, 1]; gray images keep their one channel."""
    return as_images(batch[0], channels=1), batch[1]


def scaling(channels: int) -> Transform:
    """Return the transform of uint8 images to floats with this number of channels where they are gray."""
    return scaled_gray if channels == 1 else scaled


def has_length(dl: Any) -> bool:
    """Return whether ``len(dl)`` works; a torch DataLoader has a length only if its data set has one."""
    try:
        len(dl)
    except (TypeError, NotImplementedError):
        return False
    return True


class BatchLoader:
    """Base class of the loaders: batch transforms, applied on the device."""

    def __init__(self, device: torch.device | str | None, tfms: list[Transform] | None = None) -> None:
        self.device = as_device(device) if device is not None else default_device()
        self.tfms = list(tfms or [])
        self.target: Target = None
        self.batch_fn: Callable[[Any], tuple[Any, Any]] | None = None

    def as_pair(self, batch: Any, part: str) -> tuple[Any, Any]:
        """Return a batch as (inputs, targets), by ``batch_fn`` if it is set."""
        if self.batch_fn is None:
            return as_pair(batch, part, self.target)
        pair = self.batch_fn(batch)
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            what = f"a {type(pair).__name__}" + (f" of {len(pair)}" if isinstance(pair, (tuple, list)) else "")
            raise DataError(
                f"`batch_fn` must return a pair (inputs, targets), got {what}; nest several inputs or targets in a "
                f"tuple or dict."
            )
        return pair[0], pair[1]

    def add_tfm(self, tfm: Transform) -> None:
        """Add a batch transform: a function that takes ``(x, y)`` and returns both."""
        self.tfms.append(tfm)

    def remove_tfm(self, tfm: Transform) -> None:
        """Remove a batch transform."""
        self.tfms.remove(tfm)

    def transformed(self, batch: Any) -> Any:
        """Return a batch after all transforms."""
        for tfm in self.tfms:
            batch = tfm(batch)
        return batch


class DeviceDataLoader(BatchLoader, EpochCounter):
    """Wrap a loader: move each batch to the device and transform it there.

    In a DataBunch, batches without samples are skipped with a warning. All other attributes are those of the wrapped
    loader.

    >>> loader = [(torch.zeros(2, 3), torch.tensor([0, 1]))]
    >>> [tuple(x.shape) for x, y in DeviceDataLoader(loader, device="cpu")]
    [(2, 3)]
    """

    keeps_empty = False  # also batches of a DataBunch without samples

    def __init__(self, dl: Any, device: torch.device | str | None = None, tfms: list[Transform] | None = None) -> None:
        super().__init__(device, tfms)
        self.dl = dl
        self.may_lack_targets = False
        self.part: str | None = None  # of a DataBunch, such as "training"

    def __getstate__(self) -> dict[str, Any]:
        if getattr(self.dl, "_iterator", None) is None:
            return vars(self)
        dl = copy.copy(self.dl)  # without its running workers, which cannot be copied or pickled
        dl._iterator = None
        return {**vars(self), "dl": dl}

    def __copy__(self) -> DeviceDataLoader:
        copied = type(self).__new__(type(self))
        vars(copied).update(vars(self))
        return copied

    def __len__(self) -> int:
        return len(self.dl)

    def __iter__(self) -> Iterator[Any]:
        return self.batches()

    def batches(self, first: int = 0, on_start: Callable[[], None] | None = None) -> Iterator[Any]:
        """Yield the batches from index ``first`` on.

        Earlier batches are read and dropped; then ``on_start`` is called.
        """
        with own_pass(self.dl) as loader:
            yield from self._pass(loader, first, on_start)

    def _pass(self, loader: Any, first: int, on_start: Callable[[], None] | None) -> Iterator[Any]:
        expected, n = len(self.dl) if self.part == "training" else None, batches_before(self.dl)
        try:
            batches = iter(loader)
            while n < first and (batch := next(batches, None)) is not None:
                n += not self._is_empty(batch)
            if on_start is not None:
                on_start()
            for batch in batches:
                if self._is_empty(batch):
                    warn_caller(f"A {self.part} batch has no samples, and is skipped.")
                    continue
                n += 1
                yield self._prepared(batch)
        except DataError as error:  # from a worker process, it holds the whole traceback as text
            if "DataError: " not in str(error):
                raise
            # The text has the worker's frames; the traceback would keep the loader and its workers alive.
            raise DataError(str(error).rstrip().rpartition("DataError: ")[2]) from error.with_traceback(None)
        if self.part == "training" and n and n != expected:
            warn_caller(
                f"The training loader has the length {expected}, but it gave {n} batches. Schedules and resuming need "
                f"the right length; correct its `__len__`.",
            )

    def in_order(self) -> Iterator[Any] | None:
        """Yield the batches of all samples in order, if the data set is in memory; else return None."""
        if isinstance(self.dl, (list, tuple)):
            return self.batches()
        dataset = getattr(self.dl, "dataset", None)
        while isinstance(dataset, Subset):
            dataset = dataset.dataset
        if not isinstance(dataset, TensorDataset):
            return None
        return self.new(shuffle=False, drop_last=False, num_workers=0).batches() if self.batch_size else self.batches()

    def _prepared(self, batch: Any) -> Any:
        """Return a batch on the device after all transforms."""
        lacks_targets = self.may_lack_targets and self.batch_fn is None
        batch = to_device(with_targets(batch, self.target) if lacks_targets else batch, self.device)
        if self.part is not None:
            batch = self.as_pair(batch, self.part)
        return self.transformed(batch)

    def _is_empty(self, batch: Any) -> bool:
        """Return whether a batch of a DataBunch has no samples, by its first tensor."""
        if self.part is None or self.keeps_empty:
            return False
        while not isinstance(batch, Tensor) and isinstance(batch, (tuple, list, Mapping)) and batch:
            batch = next(iter(batch.values())) if isinstance(batch, Mapping) else batch[0]
        return isinstance(batch, Tensor) and batch.shape[:1] == (0,)

    @property
    def batch_size(self) -> Any:
        """The number of samples in a batch; you can set it if the wrapped loader is a torch DataLoader."""
        return self.dl.batch_size

    @batch_size.setter
    def batch_size(self, value: int) -> None:
        self.dl = self.new(batch_size=check_count("batch_size", value)).dl

    def new(self, **kwargs: Any) -> DeviceDataLoader:
        """Return a loader of the same data set with other arguments for torch's DataLoader.

        Device and transforms stay the same.

        >>> loader = DeviceDataLoader(DataLoader(range(10), batch_size=2), device="cpu")
        >>> [len(x) for x in loader.new(batch_size=4)]
        [4, 4, 2]

        Raises:
            DataError: if the wrapped loader is not a torch DataLoader, or takes its batches from a batch sampler.
        """
        if not isinstance(self.dl, DataLoader) or self.dl.batch_size is None:
            kind = type(self.dl).__name__ + (" with a batch sampler" if isinstance(self.dl, DataLoader) else "")
            raise DataError(
                f"Only a torch DataLoader with a `batch_size` can be made with other arguments, got {kind}."
            )
        arguments = {name: getattr(self.dl, name) for name in LOADER_ARGUMENTS}
        if not kwargs.keys() & {"shuffle", "batch_sampler"}:
            arguments["sampler"] = copy.copy(self.dl.sampler)  # a copy, so that the two loaders do not share its state
        if "batch_sampler" in kwargs:
            del arguments["batch_size"], arguments["drop_last"]
        if kwargs.get("num_workers") == 0:
            del arguments["prefetch_factor"], arguments["persistent_workers"]
        loader = copy.copy(self)
        loader.dl, loader.tfms = DataLoader(**{**arguments, **kwargs}), list(self.tfms)
        return loader

    def __getattr__(self, name: str) -> Any:
        if name == "dl":  # not set yet while unpickling
            raise AttributeError(name)
        return passed_on(self, self.dl, name)


class TensorLoader(BatchLoader):
    """Load batches from tensors in memory: index, scale and transform on the device, without worker processes.

    Images are uint8 ``(n, 1 or 3, height, width)``. The loader yields them as floats in [0, 1] and repeats a gray
    channel 3 times. It yields all other tensors unchanged.

    Args:
        x: the inputs, one row per sample: a tensor, or a tuple of them for a model of several inputs.
        y: the targets, one row per sample.
        bs: samples per batch.
        shuffle: use a new order in each epoch, which depends on ``seed`` and ``epoch`` alone. An incomplete last batch
            is then dropped, unless it is the only one.
        seed: seed of the order; by default sampled once from torch's global generator.
        device: device of the batches; by default the GPU if there is one.
        tfms: batch transforms, applied in this order.
        classes: names of the classes, for ``loader.dataset.classes``.

    Attributes:
        epoch: the number of epochs started so far.

    >>> loader = TensorLoader(torch.arange(5), torch.arange(5), bs=2, device="cpu")
    >>> [x.tolist() for x, y in loader]
    [[0, 1], [2, 3], [4]]
    """

    def __init__(
        self,
        x: Tensor | tuple[Tensor, ...],
        y: Tensor,
        bs: int = 64,
        shuffle: bool = False,
        seed: int | None = None,
        device: torch.device | str | None = None,
        tfms: list[Transform] | None = None,
        classes: Sequence[Any] | None = None,
    ) -> None:
        super().__init__(device, tfms)
        for part in (x,) if isinstance(x, Tensor) else x:
            if len(part) != len(y):
                raise ValueError(f"`x` and `y` must have the same length, got {len(part)} inputs and {len(y)} targets.")
        self.batch_size = check_count("bs", bs)
        self.channels = 3  # of gray images in the batches
        self.x: Any = x.to(self.device) if isinstance(x, Tensor) else tuple(part.to(self.device) for part in x)
        self.y = y.to(self.device)
        self.dataset = Items(self.x, self.y, classes)
        self.shuffle = shuffle
        self.seed = resolve_seed(seed)
        self.epoch = 0

    @property
    def drop_last(self) -> bool:
        """Whether an incomplete last batch is dropped."""
        return self.shuffle and len(self.y) >= self.batch_size

    def __len__(self) -> int:
        n, bs = len(self.y), self.batch_size
        return n // bs if self.drop_last else -(-n // bs)

    def __iter__(self) -> Iterator[Any]:
        return self.batches()

    def batches(self, first: int = 0, on_start: Callable[[], None] | None = None) -> Iterator[Any]:
        """Yield the batches from index ``first`` on; ``on_start`` is called before the first of them."""
        for rows in self.rows(first, on_start):
            yield self.batch(rows)

    def rows(self, first: int = 0, on_start: Callable[[], None] | None = None) -> Iterator[Tensor]:
        """Yield the indices of the samples of each batch of an epoch, see ``batches``."""
        epoch, self.epoch = self.epoch, self.epoch + 1
        n = len(self.y)
        order = to_device(order_of(n, self.seed, epoch) if self.shuffle else torch.arange(n), self.device)
        if on_start is not None:
            on_start()
        for i in range(first, len(self)):
            yield order[i * self.batch_size : (i + 1) * self.batch_size]

    def in_order(self) -> Iterator[Any]:
        """Yield the batches of all samples in order."""
        for i in range(0, len(self.y), self.batch_size):
            yield self.batch(torch.arange(i, min(i + self.batch_size, len(self.y)), device=self.device))

    def batch(self, rows: Tensor) -> Any:
        """Return the batch of the samples with these indices, after all transforms."""
        # Copies, so that a callback may write into a batch. x[rows] takes ten times as long as index_select.
        several = isinstance(self.x, tuple)
        x = tuple(part.index_select(0, rows) for part in self.x) if several else self.x.index_select(0, rows)
        y = self.y.index_select(0, rows)
        batch = as_images(x, self.channels), y
        return self.transformed(batch if self.batch_fn is None else self.as_pair(batch, "training"))


def as_images(x: Any, channels: int = 3) -> Any:
    """Return uint8 images ``(n, 1 or 3, height, width)`` as floats in [0, 1], gray ones with this number of channels.

    All other values are returned unchanged.
    """
    if not isinstance(x, Tensor) or x.dtype is not torch.uint8 or x.ndim != 4 or x.shape[1] not in (1, 3):
        return x
    n, own, height, width = x.shape
    shape = (n, max(own, channels), height, width)
    if x.is_cpu and torch.get_default_dtype() is torch.float32:
        # One pass over the memory, where torch makes two: a large batch takes half the time.
        return torch.from_numpy(np.divide(x.numpy(), np.float32(255), out=empty_floats(shape), dtype=np.float32))
    return torch.empty(shape, device=x.device).copy_(x).div_(255)  # copy_ repeats gray, converts, makes contiguous


class Items:
    """Data set of tensors in memory with samples ``(x, y)``; ``data.train_ds`` of a ``TensorLoader``."""

    channels = 3  # of gray images

    def __init__(self, x: Any, y: Tensor, classes: Sequence[Any] | None, channels: int = 3) -> None:
        if channels != self.channels:  # an attribute more would make another run of a checkpointed one
            self.channels = channels
        self.x, self.y, self.classes = x, y, classes

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} samples)"

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int) -> tuple[Any, Tensor]:
        if isinstance(self.x, tuple):
            return tuple(part[i] for part in self.x), self.y[i]
        return as_images(self.x[i][None], self.channels)[0], self.y[i]
