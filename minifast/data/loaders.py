"""Loaders: batches of tensors in memory, and torch DataLoaders that move batches to a device."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from minifast.data.order import draw_seed, order_of
from minifast.errors import DataError
from minifast.utils.checks import check_count
from minifast.utils.tensors import map_tensors

Transform = Callable[[tuple[Any, Any]], tuple[Any, Any]]  # of a batch (x, y)


LOADER_ARGUMENTS = [  # that a DataLoader keeps under their own names
    *("dataset", "batch_size", "drop_last", "num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn"),
    *("multiprocessing_context", "generator", "prefetch_factor", "persistent_workers", "in_order"),
]


def default_device() -> torch.device:
    """Return the device that training uses unless told otherwise: CUDA, else Apple's GPU, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def to_device(values: Any, device: torch.device) -> Any:
    """Move tensors, and tuples, lists and dicts of them, to ``device``."""
    return map_tensors(lambda one: one if one.device == device else one.to(device, non_blocking=True), values)


def with_targets(batch: Any) -> Any:
    """Return a batch ``(x, y)`` as it is, and one without targets with 0 as the target of each item."""
    alone = isinstance(batch, Tensor) or (isinstance(batch, (list, tuple)) and len(batch) == 1)
    if not alone:
        return batch
    x = batch if isinstance(batch, Tensor) else batch[0]
    return x, torch.zeros(len(x), dtype=torch.int64)


class BatchLoader:
    """What all loaders share: transforms of whole batches, on the device."""

    def __init__(self, device: torch.device | str | None, tfms: list[Transform] | None = None) -> None:
        self.device = torch.device(device) if device is not None else default_device()
        self.tfms = list(tfms or [])

    def add_tfm(self, tfm: Transform) -> None:
        """Add a transform of whole batches, a function of ``(x, y)`` that returns both."""
        self.tfms.append(tfm)

    def remove_tfm(self, tfm: Transform) -> None:
        """Remove a transform of whole batches."""
        self.tfms.remove(tfm)

    def transformed(self, batch: Any) -> Any:
        """Return a batch after all transforms."""
        for tfm in self.tfms:
            batch = tfm(batch)
        return batch


class DeviceDataLoader(BatchLoader):
    """A loader's batches, moved to the device and transformed there; other attributes are the loader's own.

    >>> loader = [(torch.zeros(2, 3), torch.tensor([0, 1]))]
    >>> [tuple(x.shape) for x, y in DeviceDataLoader(loader, device="cpu")]
    [(2, 3)]
    """

    def __init__(self, dl: Any, device: torch.device | str | None = None, tfms: list[Transform] | None = None) -> None:
        super().__init__(device, tfms)
        self.dl = dl
        self.may_lack_targets = False

    def __len__(self) -> int:
        return len(self.dl)

    def __iter__(self) -> Iterator[Any]:
        return self.batches()

    def batches(self, first: int = 0, then: Callable[[], None] | None = None) -> Iterator[Any]:
        """Yield the batches from ``first`` on; those before are read and dropped, and ``then`` is called."""
        try:
            batches = iter(self.dl)
            for _ in range(first):
                next(batches, None)
            if then is not None:
                then()
            for batch in batches:
                full = with_targets(batch) if self.may_lack_targets else batch
                yield self.transformed(to_device(full, self.device))
        except DataError as error:  # which comes from a worker process wrapped into its traceback
            # Its text has the worker's frames; its own would keep the loader and its workers alive.
            raise DataError(str(error).rstrip().rpartition("DataError: ")[2]) from error.with_traceback(None)

    @property
    def batch_size(self) -> Any:
        """The number of items in a batch; it may be set where a DataLoader of torch's is inside."""
        return self.dl.batch_size

    @batch_size.setter
    def batch_size(self, value: int) -> None:
        self.dl = self.new(batch_size=check_count("batch_size", value)).dl

    def new(self, **kwargs: Any) -> DeviceDataLoader:
        """Return a loader of the same data set, device and transforms, with other arguments of torch's DataLoader.

        >>> loader = DeviceDataLoader(DataLoader(range(10), batch_size=2), device="cpu")
        >>> [len(x) for x in loader.new(batch_size=4)]
        [4, 4, 2]

        Raises:
            DataError: what is inside is no DataLoader of torch's, or one that has its batches from a sampler.
        """
        if not isinstance(self.dl, DataLoader) or self.dl.batch_size is None:
            kind = type(self.dl).__name__ + (" with batches of its own" if isinstance(self.dl, DataLoader) else "")
            raise DataError(f"The loader is a {kind}; only a DataLoader of torch's that makes batches is made anew.")
        old = {name: getattr(self.dl, name) for name in LOADER_ARGUMENTS}
        if not kwargs.keys() & {"shuffle", "batch_sampler"}:
            old["sampler"] = copy.copy(self.dl.sampler)  # with a place of its own
        if "batch_sampler" in kwargs:
            del old["batch_size"], old["drop_last"]
        if kwargs.get("num_workers") == 0:
            del old["prefetch_factor"], old["persistent_workers"]
        return DeviceDataLoader(DataLoader(**{**old, **kwargs}), self.device, self.tfms)

    def __getattr__(self, name: str) -> Any:
        if name == "dl":  # not set yet, as in unpickling
            raise AttributeError(name)
        return getattr(self.dl, name)


class TensorLoader(BatchLoader):
    """Batches of tensors in memory: gathered, scaled and transformed on the device, without a worker.

    Pictures are uint8 ``(n, channels, height, width)`` and come as floats in [0, 1]; grey ones as 3 equal channels.
    Other tensors come as they are.

    Args:
        x: the inputs, a row an item.
        y: the targets, a row an item.
        bs: items a batch.
        shuffle: a new order each epoch, a function of ``seed`` and ``epoch`` alone; the last batch, if it is not full,
            is then left out, unless it is the only one.
        seed: by default drawn once from torch's global generator.
        device: where the batches are; by default the GPU if there is one.

    ``epoch`` counts the passes begun.

    >>> loader = TensorLoader(torch.arange(5), torch.arange(5), bs=2, device="cpu")
    >>> [x.tolist() for x, y in loader]
    [[0, 1], [2, 3], [4]]
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        bs: int = 64,
        shuffle: bool = False,
        seed: int | None = None,
        device: torch.device | str | None = None,
        tfms: list[Transform] | None = None,
        classes: Sequence[Any] | None = None,
    ) -> None:
        super().__init__(device, tfms)
        if len(x) != len(y):
            raise ValueError(f"There are {len(x)} inputs and {len(y)} targets; give a target for each input.")
        self.batch_size = check_count("bs", bs)
        self.x = x.to(self.device)
        self.y = y.to(self.device)
        self.dataset = Items(self.x, self.y, classes)
        self.shuffle = shuffle
        self.seed = draw_seed(seed)
        self.epoch = 0

    @property
    def drop_last(self) -> bool:
        """Whether a last batch that is not full is left out."""
        return self.shuffle and len(self.x) >= self.batch_size

    def __len__(self) -> int:
        n, bs = len(self.x), self.batch_size
        return n // bs if self.drop_last else -(-n // bs)

    def __iter__(self) -> Iterator[Any]:
        return self.batches()

    def batches(self, first: int = 0, then: Callable[[], None] | None = None) -> Iterator[Any]:
        """Yield the batches from ``first`` on, without making those before; ``then`` is called before the first."""
        epoch, self.epoch = self.epoch, self.epoch + 1
        n = len(self.x)
        order = to_device(order_of(n, self.seed, epoch) if self.shuffle else torch.arange(n), self.device)
        if then is not None:
            then()
        for i in range(first, len(self)):
            yield self._batch(order[i * self.batch_size : (i + 1) * self.batch_size])

    def _batch(self, rows: Tensor) -> Any:
        # Copies, so that a callback may write into a batch; indexing by rows takes ten times as long as this.
        x, y = self.x.index_select(0, rows), self.y.index_select(0, rows)
        return self.transformed((as_images(x), y))


def as_images(x: Any) -> Any:
    """Turn pictures as they lie in memory, uint8 ``(n, 1 or 3, height, width)``, into floats in [0, 1] with 3 channels.

    All else stays as it is.
    """
    if not isinstance(x, Tensor) or x.dtype is not torch.uint8 or x.ndim != 4 or x.shape[1] not in (1, 3):
        return x
    n, _, height, width = x.shape
    pictures = torch.empty((n, 3, height, width), device=x.device)
    return pictures.copy_(x).div_(255)  # one pass that repeats grey, converts and lays out at once, and one that scales


def batch_of_one(item: Any, device: torch.device) -> Any:
    """Return an item, a tensor or several in a tuple, list or dict, as a batch of one on a device.

    Raises:
        DataError: it holds no tensor with a dimension.
    """
    nested = isinstance(item, (list, tuple)) and any(isinstance(one, Tensor) for one in item)
    try:
        tensors = item if nested or isinstance(item, dict) else torch.as_tensor(item)
        x = map_tensors(lambda one: as_images(one[None].to(device)), tensors)
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        raise DataError(f"The item is a {type(item).__name__}; give one as the data set has it.") from error
    if isinstance(x, Tensor) and x.ndim < 2:
        raise DataError(f"The item is the number {item}; give one as the data set has it: a tensor.")
    return x


class Items:
    """The items of tensors in memory, one by one, as ``(x, y)``: what ``data.train_ds`` is."""

    def __init__(self, x: Tensor, y: Tensor, classes: Sequence[Any] | None) -> None:
        self.x = x
        self.y = y
        self.classes = classes

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return as_images(self.x[i][None])[0], self.y[i]
