"""Transfer learning: a trained body with a new head for other classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from minifast.data.bunch import DataBunch
from minifast.data.normalize import Stats
from minifast.errors import DataError
from minifast.learner.learner import Learner, check_data
from minifast.models import initialise
from minifast.vision.body import Cut, load_body, n_channels, second_half
from minifast.vision.head import create_head


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
    """Make a learner for pictures from a trained model: its body, and a new head for the data's classes.

    The model is a Sequential of both. Its layer groups are the first half of the body, the second, and the head (of a
    ResNet cut at ``layer3``, as in fastai v1). With trained weights all but the head is frozen: train, then
    ``learn.unfreeze()`` and train on with ``max_lr=slice(low, high)``. Data that are not normalised yet are, as the
    weights want it, and a line says so.

    Args:
        data: pictures with 3 channels.
        base_arch: makes the model, such as ``models.resnet18``; or any function that has a ``pretrained``.
        cut: the number of the model's children that are the body, or a function of the model that returns the body; by
            default it is found.
        pretrained: True for torchvision's best weights, a member of its weights enum, or the path of a file with the
            state of such a model; False for none.
        lin_ftrs: widths of the head's layers but the last; by default one of 512.
        ps: the head's dropout, see ``create_head``.
        custom_head: a head to use in place of one made here.
        split_on: where the layer groups begin, see ``Learner.split``.
        bn_final: a BatchNorm after the head's last layer.
        init: sets the weights of the head, a custom one's too; None leaves them.
        concat_pool: the head pools the maximum and the mean, else the mean.
        kwargs: what the Learner takes, such as ``metrics``.

    Raises:
        DownloadError: the weights cannot be fetched; the message says where a copy can be put.
        DataError: the model cannot be cut by itself, the data have no classes, or the file is another model's.

    >>> import torch
    >>> from minifast import models
    >>> pictures = [(torch.rand(2, 3, 32, 32), torch.tensor([0, 1]))]
    >>> data = DataBunch(pictures, pictures, device="cpu", classes=["cat", "dog"])
    >>> learn = cnn_learner(data, models.resnet18, pretrained=False, silent=True)
    >>> len(learn.layer_groups), learn.model[1][-1]
    (3, Linear(in_features=512, out_features=2, bias=True))
    """
    check_data(data)
    if custom_head is None and data.c is None:
        raise DataError(
            "The data have no classes, so how many outputs the head needs is not known; give a custom_head, or "
            "DataBunch(classes=...)."
        )
    body, stats = load_body(base_arch, pretrained, cut)
    head = custom_head
    if head is None:
        width = n_channels(body, getattr(base_arch, "__name__", "base_arch")) * (2 if concat_pool else 1)
        head = create_head(width, data.c or 0, lin_ftrs, ps, concat_pool, bn_final)
    if init is not None:
        initialise(head, init)
    learn = Learner(data, nn.Sequential(body, head), **kwargs)
    halfway = second_half(body)
    learn.split(split_on if split_on is not None else [part for part in (halfway, head) if part is not None])
    if pretrained:
        learn.freeze()
        said = normalise(data, stats)
        if said and not learn.silent:
            print(said)
    return learn


def normalise(data: DataBunch, stats: Stats | None) -> str:
    """Normalise data as weights want it, if that is known and not done yet; return what is to be said of it."""
    if data.norm is not None:
        return ""
    if stats is None:
        return (
            "What pictures these weights want is not known, so the data stay as they are; if they were trained on "
            "normalised ones, give data.normalize(...) the same means and deviations first."
        )
    x, _ = data.one_batch(cpu=False)
    low, high = (float(one) for one in (x.min(), x.max()))
    if low < 0 or high > 1:
        return f"The pictures' values go from {low:.3g} to {high:.3g}, so they are taken to be normalised already."
    data.normalize(stats)
    mean, std = (", ".join(f"{value:g}" for value in part) for part in stats)
    return f"The data are now normalised as the weights want it: means {mean}, standard deviations {std}."
