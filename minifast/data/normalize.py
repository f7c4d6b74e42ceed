"""Normalising inputs: a mean and a standard deviation for each channel."""

from __future__ import annotations

from typing import Any

from torch import Tensor


class Normalize:
    """A transform of batches: subtracts a mean and divides by a standard deviation, one for each channel."""

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        self.mean = mean
        self.std = std

    def __call__(self, batch: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
        """Return the batch normalised."""
        x, y = batch
        return (x - self.mean) / self.std, y

    def undo(self, x: Tensor) -> Tensor:
        """Return the batch as it was."""
        return x * self.std + self.mean


def channel_view(x: Tensor) -> Tensor:
    """Return a batch ``(n, channels, ...)`` as ``(channels, values)``.

    >>> import torch
    >>> channel_view(torch.zeros(2, 3, 4, 5)).shape
    torch.Size([3, 40])
    """
    return x.transpose(0, 1).reshape(x.shape[1], -1)


def normalize(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return pictures ``(..., channels, height, width)``, or columns ``(n, channels)``, less ``mean`` and over ``std``.

    >>> import torch
    >>> normalize(torch.ones(1, 1, 1, 2), torch.tensor([0.5]), torch.tensor([0.25])).flatten()
    tensor([2., 2.])
    """
    return (x - _along_channels(x, mean)) / _along_channels(x, std)


def denormalize(x: Tensor, mean: Tensor, std: Tensor, do_x: bool = True) -> Tensor:
    """Return what ``normalize`` was given, as floats on the CPU; with ``do_x=False`` ``x`` as it is, on the CPU.

    >>> import torch
    >>> denormalize(torch.full((1, 1, 1, 2), 2.0), torch.tensor([0.5]), torch.tensor([0.25])).flatten()
    tensor([1., 1.])
    """
    x = x.cpu().float()
    return x * _along_channels(x, std.cpu()) + _along_channels(x, mean.cpu()) if do_x else x


def _along_channels(x: Tensor, each: Tensor) -> Tensor:
    return each.to(x.device)[..., None, None] if x.ndim > 2 else each.to(x.device)
