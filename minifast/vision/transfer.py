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
from minifast.utils.public import check_keywords, public
from minifast.utils.text import write_text
from minifast.vision.body import Cut, load_body, n_channels, second_half_start
from minifast.vision.head import create_head


@public
def cnn_learner(
    data: DataBunch,
    base_arch: Callable[..., nn.Module],
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
    the head is frozen, running statistics of BatchNorm layers included. Train the head first, then call
    ``learn.unfreeze()`` and train all layers with ``max_lr=slice(low, high)``. If the data are not normalized yet, they
    are normalized as the weights expect, and a line is printed.

    Args:
        data: batches of images with 3 channels.
        base_arch: a function that creates the model, such as ``models.resnet18``, or any function with an argument
            ``pretrained``.
        cut: the split point: the number of the model's children in the backbone, or a function of the model that
            returns the backbone. By default minifast finds it.
        pretrained: True for torchvision's best weights, a member of its weights enum, or the path of a file with a
            state dict of the model. False for random weights.
        lin_ftrs: widths of the head's hidden linear layers; by default one layer of 512.
        ps: dropout probability of the head, see ``create_head``.
        custom_head: your own head, used instead of ``create_head``.
        split_on: the modules at which layer groups begin, see ``Learner.split``.
        bn_final: add a BatchNorm after the head's last layer.
        init: initializes the weights of the head, a custom head included. None leaves them unchanged.
        concat_pool: let the head concatenate max and average pooling; False for average pooling alone.
        kwargs: arguments of ``Learner``, such as ``metrics``.

    Returns:
        The Learner.

    Raises:
        DownloadError: the weights cannot be downloaded. The message names the place for a local copy.
        DataError: no split point was found, the data have no classes, or the file holds another model's weights.

    Example:
        >>> import torch
        >>> from minifast import models
        >>> batches = [(torch.rand(2, 3, 32, 32), torch.tensor([0, 1]))]
        >>> data = DataBunch(batches, batches, device="cpu", classes=["cat", "dog"])
        >>> learn = cnn_learner(data, models.resnet18, pretrained=False, silent=True)
        >>> len(learn.layer_groups), learn.model[1][-1]
        (3, Linear(in_features=512, out_features=2, bias=True))
    """
    check_data(data)
    check_keywords("cnn_learner", kwargs, cnn_learner, Learner)
    if custom_head is None and data.c is None:
        raise DataError(
            "The data have no classes, so the number of outputs is unknown; give a `custom_head`, or create the data "
            "with DataBunch(classes=...)."
        )
    body, stats = load_body(base_arch, pretrained, cut)
    head = custom_head
    if head is None:
        width = n_channels(body, getattr(base_arch, "__name__", "base_arch")) * (2 if concat_pool else 1)
        head = create_head(width, data.c or 0, lin_ftrs, ps, concat_pool, bn_final)
    if init is not None:
        initialize(head, init)
    learn = Learner(data, nn.Sequential(body, head), **kwargs)
    halfway = second_half_start(body)
    learn.split(split_on if split_on is not None else [part for part in (halfway, head) if part is not None])
    if pretrained:
        learn.freeze()
        message = normalize_for_weights(data, stats)
        if message and not learn.silent:
            write_text(message)
    return learn


def normalize_for_weights(data: DataBunch, stats: Stats | None) -> str:
    """Normalize data as pretrained weights expect, where that is known and not done yet; return a line to print."""
    if data.norm is not None:
        return ""
    if stats is None:
        return (
            "The normalization that these weights expect is unknown, so the data stay unchanged. If the weights were "
            "trained on normalized images, call data.normalize(...) with the same means and standard deviations first."
        )
    x, _ = data.one_batch(cpu=False)
    low, high = float(x.min()), float(x.max())
    if low < 0 or high > 1:
        return f"The images have values from {low:.3g} to {high:.3g}, so they count as normalized and stay unchanged."
    data.normalize(stats)
    mean, std = (", ".join(f"{value:g}" for value in part) for part in stats)
    return f"The data are now normalized as the weights expect: means {mean}, standard deviations {std}."
