"""Check that the processes of a group have the same values and the same weights, and say where they differ."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterator
from functools import cache
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from minifast.distributed.exchange import gather
from minifast.errors import MinifastError

ABSENT = "absent"
N_SHOWN = 3  # differences that a message names
TOLERANCE = 1e-4  # of the norm of a tensor: devices of different kinds may round differently
ROW = 2**15  # integers that are added up
INTEGERS = {1: torch.int8, 2: torch.int16}  # for the bytes of an element; larger elements are several of 32 bits


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


@torch.no_grad()
def checksums(tensors: dict[str, Tensor]) -> dict[str, int]:
    """Return a checksum of all bits of each tensor that has elements.

    A tensor is read as integers of at most 32 bits, which are multiplied by random weights of 64 bits and added up
    modulo 2**64, in rows of 32,768. The checksum is the hash of these sums. Tensors stay on their device; the sums of
    all tensors of a device are read at once.

    Two tensors that differ have the same checksum with a probability below 2**-32, which is 2.3e-10, and below 2**-60
    if an integer differs in its last bit: a random weight times a difference is 0 modulo 2**64 with a probability of
    2**(k - 64), where 2**k is the largest power of two that divides it, and k is at most 31.

    >>> one, other = (checksums({"weight": torch.tensor([3.0, last])})["weight"] for last in (4.0, 4.000001))
    >>> one == other, checksums({"empty": torch.zeros(0)})
    (False, {})
    """
    found: dict[str, int] = {}
    for device, there in _by_device(tensors).items():
        weights = _random_weights().to(device)
        # On a CPU, products that do not fit in the cache of a core take 5 times as long; a GPU computes many at once.
        products = torch.empty(1 if device.type == "cpu" else 128, ROW, dtype=torch.int64, device=device)
        sums = {name: _sums_of_rows(tensor, weights, products) for name, tensor in there.items()}
        read = iter(torch.cat([*sums.values()]).tolist())
        found |= {name: hash(tuple(islice(read, len(some)))) for name, some in sums.items()}
    return {name: found[name] for name in tensors if name in found}


@cache
def _random_weights() -> Tensor:
    """Return the same weights in each process."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(-(2**63), 2**63 - 1, (ROW,), generator=generator, device="cpu")


def _sums_of_rows(tensor: Tensor, weights: Tensor, products: Tensor) -> Tensor:
    whole = tensor.resolve_conj().resolve_neg().contiguous()
    flat = whole.as_strided((whole.numel(),), (1,))  # where view(-1) keeps another stride of a single element
    numbers = flat.view(INTEGERS.get(flat.element_size(), torch.int32))
    n = len(numbers) // ROW
    parts = [*torch.split(numbers[: n * ROW].view(n, ROW), len(products)), numbers[n * ROW :].view(1, -1)]
    return torch.cat(
        [products[: len(part), : part.shape[1]].copy_(part).mul_(weights[: part.shape[1]]).sum(1) for part in parts]
    )


def _by_device(tensors: dict[str, Tensor]) -> dict[torch.device, dict[str, Tensor]]:
    """Return the tensors that have elements, by device."""
    found: dict[torch.device, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if tensor.numel():
            found.setdefault(tensor.device, {})[name] = tensor
    return found


def sums_and_norms(tensors: dict[str, Tensor]) -> dict[str, tuple[float, float, float]]:
    """Return the sum and the norm of each tensor that has elements, and how much of the norm may be rounding.

    This takes 20 times as long as ``checksums``, and waits once for each device.

    >>> sums_and_norms({"weight": torch.tensor([3.0, 4.0]), "empty": torch.zeros(0)})
    {'weight': (7.0, 5.0, 0.0001)}
    """
    found: dict[str, tuple[float, float, float]] = {}
    for there in _by_device(tensors).values():
        read = torch.stack([_sum_and_norm(tensor) for tensor in there.values()]).tolist()
        for (name, tensor), (total, norm) in zip(there.items(), read, strict=True):
            eps = torch.finfo(tensor.dtype).eps if tensor.is_floating_point() else 0
            found[name] = (total, norm, max(TOLERANCE, eps))
    return found


@torch.no_grad()
def _sum_and_norm(tensor: Tensor) -> Tensor:
    values = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    values = values if values.is_floating_point() and values.element_size() > 1 else values.double()
    return torch.stack([values.sum(dtype=torch.float64), torch.linalg.vector_norm(values, dtype=torch.float64)])


def first_difference(ours: dict[str, Any], theirs: dict[str, Any]) -> str | None:
    """Return the name of the first tensor whose sum or norm differs by more than rounding, or None.

    >>> first_difference(sums_and_norms({"a": torch.ones(100)}), sums_and_norms({"a": torch.ones(100) + 1e-3}))
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
