"""The head of an image classifier: from feature maps to one output per class."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from minifast.utils.checks import check_count, check_number
from minifast.utils.public import public


class AdaptiveConcatPool2d(nn.Module):
    """Concatenate adaptive max pooling and adaptive average pooling: ``(n, c, h, w)`` to ``(n, 2 c, sz, sz)``.

    Args:
        sz: height and width of the output.

    Example:
        >>> AdaptiveConcatPool2d()(torch.tensor([[[[1.0, 3.0]]]])).flatten().tolist()
        [3.0, 2.0]
    """

    def __init__(self, sz: int = 1) -> None:
        super().__init__()
        self.mp = nn.AdaptiveMaxPool2d(sz)
        self.ap = nn.AdaptiveAvgPool2d(sz)

    def forward(self, x: Tensor) -> Tensor:
        """Return the maxima, followed by the means, along the channel dimension."""
        return torch.cat([self.mp(x), self.ap(x)], 1)


@public
def create_head(
    nf: int,
    nc: int,
    lin_ftrs: Sequence[int] | None = None,
    ps: float | Sequence[float] = 0.5,
    concat_pool: bool = True,
    bn_final: bool = False,
    pool: bool = True,
) -> nn.Sequential:
    """Create a classification head: pooling, flatten, then blocks of BatchNorm, dropout and a linear layer.

    A ReLU follows every linear layer but the last.

    Args:
        nf: number of features after the pooling: twice the channels of the backbone with ``concat_pool``.
        nc: number of outputs, one per class.
        lin_ftrs: widths of the hidden linear layers; by default one layer of 512.
        ps: dropout probability before each linear layer. A single number applies before the last layer, and half of it
            before the others.
        concat_pool: concatenate max and average pooling; False for average pooling alone.
        bn_final: add a BatchNorm after the last linear layer.
        pool: begin with the pooling and the flatten; False for a backbone that pools itself.

    Returns:
        A Sequential that maps feature maps ``(n, channels, h, w)`` to outputs ``(n, nc)``, or without ``pool`` features
        ``(n, nf)``.

    Raises:
        ValueError, TypeError: a width is no positive integer, or ``ps`` holds no probabilities, or too many.

    Example:
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
        raise ValueError(f"`ps` has {len(given)} values for {n_layers} linear layers; give one value or one per layer.")
    layers: list[nn.Module] = []
    if pool:
        layers += [AdaptiveConcatPool2d() if concat_pool else nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    for (n_in, n_out), p in zip(itertools.pairwise(sizes), dropouts, strict=True):
        layers.append(nn.BatchNorm1d(n_in))
        if p:
            layers.append(nn.Dropout(p))
        layers += [nn.Linear(n_in, n_out), nn.ReLU(inplace=True)]
    layers.pop()
    if bn_final:
        layers.append(nn.BatchNorm1d(nc, momentum=0.01))
    return nn.Sequential(*layers)
