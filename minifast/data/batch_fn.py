"""Other views of the data of a bunch: its batches split by a function, and other loaders prepared as its own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from minifast.data.loaders import BatchLoader, TensorLoader, scaling
from minifast.data.transforms import Seeded
from minifast.errors import DataError

if TYPE_CHECKING:
    from minifast.data.bunch import DataBunch


def with_batch_fn(data: DataBunch, batch_fn: Callable[[Any], tuple[Any, Any]]) -> DataBunch:
    """Return a copy of a bunch whose batches are what ``batch_fn`` returns; data sets and samplers are shared.

    The default loss and the classes that the targets of the data set determine are left out.
    """
    copied = copy.copy(data)
    loaders = {id(loader): copy.copy(loader) for loader in data.dls}  # one loader may serve two parts
    for loader in loaders.values():
        loader.tfms, loader.batch_fn = list(loader.tfms), batch_fn
    for name in ("train_dl", "valid_dl", "test_dl"):
        setattr(copied, name, loaders.get(id(getattr(data, name))))
    if data.loss_is_default or data.labels is not None:
        copied.loss_func, copied.loss_is_default = None, True
    if data.labels is not None:  # the classes are those of targets that batch_fn may replace
        copied.labels = copied.classes = None
    return copied


def adapt(data: DataBunch, dl: Any) -> Any:
    """Return a loader of other data with the transforms of a bunch, see ``DataBunch.adapt``."""
    if not hasattr(dl, "__iter__") or isinstance(dl, str):
        raise DataError(
            f"`dl` must be a loader of batches (x, y), got {type(dl).__name__}. That of a part of the data is "
            f"learn.dl(DatasetType.Train), learn.dl(DatasetType.Valid) or learn.dl(DatasetType.Test)."
        )
    if any(dl is own for own in data.dls) or (isinstance(dl, BatchLoader) and dl.tfms):
        return dl
    like = data.train_dl if data.valid_dl is None else data.valid_dl
    loader = data._wrapped(copy.copy(dl) if isinstance(dl, BatchLoader) else dl, "validation")
    tfms = [tfm for tfm in like.tfms if data.valid_dl is not None or not isinstance(tfm, Seeded)]
    loader.tfms = [scaling(data.channels), *tfms] if isinstance(like, TensorLoader) else tfms
    loader.target, loader.batch_fn = like.target, like.batch_fn
    return loader
