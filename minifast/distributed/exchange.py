"""What the processes of a group exchange: values, votes, sums and rows of tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from minifast.distributed.group import Group, current_group, guarded
from minifast.errors import MinifastError
from minifast.utils.checks import told
from minifast.utils.tensors import first_dimension, is_plain, map_tensors

T = TypeVar("T")
BUCKET = 25 * 2**20  # bytes that are exchanged at once, as DistributedDataParallel does


def shares(n: int, size: int) -> list[int]:
    """Return how many of ``n`` samples each of ``size`` processes gets; they differ by at most one.

    >>> shares(7, 3), shares(1, 2)
    ([3, 2, 2], [1, 0])
    """
    return [n // size + (rank < n % size) for rank in range(size)]


def share_of(n: int, rank: int, size: int) -> slice:
    """Return the rows of process ``rank`` in a batch of ``n`` samples, as a slice.

    A process whose share is empty gets the first row as a stand-in, which counts for nothing: all processes must run
    the model.

    >>> share_of(7, 1, 3), share_of(1, 1, 2)
    (slice(3, 5, None), slice(0, 1, None))
    """
    counts = shares(n, size)
    first = sum(counts[:rank])
    return slice(first, first + counts[rank]) if counts[rank] else slice(0, 1)


def broadcast(value: T) -> T:
    """Return the value of rank 0 on each rank; it is pickled."""
    group = current_group()
    if group is None:
        return value
    import torch.distributed as dist

    values = [value if group.rank == 0 else None]
    dist.broadcast_object_list(values, 0)
    sent: Any = values[0]
    return sent  # type: ignore[no-any-return]


def gather(value: T) -> list[T]:
    """Return the values of all ranks, in their order; they are pickled."""
    group = current_group()
    if group is None:
        return [value]
    import torch.distributed as dist

    values: list[Any] = [None] * group.size
    dist.all_gather_object(values, value)
    return values


def from_first(function: Callable[[], T], group: Group | None) -> T:
    """Call ``function`` on rank 0, let the others wait, and return its result, or raise its error, on each rank.

    Without a group this is ``function()``. The result is pickled.

    >>> from_first(lambda: 1, None)
    1
    """
    if group is None:
        return function()
    result: Any = None
    error: Exception | None = None
    if group.rank == 0:
        try:
            result = function()
        except Exception as raised:  # every rank raises it
            error = raised
    sent, failure = broadcast((result, None if error is None else portable(error)))
    if error is not None:
        raise error
    if failure is not None:
        raise failure
    return sent  # type: ignore[no-any-return]


def result_of_first(function: Callable[[], T], group: Group | None) -> T:
    """Call ``function`` on each rank, because it may run the model of all, and return the result of rank 0 on each.

    >>> result_of_first(lambda: 1, None)
    1
    """
    if group is None:
        return function()
    with guarded(group):
        return broadcast(function())


def portable(error: Exception) -> Exception:
    """Return an error that another process can read: the error itself, or its text if it cannot be pickled."""
    import pickle

    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # classes with other arguments than their message
        return MinifastError(told(error))
    return error


def agree(flags: Sequence[int]) -> list[int]:
    """Return the maximum of each number over the ranks."""
    import torch.distributed as dist

    votes = torch.tensor(flags, dtype=torch.int64, device=_device_for_numbers())
    dist.all_reduce(votes, dist.ReduceOp.MAX)
    return [int(vote) for vote in votes.tolist()]


def _device_for_numbers() -> torch.device:
    import torch.distributed as dist

    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")


def add_up(values: Tensor) -> Tensor:
    """Return the sum of a tensor over the ranks."""
    import torch.distributed as dist

    total = values.detach().clone()
    dist.all_reduce(total)
    return total


@contextmanager
def as_first(read: Callable[[], Any], write: Callable[[Any], None]) -> Iterator[None]:
    """Use the random generators of rank 0 inside; those of the other ranks are as before on leaving."""
    group = current_group()
    if group is None:
        yield
        return
    states = broadcast(read() if group.rank == 0 else None)
    if group.rank == 0:
        yield
        return
    own = read()
    write(states)
    try:
        yield
    finally:
        write(own)


# --- rows of a batch


def gather_rows(values: Any, n: int, counted: bool, group: Group) -> Any:
    """Return outputs and targets of a whole batch, in order, where each rank has those of its share.

    Args:
        values: tensors, also nested, of this rank's ``n`` samples; lists with one value for each sample.
        n: the number of samples that this rank's values have.
        counted: False if they are a stand-in for no sample.
        group: the processes.

    Raises:
        MinifastError: the rows have other shapes on other ranks.
    """
    tensors: list[Tensor] = []
    map_batch(tensors.append, lambda value: None, _refuse_objects, values, n)
    held = [_Rows(tensor, n) for tensor in tensors]
    everyone = [
        [_Rows.decoded(numbers) for numbers in _split(theirs)]
        for theirs in _gather_numbers([number for rows in held for number in rows.encoded(counted)], group)
    ]
    shared = [i for i in range(len(tensors)) if all(theirs[i] is not None for theirs in everyone)]
    whole = dict(zip(map(id, tensors), tensors, strict=True))
    for device in {tensors[i].device for i in shared}:
        here = [i for i in shared if tensors[i].device == device]
        rows = _gather_bytes([tensors[i] for i in here], [[theirs[i] for theirs in everyone] for i in here], group)
        whole |= {id(tensors[i]): gathered for i, gathered in zip(here, rows, strict=True)}

    def samples(value: Any) -> Any:
        own = [map_tensors(Tensor.cpu, sample) for sample in value] if counted else []
        devices: set[torch.device] = set()
        map_tensors(lambda tensor: devices.add(tensor.device), value)
        device = next(iter(devices), torch.device("cpu"))
        everything = [sample for part in gather(own) for sample in part]
        return type(value)(map_tensors(lambda tensor: tensor.to(device), everything))

    return map_batch(lambda tensor: whole[id(tensor)], samples, _refuse_objects, values, n)


def map_batch(
    of_tensor: Callable[[Tensor], Any],
    of_samples: Callable[[Any], Any],
    of_object: Callable[[Any], Any],
    values: Any,
    n: int,
) -> Any:
    """Return the values of a batch of ``n`` samples, each kind changed by a function of its own.

    Args:
        of_tensor: changes tensors, also inside tuples, lists and dicts.
        of_samples: changes lists with one value for each sample.
        of_object: changes or refuses any other object, a PackedSequence among them.
        values: the values.
        n: the number of samples.
    """
    if isinstance(values, PackedSequence):
        return of_object(values)
    if is_list_of_samples(values, n):
        return of_samples(values)
    if type(values) in (list, tuple):
        return type(values)(map_batch(of_tensor, of_samples, of_object, value, n) for value in values)
    if type(values) is dict:
        return {name: map_batch(of_tensor, of_samples, of_object, value, n) for name, value in values.items()}
    return map_tensors(of_tensor, values, lambda value: value if is_plain(value) else of_object(value))


def _refuse_objects(value: Any) -> Any:
    if isinstance(value, PackedSequence):
        raise MinifastError(
            "The outputs or targets of several processes cannot be gathered as a PackedSequence; return padded "
            "tensors, such as those of torch.nn.utils.rnn.pad_packed_sequence(..., total_length=...)."
        )
    raise MinifastError(
        f"The outputs or targets hold a {type(value).__name__}, which several processes cannot gather; use tensors, "
        f"tuples and dicts, and make the object from them in the loss and the metrics."
    )


def is_list_of_samples(values: Any, n: int) -> bool:
    """Return whether ``values`` is a list of ``n`` samples, such as texts or dicts, and not of tensors of rows."""
    if type(values) not in (list, tuple) or len(values) != n:
        return False
    if all(isinstance(value, (str, bytes, int, float, Mapping)) for value in values):
        return not any(first_dimension(value) == n for value in values if isinstance(value, Mapping)) or n == 0
    return all(isinstance(v, Tensor) and v.ndim for v in values) and not all(len(v) == n for v in values)


class _Rows:
    """How many rows of which shape a tensor has; no rows where its first dimension does not count samples."""

    def __init__(self, tensor: Tensor, n: int) -> None:
        self.shape = list(tensor.shape) if tensor.ndim and len(tensor) == n else None

    def encoded(self, counted: bool) -> list[int]:
        """Return numbers from which ``decoded`` makes the shape."""
        return [0] if self.shape is None else [len(self.shape), self.shape[0] if counted else 0, *self.shape[1:]]

    @staticmethod
    def decoded(numbers: list[int]) -> list[int] | None:
        """Return the shape, or None for a tensor without rows."""
        return numbers[1:] or None


def _split(numbers: list[int]) -> Iterator[list[int]]:
    i = 0
    while i < len(numbers):
        yield numbers[i : i + 1 + numbers[i]]
        i += 1 + numbers[i]


def _gather_numbers(numbers: list[int], group: Group) -> list[list[int]]:
    """Return the whole numbers of each rank; a few take one exchange, others are pickled."""
    import torch.distributed as dist

    few = 64
    if len(numbers) >= few:
        return gather(numbers)
    own = torch.tensor([len(numbers), *numbers, *[0] * (few - 1 - len(numbers))], device=_device_for_numbers())
    everyone = [torch.empty_like(own) for _ in range(group.size)]
    dist.all_gather(everyone, own)
    return [theirs[1 : theirs[0] + 1] for theirs in (values.tolist() for values in everyone)]


def _gather_bytes(tensors: list[Tensor], shapes: list[list[Any]], group: Group) -> list[Tensor]:
    """Return the rows of all ranks of tensors on one device, in one exchange; ``shapes`` has one shape for each rank.

    Bytes are sent, because not every backend knows every type.
    """
    import torch.distributed as dist

    for of_tensor in shapes:
        if len({tuple(shape[1:]) for shape in of_tensor}) > 1:
            raise MinifastError(
                f"The samples of a batch have different shapes in different processes: "
                f"{', '.join(str(tuple(shape)) for shape in of_tensor)}. Pad all samples to one length, in the data "
                f"set or in collate_fn, so that the outputs and targets of the processes can be gathered."
            )
    widths = [
        math.prod(of_tensor[0][1:]) * tensor.element_size() for tensor, of_tensor in zip(tensors, shapes, strict=True)
    ]
    counts = [[shape[0] for shape in of_tensor] for of_tensor in shapes]
    sizes = [
        sum(width * count[rank] for width, count in zip(widths, counts, strict=True)) for rank in range(group.size)
    ]
    parts = [
        tensor.detach()[: count[group.rank]].contiguous().reshape(-1).view(torch.uint8)
        for tensor, count in zip(tensors, counts, strict=True)
    ]
    padding = torch.zeros(max(sizes) - sizes[group.rank], dtype=torch.uint8, device=tensors[0].device)
    own = torch.cat([*parts, padding])
    everyone = [torch.empty_like(own) for _ in range(group.size)]
    dist.all_gather(everyone, own)
    gathered: list[list[Tensor]] = [[] for _ in tensors]
    for rank, received in enumerate(everyone):
        start = 0
        for i, width in enumerate(widths):
            size = width * counts[i][rank]
            gathered[i].append(received[start : start + size])
            start += size
    return [
        torch.cat(rows).view(tensor.dtype).view(sum(count), *of_tensor[0][1:])
        for rows, tensor, count, of_tensor in zip(gathered, tensors, counts, shapes, strict=True)
    ]


# --- models


def broadcast_tensors(tensors: Sequence[Tensor]) -> None:
    """Give tensors the values of rank 0."""
    import torch.distributed as dist

    for some in _buckets([tensor for tensor in tensors if tensor.numel()]):
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in some])
        dist.broadcast(flat, 0)
        _copy_back(flat, some)


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Give parameters the mean of their gradients over the ranks; a gradient that a rank lacks counts as 0."""
    group = current_group()
    if group is None or not parameters:
        return
    import torch.distributed as dist

    present = agree([parameter.grad is not None for parameter in parameters])
    gradients = []
    for parameter, somewhere in zip(parameters, present, strict=True):
        if somewhere and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        if parameter.grad is not None:
            gradients.append(parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad)
            parameter.grad = gradients[-1]
    for some in _buckets(gradients):
        flat = torch.cat([gradient.reshape(-1) for gradient in some])
        dist.all_reduce(flat)
        _copy_back(flat.div_(group.size), some)


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield tensors of one type and device together, in buckets of limited size."""
    kinds: dict[Any, list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    for some in kinds.values():
        bucket: list[Tensor] = []
        size = 0
        for tensor in some:
            bucket.append(tensor)
            size += tensor.numel() * tensor.element_size()
            if size >= BUCKET:
                yield bucket
                bucket, size = [], 0
        if bucket:
            yield bucket


@torch.no_grad()
def _copy_back(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view_as(tensor))
