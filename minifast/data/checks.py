"""Checks of loaders and batches before training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from minifast.data.devices import is_same_device
from minifast.data.loaders import has_length
from minifast.data.shards import unsplit_stream
from minifast.distributed.group import current_group
from minifast.errors import DataError
from minifast.utils.public import check_keywords


def check_loader(name: str, dl: Any) -> None:
    """Raise a DataError if an argument is not an iterable with a length."""
    if not hasattr(dl, "__iter__") or not has_length(dl):
        unsplit = unsplit_stream(dl, current_group())  # in several processes the first thing to change
        raise DataError(
            f"{unsplit} `{name}` must have a length and yield batches (x, y), got {type(dl).__name__}. Give a torch "
            f"DataLoader whose data set has a length, DataBunch.create(train_ds, epoch_length=100) for an "
            f"IterableDataset without a length, or a list of batches.".lstrip()
        )
    first = next(iter(dl), None) if name == "valid_dl" and isinstance(dl, (list, tuple)) else None
    is_batch = isinstance(first, (list, tuple, Mapping, Tensor)) or not hasattr(first, "__iter__")
    if isinstance(dl, Mapping) or not is_batch:
        raise DataError(
            f"`{name}` must be one loader, got a {type(dl).__name__} of several. Give one of them, and call "
            f"learn.validate(dl) for each of the others."
        )


def check_dataset(dataset: Any) -> None:
    """Raise a DataError if a training set has no length or no samples."""
    if not has_length(dataset):
        raise DataError(f"`train_ds` must have a length, so that it can be shuffled, got {type(dataset).__name__}.")
    if not len(dataset):
        raise DataError("`train_ds` has no samples. Give it at least one.")


def check_devices(device: torch.device, loaders: Sequence[torch.device]) -> None:
    """Raise a DataError if a loader is on another device than its DataBunch."""
    if not all(is_same_device(device, other) for other in loaders):
        raise DataError(
            f"All loaders must be on the device of the DataBunch, {device}, got loaders on "
            f"{', '.join(map(str, loaders))}. Make them with this `device`."
        )


def check_batch(part: str, read: Callable[[], tuple[Any, Any]], classes: Sequence[Any] | None) -> None:
    """Raise a DataError if a batch cannot be read, inputs are not finite, or targets are not indices of the classes."""
    try:
        x, y = read()
    except Exception as error:
        raise DataError(f"The {part} part gives no batch: {error} Check its samples one by one.") from error
    if isinstance(x, Tensor) and not x.isfinite().all():
        raise DataError(f"The inputs of the first {part} batch are not all finite. Remove or replace NaN and inf.")
    if classes is None or not isinstance(y, Tensor) or y.dtype is not torch.int64 or y.ndim != 1:
        return
    if int(y.min()) < 0 or int(y.max()) >= len(classes):
        raise DataError(
            f"Targets must be class indices from 0 to {len(classes) - 1}, for {len(classes)} classes; the first batch "
            f"of the {part} part has targets from {int(y.min())} to {int(y.max())}."
        )


def check_loader_options(function: str, options: dict[str, Any], create: Callable[..., Any]) -> None:
    """Raise a TypeError if torch's DataLoader does not take an option, or ``create`` sets it itself."""
    own = ("dataset", "batch_size", "shuffle", "batch_sampler", "drop_last")
    check_keywords(function, options, create, DataLoader, but=own)
