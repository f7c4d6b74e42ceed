"""The backbone (body) of an image classifier: a model and its weights, without its pooling and its classifier."""

from __future__ import annotations

import inspect
import itertools
import math
import pickle
from collections.abc import Callable
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlparse

import torch
from torch import Tensor, nn

from minifast.checkpoint.model import is_with_opt
from minifast.data.normalize import Stats
from minifast.errors import DataError, DownloadError, FileFormatError
from minifast.hooks import Hooks
from minifast.training.snapshot import eval_mode
from minifast.utils import files
from minifast.utils.checks import check_count
from minifast.utils.public import public
from minifast.utils.text import shape_text

PROBE_SHAPE = (2, 3, 128, 128)  # of the images that show where a model pools
MAX_SHARE = 0.75  # a child with more than this share of the layers is split itself

Cut = int | Callable[[Any], nn.Module] | None


class Body(NamedTuple):
    """A backbone, and the means and standard deviations of the images it was trained on, if known."""

    module: nn.Module
    stats: Stats | None


@public
def create_body(arch: Callable[..., nn.Module], pretrained: Any = True, cut: Cut = None) -> nn.Module:
    """Create a model and return its backbone: the layers before the final pooling, in a Sequential.

    Args:
        arch: a function that creates the model, such as torchvision's ``resnet18``, or any function with an argument
            ``pretrained``.
        pretrained: True for torchvision's best weights, a member of its weights enum, or the path of a file with a
            state dict of the model. False for random weights.
        cut: the split point: the number of the model's children to keep, or a function of the model that returns the
            backbone. By default minifast finds it by running the model on two images.

    Returns:
        The backbone. It maps images ``(n, 3, height, width)`` to feature maps ``(n, channels, height, width)``.

    Raises:
        DataError: no split point was found, or the file holds the weights of another model.
        DownloadError: the weights cannot be downloaded. The message names the place for a local copy.

    Example:
        >>> from torchvision.models import resnet18
        >>> body = create_body(resnet18, pretrained=False)
        >>> len(body), body(torch.zeros(1, 3, 64, 64)).shape
        (8, torch.Size([1, 512, 2, 2]))
    """
    return load_body(arch, pretrained, cut).module


def load_body(arch: Callable[..., nn.Module], pretrained: Any, cut: Cut) -> Body:
    """Return the backbone of ``create_body`` with the means and standard deviations of its training images."""
    if isinstance(arch, nn.Module) or not callable(arch):
        kind = f"a {type(arch).__name__}" if isinstance(arch, nn.Module) else repr(arch)
        raise TypeError(f"`base_arch` must be a function that creates a model, such as models.resnet18; got {kind}.")
    name = getattr(arch.func if isinstance(arch, partial) else arch, "__name__", "base_arch")
    if isinstance(pretrained, (str, Path)):
        model = _create_model(arch, name, None)
        missing = _load_weights(model, Path(pretrained).expanduser())
        body = cut_model(model, cut, name)
        for tensor in (*body.parameters(), *body.buffers()):
            if id(tensor) in missing:
                raise DataError(
                    f"{pretrained} has no {missing[id(tensor)]} of shape {tuple(tensor.shape)}, which the backbone of "
                    f"{name} needs; give a file of {name} weights, saved by learn.save or "
                    f"torch.save(model.state_dict(), …)."
                )
        return Body(body, None)
    if pretrained:
        model, stats = _create_pretrained(arch, name, pretrained)
    else:
        model, stats = _create_model(arch, name, None), None
    return Body(cut_model(model, cut, name), stats)


def _create_model(arch: Callable[..., nn.Module], name: str, weights: Any) -> nn.Module:
    parameters = inspect.signature(arch).parameters
    if "weights" in parameters:
        model = arch(weights=weights)
    elif "pretrained" in parameters:
        model = arch(pretrained=weights is not None)
    else:
        model = arch()
    if not isinstance(model, nn.Module):
        raise TypeError(f"`base_arch` must return an nn.Module; {name} returned {model!r}.")
    return model


def _create_pretrained(arch: Callable[..., nn.Module], name: str, pretrained: Any) -> tuple[nn.Module, Any]:
    """Return a model with its own pretrained weights, and the means and deviations of their training images."""
    parameters = inspect.signature(arch).parameters
    if "weights" not in parameters:
        if "pretrained" not in parameters:
            raise ValueError(
                f"{name} has neither an argument `weights` nor `pretrained`, so it has no pretrained weights; give "
                f"pretrained=False, or pretrained=FILE with a file of weights."
            )
        return _create_model(arch, name, pretrained), None
    if pretrained is True:
        from torchvision.models import get_model_weights

        pretrained = get_model_weights(arch.func if isinstance(arch, partial) else arch).DEFAULT
    try:
        model = _create_model(arch, name, pretrained)
    except (OSError, HTTPException, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        file = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(pretrained.url).path).name
        reason = str(error).partition("\n")[0] or type(error).__name__
        if file.is_file():
            raise FileFormatError(
                f"{file} cannot be used as the weights of {name} ({reason}); delete it, and it is downloaded again "
                f"from {pretrained.url}."
            ) from error
        raise DownloadError(
            f"The weights of {name} cannot be downloaded from {pretrained.url} ({reason}). Put a copy of that file at "
            f"{file} and call again; or give pretrained=FILE, or pretrained=False for random weights."
        ) from error
    transforms = pretrained.transforms()
    stats = [getattr(transforms, part, None) for part in ("mean", "std")]
    return model, None if None in stats else tuple(stats)


def _load_weights(model: nn.Module, file: Path) -> dict[int, str]:
    """Load the tensors of a file that fit a model; return the names of the others by the ids of their tensors."""
    state = files.read(file)
    if is_with_opt(state):
        state = state["model"]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise DataError(f"{file} holds no state dict of a model; save one with torch.save(model.state_dict(), …).")
    own = model.state_dict(keep_vars=True)
    fitting = {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}
    model.load_state_dict(fitting, strict=False)
    counters = "num_batches_tracked"  # files written before 2018 have none
    return {id(tensor): name for name, tensor in own.items() if name not in fitting and not name.endswith(counters)}


def cut_model(model: nn.Module, cut: Cut, name: str) -> nn.Module:
    """Return the backbone of a model: ``cut`` children, what ``cut`` returns, or the children before the pooling."""
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
    first, expected = _children_before_pooling(model, children, name)
    body = nn.Sequential(*first)
    try:
        with eval_mode(body), torch.no_grad():
            same = torch.allclose(body(_probe_images()), expected, rtol=1e-3, atol=1e-5, equal_nan=True)
    except Exception as error:
        raise _no_split_point(name, f"its children cannot be called one after another ({error})") from error
    if not same:
        raise _no_split_point(name, "its forward does more than call its children one after another")
    return body


def _children_before_pooling(model: nn.Module, children: list[nn.Module], name: str) -> tuple[list[nn.Module], Tensor]:
    """Return the children that a model calls before its final pooling, and the output of the last of them."""
    calls: list[tuple[nn.Module, Any, bool]] = []

    def record_call(module: nn.Module, inputs: Any, output: Any) -> None:
        value = output.clone() if isinstance(output, Tensor) else output
        calls.append((module, value, _is_pooled(module, inputs, output)))

    try:
        with Hooks(children, record_call), eval_mode(model), torch.no_grad():
            model(_probe_images())
    except Exception as error:
        shape = shape_text(PROBE_SHAPE)
        raise _no_split_point(name, f"it does not accept images of shape {shape} ({error})") from error
    while calls and calls[-1][2]:
        calls.pop()
    if not calls:
        raise _no_split_point(name, "none of its children returns feature maps (n, channels, height, width)")
    return [module for module, _, _ in calls], calls[-1][1]


def _is_pooled(module: nn.Module, inputs: Any, output: Any) -> bool:
    """Return whether a module pools to a fixed size, contains a pooling to 1 × 1, or follows one."""
    pools = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
    if getattr(output, "ndim", 0) != 4 or isinstance(module, pools):
        return True
    after = bool(inputs) and getattr(inputs[0], "shape", ())[2:] == (1, 1)
    return output.shape[2:] == (1, 1) and (after or any(isinstance(inner, pools) for inner in module.modules()))


def _probe_images() -> Tensor:
    """Return two images that are not constant, always the same ones."""
    return torch.linspace(-1, 1, math.prod(PROBE_SHAPE)).view(PROBE_SHAPE)


def _no_split_point(name: str, reason: str) -> DataError:
    return DataError(
        f"No split point found for {name}: {reason}. Give `cut`, the number of its children to keep, or a function of "
        f"the model that returns the backbone."
    )


def n_channels(body: nn.Module, name: str) -> int:
    """Return the number of channels of the feature maps that a backbone returns."""
    try:
        with eval_mode(body), torch.no_grad():
            output = body(_probe_images())
    except Exception as error:
        raise DataError(f"The backbone of {name} fails on an image ({error}); give another `cut`.") from error
    if getattr(output, "ndim", 0) != 4:
        shape = tuple(getattr(output, "shape", ()))
        raise DataError(
            f"The backbone of {name} returns the shape {shape}, not feature maps (n, channels, height, width); give "
            f"another `cut`, or a `custom_head` that accepts this shape."
        )
    return int(output.shape[1])


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
