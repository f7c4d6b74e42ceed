"""Small models to begin with; and those of torchvision.models, which is imported when one is asked for."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from minifast.utils.checks import check_count, did_you_mean


@torch.no_grad()
def initialise(module: nn.Module, init: Callable[[Tensor], Any]) -> None:
    """Set weights by ``init``, such as ``nn.init.kaiming_normal_``, and biases to 0.

    Normalisations stay as they are, and so does what is frozen.
    """
    for layer in module.modules():
        weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
        if isinstance(weight, Tensor) and weight.ndim > 1 and weight.requires_grad:
            init(weight)
            if isinstance(bias, Tensor):
                bias.zero_()


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
    """Make a convolution with a ReLU and, behind it as in fastai v1, a normalisation.

    Takes maps ``(n, ni, height, width)`` and returns ``(n, nf, …)``.

    Args:
        ni: channels in.
        nf: channels out.
        ks: the kernel's size.
        stride: the step between places.
        padding: by default half of ``ks``.
        bias: whether the convolution has one; by default where no normalisation follows.
        norm_type: makes the normalisation for ``nf`` channels; None for none.
        use_activ: whether there is a ReLU.
        init: sets the weights; the bias is 0.

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


def simple_cnn(
    actns: Sequence[int],
    kernel_szs: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
    bn: bool = False,
) -> nn.Sequential:
    """Make a small convolutional network: convolutions of stride 2, each with a ReLU, then an average and a flatten.

    Takes pictures ``(n, actns[0], height, width)`` and returns ``(n, actns[-1])``. The ReLU after the last convolution
    keeps the outputs at 0 or above, as in fastai; it costs nothing in accuracy on MNIST_SAMPLE.

    Args:
        actns: channels of the input and of each layer, at least two numbers.
        kernel_szs: kernel sizes, one a layer, 3 by default; the padding is half of it.
        strides: strides, one a layer, 2 by default.
        bn: batch normalisation after each layer but the last, in place of the convolution's bias.

    Weights are Kaiming normal (He et al. 2015), biases 0. They lie in channels_last, with which convolutions are up to
    twice as fast on a CPU; the numbers are the same but for rounding.

    >>> simple_cnn((3, 16, 16, 2))(torch.zeros(4, 3, 28, 28)).shape
    torch.Size([4, 2])
    """
    n_layers = len(actns) - 1
    if n_layers < 1:
        raise ValueError(f"actns is {tuple(actns)}; it must hold the input's channels and at least one layer's.")
    for channels in actns:
        check_count("each of actns", channels)
    kernel_szs = kernel_szs or [3] * n_layers
    strides = strides or [2] * n_layers
    for name, values in (("kernel_szs", kernel_szs), ("strides", strides)):
        if len(values) != n_layers:
            raise ValueError(f"{name} has {len(values)} values for {n_layers} layers; give one for each layer.")
    layers: list[nn.Module] = []
    for i, (kernel_size, stride) in enumerate(zip(kernel_szs, strides, strict=True)):
        norm_type = nn.BatchNorm2d if bn and i < n_layers - 1 else None
        layers += conv_layer(actns[i], actns[i + 1], kernel_size, stride, norm_type=norm_type)
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return model.to(memory_format=torch.channels_last)


def simple_ann(
    n_in: int, n_out: int, n_hidden: int | Sequence[int] = 64, activation: Callable[[], nn.Module] = nn.ReLU
) -> nn.Sequential:
    """Make a network with one hidden layer: flatten, ``n_in`` to ``n_hidden``, activation, ``n_hidden`` to ``n_out``.

    Takes ``(n, …)`` with ``n_in`` numbers an item and returns ``(n, n_out)``.

    Args:
        n_in: numbers an item.
        n_out: outputs, such as one a class.
        n_hidden: units of the hidden layer, or a sequence with a number for each of several.
        activation: what makes the activation after each hidden layer, such as ``nn.Tanh``.

    >>> simple_ann(20, 2)(torch.zeros(4, 20)).shape
    torch.Size([4, 2])
    >>> len(simple_ann(20, 2, (64, 32), nn.Tanh))
    6
    """
    sizes = list(n_hidden) if isinstance(n_hidden, Sequence) else [n_hidden]
    for name, value in (("n_in", n_in), ("n_out", n_out), *(("n_hidden", size) for size in sizes)):
        check_count(name, value)
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in itertools.pairwise([n_in, *sizes]):
        layers += [nn.Linear(before, after), activation()]
    return nn.Sequential(*layers, nn.Linear([n_in, *sizes][-1], n_out))


def __getattr__(name: str) -> Any:
    if not name.startswith("_"):
        from torchvision import models

        if hasattr(models, name):
            return getattr(models, name)
        raise AttributeError(f"There is no model {name}.{did_you_mean(name, dir(models))}")
    raise AttributeError(f"minifast.models has no {name}.")


def __dir__() -> list[str]:
    from torchvision import models

    return sorted({*globals(), *dir(models)})
