"""The devices of batches: their names, and the default."""

from __future__ import annotations

import torch

from minifast.distributed.group import local_gpu
from minifast.utils.tensors import present_device


def default_device() -> torch.device:
    """Return the default device: CUDA if there is one (of several processes, a GPU each), Apple's GPU, or the CPU."""
    if torch.cuda.is_available():
        return local_gpu()
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def as_device(device: torch.device | str | int) -> torch.device:
    """Return the device of that name.

    >>> as_device("gpu")
    Traceback (most recent call last):
    ValueError: `device` must be a device of torch, such as 'cpu', 'cuda', 'cuda:0' or 'mps', got 'gpu'.
    """
    try:
        known = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"`device` must be a device of torch, such as 'cpu', 'cuda', 'cuda:0' or 'mps', got {device!r}."
        ) from error
    return present_device(known)


def is_same_device(a: torch.device, b: torch.device) -> bool:
    """Return whether two devices are the same; a device without an index matches each index.

    >>> cpu, cuda, first = map(torch.device, ("cpu", "cuda", "cuda:0"))
    >>> is_same_device(cuda, first), is_same_device(cpu, cuda)
    (True, False)
    """
    return a.type == b.type and (a.index is None or b.index is None or a.index == b.index)
