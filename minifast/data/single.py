"""One sample as a batch of one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minifast.data.loaders import as_images, to_device
from minifast.data.targets import collated, sample_dimensions, without_batch_dimension
from minifast.errors import DataError
from minifast.utils.tensors import map_tensors, target_names


def batch_of_one(item: Any, device: torch.device, loader: Any, channels: int = 3, dimensions: Any = None) -> Any:
    """Return a sample as a batch of one on a device.

    Args:
        item: a tensor, or several in a tuple, list or dict; or an object with a method ``to``.
        device: the device of the batch.
        loader: the training loader, whose batches tell whether ``item`` is a batch already.
        channels: the channels of gray images.
        dimensions: the ``sample_dimensions``, where the loader has no batches.

    Raises:
        DataError: if the sample is not made of tensors, or is a batch of several samples.
    """
    if not isinstance(item, (Tensor, Mapping)) and callable(getattr(item, "to", None)):
        return to_device(collated(item, loader), device)
    dimensions = sample_dimensions(loader) if dimensions is None else dimensions
    if isinstance(item, Mapping):
        names = target_names(item, loader.target)
        item = {name: as_tensor(value) for name, value in item.items() if name not in names}
    elif isinstance(item, (list, tuple)) and isinstance(dimensions, (list, tuple)) and not hasattr(item, "_fields"):
        item = type(item)(map(as_tensor, item))
    nested = isinstance(item, (list, tuple)) and any(isinstance(value, Tensor) for value in item)
    wrong = f"The sample must be like those of the data set, got {type(item).__name__}."
    try:
        tensors = item if nested or isinstance(item, dict) else torch.as_tensor(item)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(wrong) from error
    tensors = without_batch_dimension(tensors, dimensions)
    try:
        x = map_tensors(lambda tensor: as_images(tensor[None].to(device), channels), tensors)
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        raise DataError(wrong) from error
    if isinstance(x, Tensor) and x.ndim < 2 and dimensions != 0:
        raise DataError(f"The sample must be a tensor like those of the data set, got the number {item}.")
    return x


def as_tensor(value: Any) -> Any:
    """Return a number, an array or a list of numbers as a tensor, any other value unchanged."""
    is_list = isinstance(value, list) and all(isinstance(element, (int, float, list)) for element in value)
    return torch.as_tensor(value) if is_list or isinstance(value, (int, float, np.ndarray)) else value
