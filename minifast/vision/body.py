"""The body of an image classifier: a model with its weights, cut off before its pooling."""

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

PROBE = (2, 3, 128, 128)  # the pictures with which a model is looked at


MOST = 0.75  # of a body's layers: a part that has more is halved in its stead


Cut = int | Callable[[Any], nn.Module] | None


class Body(NamedTuple):
    """A body, and the means and standard deviations of the pictures that its weights were trained on, if known."""

    module: nn.Module
    stats: Stats | None


def create_body(arch: Callable[..., nn.Module], pretrained: Any = True, cut: Cut = None) -> nn.Module:
    """Make a model and return its body: its layers from the first to the last before the pooling, in a Sequential.

    Args:
        arch: makes the model, such as torchvision's ``resnet18``; or any function that has a ``pretrained``.
        pretrained: True for torchvision's best weights, a member of its weights enum, or the path of a file with the
            state of such a model; False for none.
        cut: the number of the model's children to keep, or a function of the model that returns the body. By default
            it is found: the model is tried on two pictures.

    Raises:
        DataError: the model cannot be cut by itself, or the file holds another model's weights.
        DownloadError: the weights cannot be fetched; the message says where a copy can be put.

    >>> from torchvision.models import resnet18
    >>> body = create_body(resnet18, pretrained=False)
    >>> len(body), body(torch.zeros(1, 3, 64, 64)).shape
    (8, torch.Size([1, 512, 2, 2]))
    """
    return load_body(arch, pretrained, cut).module


def load_body(arch: Callable[..., nn.Module], pretrained: Any, cut: Cut) -> Body:
    """Do what ``create_body`` does, and return the pictures' means and standard deviations too."""
    if isinstance(arch, nn.Module) or not callable(arch):
        kind = f"a {type(arch).__name__}" if isinstance(arch, nn.Module) else repr(arch)
        raise TypeError(f"base_arch is {kind}; give a function that makes a model, such as models.resnet18.")
    name = getattr(arch.func if isinstance(arch, partial) else arch, "__name__", "base_arch")
    if isinstance(pretrained, (str, Path)):
        model = _made(arch, name, None)
        lost = _load(model, Path(pretrained).expanduser())
        body = cut_off(model, cut, name)
        for tensor in (*body.parameters(), *body.buffers()):
            if id(tensor) in lost:
                raise DataError(
                    f"{pretrained} has no {lost[id(tensor)]} of shape {tuple(tensor.shape)}, which the body of {name} "
                    f"needs; give the file of a {name}, saved by learn.save or torch.save(model.state_dict(), …)."
                )
        return Body(body, None)
    model, stats = _trained(arch, name, pretrained) if pretrained else (_made(arch, name, None), None)
    return Body(cut_off(model, cut, name), stats)


def _made(arch: Callable[..., nn.Module], name: str, weights: Any) -> nn.Module:
    parameters = inspect.signature(arch).parameters
    if "weights" in parameters:
        model = arch(weights=weights)
    elif "pretrained" in parameters:
        model = arch(pretrained=weights is not None)
    else:
        model = arch()
    if not isinstance(model, nn.Module):
        raise TypeError(f"{name} returned {model!r}; base_arch must return a model.")
    return model


def _trained(arch: Callable[..., nn.Module], name: str, pretrained: Any) -> tuple[nn.Module, Any]:
    """Return the model with the weights that it knows itself, and the means and deviations of their pictures."""
    parameters = inspect.signature(arch).parameters
    if "weights" not in parameters:
        if "pretrained" not in parameters:
            raise ValueError(
                f"{name} takes neither weights nor pretrained, so it has no trained weights; give pretrained=False, or "
                f"pretrained=FILE with a file of them."
            )
        return _made(arch, name, pretrained), None
    if pretrained is True:
        from torchvision.models import get_model_weights

        pretrained = get_model_weights(arch.func if isinstance(arch, partial) else arch).DEFAULT
    try:
        model = _made(arch, name, pretrained)
    except (OSError, HTTPException, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        file = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(pretrained.url).path).name
        reason = str(error).partition("\n")[0] or type(error).__name__
        if file.is_file():
            raise FileFormatError(
                f"{file} cannot be used as the weights of {name} ({reason}); delete it, and it is fetched anew from "
                f"{pretrained.url}."
            ) from error
        raise DownloadError(
            f"The weights of {name} could not be fetched from {pretrained.url} ({reason}). Put a copy of that file at "
            f"{file} and call again; or give pretrained=FILE, or pretrained=False for none."
        ) from error
    transforms = pretrained.transforms()
    stats = [getattr(transforms, part, None) for part in ("mean", "std")]
    return model, None if None in stats else tuple(stats)


def _load(model: nn.Module, file: Path) -> dict[int, str]:
    """Load what a file has for a model; return what it has not, the names by the tensors' ids."""
    state = files.read(file)
    if is_with_opt(state):
        state = state["model"]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise DataError(f"{file} holds no model's state; save one with torch.save(model.state_dict(), …).")
    own = model.state_dict(keep_vars=True)
    fitting = {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}
    model.load_state_dict(fitting, strict=False)
    counters = "num_batches_tracked"  # which files of before 2018 have not
    return {id(tensor): name for name, tensor in own.items() if name not in fitting and not name.endswith(counters)}


def cut_off(model: nn.Module, cut: Cut, name: str) -> nn.Module:
    """Return the body of a model: ``cut`` children, what ``cut`` returns, or those that come before the pooling."""
    children = list(model.children())
    if callable(cut):
        body = cut(model)
        if not isinstance(body, nn.Module):
            raise TypeError(f"cut returned {body!r}; it must return a module.")
        return body
    if cut is not None:
        kept = children[: check_count("cut", cut, least=1 - len(children))]
        if not kept:
            raise ValueError(f"cut is {cut}, which leaves nothing of {name}'s {len(children)} children.")
        return nn.Sequential(*kept)
    kept, seen = _before_the_pooling(model, children, name)
    body = nn.Sequential(*kept)
    try:
        with eval_mode(body), torch.no_grad():
            same = torch.allclose(body(_pictures()), seen, rtol=1e-3, atol=1e-5, equal_nan=True)
    except Exception as error:
        raise _no_cut(name, f"its children cannot be called one after the other ({error})") from error
    if not same:
        raise _no_cut(name, "it does more than to call its children one after the other")
    return body


def _before_the_pooling(model: nn.Module, children: list[nn.Module], name: str) -> tuple[list[nn.Module], Tensor]:
    """Return the children that a model calls before one that pools, and what comes out of the last."""
    called: list[tuple[nn.Module, Any, bool]] = []

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        called.append(
            (module, output.clone() if isinstance(output, Tensor) else output, _pools(module, inputs, output))
        )

    try:
        with Hooks(children, note), eval_mode(model), torch.no_grad():
            model(_pictures())
    except Exception as error:
        pictures = " × ".join(map(str, PROBE))
        raise _no_cut(name, f"it does not take pictures of {pictures} ({error})") from error
    while called and called[-1][2]:
        called.pop()
    if not called:
        raise _no_cut(name, "none of its children gives maps (n, channels, height, width)")
    return [module for module, _, _ in called], called[-1][1]


def _pools(module: nn.Module, inputs: Any, output: Any) -> bool:
    """Whether a module is a pooling to a given size, has one to a point in it, or stands after it."""
    pools = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
    if getattr(output, "ndim", 0) != 4 or isinstance(module, pools):
        return True
    after = bool(inputs) and getattr(inputs[0], "shape", ())[2:] == (1, 1)
    return output.shape[2:] == (1, 1) and (after or any(isinstance(inner, pools) for inner in module.modules()))


def _pictures() -> Tensor:
    """Two pictures on which layers do something, the same ones each time."""
    return torch.linspace(-1, 1, math.prod(PROBE)).view(PROBE)


def _no_cut(name: str, reason: str) -> DataError:
    return DataError(
        f"Where to cut {name} cannot be found: {reason}. Give cut=, the number of its children to keep, or a function "
        f"of the model that returns its body."
    )


def n_channels(body: nn.Module, name: str) -> int:
    """Return how many maps a body makes of a picture."""
    try:
        with eval_mode(body), torch.no_grad():
            output = body(_pictures())
    except Exception as error:
        raise DataError(f"The body of {name} cannot be called ({error}); cut it elsewhere.") from error
    if getattr(output, "ndim", 0) != 4:
        shape = tuple(getattr(output, "shape", ()))
        raise DataError(
            f"The body of {name} gives the shape {shape}, not maps (n, channels, height, width); cut it elsewhere, or "
            f"give a custom_head for it."
        )
    return int(output.shape[1])


def second_half(body: nn.Module) -> nn.Module | None:
    """Return the part with which the second half of a body's layers begins, or None where there is one part only.

    Layers with parameters count. Of torchvision's ResNets, all of them, it is ``layer3``, as in fastai v1.

    >>> second_half(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 1)))
    Conv2d(8, 8, kernel_size=(3, 3), stride=(1, 1))
    """
    parts = [(child, count) for child in body.children() if (count := _n_layers(child))]
    total = sum(count for _, count in parts)
    for child, count in parts:
        if count > MOST * total and (found := second_half(child)) is not None:
            return found
    ends = list(itertools.accumulate(count for _, count in parts))
    starts = [(abs(end - total / 2), i) for i, end in enumerate(ends[:-1], 1)]
    return parts[min(starts)[1]][0] if starts else None


def _n_layers(module: nn.Module) -> int:
    return sum(1 for layer in module.modules() if next(layer.parameters(recurse=False), None) is not None)
