"""The parts of the data: training, validation and test."""

from __future__ import annotations

from enum import Enum
from typing import Any

from minifast.errors import DataError
from minifast.utils.checks import shown


class DatasetType(Enum):
    """Name a part of the data: training, validation or test."""

    Train = 1
    Valid = 2
    Test = 3


def as_part(ds_type: Any) -> DatasetType:
    """Return ``ds_type`` if it is a ``DatasetType``.

    Raises:
        TypeError: it is not.
    """
    if not isinstance(ds_type, DatasetType):
        raise TypeError(
            f"`ds_type` must be DatasetType.Train, DatasetType.Valid or DatasetType.Test, got {shown(ds_type)}. For "
            f"other data, get_preds and validate take a loader of batches, such as DataLoader(dataset, 64); "
            f"for all other methods give the loader to a DataBunch, as its `valid_dl` or `test_dl`."
        )
    return ds_type


def loader_of(parts: Any, ds_type: Any) -> Any:
    """Return the loader of a part.

    Args:
        parts: an object with the attributes ``train_dl``, ``valid_dl`` and ``test_dl``.
        ds_type: the part.

    Raises:
        TypeError: ``ds_type`` is not a ``DatasetType``.
        DataError: there is no such part.
    """
    name = as_part(ds_type).name.lower()
    loader = getattr(parts, f"{name}_dl")
    if loader is None:
        raise DataError(f"The data have no {name} part. Give the DataBunch a loader for it.")
    return loader
