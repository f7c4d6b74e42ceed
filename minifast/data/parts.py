"""The parts of the data: training, validation and test."""

from __future__ import annotations

from enum import Enum
from typing import Any

from minifast.errors import DataError
from minifast.utils.checks import did_you_mean, shown


class DatasetType(Enum):
    """Name a part of the data: training, validation or test.

    Every method that takes a part takes its name too: ``learn.get_preds("valid")``.
    """

    Train = 1
    Valid = 2
    Test = 3


def as_part(ds_type: Any) -> DatasetType:
    """Return a part of the data that is a ``DatasetType`` or its name, in any case of letters.

    Raises:
        ValueError: it is another name.
        TypeError: it is neither.

    >>> as_part("valid"), as_part(DatasetType.Test)
    (<DatasetType.Valid: 2>, <DatasetType.Test: 3>)
    """
    if isinstance(ds_type, str):
        parts = {part.name.lower(): part for part in DatasetType}
        if ds_type.lower() not in parts:
            raise ValueError(
                f"There is no part {shown(ds_type)} of the data; give 'train', 'valid' or 'test'."
                f"{did_you_mean(ds_type.lower(), parts)}"
            )
        return parts[ds_type.lower()]
    if not isinstance(ds_type, DatasetType):
        raise TypeError(
            f"`ds_type` must be DatasetType.Train, DatasetType.Valid or DatasetType.Test, or the name of one, got "
            f"{shown(ds_type)}. For other data, get_preds and validate take a loader of batches, such as "
            f"DataLoader(dataset, 64); for all other methods give the loader to a DataBunch, as its `valid_dl` or "
            f"`test_dl`."
        )
    return ds_type


def loader_of(parts: Any, ds_type: Any) -> Any:
    """Return the loader of a part.

    Args:
        parts: an object with the attributes ``train_dl``, ``valid_dl`` and ``test_dl``.
        ds_type: the part.

    Raises:
        TypeError, ValueError: ``ds_type`` is no part.
        DataError: there is no such part.
    """
    name = as_part(ds_type).name.lower()
    loader = getattr(parts, f"{name}_dl")
    if loader is None:
        how = f"Make the data with {parts.test_option}, or give" if name == "test" else "Give"
        raise DataError(f"The data have no {name} part. {how} the DataBunch a loader for it.")
    return loader
