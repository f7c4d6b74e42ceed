"""Classification metrics that are averaged over the batches."""

from __future__ import annotations

from torch import Tensor


def accuracy(input: Tensor, targs: Tensor) -> Tensor:
    """Return the share of items whose highest output is the target.

    Args:
        input: outputs ``(n, ..., classes)``.
        targs: class numbers ``(n, ...)``.

    >>> import torch
    >>> accuracy(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))
    tensor(0.5000)
    """
    return (input.argmax(dim=-1) == targs.view(input.shape[:-1])).float().mean()


def error_rate(input: Tensor, targs: Tensor) -> Tensor:
    """Return 1 - accuracy.

    >>> import torch
    >>> error_rate(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))
    tensor(0.5000)
    """
    return 1 - accuracy(input, targs)


def top_k_accuracy(input: Tensor, targs: Tensor, k: int = 5) -> Tensor:
    """Return the share of items whose target is among the ``k`` highest outputs.

    Args:
        input: outputs ``(n, ..., classes)``.
        targs: class numbers ``(n, ...)``.
        k: from 1 to the number of classes.

    Raises:
        ValueError: there are fewer than ``k`` classes.

    >>> import torch
    >>> top_k_accuracy(torch.tensor([[0.1, 0.2, 0.7], [0.7, 0.2, 0.1]]), torch.tensor([1, 2]), k=2)
    tensor(0.5000)
    """
    if not 1 <= k <= input.shape[-1]:
        raise ValueError(f"k is {k}, but there are {input.shape[-1]} classes; say partial(top_k_accuracy, k=2).")
    best = input.topk(k, dim=-1).indices
    return (best == targs.view(*input.shape[:-1], 1)).any(dim=-1).float().mean()


def accuracy_thresh(y_pred: Tensor, y_true: Tensor, thresh: float = 0.5, sigmoid: bool = True) -> Tensor:
    """Return the share of labels that are right, where each item may have several.

    Args:
        y_pred: outputs ``(n, labels)``; ``sigmoid`` turns them into probabilities first.
        y_true: ones and zeros ``(n, labels)``.
        thresh: the probability from which a label is predicted.

    >>> import torch
    >>> accuracy_thresh(torch.tensor([[2.0, -2.0], [2.0, -2.0]]), torch.tensor([[1, 0], [1, 1]]))
    tensor(0.7500)
    """
    probabilities = y_pred.sigmoid() if sigmoid else y_pred
    return ((probabilities > thresh) == y_true.bool()).float().mean()


def fbeta(
    y_pred: Tensor, y_true: Tensor, thresh: float = 0.2, beta: float = 2, eps: float = 1e-9, sigmoid: bool = True
) -> Tensor:
    """Return the mean over the items of the F score of their labels, with recall weighted ``beta`` times precision.

    Args:
        y_pred: outputs ``(n, labels)``; ``sigmoid`` turns them into probabilities first.
        y_true: ones and zeros ``(n, labels)``.
        thresh: the probability from which a label is predicted.
        beta: the weight.
        eps: keeps the score of an item without labels, predicted or true, at 0.

    >>> import torch
    >>> fbeta(torch.tensor([[2.0, 2.0, -2.0]]), torch.tensor([[1, 0, 0]]), beta=1)
    tensor(0.6667)
    """
    probabilities = y_pred.sigmoid() if sigmoid else y_pred
    predicted, actual = (probabilities > thresh).float(), y_true.float()
    right = (predicted * actual).sum(dim=1)
    weight = beta**2
    return ((1 + weight) * right / (weight * actual.sum(dim=1) + predicted.sum(dim=1) + eps)).mean()


def dice(input: Tensor, targs: Tensor, iou: bool = False, eps: float = 1e-8) -> Tensor:
    """Return the mean over the items of the dice coefficient of a mask, or with ``iou`` of intersection over union.

    Args:
        input: outputs ``(n, 2, height, width)``: background, foreground.
        targs: zeros and ones ``(n, height, width)`` or ``(n, 1, height, width)``.
        eps: keeps divisions by 0 away; two empty masks agree, which counts as 1.

    >>> import torch
    >>> dice(torch.tensor([[[[0.0, 0.0]], [[1.0, 1.0]]]]), torch.tensor([[[1, 0]]]))
    tensor(0.6667)
    """
    predicted, actual = input.argmax(dim=1).flatten(1), targs.flatten(1)
    both, sizes = (predicted * actual).sum(dim=1).float(), (predicted + actual).sum(dim=1).float()
    shares = both / (sizes - both + eps) if iou else 2 * both / (sizes + eps)
    return shares.masked_fill(sizes == 0, 1.0).mean()
