"""Transfer learning: a pretrained backbone with a new head for your classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from minifast.data.bunch import DataBunch
from minifast.data.normalize import Stats
from minifast.errors import DataError
from minifast.learner.learner import Learner, check_data
from minifast.models import initialize
from minifast.utils.aliases import accept_aliases, under_name
from minifast.utils.checks import check_word
from minifast.utils.public import check_keywords, public
from minifast.utils.text import write_text
from minifast.vision.architecture import Arch
from minifast.vision.body import Cut, block_starts, features_of, load_body, second_half_start
from minifast.vision.head import create_head


@public
@accept_aliases(arch="base_arch")
def vision_learner(
    data: DataBunch,
    base_arch: Arch,
    cut: Cut = None,
    pretrained: Any = True,
    lin_ftrs: Sequence[int] | None = None,
    ps: float | Sequence[float] = 0.5,
    custom_head: nn.Module | None = None,
    split_on: Any = None,
    bn_final: bool = False,
    init: Callable[[Tensor], Any] | None = nn.init.kaiming_normal_,
    concat_pool: bool = True,
    **kwargs: Any,
) -> Learner:
    """Create a Learner that fine-tunes a pretrained image model: its backbone with a new head for your classes.

    The model is a Sequential of backbone and head. It has three layer groups: the first half of the backbone, the
    second half (for a ResNet it begins at ``layer3``, as in fastai v1), and the head. With pretrained weights, all but
    the head is frozen, running statistics of BatchNorm layers included. ``learn.fine_tune`` trains the head first, then
    all layers. If the data are not normalized yet, they are normalized as the weights expect, and a line is printed.

    The model is tried on images of the data's size and channels. Vision transformers of torchvision and timm get
    position embeddings of that size. The first convolution is changed for images that do not have 3 channels; for gray
    images its weights are summed, so they give what their copies with three equal channels gave.

    ``cnn_learner`` is the same function under its name in fastai v1.

    Args:
        data: batches of images ``(n, channels, height, width)``.
        base_arch: a function that creates the model, such as ``models.resnet18``, or any function with an argument
            ``pretrained``; the name of a model of torchvision or timm, such as ``"vit_tiny_patch16_224"``
            (``"timm/NAME"`` if both have it); or a model, which is copied with its weights. ``arch`` is accepted, too.
        cut: the split point: the number of the model's children in the backbone, or a function of the model that
            returns the backbone. By default minifast finds it, see ``create_body``.
        pretrained: True for torchvision's best weights, timm's, or those that a given model has; a member of a weights
            enum of torchvision; or the path of a file with a state dict of the model (``.pth`` or ``.safetensors``).
            False for random weights.
        lin_ftrs: widths of the head's hidden linear layers; by default one layer of 512.
        ps: dropout probability of the head, see ``create_head``.
        custom_head: your own head, used instead of ``create_head``.
        split_on: the modules at which layer groups begin, see ``Learner.split``. ``"blocks"`` makes one group per
            block of the backbone; ``max_lr=slice(low, high)`` then gives each its own learning rate.
        bn_final: add a BatchNorm after the head's last layer.
        init: initializes the weights of the head, a custom head included. None leaves them unchanged.
        concat_pool: let the head concatenate max and average pooling; False for average pooling alone.
        kwargs: arguments of ``Learner``, such as ``metrics``.

    Returns:
        The Learner.

    Raises:
        DownloadError: the weights cannot be downloaded. The message names the place for a local copy.
        DataError: no split point was found, the model does not take images of this size, the data have no classes, or
            the file holds another model's weights.
        ValueError: there is no model of that name.

    Example:
        >>> import torch
        >>> from minifast import models
        >>> batches = [(torch.rand(2, 3, 32, 32), torch.tensor([0, 1]))]
        >>> data = DataBunch(batches, batches, device="cpu", classes=["cat", "dog"])
        >>> learn = vision_learner(data, models.resnet18, pretrained=False, silent=True)
        >>> len(learn.layer_groups), learn.model[1][-1]
        (3, Linear(in_features=512, out_features=2, bias=True))
        >>> gray = DataBunch([(torch.rand(2, 1, 32, 32), torch.tensor([0, 1]))], device="cpu", classes=["a", "b"])
        >>> vision_learner(gray, "resnet18", pretrained=False, silent=True).model[0][0].in_channels
        1
    """
    check_data(data)
    check_keywords("vision_learner", kwargs, vision_learner, Learner)
    if custom_head is None and data.c is None:
        raise DataError(
            "The data have no classes, so the number of outputs is unknown; give a `custom_head`, or create the data "
            "with DataBunch(classes=...)."
        )
    shape = _shape_of_images(data)
    body, stats, name = load_body(base_arch, pretrained, cut, shape)
    head = custom_head
    if head is None:
        n_features, *sides = features_of(body, name, shape)
        width = n_features * (2 if concat_pool and sides else 1)
        head = create_head(width, data.c or 0, lin_ftrs, ps, concat_pool, bn_final, pool=bool(sides))
    if init is not None:
        initialize(head, init)
    learn = Learner(data, nn.Sequential(body, head), **kwargs)
    if isinstance(split_on, str):
        check_word("split_on", split_on, ("blocks",))
        split_on = [*block_starts(body), head]
    halfway = second_half_start(body)
    learn.split(split_on if split_on is not None else [part for part in (halfway, head) if part is not None])
    if pretrained:
        learn.freeze()
        message = normalize_for_weights(data, stats)
        if message and not learn.silent:
            write_text(message)
    return learn


cnn_learner = under_name("cnn_learner", vision_learner)  # as in fastai v1


def _shape_of_images(data: DataBunch) -> tuple[int, ...]:
    """Return the shape of the images of a batch: channels, height, width."""
    x, _ = data.one_batch(denorm=False, cpu=False)
    if not isinstance(x, Tensor) or x.ndim != 4 or not x.is_floating_point():
        what = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
        raise DataError(
            f"A vision model needs images, floats (n, channels, height, width), got {what}; for other data make the "
            f"model yourself: Learner(data, model)."
        )
    return tuple(x.shape[1:])


def normalize_for_weights(data: DataBunch, stats: Stats | None) -> str:
    """Normalize data as pretrained weights expect, where that is known and not done yet; return a line to print."""
    if data.norm is not None:
        return ""
    if stats is None:
        return (
            "The normalization that these weights expect is unknown, so the data stay unchanged. If the weights were "
            "trained on normalized images, call data.normalize(...) in Python with the same means and standard "
            "deviations first."
        )
    x, _ = data.one_batch(cpu=False)
    low, high = float(x.min()), float(x.max())
    if low < 0 or high > 1:
        return f"The images have values from {low:.3g} to {high:.3g}, so they count as normalized and stay unchanged."
    data.normalize(stats)
    mean, std = (", ".join(f"{value:g}" for value in part) for part in stats)
    return f"The data are now normalized as the weights expect: means {mean}, standard deviations {std}."
