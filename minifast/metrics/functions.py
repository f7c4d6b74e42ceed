"""Classification metrics that are averaged over the batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor

from minifast.errors import DataError
from minifast.utils.shapes import (
    binary_targets,
    check_tensors,
    is_counted,
    match_classes,
    match_shapes,
    predict_classes,
)

Function = TypeVar("Function", bound=Callable[..., Any])


def mark(**attributes: Any) -> Callable[[Function], Function]:
    """Give a metric function attributes that the metric callbacks read.

    ``higher_is_better`` is the direction, ``over_all`` makes the callback that computes the function over all
    predictions, ``count`` returns the weight of a batch, and ``loss_options`` names arguments that follow the loss.
    ``elementwise`` is true of a mean over numbers that gets only those which the loss does not ignore.
    """

    def decorate(function: Function) -> Function:
        vars(function).update(attributes)
        return function

    return decorate


def count_targets(input: Tensor, targs: Tensor, ignore_index: int = -100, **options: Any) -> Tensor:
    """Return how many targets of a batch count."""
    return is_counted(targs, ignore_index).sum()


def count_numbers(input: Tensor, targs: Tensor, **options: Any) -> int:
    """Return how many numbers the targets of a batch have."""
    return targs.numel()


def count_samples(input: Tensor, targs: Tensor, ignore_index: int = -100, **options: Any) -> Tensor:
    """Return how many samples of a batch have a target that counts."""
    return is_counted(targs, ignore_index).flatten(1).any(dim=1).sum()


def _mean_of_samples(scores: Tensor, counted: Tensor) -> Tensor:
    """Return the mean score of the samples that have a target that counts."""
    samples = counted.any(dim=1)
    return scores.masked_fill(~samples, 0.0).sum() / samples.sum().clamp(min=1)


COUNTED = {"count": count_targets, "loss_options": ("thresh", "ignore_index", "axis")}


@mark(higher_is_better=True, **COUNTED)
def accuracy(
    input: Tensor, targs: Tensor, thresh: float = 0.0, ignore_index: int = -100, axis: int | None = None
) -> Tensor:
    """Return the fraction of targets that are the class with the highest output.

    A single output per target is a logit of two classes: it predicts class 1 above ``thresh``, otherwise class 0. As a
    metric of a learner, ``thresh`` is 0.5 if the loss takes probabilities (``BCELoss``) or is a regression loss, and
    ``ignore_index`` and ``axis`` are those of the loss. Batches are weighted by the number of targets that count.

    Args:
        input: outputs ``(n, classes)``, ``(n, ..., classes)`` or ``(n, classes, ...)``; or ``(n,)`` or ``(n, 1)``.
        targs: class numbers ``(n, ...)``; 0 and 1, of any dtype, for a single output.
        thresh: the single output above which class 1 is predicted. Default: 0, for logits.
        ignore_index: targets of this value do not count. Default: -100.
        axis: the dimension of the classes, 1 or the last, where both fit the targets. Default: the last.

    Raises:
        DataError: if the shapes do not fit, or the targets of a single output are not 0 and 1.

    >>> import torch
    >>> accuracy(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))
    tensor(0.5000)
    >>> accuracy(torch.tensor([[-1.2], [0.4]]), torch.tensor([0, 1]))
    tensor(1.)
    """
    predicted, actual, counted, _ = predict_classes(input, targs, thresh, ignore_index, axis)
    return ((predicted == actual) & counted).sum() / counted.sum().clamp(min=1)


@mark(higher_is_better=False, **COUNTED)
def error_rate(
    input: Tensor, targs: Tensor, thresh: float = 0.0, ignore_index: int = -100, axis: int | None = None
) -> Tensor:
    """Return 1 - accuracy.

    Args:
        input: outputs, see ``accuracy``.
        targs: class numbers, see ``accuracy``.
        thresh: the single output above which class 1 is predicted. Default: 0, for logits.
        ignore_index: targets of this value do not count. Default: -100.
        axis: the dimension of the classes, 1 or the last, where both fit the targets. Default: the last.

    >>> import torch
    >>> error_rate(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))
    tensor(0.5000)
    """
    return 1 - accuracy(input, targs, thresh, ignore_index, axis)


@mark(higher_is_better=True, count=count_targets, loss_options=("ignore_index", "axis"))
def top_k_accuracy(
    input: Tensor, targs: Tensor, k: int = 5, ignore_index: int = -100, axis: int | None = None
) -> Tensor:
    """Return the fraction of targets that are among the ``k`` classes with the highest outputs.

    Args:
        input: outputs ``(n, classes)``, ``(n, ..., classes)`` or ``(n, classes, ...)``.
        targs: class numbers ``(n, ...)``.
        k: the number of classes to look at, from 1 to all. Default: 5.
        ignore_index: targets of this value do not count. Default: -100.
        axis: the dimension of the classes, 1 or the last, where both fit the targets. Default: the last.

    Raises:
        ValueError: if there are fewer than ``k`` classes.
        DataError: if the shapes do not fit.

    >>> import torch
    >>> top_k_accuracy(torch.tensor([[0.1, 0.2, 0.7], [0.7, 0.2, 0.1]]), torch.tensor([1, 2]), k=2)
    tensor(0.5000)
    """
    outputs, targets = match_classes(input, targs, axis)
    n_classes = outputs.shape[-1]
    if n_classes == 1:
        raise DataError(
            f"top_k_accuracy needs one output per class, got outputs of the shape {tuple(input.shape)}; use accuracy, "
            f"or for regression rmse, mae or r2_score."
        )
    if not 1 <= k <= n_classes:
        raise ValueError(
            f"`k` must be from 1 to the number of classes, {n_classes}, got {k}; give another, such as "
            f"partial(top_k_accuracy, k=2)."
        )
    counted = is_counted(targets, ignore_index)
    best = (outputs.topk(k, dim=-1).indices == targets[..., None]).any(dim=-1)
    return (best & counted).sum() / counted.sum().clamp(min=1)


def count_foreground(
    input: Tensor, targs: Tensor, void_code: int = 0, ignore_index: int = -100, **options: Any
) -> Tensor:
    """Return how many targets of a batch count and are not ``void_code``."""
    return (is_counted(targs, ignore_index) & is_counted(targs, void_code)).sum()


@mark(higher_is_better=True, **{**COUNTED, "count": count_foreground})
def foreground_acc(
    input: Tensor,
    targs: Tensor,
    void_code: int = 0,
    ignore_index: int = -100,
    axis: int | None = None,
    thresh: float = 0.0,
) -> Tensor:
    """Return the accuracy of the targets that are not background, for masks for example.

    As a metric of a learner, ``ignore_index``, ``axis`` and ``thresh`` follow the loss, as those of ``accuracy`` do.
    Batches are weighted by the number of targets that count.

    Args:
        input: outputs, see ``accuracy``.
        targs: class numbers, see ``accuracy``.
        void_code: the class number of the background, whose targets do not count. Default: 0.
        ignore_index: targets of this value do not count either. Default: -100.
        axis: the dimension of the classes, 1 or the last, where both fit the targets. Default: the last.
        thresh: the single output above which class 1 is predicted. Default: 0, for logits.

    Raises:
        DataError: if the shapes do not fit.

    >>> import torch
    >>> masks = torch.tensor([[[0, 0], [1, 2]]])
    >>> outputs = torch.tensor([[[[9.0, 9.0], [9.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 9.0]]]])
    >>> accuracy(outputs, masks), foreground_acc(outputs, masks)
    (tensor(0.7500), tensor(0.5000))
    """
    predicted, actual, counted, _ = predict_classes(input, targs, thresh, ignore_index, axis)
    counted = counted & is_counted(actual, void_code)
    return ((predicted == actual) & counted).sum() / counted.sum().clamp(min=1)


ZERO_OR_ONE = "each label must be 0 or 1; encode the labels of a sample with one number for each label."


@mark(higher_is_better=True, count=count_targets, loss_options=("ignore_index",))
def accuracy_thresh(
    y_pred: Tensor, y_true: Tensor, thresh: float = 0.5, sigmoid: bool = True, ignore_index: int = -100
) -> Tensor:
    """Return the fraction of labels that are predicted correctly, for samples with any number of labels.

    As a metric of a learner, ``ignore_index`` is that of the loss, if it has one.

    Args:
        y_pred: outputs ``(n, labels)``.
        y_true: zeros and ones ``(n, labels)``; ``(n,)`` fits outputs ``(n, 1)``.
        thresh: the probability above which a label is predicted. Default: 0.5.
        sigmoid: turn outputs into probabilities with a sigmoid first.
        ignore_index: labels of this value do not count. Default: -100.

    Raises:
        DataError: if the shapes differ, or targets that count are outside of [0, 1].

    >>> import torch
    >>> accuracy_thresh(torch.tensor([[2.0, -2.0], [2.0, -2.0]]), torch.tensor([[1, 0], [1, 1]]))
    tensor(0.7500)
    """
    outputs, targets = match_shapes(y_pred, y_true)
    probabilities = outputs.sigmoid() if sigmoid else outputs
    counted = is_counted(targets, ignore_index)
    correct = (probabilities > thresh) == binary_targets(targets, counted, ZERO_OR_ONE).bool()
    return (correct & counted).sum() / counted.sum().clamp(min=1)


@mark(higher_is_better=True, count=count_samples, loss_options=("ignore_index",))
def fbeta(
    y_pred: Tensor,
    y_true: Tensor,
    thresh: float = 0.2,
    beta: float = 2,
    eps: float = 1e-9,
    sigmoid: bool = True,
    ignore_index: int = -100,
) -> Tensor:
    """Return the mean over the samples of the F score of their labels; recall weighs ``beta`` times precision.

    As a metric of a learner, ``ignore_index`` is that of the loss, if it has one. A sample whose labels are all ignored
    does not count.

    Args:
        y_pred: outputs ``(n, labels)``, at least two labels.
        y_true: zeros and ones ``(n, labels)``.
        thresh: the probability above which a label is predicted. Default: 0.2.
        beta: the weight of recall. Default: 2.
        eps: makes the score of a sample without labels, predicted or true, 0.
        sigmoid: turn outputs into probabilities with a sigmoid first.
        ignore_index: labels of this value do not count. Default: -100.

    Raises:
        DataError: if the shapes differ, there is a single label, or targets that count are outside of [0, 1].

    >>> import torch
    >>> fbeta(torch.tensor([[2.0, 2.0, -2.0]]), torch.tensor([[1, 0, 0]]), beta=1)
    tensor(0.6667)
    """
    outputs, targets = match_shapes(y_pred, y_true)
    if outputs.ndim != 2 or outputs.shape[1] == 1:
        raise DataError(
            f"fbeta scores the labels of each sample and needs outputs (n, labels), got {tuple(y_pred.shape)}; for "
            f"two classes use FBeta()."
        )
    probabilities = outputs.sigmoid() if sigmoid else outputs
    counted = is_counted(targets, ignore_index)
    predicted = ((probabilities > thresh) & counted).float()
    actual = binary_targets(targets, counted, ZERO_OR_ONE).float()
    correct = (predicted * actual).sum(dim=1)
    weight = beta**2
    scores = (1 + weight) * correct / (weight * actual.sum(dim=1) + predicted.sum(dim=1) + eps)
    return _mean_of_samples(scores, counted)


@mark(higher_is_better=True, count=count_samples, loss_options=("thresh", "ignore_index"))
def dice(
    input: Tensor,
    targs: Tensor,
    iou: bool = False,
    eps: float = 1e-8,
    thresh: float = 0.0,
    ignore_index: int = -100,
) -> Tensor:
    """Return the mean over the samples of the Dice coefficient of a mask, or with ``iou`` of intersection over union.

    As a metric of a learner, ``thresh`` and ``ignore_index`` follow the loss, as those of ``accuracy`` do. A mask whose
    pixels are all ignored does not count.

    Args:
        input: outputs ``(n, 2, height, width)``, background and foreground; or a single logit per pixel,
            ``(n, 1, height, width)`` or in the shape of the targets.
        targs: zeros and ones ``(n, height, width)`` or ``(n, 1, height, width)``.
        iou: return intersection over union.
        eps: avoids a division by 0; two empty masks agree, which counts as 1.
        thresh: the single output above which a pixel is foreground. Default: 0, for logits.
        ignore_index: pixels of this value do not count. Default: -100.

    Raises:
        DataError: if outputs and targets are no masks of the same size, or targets that count are outside of [0, 1].

    >>> import torch
    >>> dice(torch.tensor([[[[0.0, 0.0]], [[1.0, 1.0]]]]), torch.tensor([[[1, 0]]]))
    tensor(0.6667)
    """
    check_tensors(input, targs)
    shape, size = tuple(input.shape), tuple(targs.shape)
    two_channels = input.ndim > 2 and shape[1] == 2 and size in ((shape[0], *shape[2:]), (shape[0], 1, *shape[2:]))
    if two_channels:
        predicted = input.argmax(dim=1)
    elif targs.ndim > 1 and targs.numel() > len(targs) and (shape[1:2] == (1,) or (shape == size and input.ndim < 4)):
        predicted = (match_shapes(input, targs)[0] > thresh).long()
    else:
        raise DataError(
            f"dice compares masks: outputs (n, 2, height, width) or (n, 1, height, width) and targets "
            f"(n, height, width), got {shape} and {size}; for classes use FBeta(beta=1)."
        )
    counted = is_counted(targs, ignore_index).flatten(1)
    reason = "dice is for masks of two classes, 0 and 1; for more classes use FBeta(beta=1, average='macro')."
    predicted, actual = predicted.flatten(1) * counted, binary_targets(targs.flatten(1), counted, reason)
    both, sizes = (predicted * actual).sum(dim=1).float(), (predicted + actual).sum(dim=1).float()
    scores = both / (sizes - both + eps) if iou else 2 * both / (sizes + eps)
    return _mean_of_samples(scores.masked_fill(sizes == 0, 1.0), counted)
