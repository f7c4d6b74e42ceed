"""Image models by function, name or instance, with their weights, for the size and the channels of the data."""

from __future__ import annotations

import copy
import hashlib
import inspect
import pickle
from collections.abc import Callable
from functools import partial
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlparse

import torch
from torch import Tensor, nn

from minifast.checkpoint.model import weights_in
from minifast.data.normalize import Stats
from minifast.errors import DataError, DownloadError, FileFormatError
from minifast.utils import files
from minifast.utils.checks import did_you_mean, module_name

Arch = Callable[..., nn.Module] | str | nn.Module
AUXILIARY = ("AuxLogits", "aux1", "aux2")  # classifiers of torchvision's Inception networks that only train
HASH_DIGITS = 8  # at the end of the names of torchvision's files
CHANNELS = 3  # of the images that pretrained weights were trained on


class Architecture(NamedTuple):
    """A model, what error messages call it, and the statistics of the images it was trained on, if known.

    Attributes:
        missing: the names of the tensors that a file of weights did not have.
    """

    model: nn.Module
    name: str
    stats: Stats | None = None
    missing: frozenset[str] = frozenset()


def load_architecture(arch: Arch, pretrained: Any, channels: int = CHANNELS) -> Architecture:
    """Return the model that ``arch`` names, with its weights, for images with this number of channels."""
    if isinstance(arch, nn.Module):
        found = Architecture(copy.deepcopy(arch), type(arch).__name__)  # the caller's model stays as it is
        loaded = found._replace(stats=stats_of(found.model) if pretrained else None)
    else:
        function, name = find_function(arch)
        if pretrained and not isinstance(pretrained, (str, Path)):
            loaded = Architecture(*_create_pretrained(function, name, pretrained))
        else:
            loaded = Architecture(_create_model(function, name, None), name)
    if isinstance(pretrained, (str, Path)):
        missing = _load_weights(loaded.model, Path(pretrained).expanduser())
        stats = None if isinstance(arch, nn.Module) else stats_of_published(function, Path(pretrained).expanduser())
        loaded = loaded._replace(missing=missing, stats=stats)
    for part in AUXILIARY:
        if isinstance(getattr(loaded.model, part, None), nn.Module):
            setattr(loaded.model, part, None)
            loaded.model.aux_logits = False  # type: ignore[assignment]
    adapt_channels(loaded.model, channels, loaded.name)
    return loaded


def find_function(arch: Any) -> tuple[Callable[..., Any], str]:
    """Return the function that creates a model, and its name.

    Raises:
        TypeError: ``arch`` is neither a function nor a name.
        ValueError: neither torchvision nor timm has a model of that name.
    """
    if isinstance(arch, str):
        return _by_name(arch)
    if not callable(arch):
        raise TypeError(
            f"`base_arch` must be a function that creates a model, such as models.resnet18, the name of a model of "
            f"torchvision or timm, or an nn.Module; got {arch!r}."
        )
    function = arch.func if isinstance(arch, partial) else arch
    return arch, getattr(function, "__name__", "base_arch")


def _by_name(given: str) -> tuple[Callable[..., Any], str]:
    from torchvision import models

    name = given.removeprefix("timm/")
    known = models.list_models(models)
    if name == given and name in known:
        return models.get_model_builder(name), name
    if find_spec("timm") is None:
        raise ValueError(
            f"torchvision has no model {given!r}.{did_you_mean(given, known)} For the models of timm, run: pip install "
            f"timm"
        )
    import timm

    if not timm.is_model(name):
        others = [] if name != given else known
        raise ValueError(
            f"There is no model {given!r} in {'timm' if name != given else 'torchvision or timm'}."
            f"{did_you_mean(name, [*others, *timm.list_models()])}"
        )
    return partial(timm.create_model, name), name


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


def _create_pretrained(arch: Callable[..., nn.Module], name: str, pretrained: Any) -> tuple[nn.Module, str, Any]:
    """Return a model with its own pretrained weights, its name, and the statistics of their training images."""
    parameters = inspect.signature(arch).parameters
    if "weights" not in parameters:
        if "pretrained" not in parameters:
            raise ValueError(
                f"{name} has neither an argument `weights` nor `pretrained`, so it has no pretrained weights; give "
                f"pretrained=False, or pretrained=FILE with a file of weights."
            )
        model = _create_by_flag(arch, name, pretrained)
        return model, name, stats_of(model)
    if pretrained is True:
        published = published_weights(arch)
        if published is None:
            raise ValueError(
                f"torchvision has no weights for {name}; give pretrained=FILE with a file of weights, or "
                f"pretrained=False for random ones."
            )
        pretrained = published.DEFAULT
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
            f"{file} and",
            hint="call again; or give pretrained=FILE, or pretrained=False for random weights.",
            cli_hint="run the command again; or give a copy with --weights FILE, or leave --pretrained out.",
        ) from error
    return model, name, stats_of_transforms(pretrained.transforms())


def _create_by_flag(arch: Callable[..., nn.Module], name: str, pretrained: Any) -> nn.Module:
    """Return the model of a function with an argument ``pretrained``, which fetches the weights in its own way."""
    try:
        return _create_model(arch, name, pretrained)
    except Exception as error:
        if not module_name(getattr(arch, "func", arch)).startswith("timm."):
            raise
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise DownloadError(
            f"The weights of {name} cannot be loaded by timm ({reason}).",
            hint="Give pretrained=FILE with a file of weights, or pretrained=False for random weights.",
            cli_hint="Give a file of weights with --weights FILE, or leave --pretrained out.",
        ) from error


def stats_of_transforms(transforms: Any) -> Stats | None:
    """Return the means and standard deviations in the transforms of torchvision's weights; None if there are none."""
    mean, std = (getattr(transforms, part, None) for part in ("mean", "std"))
    return None if mean is None or std is None else (list(mean), list(std))


def published_weights(arch: Any) -> Any:
    """Return torchvision's enum of the weights of a network; None for a network that is not torchvision's."""
    from torchvision.models import get_model_weights

    try:
        return get_model_weights(arch.func if isinstance(arch, partial) else arch)
    except (ValueError, TypeError, AttributeError):  # the last from torchvision 0.21, for annotations that are text
        return None


def stats_of_published(arch: Any, file: Path) -> Stats | None:
    """Return the statistics for a file of weights if it is a copy of one that torchvision publishes for ``arch``.

    The names of these files end with the first eight digits of their SHA-256 hash, so a renamed copy is known too.
    """
    published = published_weights(arch)
    if published is None:
        return None
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(files.CHUNK):
            digest.update(chunk)
    for weights in published:
        start = Path(urlparse(weights.url).path).stem.rpartition("-")[2]
        if len(start) == HASH_DIGITS and digest.hexdigest().startswith(start):
            return stats_of_transforms(weights.transforms())
    return None


def stats_of(model: nn.Module) -> Stats | None:
    """Return the means and standard deviations in the ``pretrained_cfg`` of a model of timm; None for others."""
    config = getattr(model, "pretrained_cfg", None)
    if not isinstance(config, dict) or None in (config.get("mean"), config.get("std")):
        return None
    return list(config["mean"]), list(config["std"])


def _load_weights(model: nn.Module, file: Path) -> frozenset[str]:
    """Load the tensors of a file that fit a model; return the names of the others."""
    state = weights_in(files.read(file), file)
    own = model.state_dict()
    fitting = {
        name: value
        for name, value in state.items()
        if name in own and isinstance(value, Tensor) and own[name].shape == value.shape
    }
    model.load_state_dict(fitting, strict=False)
    counters = "num_batches_tracked"  # files written before 2018 have none
    return frozenset(name for name in own if name not in fitting and not name.endswith(counters))


def check_complete(body: nn.Module, architecture: Architecture, file: Any) -> None:
    """Raise a DataError if a file of weights lacks a tensor that a backbone needs."""
    needed = {id(tensor) for tensor in (*body.parameters(), *body.buffers())}
    for name, tensor in architecture.model.state_dict(keep_vars=True).items():
        if name in architecture.missing and id(tensor) in needed:
            raise DataError(
                f"{file} has no {name} of shape {tuple(tensor.shape)}, which the backbone of {architecture.name} "
                f"needs; give a file of {architecture.name} weights, saved by learn.save or "
                f"torch.save(model.state_dict(), …)."
            )


def adapt_channels(model: nn.Module, channels: int, name: str) -> None:
    """Let the first convolution of a model take images with another number of channels than 3.

    Its weights are repeated over the channels, scaled so that equal channels give what they gave before. For one
    channel they are summed: a gray image gives the output that its copy with three equal channels gave.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
    >>> gray = torch.rand(2, 1, 5, 5)
    >>> before = model(gray.expand(-1, 3, -1, -1))
    >>> adapt_channels(model, 1, "model")
    >>> model[0].weight.shape, before.allclose(model(gray), atol=1e-5)
    (torch.Size([8, 1, 3, 3]), True)
    """
    conv = next((layer for layer in model.modules() if isinstance(layer, nn.Conv2d)), None)
    if conv is None or conv.in_channels == channels or (channels == CHANNELS and conv.in_channels != CHANNELS):
        return
    if conv.in_channels != CHANNELS or conv.groups != 1:
        raise DataError(
            f"The images have {channels} channels, but the first convolution of {name} takes {conv.in_channels} in "
            f"{conv.groups} groups; give a model for {channels} channels."
        )
    copies = -(-channels // CHANNELS)
    with torch.no_grad():
        weight = conv.weight.repeat(1, copies, 1, 1)[:, :channels] * (CHANNELS / channels)
        conv.weight.data = conv.weight.sum(1, keepdim=True) if channels == 1 else weight
    conv.in_channels = channels


def stats_for(channels: int, stats: Stats | None) -> Stats | None:
    """Return the statistics of color images for images with this number of channels: the mean of each for gray."""
    if stats is None or channels == len(stats[0]):
        return stats
    mean, std = ([sum(part) / len(part)] for part in stats)
    return (mean, std) if channels == 1 else None


def fit_to_size(model: nn.Module, size: tuple[int, int]) -> None:
    """Let a model with a fixed input size take images of ``size``, where it can: its position embeddings are resized.

    These are the models of timm with a method ``set_input_size``, and the vision transformers of torchvision.
    """
    config = getattr(model, "pretrained_cfg", None)
    if hasattr(model, "set_input_size") and isinstance(config, dict):
        if config.get("fixed_input_size") and tuple(config.get("input_size", ()))[1:] != size:
            model.set_input_size(img_size=size)  # type: ignore[operator]
        return
    from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

    if isinstance(model, VisionTransformer) and size[0] == size[1] != model.image_size:
        side, patch, encoder = size[0], model.patch_size, model.encoder
        if side % patch:
            return  # the first batch says it, and the caller names the size
        state = {"encoder.pos_embedding": encoder.pos_embedding.detach()}
        resized = interpolate_embeddings(side, patch, state)["encoder.pos_embedding"]
        encoder.pos_embedding.data = resized
        model.image_size, model.seq_length = side, resized.shape[1]


def input_size_of(model: nn.Module) -> tuple[int, int] | None:
    """Return the size of the images that a model was made for, if it states one."""
    config = getattr(model, "pretrained_cfg", None)
    if isinstance(config, dict) and len(config.get("input_size") or ()) == CHANNELS:
        return config["input_size"][1], config["input_size"][2]
    side = getattr(model, "image_size", None)
    return (side, side) if isinstance(side, int) else None
