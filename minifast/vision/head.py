"""The head of an image classifier: from the maps of a convolutional body to a number for each class."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from minifast.utils.checks import check_count, check_number


class AdaptiveConcatPool2d(nn.Module):
    """The maximum and the mean of each channel's map, one behind the other: ``(n, c, h, w)`` to ``(n, 2 c, sz, sz)``.

    >>> AdaptiveConcatPool2d()(torch.tensor([[[[1.0, 3.0]]]])).flatten().tolist()
    [3.0, 2.0]
    """

    def __init__(self, sz: int = 1) -> None:
        super().__init__()
        self.mp = nn.AdaptiveMaxPool2d(sz)
        self.ap = nn.AdaptiveAvgPool2d(sz)

    def forward(self, x: Tensor) -> Tensor:
        """Return maximum and mean."""
        return torch.cat([self.mp(x), self.ap(x)], 1)


def create_head(
    nf: int,
    nc: int,
    lin_ftrs: Sequence[int] | None = None,
    ps: float | Sequence[float] = 0.5,
    concat_pool: bool = True,
    bn_final: bool = False,
) -> nn.Sequential:
    """Make a head: a pooling and a flatten, then for each linear layer a BatchNorm, a dropout, the layer and a ReLU.

    Takes maps ``(n, channels, h, w)`` and returns ``(n, nc)``; the last layer has no ReLU.

    Args:
        nf: numbers an item after the pooling: twice the body's channels with ``concat_pool``.
        nc: outputs, one a class.
        lin_ftrs: widths of the layers between; by default one of 512.
        ps: the dropout before each linear layer, or that before the last, of which the others have half.
        concat_pool: pool the maximum and the mean, else the mean.
        bn_final: a BatchNorm after the last layer.

    >>> [type(layer).__name__ for layer in create_head(1024, 2)][:6]
    ['AdaptiveConcatPool2d', 'Flatten', 'BatchNorm1d', 'Dropout', 'Linear', 'ReLU']
    >>> create_head(1024, 2).eval()(torch.zeros(4, 512, 3, 3)).shape
    torch.Size([4, 2])
    """
    sizes = [nf, *([512] if lin_ftrs is None else lin_ftrs), nc]
    for name, value in zip(["nf", *["each of lin_ftrs"] * (len(sizes) - 2), "nc"], sizes, strict=True):
        check_count(name, value)
    n_layers = len(sizes) - 1
    given = list(ps) if isinstance(ps, Sequence) else [ps]
    dropouts = [check_number("ps", p, low=0, high=1) for p in given]
    if len(dropouts) == 1:
        dropouts = [dropouts[0] / 2] * (n_layers - 1) + dropouts
    if len(dropouts) != n_layers:
        raise ValueError(f"ps has {len(given)} values for {n_layers} linear layers; give one value, or one per layer.")
    layers: list[nn.Module] = [AdaptiveConcatPool2d() if concat_pool else nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    for (before, after), p in zip(itertools.pairwise(sizes), dropouts, strict=True):
        layers.append(nn.BatchNorm1d(before))
        if p:
            layers.append(nn.Dropout(p))
        layers += [nn.Linear(before, after), nn.ReLU(inplace=True)]
    layers.pop()
    if bn_final:
        layers.append(nn.BatchNorm1d(nc, momentum=0.01))
    return nn.Sequential(*layers)
