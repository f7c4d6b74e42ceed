"""Helpers for tensors and numbers nested in tuples, lists and dicts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from minifast.errors import DataError


def count_samples(targets: Any, inputs: Any = None) -> int:
    """Return the number of samples in a batch: the only function that answers this question.

    The targets decide: a tensor by its first dimension, a tuple, list or dict by the tensors in it, a list of plain
    values or of dicts (one per sample) by its length. Where they cannot decide, the inputs do in the same way: targets
    that are None or a scalar, or tensors whose first dimensions differ. A batch that tells nothing counts as 1.

    Args:
        targets: the targets of the batch.
        inputs: the inputs of the batch.

    >>> count_samples(torch.zeros(5, 2)), count_samples({"age": torch.zeros(4), "size": torch.zeros(4)})
    (5, 4)
    >>> count_samples(None, (torch.zeros(3, 2), torch.zeros(3))), count_samples(["a", "b"])
    (3, 2)
    """
    if isinstance(targets, Tensor) and targets.ndim:
        return len(targets)
    if isinstance(targets, (list, tuple)) and targets and all(isinstance(value, Mapping) for value in targets):
        # Either one dict per sample or several dicts of batches; the inputs tell which.
        per_sample = inputs is None or (isinstance(inputs, (list, tuple)) and len(inputs) == len(targets))
        from_inputs = None if per_sample else first_dimension(inputs)
        return len(targets) if from_inputs is None else from_inputs
    for values in (targets, inputs):
        n = first_dimension(values)
        if n is not None:
            return n
    return next((len(values) for values in (targets, inputs) if isinstance(values, (list, tuple)) and values), 1)


def first_dimension(values: Any) -> int | None:
    """Return the first dimension that all tensors in ``values`` share, or None where they share none.

    >>> first_dimension({"a": torch.zeros(3, 2), "b": [torch.zeros(3), "text"]}), first_dimension(torch.zeros(()))
    (3, None)
    """
    if hasattr(values, "batch_sizes"):  # a PackedSequence, whose data is a row per time step
        return int(values.batch_sizes[0])
    if hasattr(values, "shape"):
        return values.shape[0] if len(values.shape) else None
    if isinstance(values, Mapping):
        values = list(values.values())
    elif not isinstance(values, (list, tuple)):
        return None
    elif values and all(isinstance(value, (str, bytes, int, float)) for value in values):
        return len(values)
    sizes = {size for size in map(first_dimension, values) if size is not None}
    return sizes.pop() if len(sizes) == 1 else None


def as_pair(batch: Any, part: str = "training") -> tuple[Any, Any]:
    """Return a batch as the pair (inputs, targets).

    Args:
        batch: what a loader yields.
        part: the part of the data, for the message.

    Raises:
        DataError: the batch is no tuple or list of two.
    """
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    kind = f"a {type(batch).__name__}"
    if isinstance(batch, Mapping):
        kind = f"a {type(batch).__name__} with the keys {', '.join(map(repr, batch))}"
    elif isinstance(batch, Tensor):
        kind = f"one tensor of shape {tuple(batch.shape)}"
    elif isinstance(batch, (tuple, list)):
        kind = f"a {type(batch).__name__} of {len(batch)}"
    raise DataError(
        f"A {part} batch is {kind}; it must be a pair (inputs, targets). Nest several inputs or targets, as in "
        f"((x1, x2), y) or (x, (y1, y2)), in the data set or with collate_fn."
    )


def as_arguments(values: Any) -> Sequence[Any]:
    """Return values as positional arguments: a tuple or list as it is, anything else as a tuple of one.

    A ``PackedSequence`` is a named tuple, but one argument.
    """
    return values if isinstance(values, (list, tuple)) and not isinstance(values, PackedSequence) else (values,)


def as_list(values: Any) -> list[Any]:
    """Return None as an empty list, a collection as a list, and anything else as a list of one."""
    if values is None:
        return []
    return list(values) if isinstance(values, (list, tuple, set, frozenset)) else [values]


def map_tensors(function: Callable[[Tensor], Any], values: Any) -> Any:
    """Return ``values`` with ``function`` applied to each tensor, also inside tuples, lists and dicts.

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
        mapped = copy.copy(values)  # keeps the class, such as that of a transformers output
        for name, value in values.items():
            mapped[name] = map_tensors(function, value)
        return mapped
    return values


def take_rows(values: Any, rows: int | slice, n: int) -> Any:
    """Return sample ``rows``, or several, of a batch of ``n``; tensors without a row per sample stay.

    >>> take_rows({"x": torch.arange(3), "scale": torch.ones(())}, 1, 3)
    {'x': tensor(1), 'scale': tensor(1.)}
    """
    return map_tensors(lambda tensor: tensor[rows] if tensor.ndim and len(tensor) == n else tensor, values)


def concatenate(batches: Sequence[Any], counts: Sequence[int]) -> Any:
    """Return several batches as one: tensors are concatenated, also inside tuples, lists and dicts.

    Tensors that cannot be one, because they have no row per sample or rows of different shapes, stay a list with one
    for each batch. Other values are a list with one for each sample where a batch has as many, or one for each batch.

    Args:
        batches: the values of each batch.
        counts: the number of samples of each batch.

    >>> concatenate([(torch.zeros(2), torch.ones(2)), (torch.zeros(1), torch.ones(1))], [2, 1])
    (tensor([0., 0., 0.]), tensor([1., 1., 1.]))
    >>> [tuple(values.shape) for values in concatenate([torch.zeros(2, 3), torch.zeros(2, 5)], [2, 2])]
    [(2, 3), (2, 5)]
    """
    first = batches[0]
    if all(isinstance(batch, Tensor) for batch in batches):
        rows = all(batch.ndim and len(batch) == n for batch, n in zip(batches, counts, strict=True))
        joined = rows and all(batch.shape[1:] == first.shape[1:] for batch in batches)
        return torch.cat(list(batches)) if joined else list(batches)
    if isinstance(first, dict) and all(batch.keys() == first.keys() for batch in batches):
        return {name: concatenate([batch[name] for batch in batches], counts) for name in first}
    if all(isinstance(batch, (list, tuple)) for batch in batches):
        per_sample = all(
            len(batch) == n and not any(isinstance(value, Tensor) for value in batch)
            for batch, n in zip(batches, counts, strict=True)
        )
        if per_sample:
            return [value for batch in batches for value in batch]
        if all(len(batch) == len(first) for batch in batches):
            parts = [concatenate(values, counts) for values in zip(*batches, strict=True)]
            return type(first)(*parts) if hasattr(first, "_fields") else type(first)(parts)
    return list(batches)


def to_cpu(values: Tensor) -> Tensor:
    """Return a tensor on the CPU: the only place where a fit waits for its device.

    It does so at the end of an epoch and to redraw the progress bar, on purpose; so the wait raises no error under
    ``torch.cuda.set_sync_debug_mode("error")``.
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
    """Return the numbers of a tensor as a flat list; this waits for its device."""
    return to_cpu(values).flatten().tolist()


def is_plain(value: Any) -> bool:
    """Return whether a value is a tensor, number, string or None, or a list, tuple or dict of such values."""
    if isinstance(value, (list, tuple)):
        return type(value) in (list, tuple) and all(map(is_plain, value))
    if isinstance(value, dict):
        return type(value) is dict and all(map(is_plain, value)) and all(map(is_plain, value.values()))
    return value is None or type(value) in (bool, int, float, str) or type(value) is Tensor


def as_number(value: Any) -> Any:
    """Return a value of a single number as a plain number, any other value unchanged."""
    single = getattr(value, "ndim", None) == 0 or (hasattr(value, "__float__") and not hasattr(value, "ndim"))
    return value if isinstance(value, int) or not single else float(value)


def as_plain(value: Any) -> Any:
    """Return a nested value made of numbers, texts, lists and dicts; other objects become their ``repr``."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, (list, tuple)):
        return [as_plain(element) for element in value]
    if isinstance(value, dict):
        return {str(name): as_plain(element) for name, element in value.items()}
    return value if isinstance(value, (bool, int, float, str, type(None))) else repr(value)
