"""Make torch DataLoaders of data sets, for ``DataBunch.create``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader

from minifast.data.checks import check_dataset
from minifast.data.order import EpochOrder
from minifast.utils.checks import check_count


def make_loaders(
    datasets: Sequence[Any], bs: int, val_bs: int | None, seed: int | None, options: dict[str, Any]
) -> list[Any]:
    """Return the loaders of a training, a validation and a test set; the last two may be None.

    ``options`` are arguments for torch's DataLoader, and ``DataBunch.create`` describes the others.
    """
    train_ds, *others = datasets
    check_count("bs", bs)
    check_dataset(train_ds)
    val_bs = bs if val_bs is None else check_count("val_bs", val_bs)
    order: dict[str, Any] = {"shuffle": True}
    if seed is not None:
        order = {"sampler": EpochOrder(len(train_ds), check_count("seed", seed, least=0))}
        options["generator"] = torch.Generator().manual_seed(seed)
    train_dl: Any = DataLoader(train_ds, bs, drop_last=len(train_ds) >= bs, **order, **options)
    return [train_dl, *(None if ds is None else DataLoader(ds, val_bs, **options) for ds in others)]
