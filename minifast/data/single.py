"""One sample as a batch of one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minifast.data.loaders import Target, as_images
from minifast.errors import DataError
from minifast.utils.tensors import map_tensors, target_names


def batch_of_one(item: Any, device: torch.device, target: Target = None, channels: int = 3) -> Any:
    """Return a sample as a batch of one on a device.

    Args:
        item: a tensor, or several in a tuple, list or dict.
        device: the device of the batch.
        target: the name of the targets in samples that are dicts, which are left out.
        channels: the channels of gray images.

    Raises:
        DataError: if the sample is not made of tensors with at least one dimension.
    """
    if isinstance(item, Mapping):
        names = target_names(item, target)
        item = {name: as_tensor(value) for name, value in item.items() if name not in names}
    nested = isinstance(item, (list, tuple)) and any(isinstance(value, Tensor) for value in item)
    try:
        tensors = item if nested or isinstance(item, dict) else torch.as_tensor(item)
        x = map_tensors(lambda tensor: as_images(tensor[None].to(device), channels), tensors)
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        raise DataError(f"The sample must be like those of the data set, got {type(item).__name__}.") from error
    if isinstance(x, Tensor) and x.ndim < 2:
        raise DataError(f"The sample must be a tensor like those of the data set, got the number {item}.")
    return x


def as_tensor(value: Any) -> Any:
    """Return a number, an array or a list of numbers as a tensor, any other value unchanged."""
    is_list = isinstance(value, list) and all(isinstance(element, (int, float, list)) for element in value)
    return torch.as_tensor(value) if is_list or isinstance(value, (int, float, np.ndarray)) else value
