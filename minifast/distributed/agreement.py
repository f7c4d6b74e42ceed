"""Check that the processes of a group have the same values and the same weights, and say where they differ."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from minifast.distributed.exchange import gather
from minifast.errors import MinifastError

ABSENT = "absent"
N_SHOWN = 3  # differences that a message names
TOLERANCE = 1e-4  # of the norm of a tensor: devices of different kinds may round differently


def check_same(what: dict[str, Any], advice: str) -> None:
    """Check that each value is the same on all ranks; dicts and lists are compared by their elements.

    Raises:
        MinifastError: a value differs.
    """
    compare(gather(what), advice)


def compare(everyone: list[dict[str, Any]], advice: str) -> None:
    """Compare values that were gathered, see ``check_same``."""
    first, *others = everyone
    for rank, other in enumerate(others, 1):
        differences = [
            difference
            for name in {**first, **other}
            for difference in list(find_differences(name, first.get(name, ABSENT), other.get(name, ABSENT)))[:1]
        ]
        if differences:
            told = "; in ".join(
                f"{name}: it is {_short(ours)} in process 0 and {_short(theirs)} in process {rank}"
                for name, ours, theirs in differences[:N_SHOWN]
            )
            raise MinifastError(f"The processes differ in {told}. {advice}")


def find_differences(name: str, ours: Any, theirs: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield where two plain values differ: the name of the element and both values.

    >>> list(find_differences("fit", {"epochs": 1, "lr": [0.1, 0.2]}, {"epochs": 1, "lr": [0.1, 0.3]}))
    [('lr[1] of fit', 0.2, 0.3)]
    """
    if ours == theirs or repr(ours) == repr(theirs):
        return
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in {**ours, **theirs}:
            yield from find_differences(f"{key} of {name}", ours.get(key, ABSENT), theirs.get(key, ABSENT))
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        thing, of, owner = name.partition(" of ")
        for i, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            yield from find_differences(f"{thing}[{i}]{of}{owner}", one, other)
    else:
        yield name, ours, theirs


def _short(value: Any) -> str:
    shortener = reprlib.Repr()
    shortener.maxstring = shortener.maxother = 120
    shortener.maxlist = shortener.maxtuple = shortener.maxdict = 8
    return value if value is ABSENT else shortener.repr(value)


def shapes_of(tensors: dict[str, Tensor]) -> dict[str, str]:
    """Return shapes and types as text.

    >>> shapes_of({"weight": torch.zeros(2, 3)})
    {'weight': '(2, 3) float32'}
    """
    return {name: f"{tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}" for name, t in tensors.items()}


def checksums(tensors: dict[str, Tensor]) -> dict[str, tuple[float, float, float]]:
    """Return the sum and the norm of each tensor that has elements, and how much of the norm may be rounding.

    This waits once for each device.

    >>> checksums({"weight": torch.tensor([3.0, 4.0]), "empty": torch.zeros(0)})
    {'weight': (7.0, 5.0, 0.0001)}
    """
    named = {name: tensor for name, tensor in tensors.items() if tensor.numel()}
    sums: dict[str, tuple[float, float, float]] = {}
    for device in dict.fromkeys(tensor.device for tensor in named.values()):
        there = {name: tensor for name, tensor in named.items() if tensor.device == device}
        read = torch.stack([_checksum(tensor) for tensor in there.values()]).tolist()
        for (name, tensor), (total, norm) in zip(there.items(), read, strict=True):
            sums[name] = (
                total,
                norm,
                max(TOLERANCE, torch.finfo(tensor.dtype).eps if tensor.is_floating_point() else 0),
            )
    return sums


@torch.no_grad()
def _checksum(tensor: Tensor) -> Tensor:
    values = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    values = values if values.is_floating_point() and values.element_size() > 1 else values.double()
    return torch.stack([values.sum(dtype=torch.float64), torch.linalg.vector_norm(values, dtype=torch.float64)])


def first_difference(ours: dict[str, Any], theirs: dict[str, Any]) -> str | None:
    """Return the name of the first tensor whose checksums differ by more than rounding, or None.

    >>> first_difference(checksums({"a": torch.ones(100)}), checksums({"a": torch.ones(100) + 1e-3}))
    'a'
    """
    for name in {**ours, **theirs}:
        if name not in ours or name not in theirs:
            return name
        *one, tolerance = ours[name]
        *other, _ = theirs[name]
        if all(map(math.isfinite, one)) != all(map(math.isfinite, other)):
            return name
        # Of two tensors with NaN or infinity, the checks of the loss tell more.
        limit = tolerance * max(one[1], other[1])
        if any(abs(a - b) > limit for a, b in zip(one, other, strict=True)):
            return name
    return None
