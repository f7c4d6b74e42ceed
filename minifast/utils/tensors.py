"""Helpers for tensors and numbers nested in tuples, lists and dicts."""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
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


TARGET_NAMES = ("labels", "label")  # of the targets in a batch that is a dict, where no other name is given


def as_pair(batch: Any, part: str = "training", target: str | Sequence[str] | None = None) -> tuple[Any, Any]:
    """Return a batch as the pair (inputs, targets): the only function that says which is which.

    - ``(x, y)`` is a pair. Of a longer tuple or list, the last value is the targets and the others are the inputs, a
      tuple: the arguments of the model.
    - Of a dict, or another mapping such as a ``BatchEncoding``, the value of ``target`` is the targets and the others
      are the inputs, a dict: the keyword arguments of the model. Several names give a tuple of targets.
    - An object with a method ``to``, such as a batch of graphs, is the input, and its attribute ``target`` or ``y`` the
      targets.

    Args:
        batch: what a loader yields.
        part: the part of the data, for the message.
        target: the name of the targets; by default ``"labels"`` or ``"label"``.

    Raises:
        DataError: the batch has no targets.

    >>> as_pair({"x": 1, "labels": 2}), as_pair((1, 2, 3)), as_pair({"a": 1, "b": 2, "c": 3}, target=("b", "c"))
    (({'x': 1}, 2), ((1, 2), 3), ({'a': 1}, (2, 3)))
    """
    if isinstance(batch, (tuple, list)) and not isinstance(batch, PackedSequence) and len(batch) > 1:
        return (batch[0], batch[1]) if len(batch) == 2 else (tuple(batch[:-1]), batch[-1])
    names = target_names(batch, target)
    if isinstance(batch, Mapping) and names:
        values = tuple(batch[name] for name in names)
        return {k: v for k, v in batch.items() if k not in names}, values if len(values) > 1 else values[0]
    if names:
        values = tuple(getattr(batch, name) for name in names)
        return batch, values if len(values) > 1 else values[0]
    raise DataError(
        f"A {part} batch is {_described(batch)}; it must have inputs and targets: a pair (x, y), a tuple whose last "
        f"value is the targets, or a dict with 'labels' or DataBunch(..., target=NAME). For all others, pass "
        f"`batch_fn`, a function that returns (inputs, targets)."
    )


def target_names(batch: Any, target: str | Sequence[str] | None = None) -> list[str]:
    """Return the names of the targets in a dict or an object with a method ``to``; without targets an empty list."""
    if isinstance(batch, Mapping):
        names = as_list(target) or [name for name in TARGET_NAMES if name in batch][:1]
        return names if all(name in batch for name in names) else []
    if isinstance(batch, Tensor) or not callable(getattr(batch, "to", None)):
        return []
    names = as_list(target) or [name for name in (*TARGET_NAMES, "y") if getattr(batch, name, None) is not None][:1]
    return names if all(getattr(batch, name, None) is not None for name in names) else []


def _described(batch: Any) -> str:
    if isinstance(batch, Mapping):
        return f"a {type(batch).__name__} with the keys {', '.join(map(repr, batch))}"
    if isinstance(batch, Tensor):
        return f"one tensor of shape {tuple(batch.shape)}"
    return f"a {type(batch).__name__}" + (f" of {len(batch)}" if isinstance(batch, (tuple, list)) else "")


def call_model(model: Any, inputs: Any, like: Any = None) -> Any:
    """Return the output of a model for the inputs of a batch: the only function that passes them.

    A tuple or list gives the arguments. A dict gives the keyword arguments, or where ``forward`` has none of these
    names, is the only argument. Anything else is the only argument.

    Args:
        model: the model, or a wrapper around it.
        inputs: the inputs of the batch.
        like: the model itself, where ``model`` is a wrapper that takes any arguments.

    Raises:
        DataError: ``forward`` takes some names of a dict and not all.

    >>> call_model(lambda x, y: x - y, (3, 1)), call_model(len, {"a": 1, "b": 2})
    (2, 2)
    """
    if isinstance(inputs, dict) and _takes_names(forward_of(model if like is None else like), tuple(inputs)):
        return model(**inputs)
    return model(*as_arguments(inputs))


def forward_of(model: Any) -> Any:
    """Return the function whose parameters are the inputs of a model."""
    return getattr(model, "__dict__", {}).get("forward") or getattr(type(model), "forward", model)


@lru_cache(maxsize=64)
def _takes_names(forward: Any, names: tuple[Any, ...]) -> bool:
    """Return whether a function takes these names as keywords, and raise an error where it takes only some."""
    try:
        parameters = inspect.signature(forward).parameters.values()
    except (TypeError, ValueError):  # of a compiled function
        return False
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return True
    known = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    unknown = [name for name in names if name not in known]
    if unknown and len(unknown) < len(names):
        raise DataError(
            f"The batch has {', '.join(map(repr, unknown))}, but the model's forward takes only "
            f"{', '.join(map(repr, (name for name in known if name != 'self')))}; remove it in the data set or in "
            f"collate_fn, name it in DataBunch(..., target=NAME) if it holds the targets, or pass `batch_fn`."
        )
    return bool(names) and not unknown


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


def map_tensors(function: Callable[[Tensor], Any], values: Any, others: Callable[[Any], Any] | None = None) -> Any:
    """Return ``values`` with ``function`` applied to each tensor, also inside tuples, lists and dicts.

    Any other value stays, or becomes what ``others`` returns.

    >>> map_tensors(torch.numel, (torch.zeros(2), {"text": "a", "more": [torch.zeros(3)]}))
    (2, {'text': 'a', 'more': [3]})
    """
    if isinstance(values, Tensor):
        return function(values)
    if isinstance(values, tuple) and hasattr(values, "_fields"):
        return type(values)(*(map_tensors(function, value, others) for value in values))
    if isinstance(values, (list, tuple)):
        return type(values)([map_tensors(function, value, others) for value in values])
    if isinstance(values, dict):
        mapped = copy.copy(values)  # keeps the class, such as that of a transformers output
        for name, value in values.items():
            mapped[name] = map_tensors(function, value, others)
        return mapped
    return values if others is None else others(values)


def present_device(device: torch.device) -> torch.device:
    """Return ``device`` if this machine has such a GPU, or it is no GPU.

    Raises:
        ValueError: torch finds none.

    >>> present_device(torch.device("cpu"))
    device(type='cpu')
    """
    is_missing = {
        "cuda": lambda: not torch.cuda.is_available(),
        "mps": lambda: not torch.backends.mps.is_available(),
    }
    if device.type in is_missing and is_missing[device.type]():
        raise ValueError(
            f"`device` is '{device}', but torch finds no such GPU here; pass device='cpu', or leave `device` out to "
            f"use a GPU only where there is one."
        )
    return device


def take_rows(values: Any, rows: int | slice | Tensor, n: int) -> Any:
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
    return value is None or type(value) in (bool, int, float, str) or type(value) is Tensor or is_dtensor(value)


def is_dtensor(value: Any) -> bool:
    """Return whether a value is a tensor of torch whose parts several processes hold."""
    module: Any = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


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
