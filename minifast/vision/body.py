"""The backbone (body) of an image model: a model and its weights, without its pooling and its classifier."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from minifast.data.normalize import Stats
from minifast.errors import DataError
from minifast.hooks import Hooks
from minifast.training.snapshot import eval_mode
from minifast.utils.checks import check_count
from minifast.utils.public import public
from minifast.utils.text import shape_text
from minifast.vision.architecture import (
    Arch,
    check_complete,
    fit_to_size,
    input_size_of,
    load_architecture,
    stats_for,
)

PROBE_SHAPE = (2, 3, 128, 128)  # of the images that show where a model pools
MAX_SHARE = 0.75  # a child with more than this share of the layers is split itself

Cut = int | Callable[[Any], nn.Module] | None


class Body(NamedTuple):
    """A backbone with what its head needs to know.

    Attributes:
        module: the backbone.
        stats: means and standard deviations of the images it was trained on, if known.
        name: what error messages call the model.
    """

    module: nn.Module
    stats: Stats | None
    name: str


@public
def create_body(arch: Arch, pretrained: Any = True, cut: Cut = None) -> nn.Module:
    """Create a model and return its backbone: the layers before the final pooling, or all but the classifier.

    A model whose children are called one after another is cut before its pooling. Any other model, such as a vision
    transformer, stays whole, with ``nn.Identity`` in place of its last linear layer.

    Args:
        arch: a function that creates the model, such as torchvision's ``resnet18``, or any function with an argument
            ``pretrained``; the name of a model of torchvision or timm (``"timm/NAME"`` if both have it); or a model,
            which is copied.
        pretrained: True for torchvision's best weights or timm's, a member of a weights enum of torchvision, or the
            path of a file with a state dict of the model (``.pth`` or ``.safetensors``). False for random weights.
        cut: the split point: the number of the model's children to keep, or a function of the model that returns the
            backbone. By default minifast finds it by running the model on two images.

    Returns:
        The backbone. It maps images ``(n, 3, height, width)`` to feature maps ``(n, channels, height, width)``, or to
        features ``(n, channels)`` where the model pools itself.

    Raises:
        DataError: no split point was found, or the file holds the weights of another model.
        DownloadError: the weights cannot be downloaded. The message names the place for a local copy.

    Example:
        >>> from torchvision.models import resnet18
        >>> body = create_body(resnet18, pretrained=False)
        >>> len(body), body(torch.zeros(1, 3, 64, 64)).shape
        (8, torch.Size([1, 512, 2, 2]))
    """
    architecture = load_architecture(arch, pretrained)
    size = input_size_of(architecture.model) or PROBE_SHAPE[2:]
    body = cut_model(architecture.model, cut, architecture.name, (2, 3, *size))
    check_complete(body, architecture, pretrained)
    return body


def load_body(arch: Arch, pretrained: Any, cut: Cut, shape: Sequence[int]) -> Body:
    """Return the backbone of ``create_body`` for images of a shape ``(channels, height, width)``."""
    channels, height, width = shape
    architecture = load_architecture(arch, pretrained, channels)
    model, name = architecture.model, architecture.name
    made_for = input_size_of(model)
    fit_to_size(model, (height, width))
    try:
        with eval_mode(model), torch.no_grad():
            model(_probe_images((2, *shape)))
    except Exception as error:
        sizes = made_for or PROBE_SHAPE[2:]
        raise DataError(
            f"{name} does not take images of shape {shape_text(shape)}, those of the data ({error}); resize them, such "
            f"as",
            hint=f"size={sizes[0] if sizes[0] == sizes[1] else sizes}, or use another model.",
            cli_hint=f"--size {max(sizes)}, or use another --arch.",
        ) from error
    body = cut_model(model, cut, name, (2, *shape))
    check_complete(body, architecture, pretrained)
    return Body(body, stats_for(channels, architecture.stats), name)


def cut_model(model: nn.Module, cut: Cut, name: str, shape: Sequence[int] = PROBE_SHAPE) -> nn.Module:
    """Return the backbone of a model: ``cut`` children, what ``cut`` returns, or what two images show.

    Args:
        model: the model. Without ``cut`` its last linear layer may be replaced.
        cut: the split point, see ``create_body``.
        name: what error messages call the model.
        shape: the shape of a batch of two images that the model takes.
    """
    children = list(model.children())
    if callable(cut):
        body = cut(model)
        if not isinstance(body, nn.Module):
            raise TypeError(f"`cut` must return an nn.Module, got {body!r}.")
        return body
    if cut is not None:
        first = children[: check_count("cut", cut, least=1 - len(children))]
        if not first:
            raise ValueError(f"`cut` is {cut}, which keeps none of the {len(children)} children of {name}.")
        return nn.Sequential(*first)
    try:
        return _sequential_body(model, children, shape)
    except NoSplitPointError as error:
        reason = str(error)
    try:
        with eval_mode(model), torch.no_grad():
            return _without_classifier(model, _probe_images(shape))
    except Exception as error:
        raise DataError(
            f"No split point found for {name}: {reason}, and {error}. Give `cut`, the number of its children to keep, "
            f"or a function of the model that returns the backbone."
        ) from error


class NoSplitPointError(Exception):
    """A model cannot be split in one of the ways; the message says why."""


def _sequential_body(model: nn.Module, children: list[nn.Module], shape: Sequence[int]) -> nn.Sequential:
    """Return the children before the final pooling, if the model does nothing but call its children in order."""
    # Small feature maps look like pooled ones, so the images are not small unless the model has a fixed input size.
    large = (*shape[:2], *(max(side, least) for side, least in zip(shape[2:], PROBE_SHAPE[2:], strict=True)))
    x = _probe_images(large if _takes(model, large) else shape)
    first, expected = _children_before_pooling(model, children, x)
    body = nn.Sequential(*first)
    try:
        with eval_mode(body), torch.no_grad():
            same = torch.allclose(body(x), expected, rtol=1e-3, atol=1e-5, equal_nan=True)
    except Exception as error:
        raise NoSplitPointError(f"its children cannot be called one after another ({error})") from error
    if not same:
        raise NoSplitPointError("its forward does more than call its children one after another")
    return body


def _takes(model: nn.Module, shape: Sequence[int]) -> bool:
    try:
        with eval_mode(model), torch.no_grad():
            model(_probe_images(shape))
    except Exception:
        return False
    return True


def _children_before_pooling(model: nn.Module, children: list[nn.Module], x: Tensor) -> tuple[list[nn.Module], Tensor]:
    """Return the children that a model calls before its final pooling, and the output of the last of them."""
    calls: list[tuple[nn.Module, Any, bool]] = []

    def record_call(module: nn.Module, inputs: Any, output: Any) -> None:
        value = output.clone() if isinstance(output, Tensor) else output
        calls.append((module, value, _is_pooled(module, inputs, output)))

    try:
        with Hooks(children, record_call), eval_mode(model), torch.no_grad():
            model(x)
    except Exception as error:
        raise NoSplitPointError(f"it does not accept images of shape {shape_text(x.shape)} ({error})") from error
    called = {id(tensor) for module, _, _ in calls for tensor in module.parameters()}
    others = [name for name, tensor in model.named_parameters() if id(tensor) not in called]
    if others:
        raise NoSplitPointError(f"its forward uses {others[0]} without calling the child that holds it")
    rest = []
    while calls and calls[-1][2]:
        rest.append(calls.pop())
    if not calls:
        raise NoSplitPointError("none of its children returns feature maps (n, channels, height, width)")
    if any(getattr(output, "ndim", 0) == 3 for _, output, _ in rest):  # (n, tokens, channels): not only a head
        raise NoSplitPointError("it turns feature maps into tokens")
    if not _fits(calls[-1][1], [module for module, _, _ in reversed(rest)]):
        raise NoSplitPointError("the channels of its feature maps are not in their second dimension")
    return [module for module, _, _ in calls], calls[-1][1]


def _fits(maps: Tensor, rest: Sequence[nn.Module]) -> bool:
    """Return whether the first linear layer or convolution after feature maps takes as many values as they give."""
    area = 1
    for layer in nn.Sequential(*rest).modules():
        if isinstance(layer, nn.AdaptiveAvgPool2d):
            sides = layer.output_size if isinstance(layer.output_size, tuple) else (layer.output_size,) * 2
            area = math.prod(side or 1 for side in sides)
        elif isinstance(layer, nn.Conv2d):
            return layer.in_channels == maps.shape[1]
        elif isinstance(layer, nn.Linear):
            flat = maps[0].numel() if maps.shape[2] > 1 else None
            return layer.in_features in (maps.shape[1] * area, flat)
    return True


def _without_classifier(model: nn.Module, x: Tensor) -> nn.Module:
    """Return the model with ``nn.Identity`` in place of the linear layer whose output is the model's output."""
    if callable(getattr(model, "reset_classifier", None)):  # of timm
        model.reset_classifier(0)  # type: ignore[operator]
        if getattr(model(x), "ndim", 0) != 2:
            raise NoSplitPointError("without its classifier it returns no features (n, channels)")
        return model
    calls: list[tuple[nn.Module, Tensor]] = []
    linears = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    with Hooks(linears, lambda layer, _, output: calls.append((layer, output.clone()))):
        output = model(x)
    if not isinstance(output, Tensor) or not calls or not _equal(calls[-1][1], output):
        raise NoSplitPointError("its output is not that of a linear layer")
    layer = calls[-1][0]
    path = next(name for name, module in model.named_modules() if module is layer)
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, nn.Identity())
    if not _equal(layer(model(x)), output):
        raise NoSplitPointError("its last linear layer is used more than once")
    return model


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.ndim == 2 and a.shape == b.shape and torch.allclose(a, b, rtol=1e-3, atol=1e-5, equal_nan=True)


def _is_pooled(module: nn.Module, inputs: Any, output: Any) -> bool:
    """Return whether a module pools to a fixed size, contains a pooling to 1 × 1, or follows one."""
    pools = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
    if getattr(output, "ndim", 0) != 4 or isinstance(module, pools):
        return True
    after = bool(inputs) and getattr(inputs[0], "shape", ())[2:] == (1, 1)
    return output.shape[2:] == (1, 1) and (after or any(isinstance(inner, pools) for inner in module.modules()))


def _probe_images(shape: Sequence[int]) -> Tensor:
    """Return images that are not constant, always the same ones."""
    return torch.linspace(-1, 1, math.prod(shape)).view(*shape)


def features_of(body: nn.Module, name: str, shape: Sequence[int]) -> Sequence[int]:
    """Return the shape of what a backbone returns for an image: ``(channels, height, width)`` or ``(features,)``."""
    try:
        with eval_mode(body), torch.no_grad():
            output = body(_probe_images((2, *shape)))
    except Exception as error:
        raise DataError(f"The backbone of {name} fails on an image ({error}); give another `cut`.") from error
    found = tuple(getattr(output, "shape", ()))
    if len(found) not in (2, 4):
        raise DataError(
            f"The backbone of {name} returns the shape {found}, neither feature maps (n, channels, height, width) nor "
            f"features (n, channels); give another `cut`, or a `custom_head` that accepts this shape."
        )
    return found[1:]


def second_half_start(body: nn.Module) -> nn.Module | None:
    """Return the module at which the second half of a backbone's layers begins, or None for a single layer.

    Only layers with parameters count. For all ResNets of torchvision it is ``layer3``, as in fastai v1.

    Example:
        >>> second_half_start(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 1)))
        Conv2d(8, 8, kernel_size=(3, 3), stride=(1, 1))
    """
    children = [(child, count) for child in body.children() if (count := _count_layers(child))]
    total = sum(count for _, count in children)
    for child, count in children:
        if count > MAX_SHARE * total and (start := second_half_start(child)) is not None:
            return start
    ends = list(itertools.accumulate(count for _, count in children))
    starts = [(abs(end - total / 2), i) for i, end in enumerate(ends[:-1], 1)]
    return children[min(starts)[1]][0] if starts else None


def _count_layers(module: nn.Module) -> int:
    return sum(1 for layer in module.modules() if next(layer.parameters(recurse=False), None) is not None)


def block_starts(body: nn.Module) -> list[nn.Module]:
    """Return the first module of each block of a backbone, in order: the layers that have a learning rate of their own.

    Opened are modules with most of the layers, and those whose layers are mostly in one list of equal modules.

    >>> block = lambda: nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3))
    >>> len(block_starts(nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential(block(), block()))))
    3
    """
    total = _count_layers(body)
    starts = []
    for child in body.children():
        count = _count_layers(child)
        if count:
            inner = block_starts(child) if count > MAX_SHARE * total or _holds_blocks(child) else []
            starts += inner or [child]
    return starts


def _holds_blocks(module: nn.Module) -> bool:
    """Return whether most layers of a module are in one list of modules of the same class."""
    return any(
        isinstance(part, (nn.Sequential, nn.ModuleList))
        and len(part) > 1
        and len({type(child) for child in part}) == 1
        and all(_count_layers(child) > 1 for child in part)
        and _count_layers(part) > _count_layers(module) / 2
        for part in (module, *module.children())
    )
