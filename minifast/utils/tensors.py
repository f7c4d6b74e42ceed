"""Helpers for tensors nested in tuples, lists and dicts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    pass


def count_samples(target: Any) -> int:
    """Return how many items a batch has, by its target: a tensor, or a tuple or list of them."""
    return len(target[0]) if isinstance(target, (list, tuple)) else len(target)


def as_arguments(values: Any) -> Sequence[Any]:
    """Spread a tuple or list over arguments; one tensor is one argument."""
    return values if isinstance(values, (list, tuple)) else (values,)


def as_list(values: Any) -> list[Any]:
    """Return None as an empty list, one value as a list of it, and a collection as a list."""
    if values is None:
        return []
    return list(values) if isinstance(values, (list, tuple, set, frozenset)) else [values]


def map_tensors(function: Callable[[Tensor], Any], values: Any) -> Any:
    """Return ``function`` of a tensor, or of each in tuples, lists and dicts; all else stays as it is.

    >>> map_tensors(torch.numel, (torch.zeros(2), {"text": "a", "more": [torch.zeros(3)]}))
    (2, {'text': 'a', 'more': [3]})
    """
    if isinstance(values, Tensor):
        return function(values)
    if isinstance(values, tuple) and hasattr(values, "_fields"):
        return type(values)(*(map_tensors(function, value) for value in values))
    if isinstance(values, (list, tuple)):
        return type(values)([map_tensors(function, value) for value in values])
    if isinstance(values, dict):
        twin = copy.copy(values)  # of its own kind, such as what models of others return
        for name, value in values.items():
            twin[name] = map_tensors(function, value)
        return twin
    return values


def concatenate(batches: Sequence[Any]) -> Any:
    """Return the batches of a data set as one: tensors are put one after another, also those in tuples and dicts.

    >>> concatenate([(torch.zeros(2), torch.ones(2)), (torch.zeros(1), torch.ones(1))])
    (tensor([0., 0., 0.]), tensor([1., 1., 1.]))
    """
    first = batches[0]
    if isinstance(first, (list, tuple)):
        return type(first)([concatenate(each) for each in zip(*batches, strict=True)])
    if isinstance(first, dict):
        return {name: concatenate([batch[name] for batch in batches]) for name in first}
    return torch.cat(list(batches))


def to_cpu(values: Tensor) -> Tensor:
    """Return a tensor on the CPU: the one place where a fit waits for its device, at an epoch's end or to redraw a bar.

    Here waiting is meant, so it is no error under ``torch.cuda.set_sync_debug_mode("error")``.
    """
    if not values.is_cuda:
        return values.cpu()
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("default")
    try:
        return values.cpu()
    finally:
        torch.cuda.set_sync_debug_mode(mode)


def read_floats(values: Tensor) -> list[float]:
    """Return a tensor's numbers, see ``to_cpu``."""
    return to_cpu(values).flatten().tolist()


def is_plain(value: Any) -> bool:
    """Whether a value is a tensor, a number, a text, None, or a list, tuple or dict of such."""
    if isinstance(value, (list, tuple)):
        return type(value) in (list, tuple) and all(map(is_plain, value))
    if isinstance(value, dict):
        return type(value) is dict and all(map(is_plain, value)) and all(map(is_plain, value.values()))
    return value is None or type(value) in (bool, int, float, str) or type(value) is Tensor
