"""Find the layer in which a model failed, and what it got and needs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from minifast.distributed.sharding import class_of
from minifast.utils.checks import shown


def describe_failed_layer(model: nn.Module, error: BaseException) -> str:
    """Return a sentence with the layer that raised ``error``, its input and what it needs; "" if it is not known.

    >>> model = nn.Sequential(nn.Linear(3, 2))
    >>> try:
    ...     _ = model(Tensor(5, 4))
    ... except RuntimeError as error:
    ...     print(describe_failed_layer(model, error))
    Layer 0, Linear(in_features=3, out_features=2, bias=True), got an input of shape (5, 4); it needs (..., 3).
    """
    names = {id(module): name for name, module in model.named_modules()}
    module, value = None, None
    for frame in _frames(error):
        owner = frame.f_locals.get("self")
        if not isinstance(owner, nn.Module) or id(owner) not in names or frame.f_code.co_name != "forward":
            continue
        arguments = [frame.f_locals.get(name) for name in frame.f_code.co_varnames[1 : frame.f_code.co_argcount]]
        module, value = owner, next((argument for argument in arguments if isinstance(argument, Tensor)), None)
    if module is None or value is None or not names[id(module)] or list(module.children()):
        return ""
    need = ""
    with suppress(Exception):  # after an error on a GPU, its tensors cannot be read
        need = next((needs(module, value) for kind, needs in NEEDS.items() if isinstance(module, kind)), "")
    got = f"got an input of shape {tuple(value.shape)}"
    layer = shown(module).replace(type(module).__name__, class_of(module).__name__, 1)  # also of a sharded one
    return f"Layer {names[id(module)]}, {layer}, {got}{f'; it needs {need}' if need else ''}."


def _frames(error: BaseException) -> list[FrameType]:
    frames, step = [], error.__traceback__
    while step is not None:
        frames.append(step.tb_frame)
        step = step.tb_next
    return frames


def _needs_channels(channels: int, spatial: int) -> str:
    return f"({', '.join(['n', str(channels), *['height', 'width', 'depth'][:spatial]])})"


def _conv(module: Any, value: Tensor) -> str:
    channels, spatial = module.in_channels, len(module.kernel_size)
    return _needs_channels(channels, spatial) + _channels_cure(value, channels, spatial)


def _channels_cure(value: Tensor, channels: int, spatial: int) -> str:
    """Return how to get the channels that a convolution needs, from the shape of what it got."""
    if channels == 1 and value.ndim == spatial + 1:
        return "; add the channel with x[:, None]"
    if value.ndim != spatial + 2:
        return ""
    if value.shape[-1] == channels:
        return f"; move the channels with x.permute(0, {spatial + 1}, {', '.join(map(str, range(1, spatial + 1)))})"
    if channels == 1 and bool((value == value[:, :1]).all()):
        return "; gray images of uint8 get 3 equal channels: give them as floats, x / 255, or for files pass channels=1"
    if channels == 3 and value.shape[1] == 1:
        return "; give gray images 3 channels with x.repeat(1, 3, 1, 1)"
    return ""


def _norm(module: Any, value: Tensor) -> str:
    dimensions = {nn.BatchNorm1d: 0, nn.BatchNorm2d: 2, nn.BatchNorm3d: 3}
    return _needs_channels(module.num_features, dimensions.get(type(module), max(0, value.ndim - 2)))


def _embedding(module: Any, value: Tensor) -> str:
    if value.is_floating_point() or not value.numel():
        return "integers"
    numbers = f"it got numbers from {int(value.min())} to {int(value.max())}"
    return f"numbers from 0 to {module.num_embeddings - 1}, {numbers}"


NEEDS: dict[type[nn.Module], Callable[[Any, Tensor], str]] = {
    nn.Linear: lambda module, value: f"(..., {module.in_features})",
    _ConvNd: _conv,
    _NormBase: _norm,
    nn.Embedding: _embedding,
}
