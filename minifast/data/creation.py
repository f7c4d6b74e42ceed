"""Make loaders of data sets, for ``DataBunch.create``."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, IterableDataset

from minifast.data.checks import check_dataset
from minifast.data.loaders import has_length
from minifast.data.order import EpochOrder, resolve_seed
from minifast.data.shards import unsplit_stream
from minifast.data.stream import EpochStream
from minifast.distributed.group import current_group
from minifast.errors import DataError
from minifast.utils.checks import check_count


class LoaderOptions(NamedTuple):
    """The arguments of ``DataBunch.create`` that decide the batches."""

    bs: int
    val_bs: int | None
    seed: int | None
    sampler: Any
    epoch_length: int | None
    val_length: int | None
    others: dict[str, Any]  # for torch's DataLoader


def make_loaders(train_ds: Any, valid_ds: Any, test_ds: Any, options: LoaderOptions) -> list[Any]:
    """Return the loaders of a training, a validation and a test set; the last two may be None."""
    bs = check_count("bs", options.bs)
    val_bs = bs if options.val_bs is None else check_count("val_bs", options.val_bs)
    seed = None if options.seed is None else check_count("seed", options.seed, least=0)
    common = dict(options.others)
    if seed is not None:
        common["generator"] = torch.Generator().manual_seed(seed)
    if is_stream(train_ds):
        if options.sampler is not None:
            raise DataError(f"{type(train_ds).__name__} decides its order itself; leave `sampler` out.")
        train_dl = make_stream("train_ds", train_ds, bs, "epoch_length", options.epoch_length, seed, common, True)
    else:
        if options.epoch_length is not None:
            raise DataError(
                "`epoch_length` is for a data set without a length; to see a part of the samples in each epoch, pass "
                "`sampler`, such as RandomSampler(train_ds, num_samples=1000)."
            )
        check_dataset(train_ds)
        order: dict[str, Any] = {"shuffle": True}
        if options.sampler is not None:
            order = {"sampler": options.sampler}
        elif seed is not None:
            order = {"sampler": EpochOrder(len(train_ds), seed)}
        n = len(train_ds if options.sampler is None else options.sampler)
        train_dl = DataLoader(train_ds, bs, drop_last=n >= bs, **order, **common)
    loaders = [train_dl]
    for name, dataset in (("valid_ds", valid_ds), ("test_ds", test_ds)):
        if is_stream(dataset):
            loaders.append(make_stream(name, dataset, val_bs, "val_length", options.val_length, seed, common, False))
        else:
            loaders.append(None if dataset is None else DataLoader(dataset, val_bs, **common))
    return loaders


def is_stream(dataset: Any) -> bool:
    """Return whether a data set yields its samples and has no indices."""
    return isinstance(dataset, IterableDataset)


def make_stream(
    name: str, dataset: Any, bs: int, argument: str, length: int | None, seed: int | None, common: Any, train: bool
) -> Any:
    """Return the loader of an IterableDataset, whose epochs have ``length`` batches."""
    if length is None and has_length(dataset):
        return DataLoader(dataset, bs, drop_last=train and len(dataset) >= bs, **common)
    if length is None:
        raise DataError(
            f"{unsplit_stream(dataset, current_group())} `{name}`, a {type(dataset).__name__}, has no length; give the "
            f"number of batches of an epoch, such as {argument}=100.".lstrip()
        )
    seed = resolve_seed(seed)
    loader: Any = DataLoader(dataset, bs, drop_last=train, **{**common, "generator": torch.Generator()})
    return EpochStream(loader, check_count(argument, length), restart=not train, seed=seed)
