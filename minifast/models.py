"""Small models, and every model of torchvision.models, which is imported on first use."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from minifast.utils.checks import check_count
from minifast.utils.public import public, unknown_name


@torch.no_grad()
def initialize(module: nn.Module, init: Callable[[Tensor], Any]) -> None:
    """Initialize weights with ``init``, such as ``nn.init.kaiming_normal_``, and biases with 0.

    Normalization layers and frozen parameters stay unchanged.
    """
    for layer in module.modules():
        weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
        if isinstance(weight, Tensor) and weight.ndim > 1 and weight.requires_grad:
            init(weight)
            if isinstance(bias, Tensor):
                bias.zero_()


@public
def conv_layer(
    ni: int,
    nf: int,
    ks: int = 3,
    stride: int = 1,
    padding: int | None = None,
    bias: bool | None = None,
    norm_type: Callable[[int], nn.Module] | None = nn.BatchNorm2d,
    use_activ: bool = True,
    init: Callable[[torch.Tensor], Any] = nn.init.kaiming_normal_,
) -> nn.Sequential:
    """Create a convolution, a ReLU and a normalization layer, in the order of fastai v1.

    Args:
        ni: number of input channels.
        nf: number of output channels.
        ks: kernel size.
        stride: stride of the convolution.
        padding: padding on each side; by default ``ks // 2``.
        bias: give the convolution a bias; by default only without a normalization layer.
        norm_type: creates the normalization layer for ``nf`` channels; None for no layer.
        use_activ: add the ReLU.
        init: initializes the weights. The bias is 0.

    Returns:
        A Sequential that maps ``(n, ni, height, width)`` to ``(n, nf, new height, new width)``.

    Raises:
        ValueError, TypeError: ``ni``, ``nf``, ``ks`` or ``stride`` is no positive integer.

    Example:
        >>> [type(layer).__name__ for layer in conv_layer(3, 16, stride=2)]
        ['Conv2d', 'ReLU', 'BatchNorm2d']
        >>> conv_layer(3, 16, stride=2)(torch.zeros(4, 3, 28, 28)).shape
        torch.Size([4, 16, 14, 14])
    """
    for name, value in (("ni", ni), ("nf", nf), ("ks", ks), ("stride", stride)):
        check_count(name, value)
    conv = nn.Conv2d(
        ni, nf, ks, stride, ks // 2 if padding is None else padding, bias=norm_type is None if bias is None else bias
    )
    init(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    layers: list[nn.Module] = [conv]
    if use_activ:
        layers.append(nn.ReLU(inplace=True))
    if norm_type is not None:
        layers.append(norm_type(nf))
    return nn.Sequential(*layers)


class SimpleCNN(nn.Sequential):
    """The layers of ``simple_cnn``, which receive images in the channels_last memory format."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the outputs for images in any memory format."""
        if images.ndim == 4:  # else the first layer raises an error that names its shape
            # A convolution converts them too, but takes twice as long for it.
            images = images.contiguous(memory_format=torch.channels_last)
        return super().forward(images)  # type: ignore[no-untyped-call, no-any-return]


@public
def simple_cnn(
    actns: Sequence[int],
    kernel_szs: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
    bn: bool = False,
) -> nn.Sequential:
    """Create a small convolutional network: convolutions with ReLU, then global average pooling and a flatten.

    A ReLU follows the last convolution too, as in fastai v1, so outputs are never negative. Weights are Kaiming normal
    and biases are 0. The model uses the channels_last memory format, which makes convolutions up to twice as fast on a
    CPU.

    Args:
        actns: number of channels of the input and of each layer; at least two numbers.
        kernel_szs: kernel size of each layer, 3 by default. The padding is half of it.
        strides: stride of each layer, 2 by default.
        bn: add a BatchNorm after every layer but the last, instead of the convolution's bias.

    Returns:
        A Sequential that maps images ``(n, actns[0], height, width)`` to ``(n, actns[-1])``.

    Raises:
        ValueError, TypeError: ``actns`` has no layer or no positive integers, or a list has the wrong length.

    Source: He et al., Delving Deep into Rectifiers, 2015 (the initialization).

    Example:
        >>> simple_cnn((3, 16, 16, 2))(torch.zeros(4, 3, 28, 28)).shape
        torch.Size([4, 2])
    """
    n_layers = len(actns) - 1
    if n_layers < 1:
        raise ValueError(f"`actns` must have the input's channels and those of at least one layer, got {tuple(actns)}.")
    for channels in actns:
        check_count("each of actns", channels)
    kernel_szs = kernel_szs or [3] * n_layers
    strides = strides or [2] * n_layers
    for name, values in (("kernel_szs", kernel_szs), ("strides", strides)):
        if len(values) != n_layers:
            raise ValueError(f"`{name}` has {len(values)} values for {n_layers} layers; give one per layer.")
    layers: list[nn.Module] = []
    for i, (kernel_size, stride) in enumerate(zip(kernel_szs, strides, strict=True)):
        norm_type = nn.BatchNorm2d if bn and i < n_layers - 1 else None
        layers += conv_layer(actns[i], actns[i + 1], kernel_size, stride, norm_type=norm_type)
    model = SimpleCNN(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return model.to(memory_format=torch.channels_last)


@public
def simple_ann(
    n_in: int, n_out: int, n_hidden: int | Sequence[int] = 64, activation: Callable[[], nn.Module] = nn.ReLU
) -> nn.Sequential:
    """Create a multilayer perceptron: flatten, hidden linear layers with an activation each, and a linear output layer.

    Args:
        n_in: number of features per sample.
        n_out: number of outputs, for instance one per class.
        n_hidden: units of the hidden layer, or a sequence with the units of each hidden layer.
        activation: creates the activation after a hidden layer, such as ``nn.Tanh``.

    Returns:
        A Sequential that maps samples ``(n, …)`` with ``n_in`` features each to ``(n, n_out)``.

    Raises:
        ValueError, TypeError: a width is no positive integer.

    Example:
        >>> simple_ann(20, 2)(torch.zeros(4, 20)).shape
        torch.Size([4, 2])
        >>> len(simple_ann(20, 2, (64, 32), nn.Tanh))
        6
    """
    sizes = list(n_hidden) if isinstance(n_hidden, Sequence) else [n_hidden]
    for name, value in (("n_in", n_in), ("n_out", n_out), *(("n_hidden", size) for size in sizes)):
        check_count(name, value)
    layers: list[nn.Module] = [nn.Flatten()]
    for width, next_width in itertools.pairwise([n_in, *sizes]):
        layers += [nn.Linear(width, next_width), activation()]
    return nn.Sequential(*layers, nn.Linear([n_in, *sizes][-1], n_out))


def __getattr__(name: str) -> Any:
    if not name.startswith("_"):
        from torchvision import models

        if hasattr(models, name):
            return getattr(models, name)
        raise unknown_name(__name__, name, __dir__(), "model")
    raise unknown_name(__name__, name, ())


def __dir__() -> list[str]:
    from torchvision import models

    return sorted({*globals(), *dir(models)})
