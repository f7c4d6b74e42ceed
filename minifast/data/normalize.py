"""Normalization of inputs: one mean and one standard deviation per channel."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from minifast.errors import DataError

Stats = tuple[Sequence[float], Sequence[float]]  # mean and standard deviation of each channel


imagenet_stats: Stats = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


class Normalize:
    """Batch transform that subtracts a mean and divides by a standard deviation per channel."""

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        self.mean = mean
        self.std = std

    def __call__(self, batch: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
        """Return the batch with normalized inputs."""
        x, y = batch
        return (x - self.mean) / self.std, y

    def undo(self, x: Tensor) -> Tensor:
        """Return normalized inputs in their original units."""
        return x * self.std + self.mean


def channel_view(x: Tensor) -> Tensor:
    """Return a batch ``(n, channels, ...)`` as ``(channels, values)``.

    >>> import torch
    >>> channel_view(torch.zeros(2, 3, 4, 5)).shape
    torch.Size([3, 40])
    """
    return x.transpose(0, 1).reshape(x.shape[1], -1)


def check_channels(x: Any, floats: bool = True) -> Tensor:
    """Return inputs ``(n, channels, ...)`` that have statistics; raise a DataError for all others."""
    if not isinstance(x, Tensor) or x.ndim < 2 or (floats and not x.is_floating_point()):
        what = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
        raise DataError(f"Statistics need float inputs (n, channels, ...), got {what}.")
    return x


def channel_stats(batches: Iterable[Any]) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each channel over all batches ``(x, y)``, float32 on the CPU.

    A channel with one value has the standard deviation 0. Sums are in float64 around the mean of each batch.

    Raises:
        DataError: if the inputs are not floats ``(n, channels, ...)``, or not finite.
    """
    n, mean, squares, low, high = 0, torch.zeros(()), torch.zeros(()), torch.tensor(torch.inf), torch.tensor(-torch.inf)
    for x, _ in batches:
        values = channel_view(check_channels(x).detach())
        values = (values.cpu() if values.device.type == "mps" else values).double()  # mps has no float64
        m, batch_mean = values.shape[1], values.mean(1).cpu()
        difference = batch_mean - mean
        squares = (
            squares
            + (values - values.mean(1, keepdim=True)).square().sum(1).cpu()
            + (difference.square() * (n * m / (n + m)))
        )
        mean = mean + difference * (m / (n + m))
        low, high = torch.minimum(low, values.amin(1).cpu()), torch.maximum(high, values.amax(1).cpu())
        n += m
    if not mean.isfinite().all():
        channels = mean.isfinite().logical_not().nonzero().flatten().tolist()
        raise DataError(f"Normalization needs finite inputs, but there is NaN or inf in the channels {channels}.")
    std = (squares / max(1, n - 1)).sqrt()
    return mean.float(), torch.where(low == high, 0.0, std).float()


def normalize(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Subtract ``mean`` from each channel and divide by ``std``.

    Args:
        x: images ``(..., channels, height, width)``, or columns ``(n, channels)``.
        mean: the mean of each channel, ``(channels,)``.
        std: the standard deviation of each channel, ``(channels,)``.

    >>> import torch
    >>> normalize(torch.ones(1, 1, 1, 2), torch.tensor([0.5]), torch.tensor([0.25])).flatten()
    tensor([2., 2.])
    """
    return (x - _along_channels(x, mean)) / _along_channels(x, std)


def denormalize(x: Tensor, mean: Tensor, std: Tensor, do_x: bool = True) -> Tensor:
    """Undo ``normalize``; the result is a float tensor on the CPU.

    Args:
        x: normalized images or columns.
        mean: the mean that ``normalize`` subtracted.
        std: the standard deviation that ``normalize`` divided by.
        do_x: False only moves ``x`` to the CPU.

    >>> import torch
    >>> denormalize(torch.full((1, 1, 1, 2), 2.0), torch.tensor([0.5]), torch.tensor([0.25])).flatten()
    tensor([1., 1.])
    """
    x = x.cpu().float()
    return x * _along_channels(x, std.cpu()) + _along_channels(x, mean.cpu()) if do_x else x


def _along_channels(x: Tensor, values: Tensor) -> Tensor:
    return values.to(x.device)[..., None, None] if x.ndim > 2 else values.to(x.device)


def make_normalize(stats: Any, x: Tensor, device: torch.device) -> Normalize:
    """Return the transform that normalizes batches shaped like ``x`` by ``stats`` on a device.

    A standard deviation of 0 counts as 1, as in scikit-learn.

    Raises:
        DataError: if the numbers of means, standard deviations and channels differ, or one of them is not finite.
    """
    check_channels(x, floats=False)
    mean, std = (torch.as_tensor(part, dtype=torch.float32, device=device) for part in stats)
    if any(part.ndim > 1 or part.numel() not in (1, x.shape[1]) for part in (mean, std)):
        raise DataError(
            f"`stats` must hold one mean and one standard deviation per channel, got {mean.numel()} means and "
            f"{std.numel()} standard deviations for {x.shape[1]} channels."
        )
    if not (mean.isfinite().all() and std.isfinite().all() and (std >= 0).all()):
        raise DataError("`stats` must be finite, and standard deviations must not be negative.")
    std = torch.where(std == 0, 1.0, std)  # a constant channel becomes 0
    shape = (1, -1, *[1] * (x.ndim - 2))
    return Normalize(mean.view(shape), std.view(shape))
